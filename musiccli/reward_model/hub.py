"""A checkpoint on the Hugging Face hub: a private repository, made before the work and filled after it."""

from pathlib import Path

from musiccli.core.errors import InputError

KEPT_HERE = ["checkpoints/**", "trackers/**", ".*", ".*/**"]  # of a run's folder


def create_repository(repo: str) -> str:
    """Make the repository, private unless it is there already, so that a missing right is known now; its full name."""
    from huggingface_hub import HfApi, get_token

    if not get_token():
        raise InputError(
            f"--push-to-hub {repo}: nobody is logged in; run `hf auth login`, or set HF_TOKEN"
        )
    try:
        return HfApi().create_repo(repo, private=True, exist_ok=True).repo_id
    except Exception as error:  # the hub's and the network's errors have no base of their own
        raise InputError(f"--push-to-hub {repo}: {_reason(error)}") from error


def push(repo: str, folder: Path) -> str:
    """Upload the checkpoint, its log and its card; the address. Raises InputError where the hub does not take it."""
    from huggingface_hub import HfApi

    try:
        return (
            HfApi()
            .upload_folder(
                repo_id=repo,
                folder_path=folder,
                ignore_patterns=KEPT_HERE,
                commit_message="Reward model by musiccli",
            )
            .commit_url
        )
    except Exception as error:
        raise InputError(
            f"{folder} holds the whole reward model, but it is not on the hub: {_reason(error)}; the same "
            "line again pushes it"
        ) from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
