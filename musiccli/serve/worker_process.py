"""The program of a worker: it computes the rows that `music serve` sends it, one after another.

It reads requests from standard input and writes replies to standard output, and ends with its
input. See workers.py for the other end.
"""

import contextlib
import os
import pickle
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from musiccli.core.errors import InputError, MusicError
from musiccli.core.processes import end_with_parent
from musiccli.reward_model import checkpoint
from musiccli.reward_model.chat_template import EncodedConversation
from musiccli.reward_model.network import RewardNetwork
from musiccli.serve.scoring import Rewards, keep_histories, score_all

NUMBER_BYTES = 8  # of the size that comes before each request and reply


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker must know before its first row.

    Attributes:
        models: the path of each model, and the identity that it had there, by its name.
        number: of this worker; 0 is the server itself. It chooses the GPU.
    """

    models: dict[str, tuple[str, str]]
    number: int


@dataclass(frozen=True)
class Row:
    """Conversations that are computed together.

    Attributes:
        model: the name of the model that computes them.
        conversations: their tokens, and where rewards are read.
        budget: the most tokens of one forward pass.
    """

    model: str
    conversations: Sequence[EncodedConversation]
    budget: int


class WorkerFault(Exception):
    """A fault of ours in a worker. The message is the name of its type, and holds no tokens."""


def main() -> None:
    """Load the models, then answer rows until the input ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the server first finishes what has come
    # Where the server is killed, this also ends while it loads or computes.
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing else writes replies
    networks: dict[str, RewardNetwork] = {}
    with contextlib.suppress(BrokenPipeError):
        while size := requests.read(NUMBER_BYTES):
            # The other end is this package: what comes from there is no stranger's pickle.
            request = pickle.loads(requests.read(int.from_bytes(size, "big")))
            replies.write(framed(_reply(request, networks)))
            replies.flush()


def framed(message: object) -> bytes:
    """A request or reply as it is sent."""
    data = pickle.dumps(message)
    return len(data).to_bytes(NUMBER_BYTES, "big") + data


def _reply(
    request: WorkerSettings | Row, networks: dict[str, RewardNetwork]
) -> list[Rewards] | Exception | None:
    """The rewards of a row, nothing once the models are loaded, or the error of either."""
    try:
        if isinstance(request, WorkerSettings):
            networks.update(_load(request))
            return None
        return score_row(networks, request)
    except MusicError as error:
        return error
    except Exception as error:  # the server names it to the clients of this row
        return WorkerFault(type(error).__name__)


def _load(settings: WorkerSettings) -> dict[str, RewardNetwork]:
    """The network of each model by its name, on the GPU of this worker where there is one."""
    if torch.cuda.is_available():
        torch.cuda.set_device(settings.number % torch.cuda.device_count())
    networks = {}
    for name, (path, identity) in settings.models.items():
        loaded = checkpoint.load(path)
        if loaded.identity != identity:
            raise InputError(f"{path}: has changed since the server loaded it; start that anew")
        keep_histories(loaded.network)
        networks[name] = loaded.network
    return networks


def score_row(networks: Mapping[str, RewardNetwork], row: Row) -> list[Rewards]:
    """The rewards of each conversation of a row.

    Raises:
        InputError: memory does not suffice.
    """
    return score_all(networks[row.model], row.conversations, row.budget)


if __name__ == "__main__":
    main()
