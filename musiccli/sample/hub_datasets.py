"""The datasets of the Hugging Face hub that have short names."""

from typing import NamedTuple


class HubDataset(NamedTuple):
    """A dataset of the hub, or one folder, configuration or split of it."""

    path: str
    split: str | None = None
    revision: str | None = None  # a commit or branch; None is the newest state of the branch main
    folder: str | None = None
    config: str | None = None


PARQUET = "refs/convert/parquet"  # the hub's own branch, for datasets that main makes by a script

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
    "helpsteer2": HubDataset(
        "nvidia/HelpSteer2", "train", "990b2711a36180dd19d9c94b8627844866f8982a"
    ),
    "helpsteer2-preference": HubDataset(
        "nvidia/HelpSteer2", "train", "990b2711a36180dd19d9c94b8627844866f8982a", "preference"
    ),
    "helpsteer3": HubDataset(
        "nvidia/HelpSteer3",
        "train",
        "f6d145777bcbde96137596340fab89793acd1031",
        config="preference",
    ),
    "arena-33k": HubDataset(
        "lmsys/chatbot_arena_conversations", "train", "1b6335d42a1d2c7e34870c905d03ab964f7f2bd8"
    ),
    "arena-55k": HubDataset(
        "lmarena-ai/arena-human-preference-55k", "train", "18c298340948c0e7f7727399fd459cca6ce0ca6f"
    ),
    "arena-100k": HubDataset(
        "lmarena-ai/arena-human-preference-100k",
        "train",
        "72e85b3ddc9c81bf7b659d6b03d4126dfd8fb34a",
    ),
    "arena-140k": HubDataset(
        "lmarena-ai/arena-human-preference-140k",
        "train",
        "6322995ab34d7c2693e3f47dd13fa5caa0789a74",
    ),
    "comparia": HubDataset(
        "ministere-culture/comparia-votes", "train", "7a40bce496c1f2aa3be4001da85a49cb4743042b"
    ),
    "community-alignment": HubDataset(
        "facebook/community-alignment-dataset",
        "train",
        "97343c7f6399fcbea430ed0f37c1768281a78d56",
    ),
    "prism": HubDataset("HannahRoseKirk/prism-alignment", "train", config="conversations"),
    "oasst1": HubDataset(
        "OpenAssistant/oasst1", "train", "fdf72ae0827c1cda404aff25b6603abec9e3399b"
    ),
    "oasst2": HubDataset(
        "OpenAssistant/oasst2", "train", "179dd21fc55192153d94adb0e0ce8f69e222bf75"
    ),
    "nectar": HubDataset(
        "berkeley-nest/Nectar", "train", "3c6b4c47fa1cc38869f9f32dce1699f7abad8b06"
    ),
    "pku-saferlhf": HubDataset(
        "PKU-Alignment/PKU-SafeRLHF", "train", "9421ffafec3fa40a1f1a7d567b4d525079477ecb"
    ),
    "shp": HubDataset("stanfordnlp/SHP", "train", "e94b5f32602712d78ed494fe79105b1959396686"),
    "ultrafeedback-raw": HubDataset(
        "openbmb/UltraFeedback", "train", "40b436560ca83a8dba36114c22ab3c66e43f6d5e"
    ),
    "tulu3": HubDataset(
        "allenai/llama-3.1-tulu-3-8b-preference-mixture",
        "train",
        "9a0482f3e122a0449bafaa2d65908cc095c99638",
    ),
    "dolci": HubDataset("allenai/Dolci-Instruct-DPO", "train"),
    "wildfeedback": HubDataset("microsoft/WildFeedback", "train", config="wildfeedback"),
    "offsetbias": HubDataset("NCSOFT/offsetbias", "train"),
    "orca": HubDataset("Intel/orca_dpo_pairs", "train"),
    "webgpt": HubDataset("openai/webgpt_comparisons", "train", PARQUET, "default"),
    "summarize": HubDataset("openai/summarize_from_feedback", "train", PARQUET, "comparisons"),
    "rankjudge": HubDataset("Layer6/RankJudge", "train", config="pairs"),
    "judgebench": HubDataset("ScalerLab/JudgeBench", "gpt"),
    "multichallenge": HubDataset(
        "ScaleAI/MultiChallenge", "test", "670fd81f270314d0f8f82b34fcfe2187fd28f699"
    ),
    "ppe-human": HubDataset("lmarena-ai/PPE-Human-Preference-V1", "test"),
    "ppe-mmlu-pro": HubDataset("lmarena-ai/PPE-MMLU-Pro-Best-of-K", "train"),
    "ppe-math": HubDataset("lmarena-ai/PPE-MATH-Best-of-K", "train"),
    "ppe-gpqa": HubDataset(
        "lmarena-ai/PPE-GPQA-Best-of-K", "train", "b24236a5e93649b7875155c8669d1ecd1aff3112"
    ),
    "ppe-mbpp": HubDataset(
        "lmarena-ai/PPE-MBPP-Plus-Best-of-K", "train", "2c836ab374990dcc02e63eb2267bdf76b8b0b4c4"
    ),
    "ppe-ifeval": HubDataset(
        "lmarena-ai/PPE-IFEval-Best-of-K", "train", "402856dfce5784b449e6779cc172b918f732a3a1"
    ),
    "wildchat": HubDataset(
        "allenai/WildChat-1M", "train", "61bcb4cfb9d8848aa05361a3bb4f227fb0236f90"
    ),
    "lmsys-chat": HubDataset("lmsys/lmsys-chat-1m", "train"),
}
CONTAMINATED = "Skywork/Skywork-Reward-Preference-80K-v0.1"  # holds prompts of RewardBench
