"""The folder for what can be computed again: converted models, replies of calls, scores."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder $MUSIC_CACHE, or $XDG_CACHE_HOME/musiccli, or ~/.cache/musiccli."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("MUSIC_CACHE") or caches / "musiccli")
