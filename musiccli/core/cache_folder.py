"""The folder that holds what can be made again: converted models, finished calls, scores."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """MUSIC_CACHE, or musiccli under XDG_CACHE_HOME, or ~/.cache/musiccli."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("MUSIC_CACHE") or caches / "musiccli")
