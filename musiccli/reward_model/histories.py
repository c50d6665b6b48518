"""Keys and values of conversations that were computed lately, for those that begin alike."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from musiccli.cpu.memory import copy_to_own_pages
from musiccli.reward_model.chat_template import EncodedConversation
from musiccli.reward_model.packing import (
    MIN_SHARED_TOKENS,
    Beginning,
    History,
    common_prefix,
    shared_prefix,
)

MAX_HISTORIES = 256  # each group of a row is compared with all


@dataclass
class HistoryCache:
    """The conversations of the last forward passes of one network.

    Of those that have more than half in common only the newest is kept.

    Attributes:
        max_tokens: the most tokens whose keys and values are kept.
    """

    max_tokens: int
    _histories: list[History] = field(default_factory=list)  # the one used last at the end

    def beginning(self, group: Sequence[EncodedConversation]) -> Beginning:
        """What need not be computed of a group of a row, since it was before.

        It ends before the first reward, whose hidden state is needed.
        """
        shared = shared_prefix([conversation.ids for conversation in group])
        limit = min(conversation.reward_positions[0] for conversation in group)
        ids = group[0].ids[: min(limit, shared) if len(group) > 1 else limit]
        length, history = max(
            ((common_prefix(history.ids, ids), history) for history in self._histories),
            key=lambda pair: pair[0],
            default=(0, None),
        )
        whole = group[0].ids
        recorded = History(whole) if len(whole) <= self.max_tokens else None
        if history is None or length < MIN_SHARED_TOKENS:
            return Beginning(recorded=recorded)
        self._histories.remove(history)
        self._histories.append(history)
        return Beginning(history, length, recorded)

    def add(self, history: History) -> None:
        """Keep a history that was computed, and forget those that it replaces.

        Raises:
            MemoryError: there is no memory for it.
        """
        _move_to_own_pages(history)
        self._histories = [
            earlier
            for earlier in self._histories
            if common_prefix(earlier.ids, history.ids) * 2 <= len(earlier.ids)
        ]
        self._histories.append(history)
        del self._histories[:-MAX_HISTORIES]
        while sum(len(history.ids) for history in self._histories) > self.max_tokens:
            self._histories.pop(0)


def _move_to_own_pages(history: History) -> None:
    """Move keys and values on a CPU out of the heap, where they would lie between those of passes.

    A history is freed long after the pass that computed it. In the heap it leaves gaps that the
    next passes do not fill, and a server grows.
    """
    tensors = [tensor for pair in history.layers.values() for tensor in pair]
    if tensors and all(tensor.device.type == "cpu" for tensor in tensors):
        copies = iter(copy_to_own_pages(tensors))
        history.layers = dict(zip(history.layers, zip(copies, copies, strict=True), strict=True))
