"""Two steps of TRL's GRPOTrainer with a reward model: python grpo.py POLICY RM_OR_ADDRESS

RM_OR_ADDRESS is a reward model's folder, or the address of `music serve`. It needs TRL 1.16.
"""

import sys

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from musiccli import RewardFunction


def main(policy: str, model: str) -> None:
    """Train for two steps, and print the mean reward of each."""
    prompts = [[{"role": "user", "content": f"What is {n} + {n}?"}] for n in range(8)]
    config = GRPOConfig(
        output_dir="grpo",
        max_steps=2,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=12,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
    )
    trainer = GRPOTrainer(
        model=policy,
        reward_funcs=RewardFunction(model),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
    )
    trainer.train()
    print(*(log["reward"] for log in trainer.state.log_history if "reward" in log))


if __name__ == "__main__":
    main(*sys.argv[1:])
