"""Conversations that begin like earlier ones get the rewards of a network that computes all anew."""

import ctypes
import mmap
import subprocess
import sys

import pytest
import torch
from toys import FAMILIES, backbone, draw, sequence

from musiccli.reward_model import checkpoint
from musiccli.reward_model.histories import MAX_HISTORIES, HistoryCache
from musiccli.reward_model.packing import Beginning, History

CLOSE = {"atol": 1e-5, "rtol": 1e-4}
HISTORY = draw(40, 1)  # more tokens than the window


@pytest.fixture(scope="module", params=FAMILIES)
def network(request, tmp_path_factory):
    base = backbone(tmp_path_factory.mktemp(request.param), request.param)
    return checkpoint.create(str(base)).network.eval()


def passes():
    """The groups of one forward pass after another."""
    reply = [sequence(HISTORY + draw(size, size)) for size in range(2, 9)]
    longer = [sequence(reply[2].ids + draw(11, 20 + number)) for number in range(2)]
    return [
        [[reply[0]]],
        [[reply[1]]],  # shares the history with an earlier pass
        [[sequence(draw(30, 9))], reply[2:5]],  # so does a group
        [longer, [reply[5]]],  # a later turn, and another reply to the first
        [[sequence(HISTORY + draw(9, 30), 5, 44, 48)]],  # read within the history, too
        [[reply[6]], [sequence(draw(30, 9))]],
    ]


def rewards_and_tokens(network):
    """All rewards, and how many tokens each forward pass computed."""
    tokens = []
    embedding = network.backbone.get_input_embeddings()
    hook = embedding.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0].numel()))
    with torch.inference_mode():
        rewards = torch.cat([values for groups in passes() for values in network(groups)])
    hook.remove()
    return rewards, tokens


def test_rewards_are_those_of_a_network_that_computes_all_anew(network):
    expected, whole = rewards_and_tokens(network)
    network.keep_histories(1 << 30)
    rewards, tokens = rewards_and_tokens(network)
    network.histories = None
    torch.testing.assert_close(rewards, expected, **CLOSE)
    assert whole == [42, 43, 30 + 40 + 4 + 5 + 6, 44 + 22 + 47, 49, 48 + 30]
    # 40 tokens are the history, 44 with the reply to it; of a whole conversation its last is left.
    assert tokens == [42, 3, 30 + 4 + 5 + 6, 22 + 7, 49, 8 + 1]


def test_a_history_is_no_longer_than_what_comes_before_the_first_reward():
    cache = HistoryCache(1000)
    cache.add(History(HISTORY))
    for positions, length in (((39, 44), 39), ((44,), 40), ((20, 44), 20), ((15, 44), 0)):
        group = [sequence(HISTORY + draw(5, 2), *positions)]
        assert cache.beginning(group).length == length
    pair = [sequence(HISTORY[:30] + draw(5, seed)) for seed in (3, 4)]
    assert cache.beginning(pair).length == 30
    assert cache.beginning([sequence(draw(9, 5)), sequence(draw(9, 6))]).length == 0


def test_the_newest_of_those_that_begin_alike_is_kept_and_the_longest_unused_are_dropped():
    cache = HistoryCache(100)
    first, second, third = (History(draw(size, size)) for size in (50, 41, 52))
    cache.add(first)
    cache.add(second)
    assert cache.beginning([sequence(first.ids + draw(2, 2))]).history is first
    cache.add(third)  # too much for all: the second was not used since
    assert cache._histories == [third]
    cache = HistoryCache(100)
    cache.add(first)
    later = History(first.ids[:40] + draw(5, 3))
    cache.add(later)
    assert cache._histories == [later]


def test_so_many_histories_are_kept_and_no_more():
    cache = HistoryCache(1 << 20)
    for number in range(MAX_HISTORIES + 1):
        cache.add(History([number, *draw(20, 1)]))
    assert [history.ids[0] for history in cache._histories] == list(range(1, MAX_HISTORIES + 1))


def test_a_conversation_that_is_too_long_is_not_recorded():
    assert HistoryCache(30).beginning([sequence(draw(31, 1))]) == Beginning()
    assert HistoryCache(31).beginning([sequence(draw(31, 1))]).recorded is not None


def test_what_is_kept_lies_in_pages_of_its_own(network):
    """They return to the system with it, and it leaves no gap between the tensors of passes."""
    network.keep_histories(1 << 30)
    rewards_and_tokens(network)
    kept, network.histories = network.histories._histories, None
    assert kept
    blocks = set()
    for history in kept:
        tensors = [tensor for pair in history.layers.values() for tensor in pair]
        [block] = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        blocks.add(block)
        assert block % mmap.PAGESIZE == 0
        assert all(tensor.data_ptr() % 64 == 0 for tensor in tensors)
    assert len(blocks) == len(kept)


PASSES = """
import ctypes, random, torch
from musiccli.cpu.memory import retain_freed_memory
from musiccli.reward_model.histories import HistoryCache
from musiccli.reward_model.packing import History

class Counts(ctypes.Structure):  # glibc's struct mallinfo2
    _fields_ = [(f"f{number}", ctypes.c_size_t) for number in range(10)]

def heap():  # its bytes, without those that nothing has lain in yet
    counts = mallinfo2()
    return counts.f0 - counts.f9

mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Counts
retain_freed_memory()
torch.set_num_threads(1)
draw, cache, before = random.Random(0), HistoryCache(1 << 20), heap()
for number in range(600):
    size = draw.randrange(20, 400)
    history = History([number] * size)
    for layer in range(4):
        scores = torch.empty(size, size // 4)
        history.layers[layer] = (torch.empty(2, size, 32), torch.empty(2, size, 32))
        hidden = torch.empty(size, 256)
    cache.add(history)
print(len(cache._histories), heap() - before)
"""


@pytest.mark.slow
def test_a_heap_grows_to_what_passes_take_whatever_is_kept():
    """Those that are kept hold 110 MB, and a pass takes some 5 MB."""
    if not hasattr(ctypes.CDLL(None), "mallinfo2"):
        pytest.skip("this C library does not say what is used")
    done = subprocess.run(
        [sys.executable, "-c", PASSES], capture_output=True, text=True, check=True
    )
    kept, grown = map(int, done.stdout.split())
    assert kept == MAX_HISTORIES
    assert grown < 64 << 20


def test_rotations_that_depend_on_the_row_and_padding_keep_nothing(tmp_path):
    network = checkpoint.create(str(backbone(tmp_path / "llama", "llama"))).network
    network.keep_histories(1 << 20)
    assert network.histories.max_tokens > 100
    rotation = next(module for module in network.backbone.modules() if hasattr(module, "rope_type"))
    network.histories, network.packed = None, False
    network.keep_histories(1 << 20)
    network.packed, rotation.rope_type = True, "longrope"
    network.keep_histories(1 << 20)
    assert network.histories is None
