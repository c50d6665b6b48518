"""The program that applies chat templates, within bounds that the operating system keeps.

It reads requests from standard input and writes replies to standard output, one after another, and
ends with its input. It imports nothing of this package, and little of transformers: so it starts in
a tenth of a second. See template_limits.py for the other end.
"""

import contextlib
import importlib
import importlib.util
import logging
import os
import pickle
import resource
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

NUMBER_BYTES = 8  # of the size that comes before each request and reply
TEXT, REFUSED, LIMITED = b"T", b"R", b"L"  # the first byte of a reply: what its text is


def main() -> None:
    """Answer requests until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program that asks
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing else writes replies
    render = _transformers_utilities().render_jinja_template
    while size := requests.read(NUMBER_BYTES):
        # The other end is this package: what comes from there is no stranger's pickle.
        request = pickle.loads(requests.read(int.from_bytes(size, "big")))
        kind, text = _reply(render, **request)
        data = text.encode("utf-8", "surrogatepass")
        replies.write(kind + len(data).to_bytes(NUMBER_BYTES, "big") + data)
        replies.flush()


def _reply(
    render: Any,
    *,
    settings: dict[str, Any],
    seconds: float,
    memory: int,
    spare_text: int,
    text_per_input: int,
) -> tuple[bytes, str]:
    """The text that a template writes, or what is wrong with it.

    Args:
        render: transformers' function that renders a template.
        settings: its arguments.
        seconds: of CPU time, after which the system ends this process.
        memory: in bytes, beyond what this process has.
        spare_text: characters that a text may have, whatever the messages are.
        text_per_input: further characters for each of the messages.
    """
    _limit_memory(memory)
    signal.setitimer(signal.ITIMER_PROF, seconds)  # nobody handles SIGPROF, so it ends the process
    try:
        [text], _ = render(**settings)
    except MemoryError:
        return LIMITED, f"takes more than {memory >> 30} GB of memory"
    except Exception as error:  # templates raise whatever jinja raises
        return REFUSED, str(error) or type(error).__name__
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if len(text) > spare_text:  # most texts are short, and their messages are not measured
        size = len(repr(settings["conversations"])) + len(repr(settings["tools"]))
        if len(text) > spare_text + text_per_input * size:
            return LIMITED, f"writes {len(text):,} characters for {size:,} of messages"
    return TEXT, text


def _limit_memory(size: int) -> None:
    """Let allocations fail beyond a size. Only Linux tells how much a process has."""
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_bytes().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + size
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _transformers_utilities() -> Any:
    """transformers' module of chat templates, without the packages around it, which take seconds.

    Where its imports are others than they were, all of them are made.
    """
    spec = importlib.util.find_spec("transformers")
    assert spec and spec.submodule_search_locations
    root = spec.submodule_search_locations[0]
    stubs: dict[str, dict[str, Any]] = {
        "transformers": {"__path__": [root]},
        "transformers.utils": {"__path__": [str(Path(root, "utils"))]},
        "transformers.utils.logging": {"get_logger": logging.getLogger},
        "transformers.utils.import_utils": {
            "is_jinja_available": lambda: True,
            "is_torch_available": lambda: False,
            "is_vision_available": lambda: False,
        },
    }
    for name, attributes in stubs.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(attributes)
    name = "transformers.utils.chat_template_utils"
    try:
        return importlib.import_module(name)
    except (ImportError, AttributeError):
        for stub in [*stubs, name]:
            sys.modules.pop(stub, None)
        return importlib.import_module(name)


if __name__ == "__main__":
    main()
