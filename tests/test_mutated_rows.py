"""Rows and records in which anything may be wrong: each is written, dropped under a name or rejected.

MUTATED_ROWS sets how many mutations each row gets, and MUTATION_SEED which.
"""

import copy
import json
import os
import random
import re

import pytest
from build import talk, user, votes
from console import music
from dataset_rows import FORMATS, rows
from openai_server import serve

from musiccli.core import json_text
from musiccli.core.jsonl import Rejects
from musiccli.core.records import Record
from musiccli.core.run_stats import RunStats
from musiccli.sample.config import Emit, SampleConfig
from musiccli.sample.sampler import sample

AMOUNT = int(os.environ.get("MUTATED_ROWS", "4"))
SEED = int(os.environ.get("MUTATION_SEED", "0"))
SIDES = {"chosen": talk("q", "yes", "r", "good"), "rejected": talk("q", "yes", "s", "bad")}
CALL = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
WITH_TOOLS = [
    user("weather?"),
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "sun"},
    {"role": "assistant", "content": "Sunny.", "reasoning_content": "It is."},
]
CONTRAST = [{"message": 3, "instruction": "another"}]
OWN = [  # our records, each as one command writes it
    {"messages": talk("q", "r", "s", "t", system="p"), "metadata": {"subset": "x"}},
    {"messages": WITH_TOOLS, "tools": [{"type": "function", "function": {"name": "f"}}]},
    {"messages": talk("q", "r"), "branch": "chosen", "sample": 0, "seed_messages": 1},
    {
        "messages": talk("q", "r", "s", "t"),
        "branch": "rejected",
        "contrast": CONTRAST,
        "faults": [{"message": 1, "fault": "repeat"}],
        "truncated": [1],
        "usage": {"prompt_tokens": 1},
    },
    {
        "messages": talk("q", "r"),
        "sample": 1,
        "scores": {"rm": 0.5, "x": 1},
        "turn_scores": {"rm": [0.5]},
        "metadata": {"correct": True, "subset": "Math", "domain": "math"},
    },
    {**SIDES, "first_divergence": 2, "contrast": CONTRAST, "truncated": {"chosen": [1]}},
    {
        **SIDES,
        "scores": {"rm": {"chosen": 1.0, "rejected": 0}},
        "metadata": {"subset": "hep-cpp"},
        "corruption": {"kind": "reply", "turn": 1, "distance": 0},
    },
    {
        "a": SIDES["chosen"],
        "b": SIDES["rejected"],
        "winner": "a",
        "verdict": "a",
        "votes": votes("j", "a", "a"),
        "given_winner": "b",
        "best_of": 2,
        "models": {"a": "x", "b": "y"},
        "picks": {"a": 0, "b": 1},
        "scores": {"rm": {"a": 1, "b": 2}},
    },
]


def nested(depth):
    value = "end"
    for level in range(depth):
        value = [value] if level % 2 else {"x": value}
    return value


VALUES = [
    *(None, True, False, 0, 1, -1, 7, 1.0, 0.5, -1e300, 1 << 63, 1 << 70, "", " ", "x", "tie"),
    *(
        "\n\nHuman: q\n\nAssistant: a",
        '["q", "r"]',
        "[[A]]",
        "chosen",
        "a",
        "<think>",
        "\0\x1b[31m",
    ),
    *([], {}, [None], [[]], ["x"], [{}], {"x": None}, {"role": "user"}, {"content": "x"}),
    *(user(), talk("q", "r"), talk("q"), CONTRAST, {"rm": 1}, {"rm": {"a": 1}}, {"rm": None}),
    *(nested(3), nested(200), nested(400), [CALL], {"messages": talk("q", "r")}),
]
FIELDS = sorted(  # columns that may be added
    {name for record in OWN for name in record}
    | set("id prompt completion system label turn history conversations rank preference".split())  # noqa: SIM905
)


def places(value, found=()):
    """Every (container, key) within a value."""
    pairs = []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in items:
        pairs.append((value, key))
        if isinstance(child, dict | list):
            pairs += places(child)
    return pairs


def mutate(row, rng):
    """A copy of a row with one to three things changed."""
    row = copy.deepcopy(row)
    for _ in range(rng.randint(1, 3)):
        container, key = rng.choice(places(row) or [(row, "x")])
        match rng.randrange(7):
            case 0 | 1:
                container[key] = copy.deepcopy(rng.choice(VALUES))
            case 2:
                del container[key]
            case 3:
                row[rng.choice(FIELDS)] = copy.deepcopy(rng.choice(VALUES))
            case 4:
                container[key] = rng.choice(([container[key]], {"x": container[key]}))
            case 5:
                other, its_key = rng.choice(places(row))
                container[key] = copy.deepcopy(other[its_key])
            case _:
                messages = [
                    inner[name]
                    for inner, name in places(row)
                    if isinstance(inner[name], list) and len(inner[name]) > 1
                ]
                rng.shuffle(rng.choice(messages or [[0]]))
        if not row:
            break
    return row


def dataset_rows():
    """Rows of every dataset, and our own records."""
    named = [("own", dict(record)) for record in OWN]
    if FORMATS.is_dir():
        named += [
            (path.stem, row) for path in sorted(FORMATS.glob("*.jsonl")) for row in rows(path.stem)
        ]
    return named


def mutated(base, amount=AMOUNT):
    rng = random.Random(f"{SEED} {json.dumps(base)}")
    return [mutate(base, rng) for _ in range(amount)]


WHOLE_RECORD = (  # problems that are in no single field
    "no known format has the columns",
    "has neither messages, nor",
    "has no scores; run music score first",
    "is not what a row of the format",
    "has more than 250 lists and objects",
)


def check_error(error, where):
    """An error says the file, the line and the field, or that the whole record is wrong."""
    assert error.startswith(f"{where}: "), error
    rest = error.removeprefix(f"{where}: ")
    group = r"('[^']+'|-?\d+) has "  # all candidates of one id
    assert re.match(rf"[\w.\[\]-]+: |{group}", rest) or rest.startswith(WHOLE_RECORD), error


@pytest.mark.slow
@pytest.mark.parametrize("emit", list(Emit))
def test_sample_loses_no_row_without_a_word(emit):
    for name, base in dataset_rows():
        for row in mutated(base):
            stats = RunStats(Rejects(skip=True, report=lambda error: check_error(error, "in:1")))
            try:
                record = Record(json_text.decode(json.dumps(row).encode()), "in:1")
            except json_text.TooDeep:  # the reader of files says so
                continue
            results = list(sample([("f", record)], SampleConfig(emit=emit), stats=stats))
            dropped = sum(n for outcome, n in stats.counts.items() if outcome.name == "dropped")
            assert results or dropped or stats.rejects.count, (name, row)
            for result in results:
                assert result["id"] not in ("", None)
                json_text.encode(result)


def batch(path, amount):
    """A file of mutated records; each has an id of its own, where that was not what changed."""
    lines = []
    for number, base in enumerate(OWN):
        for row in mutated(base, amount):
            if "id" not in row:
                row["id"] = f"{number}-{len(lines)}"
            lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n")
    return len(lines)


def counted(done, outcome):
    """How often the last line of a run counts an outcome."""
    found = re.search(rf"(\d+) {re.escape(outcome)}", done.lines[-1])
    return int(found[1]) if found else 0


COMMANDS = {
    "show": (),
    "pair": (),
    "pair --best-of": ("2", "--a", "rm", "--b", "x"),
    "score": ("--per-turn", "--no-cache"),
    "judge": ("--judge", "openai/x", "--no-cache"),
    "simulate": ("--assistant", "openai/x", "--turns", "1", "--contrast", "none", "--no-cache"),
    **{
        f"bench {name}": ()
        for name in (
            *("agreement", "rewardbench", "rewardbench2", "rmbench", "sensitivity"),
            *("judges", "audit", "winrate"),
        )
    },
}


@pytest.fixture(scope="module")
def address():
    """Where a chat model listens that has a verdict for everything."""
    with serve(reply=lambda _: "It is so. [[A]]") as server:
        yield server.base_url


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A reward model, made once, and its folder."""
    from toys import backbone

    from musiccli.reward_model import checkpoint

    folder = backbone(tmp_path_factory.mktemp("models") / "toy")
    return checkpoint.create(str(folder)), folder


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_no_record_ends_a_run_that_skips_or_is_lost(command, request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    options = list(COMMANDS[command])
    if command in ("judge", "simulate"):
        options += ["--api-base", request.getfixturevalue("address")]
    if command == "score":
        model, folder = request.getfixturevalue("toy")
        monkeypatch.setattr("musiccli.reward_model.checkpoint.load", lambda *_: model)
        options += ["--model", folder]
    number = batch(tmp_path / "in.jsonl", 5 * AMOUNT)
    skipping = ("--on-error", "skip", "--rejects", "bad.jsonl")
    done = music(*command.split(), *options, *skipping, "in.jsonl")
    assert done.status in (0, 1), done.err
    rejected = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_bytes().splitlines()]
    for record in rejected:
        where = record["error"].partition(": ")[0]
        assert re.fullmatch(r"in\.jsonl:\d+", where)
        check_error(record["error"], where)
    if command in ("score", "judge", "simulate"):
        assert len(done.records) + len(rejected) == number
    if command == "pair":
        alone = counted(done, "dropped (other branch missing)")
        joined = sum(map(int, re.findall(r"(\d+) dropped", done.lines[-1]))) - alone
        assert len(rejected) + alone + 2 * (joined + len(done.records)) == number
    if command == "show":
        assert f"{number - len(rejected)} records read" in done.lines[-1].replace(",", "")
