"""`music bench` as it is typed: metrics on stdout, all else on stderr, errors in one line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import console
import preloaded
import pytest
from build import lines, scored_pair, votes

import musiccli.bench
from musiccli.bench.rewardbench import PAIRS
from musiccli.cli.bench import benchmark_commands

DATA = Path(__file__).parents[2] / "shared" / "data"
SUBSETS = {
    "Natural": "llmbar-natural",
    "Neighbor": "llmbar-adver-neighbor",
    "GPTInst": "llmbar-adver-GPTInst",
    "GPTOut": "llmbar-adver-GPTOut",
    "Manual": "llmbar-adver-manual",
}


def music(*arguments, records=(), env=None):
    """Run `music bench` on records from standard input."""
    given = "".join(json.dumps(record) + "\n" for record in records)
    env = env or {}
    start = console.COMMAND if "PYTHONHASHSEED" in env else preloaded.command()
    return subprocess.run(
        [*start, "bench", *map(str, arguments)],
        input=given,
        capture_output=True,
        text=True,
        env=os.environ | env,
    )


def rows(done):
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def contest(number, winner, size):
    return {
        "id": f"p{number}",
        "best_of": size,
        "winner": winner,
        "models": {"a": "new", "b": "old"},
        **{
            side: [
                {"role": "user", "content": f"prompt {number}"},
                {"role": "assistant", "content": side},
            ]
            for side in "ab"
        },
    }


@pytest.mark.slow
def test_agreement_from_a_pipe_is_metrics_on_stdout_and_a_table_on_stderr():
    done = music(
        "agreement",
        "--by",
        "turns",
        records=[
            scored_pair(0, 1, 0),
            scored_pair(1, 0, 1),
            scored_pair(2, 1, 1),
            scored_pair(3, 2, 1),
        ],
    )
    first, *others = rows(done)
    assert re.fullmatch("[0-9a-f]{16}", data := first.pop("data"))
    assert {row["data"] for row in others} == {data}
    assert first | {"low": 0, "high": 0} == {
        "benchmark": "agreement",
        "model": "rm",
        "subset": "all",
        "metric": "accuracy",
        "value": 0.5,
        "low": 0,
        "high": 0,
        "count": 4,
        "ties": 1,
    }
    lines = [line.split() for line in done.stderr.splitlines()]
    assert ["all", "4", "50.0", "[15.0,", "85.0]", "longest", "100.0"] in lines
    assert "music bench agreement: tied scores, counted as wrong: rm 1" in done.stderr
    assert "music bench agreement: 19 records written in" in done.stderr


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes():
    contests = [
        contest(number, "ab"[number % (size + 1) == 0], size)
        for number in range(50)
        for size in (2, 4)
    ]
    once, again, other = (
        music("winrate", "--seed", seed, "--bootstrap", "100", records=contests).stdout
        for seed in (1, 1, 2)
    )
    assert once == again != other


@pytest.mark.slow
@pytest.mark.parametrize(
    "command, options, records",
    [
        (
            "agreement",
            ["--by", "part"],
            [
                scored_pair(number * number % 61, number * 7 % 11 / 11, 0.4)
                | {"id": number, "part": number % 9}
                for number in range(200)
            ],
        ),
        (
            "winrate",
            [],
            [
                contest(number, ("a", "b", "tie")[number * number % 7 % 3], size)
                for number in range(20)
                for size in (2, 4)
            ],
        ),
    ],
)
def test_every_process_gives_the_same_bytes(command, options, records):
    """Python salts `hash` anew in each; clusters summed in its order round in another way."""
    found = {
        music(
            command,
            *options,
            "--bootstrap",
            "100",
            records=records,
            env={"PYTHONHASHSEED": str(salt)},
        ).stdout
        for salt in range(4)
    }
    assert len(found) == 1 and "" not in found


@pytest.mark.slow
def test_wider_confidence_gives_wider_intervals():
    contests = [contest(number, "ab"[number % 3 == 0], 2) for number in range(50)]
    [narrow], [wide] = (
        rows(music("winrate", "--confidence", level, records=contests)) for level in (0.8, 0.99)
    )
    assert wide["low"] < narrow["low"] < narrow["value"] < narrow["high"] < wide["high"]


@pytest.mark.slow
def test_a_partial_rewardbench_says_so():
    done = music(
        "rewardbench", records=[scored_pair(number, 1, 0, subset="hep-go") for number in range(8)]
    )
    assert "Reasoning (partial)" in done.stderr
    assert "Average" not in done.stderr
    assert (
        "music bench rewardbench: partial: not RewardBench's figures; other rows than its own in "
        "math-prm (0 of 447), hep-cpp (0 of 164), hep-go (8 of 164) and 4 more"
    ) in done.stderr


@pytest.mark.slow
def test_left_out_labels_are_counted_in_the_last_line():
    records = [
        scored_pair(0, 1, 0, winner="tie"),
        scored_pair(1, 1, 0, winner=None),
        scored_pair(2, 1, 0),
    ]
    last = music("agreement", records=records).stderr.splitlines()[-1]
    assert last.endswith("1 left out (label is a tie); 1 left out (label is null)")


@pytest.mark.slow
@pytest.mark.parametrize(
    "command, records, message",
    [
        (
            "agreement",
            [{key: value for key, value in scored_pair(0, 1, 0).items() if key != "scores"}],
            "<stdin>:1: has no scores; run music score first",
        ),
        (
            "rewardbench",
            [scored_pair(0, 1, 0)],
            "<stdin>:1: metadata.subset: is missing; RewardBench's records name theirs, as "
            "music sample writes them",
        ),
        ("winrate", [scored_pair(0, 1, 0)], "<stdin>:1: winner: is missing; music judge adds it"),
        (
            "winrate",
            [],
            "<stdin>: is empty; expected JSONL, one record a line; did the command before it fail?",
        ),
    ],
)
def test_what_cannot_be_counted_is_one_line_and_status_2(command, records, message):
    done = music(command, records=records)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"music bench {command}: error: {message}\n"


@pytest.mark.slow
def test_bad_records_can_be_skipped_and_are_counted():
    done = music(
        "agreement",
        "--on-error",
        "skip",
        records=[scored_pair(0, 1, 0), {"id": "x"}, scored_pair(1, None, 0)],
    )
    assert done.returncode == 1
    assert json.loads(done.stdout.splitlines()[0])["count"] == 1
    assert done.stderr.splitlines()[-1].endswith("; 2 failed")


PLOTTED = [
    (
        "rewardbench",
        [
            scored_pair(subset + number, int(number), 1, subset=subset)
            for subset in PAIRS
            for number in "0123"
        ],
    ),
    ("rewardbench", [scored_pair(0, 1, 0, subset="shp")]),
    ("agreement", [scored_pair(number, number % 3, 1) for number in range(9)]),
    (
        "winrate",
        [contest(number, "ab"[number % 2], size) for number in range(9) for size in (2, 4)],
    ),
    ("winrate", [contest(0, "a", 2)]),
    ("winrate", [contest(0, None, 2)]),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command, records, suffix, start",
    [
        *((*plotted, "png", b"\x89PNG") for plotted in PLOTTED),
        (*PLOTTED[-1], "svg", b"<?xml"),
        (*PLOTTED[-1], "pdf", b"%PDF"),
    ],
)
def test_plot_draws_every_benchmark(tmp_path, command, records, suffix, start):
    pytest.importorskip("matplotlib")
    target = tmp_path / f"figure.{suffix}"
    rows(music(command, "--plot", target, records=records))
    assert target.read_bytes().startswith(start)
    assert os.listdir(tmp_path) == [target.name]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, problem",
    [
        ("figure.bmp", "expected a file that ends in .png, .svg, .pdf"),
        ("nowhere/figure.png", "there is no such folder"),
    ],
)
def test_a_plot_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path, name, problem):
    (tmp_path / "bad.jsonl").write_text("no JSON")
    done = music("winrate", "--plot", name, tmp_path / "bad.jsonl")
    assert (done.returncode, done.stderr) == (
        2,
        f"music bench winrate: error: --plot {name}: {problem}\n",
    )


@pytest.mark.slow
def test_plot_without_matplotlib_says_what_to_install(tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError")
    done = music(
        "winrate",
        "--plot",
        "figure.png",
        records=[contest(0, "a", 2)],
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert (done.returncode, done.stderr) == (
        2,
        'music bench winrate: error: --plot needs matplotlib; pip install "musiccli[plot]"\n',
    )


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "llmbar").is_dir(), reason="needs ../shared/data/llmbar")
def test_on_llmbar_the_shorter_reply_is_the_better_guess():
    records = []
    for name, subset in SUBSETS.items():
        for number, row in enumerate(json.loads((DATA / "llmbar" / f"{name}.json").read_text())):
            better, worse = (row["output_1"], row["output_2"])[:: 1 if row["label"] == 1 else -1]
            prompt = [{"role": "user", "content": row["input"]}]
            records.append(
                {
                    "id": f"{subset}-{number}",
                    "metadata": {"subset": subset},
                    "chosen": [*prompt, {"role": "assistant", "content": better or "-"}],
                    "rejected": [*prompt, {"role": "assistant", "content": worse or "-"}],
                    "scores": {"length": {"chosen": -len(better), "rejected": -len(worse)}},
                }
            )
    found = {
        (row["model"], row["metric"], row["subset"]): row
        for row in rows(music("rewardbench", records=records))
    }
    section = found["length", "section", "Chat Hard"]
    assert (section["count"], section["missing"]) == (419, ["mt-bench-hard (0 of 37)"])
    shortest = found["baseline/shortest", "section", "Chat Hard"]["value"]
    assert shortest == pytest.approx(0.728, abs=5e-4)
    assert section["value"] < shortest <= section["value"] + section["ties"] / 2 / 419 * 1.2


NEW_BENCHMARK = """
from dataclasses import dataclass
from musiccli.bench.benchmark import Benchmark, option
from musiccli.bench.config import BenchConfig
from musiccli.bench.report.tables import Table
from musiccli.bench.stats.outcomes import metric_record
from musiccli.core.records import parse_conversation

@dataclass(frozen=True)
class RolesConfig(BenchConfig):
    role: tuple[str, ...] = option(("user",), metavar="ROLE", help="Count these roles.")

def metrics(records, config, stats, worst):
    roles = [message["role"] for record in records for message in record["messages"]]
    for role in config.role:
        yield metric_record("roles", "data", role, "messages", roles.count(role), None, len(roles))

BENCHMARK = Benchmark(
    name="roles",
    title="Roles",
    summary="How many messages a role has.",
    example="music bench roles talks.jsonl",
    parse=lambda record, config: parse_conversation(record),
    metrics=metrics,
    tables=lambda rows, config: [Table("Roles", ["", "messages"], [["all", str(len(rows))]])],
    plot=lambda axes, rows: None,
    config=RolesConfig,
    options=("seed",),
)
"""


@pytest.fixture
def new_benchmark(tmp_path, monkeypatch):
    (tmp_path / "roles.py").write_text(NEW_BENCHMARK)
    monkeypatch.setattr(musiccli.bench, "__path__", [*musiccli.bench.__path__, str(tmp_path)])
    benchmark_commands.cache_clear()
    yield
    benchmark_commands.cache_clear()
    sys.modules.pop("musiccli.bench.roles")


def test_a_new_file_is_a_new_command_with_its_options(new_benchmark):
    talk = {"id": "t", "messages": [{"role": "user", "content": "hi"}]}
    done = console.music("bench", "roles", "--role", "system", given=lines(talk))
    assert (done.status, [row["value"] for row in done.records]) == (0, [0.0])
    done = console.music("bench", "roles", given=lines(talk))
    assert [(row["subset"], row["value"]) for row in done.records] == [("user", 1.0)]
    helped = console.music("bench", "roles", "--help").out.decode()
    assert "Count these roles." in helped and "--seed" in helped and "--model" not in helped


@pytest.mark.parametrize("name, option", [("agreement", "--by"), ("judges", "--human-field")])
@pytest.mark.parametrize("field", ["nosuch", "metadata.nosuch"])
def test_a_field_that_no_record_has_is_refused_by_name(name, option, field):
    record = contest(0, "a", 2) | {
        "votes": votes("judge", "a", "a"),
        "scores": {"rm": {"a": 1, "b": 0}},
    }
    done = console.music("bench", name, option, field, given=lines(record, record | {"id": "p1"}))
    assert (done.status, done.lines, done.out) == (
        2,
        [f"music bench {name}: error: {option} {field}: no record has it"],
        b"",
    )
    known = record | {"id": "p1", "metadata": {"nosuch": "a"}}
    assert console.music("bench", name, option, field, given=lines(record, known)).status == 0
