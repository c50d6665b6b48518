"""The datasets of the Hugging Face hub that have short names."""

from typing import NamedTuple


class HubDataset(NamedTuple):
    """A dataset of the hub, or one folder, configuration or split of it."""

    path: str
    split: str | None = None
    revision: str | None = None  # a commit; None is the newest state of the branch main
    folder: str | None = None
    config: str | None = None


SHORT_NAMES = {
    "skywork": HubDataset(
        "Skywork/Skywork-Reward-Preference-80K-v0.2",
        "train",
        "196326738b67b9c3e6aa6829cab639d8401ad385",
    ),
    "ultrafeedback": HubDataset(
        "HuggingFaceH4/ultrafeedback_binarized",
        "train_prefs",
        "3949bf5f8c17c394422ccfab0c31ea9c20bdeb85",
    ),
    "ultrainteract": HubDataset(
        "openbmb/UltraInteract_pair", "train", "3692843c72c3a297c7914cdf76c0ffce5e38a234"
    ),
    "hh": HubDataset("Anthropic/hh-rlhf", "train", "09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa"),
    "hh-helpful": HubDataset(
        "Anthropic/hh-rlhf", "train", "09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa", "helpful-base"
    ),
    "hh-harmless": HubDataset(
        "Anthropic/hh-rlhf", "train", "09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa", "harmless-base"
    ),
    "rewardbench": HubDataset(
        "allenai/reward-bench", "filtered", "168d848cdbbea9764fae4a544dc9ca1e6cca4931"
    ),
    "rewardbench2": HubDataset(
        "allenai/reward-bench-2", "test", "7ff08853b0d5686e79b13fda8677024f566a104a"
    ),
    "mt-bench-human": HubDataset(
        "lmsys/mt_bench_human_judgments", "human", "f7d2896d2cc5d80f8b55c2bbc722613555233c25"
    ),
}
CONTAMINATED = "Skywork/Skywork-Reward-Preference-80K-v0.1"  # holds prompts of RewardBench
