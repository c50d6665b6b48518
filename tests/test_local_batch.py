"""What a batch writes, with what it has read before and without: the tokens of a model that reads everything anew."""

import pytest
import torch
import toys
from transformers import AutoModelForCausalLM

from musiccli.cpu.threads import half_the_threads
from musiccli.llm.local.batch import Batch, Request, Row
from musiccli.llm.local.prefix_cache import PrefixCache, common_prefix

HISTORY = toys.draw(90, 0)
LONGER = [
    [
        [*HISTORY, *toys.draw(5, 1)],
        [*HISTORY[:40], *toys.draw(30, 2)],
        toys.draw(12, 3),
    ],  # one goes on, one is new
    [
        [*HISTORY, *toys.draw(5, 1), *toys.draw(40, 4)],
        HISTORY[:60],
        HISTORY,
    ],  # one is all there already
]


class Counting(Batch):
    """Counts the tokens that it hands to the model."""

    read = 0

    def _forward(self, tokens, *rest):
        self.read += tokens.numel()
        return super()._forward(tokens, *rest)


@pytest.fixture(scope="module", params=["llama", "gemma3", "mistral"])
def model(request, tmp_path_factory):
    folder = toys.backbone(tmp_path_factory.mktemp("chat") / request.param, request.param)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = -1
    return model


def answers(batch: Batch, prompts: list[list[int]], size: int = 6) -> list[list[int]]:
    rows = [Row(Request("", size), ids) for ids in prompts]
    done = batch.join(rows)
    while batch.rows:
        done += batch.step()
    assert {*done} == {*rows}
    return [row.written for row in rows]


def alone(model, ids: list[int], size: int = 6) -> list[int]:
    """Greedily, the whole text read anew for every token."""
    written: list[int] = []
    with torch.inference_mode():
        for _ in range(size):
            written.append(
                int(model(torch.tensor([[*ids, *written]]), use_cache=False).logits[0, -1].argmax())
            )
    return written


@pytest.mark.slow
def test_what_was_read_before_changes_no_answer_and_is_not_read_again(model):
    batch = Counting(model, None)
    assert answers(batch, [HISTORY, HISTORY[:8]]) == [
        alone(model, HISTORY),
        alone(model, HISTORY[:8]),
    ]
    for prompts in LONGER:
        assert answers(batch, prompts) == [alone(model, ids) for ids in prompts]
    batch.read = 0
    answers(batch, [[*LONGER[1][0], *toys.draw(7, 5)]], size=1)
    assert batch.read == 7


def test_a_prompt_that_is_all_there_reads_its_last_token_for_what_follows(model):
    batch = Counting(model, None)
    first = answers(batch, [HISTORY], size=3)
    batch.read = 0
    assert answers(batch, [HISTORY], size=3) == first
    assert batch.read == 3


def test_prompts_are_read_with_all_threads_and_answers_written_with_half_of_them(model):
    class Recording(Batch):
        threads: list[int]

        def _forward(self, *arguments):
            self.threads.append(torch.get_num_threads())
            return super()._forward(*arguments)

    before = torch.get_num_threads()
    batch = Recording(model, None)
    try:
        for threads, expected in ((4, [4, 2, 2]), (3, [3, 1, 1]), (1, [1, 1, 1])):
            torch.set_num_threads(threads)
            batch.threads = []
            answers(batch, [HISTORY[:8]], size=3)
            assert (batch.threads, torch.get_num_threads()) == (expected, threads)
    finally:
        torch.set_num_threads(before)


def test_an_error_leaves_the_threads_as_they_were():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        with pytest.raises(ValueError), half_the_threads():
            raise ValueError
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def kept(ids: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.zeros(1, len(ids), 2), torch.zeros(1, len(ids), 2))]


def test_the_longest_beginning_is_found():
    prefixes = PrefixCache()
    for ids in ([1, 2, 3, 4], [1, 2, 9], [5]):
        prefixes.store(ids, kept(ids))
    assert [
        prefixes.longest_prefix(ids)[0] for ids in ([1, 2, 3, 7], [1, 2, 9, 9, 9], [1, 3], [6], [])
    ] == [
        3,
        3,
        1,
        0,
        0,
    ]


def test_what_goes_on_from_a_text_takes_its_place_and_the_least_used_goes_first():
    prefixes = PrefixCache(limit=16 * 7)  # of seven tokens
    for ids in ([1, 2], [1, 2, 3], [4, 5]):
        prefixes.store(ids, kept(ids))
    assert prefixes.size == 16 * 5
    prefixes.longest_prefix([1, 2, 3])
    prefixes.store([6, 7, 8], kept([6, 7, 8]))
    assert [prefixes.longest_prefix([first])[0] for first in (1, 4, 6)] == [1, 0, 1]
    assert prefixes.size == 16 * 6


def test_common_prefix():
    assert [common_prefix(*both) for both in (([], [1]), ([1, 2], [1, 2, 3]), ([1, 2], [2]))] == [
        0,
        2,
        0,
    ]
