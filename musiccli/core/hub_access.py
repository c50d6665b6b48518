"""Whether the Hugging Face hub answers, and what of it lies in the cache of this machine.

Its libraries try for half a minute a file before they take the cache. So it is asked once.
"""

import os
import re
import sys
import time
from functools import cache

TIMEOUT = 5.0  # seconds
ATTEMPTS = 2


def hub_name() -> str:
    """The address of the hub."""
    from huggingface_hub import constants

    return constants.ENDPOINT


@cache
def hub_problem() -> str | None:
    """Why the hub cannot be reached, or None where it answers.

    Where it cannot, its libraries take from here on what the cache holds, at once and without
    asking, in this process and in those that it starts.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    for attempt in range(ATTEMPTS):
        time.sleep(attempt)
        try:
            get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
            return None
        except Exception as error:  # of the library that carries the requests, which may change
            problem = re.sub(r"\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True
    return problem


def is_in_hub_cache(name: str) -> bool:
    """Whether something of a model on the hub was downloaded to this machine before."""
    from huggingface_hub import constants

    folder = "--".join(["models", *name.split("/")])
    return os.path.isdir(os.path.join(constants.HF_HUB_CACHE, folder, "snapshots"))
