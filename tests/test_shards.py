"""Shards: what several machines make of parts of one input, joined, is what one makes of all of it."""

import json
import re
from itertools import chain

import pytest
from build import talk
from console import music
from openai_server import serve
from scripted import jsonl, scripted_reply

from musiccli.core.errors import InputError
from musiccli.core.jsonl import Line, Shard, parse_shard

MODEL = "hosted_vllm/scripted"


def lines_of(*numbers: int) -> bytes:
    return b"".join(b'{"n":%d}\n' % number for number in numbers)


@pytest.fixture
def files(tmp_path):
    """Ten lines in two files; the second one has a blank line."""
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    first.write_bytes(lines_of(0, 1, 2))
    second.write_bytes(lines_of(3) + b"\n" + lines_of(*range(4, 10)))
    return [str(first), str(second)]


@pytest.mark.parametrize("total", [1, 2, 3, 7, 10, 25])
@pytest.mark.parametrize("block", [1, 4, 100])
def test_the_shards_are_the_whole_input_in_order(files, total, block):
    whole = list(Shard(1, 1).lines(files))
    shards = [list(Shard(number, total).lines(files, block)) for number in range(1, total + 1)]
    assert list(chain.from_iterable(shards)) == whole and len(whole) == 10
    assert whole[3:5] == [Line(f"{files[1]}:1", b'{"n":3}\n'), Line(f"{files[1]}:3", b'{"n":4}\n')]
    sizes = [len(shard) for shard in shards]
    assert block > 1 or max(sizes) - min(sizes) <= 1
    assert all(sum(sizes[:end]) % block == 0 for end in range(total) if sum(sizes[:end]) < 10)


@pytest.mark.parametrize(
    "text", ["0/3", "4/3", "1", "1/0", "-1/3", "1/2/3", "a/b", "1.5/3", " 1/3"]
)
def test_what_names_no_shard_is_refused(text):
    with pytest.raises(InputError, match=f"`shard` {re.escape(text)}: expected K/N"):
        parse_shard(text)


def seeds(count: int) -> str:
    return jsonl(
        {"id": number, "messages": talk(f"What is number {number} good for?")}
        for number in range(count)
    )


@pytest.fixture
def simulate(tmp_path):
    """Runs simulate on seven seeds, as a file or a pipe, with a cache of its own for each shard."""
    (tmp_path / "seeds.jsonl").write_text(seeds(7))
    with serve(reply=scripted_reply) as server:

        def run(*options: str, pipe: bool = False):
            name = "-".join(options).replace("/", "of") or "whole"
            line = ["simulate", "--assistant", MODEL, "--api-base", server.base_url, *options]
            line += ["--turns", 2, "--samples", 2, "--cache", tmp_path / f"{name}.sqlite"]
            given = (tmp_path / "seeds.jsonl").read_bytes()
            return music(*line, given=given) if pipe else music(*line, tmp_path / "seeds.jsonl")

        yield run


@pytest.mark.parametrize("pipe", [False, True])
def test_outputs_of_shards_joined_are_the_output_of_the_whole_run(simulate, pipe):
    whole = simulate()
    shards = [simulate("--shard", f"{number}/3", pipe=pipe) for number in (1, 2, 3)]
    assert [shard.status for shard in (whole, *shards)] == [0] * 4
    assert b"".join(shard.out for shard in shards) == whole.out
    assert [len(shard.records) for shard in shards] == [8, 8, 12]


def test_a_shard_without_a_record_is_an_empty_output_and_no_failure(simulate):
    done = simulate("--shard", "1/8")
    assert (done.status, done.out) == (0, b"") and "0 records written" in done.err


def test_a_bad_record_is_named_by_its_line_in_the_whole_file(tmp_path, simulate):
    with (tmp_path / "seeds.jsonl").open("a") as file:
        file.write("{}\n")
    assert simulate("--shard", "1/2").status == 0
    done = simulate("--shard", "2/2")
    assert done.status == 2 and f"{tmp_path}/seeds.jsonl:8: " in done.err


def test_the_ledgers_of_the_shards_add_up_to_that_of_the_whole_run(tmp_path, simulate):
    simulate(), simulate("--shard", "1/2"), simulate("--shard", "2/2")
    parts = [argument for k in "12" for argument in ("--add", tmp_path / f"--shard-{k}of2.sqlite")]
    joined = music("cache", "--runs", "--cache", tmp_path / "joined.sqlite", *parts)
    whole = music("cache", "--runs", "--cache", tmp_path / "whole.sqlite")
    numbers = ("calls", "cached", "retries", "prompt_tokens", "completion_tokens")

    def total(records: list[dict]) -> dict:
        return {
            (record["role"], name): sum(r[name] for r in records if r["role"] == record["role"])
            for record in records
            for name in numbers
        }

    assert total(joined.records) == total(whole.records)
    assert {record["command"] for record in joined.records} == {"simulate 1/2", "simulate 2/2"}
    again = music(
        *("simulate", tmp_path / "seeds.jsonl", "--assistant", MODEL, "--turns", 2, "--samples", 2),
        *("--api-base", "http://127.0.0.1:9/v1", "--cache", tmp_path / "joined.sqlite"),
    )
    assert again.status == 0 and len(again.records) == 28  # every call is in the joined cache


@pytest.mark.slow
def test_judge_works_on_a_shard(tmp_path):
    pairs = [
        {"id": number, "a": talk("Why?", f"So {number}."), "b": talk("Why?", f"Thus {number}.")}
        for number in range(5)
    ]
    (tmp_path / "pairs.jsonl").write_text(jsonl(pairs))
    with serve(reply=scripted_reply) as server:
        line = ["judge", tmp_path / "pairs.jsonl", "--judge", MODEL, "--api-base", server.base_url]
        whole, *shards = (
            music(*line, "--no-cache", *shard)
            for shard in ((), ("--shard", "1/2"), ("--shard", "2/2"))
        )
    assert b"".join(shard.out for shard in shards) == whole.out
    assert [json.loads(line)["id"] for line in shards[0].out.splitlines()] == [0, 1]
