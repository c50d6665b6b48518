"""A checkpoint on the Hugging Face hub, in a private repository."""

from pathlib import Path

from musiccli.core.errors import InputError

IGNORED_PATTERNS = ["checkpoints/**", "trackers/**", ".*", ".*/**"]  # of a run's folder


def refuse_without_login(repo: str) -> None:
    """Raise InputError where nobody is logged in at the hub."""
    from huggingface_hub import get_token

    if not get_token():
        raise InputError(
            f"`push_to_hub` {repo}: nobody is logged in; run `hf auth login`, or set HF_TOKEN"
        )


def create_repository(repo: str) -> str:
    """Create the repository, private unless it exists, and return its full name.

    Done before training, so that a missing right is known at once.

    Raises:
        InputError: nobody is logged in, or the hub refuses.
    """
    from huggingface_hub import HfApi

    refuse_without_login(repo)
    try:
        return HfApi().create_repo(repo, private=True, exist_ok=True).repo_id
    except Exception as error:  # the hub's and the network's errors have no common base
        raise InputError(f"`push_to_hub` {repo}: {_reason(error)}") from error


def push(repo: str, folder: Path) -> str:
    """Upload a run's checkpoint, log and card, and return the commit's address.

    Raises:
        InputError: the hub does not take them.
    """
    from huggingface_hub import HfApi

    try:
        commit = HfApi().upload_folder(
            repo_id=repo,
            folder_path=folder,
            ignore_patterns=IGNORED_PATTERNS,
            commit_message="Reward model by musiccli",
        )
    except Exception as error:
        raise InputError(
            f"{folder} holds the whole reward model, but it is not on the hub: {_reason(error)}; "
            "the same line again pushes it"
        ) from error
    return commit.commit_url


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
