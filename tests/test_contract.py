"""The manners that every command shares, as a contract: each command in ROWS is put through every test here.

A new command needs one row: what else it must be given, and a good record. A command that cannot have one stands in
EXCUSED, with its reason.
"""

import gzip
import io
import os
import re
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import preloaded
import pytest
import typer
from build import assistant, lines, write
from console import COMMAND, Done, environment, music, start, wait_until, wait_until_reading
from openai_server import serve

from musiccli.cli.main import app
from musiccli.core import jsonl


def question(identity: str) -> dict:
    return {"role": "user", "content": f"What is a fugue, {identity}?"}


def conversation(identity: str) -> list[dict]:
    return [{"id": identity, "messages": [question(identity)]}]


def branches(identity: str) -> list[dict]:
    return [
        {
            "id": identity,
            "branch": branch,
            "sample": 0,
            "seed_messages": 1,
            "messages": [question(identity), assistant(branch)],
        }
        for branch in ("chosen", "rejected")
    ]


def candidates(identity: str) -> list[dict]:
    return [
        {
            "id": identity,
            "sample": number,
            "messages": [question(identity), assistant(f"{number}")],
            "scores": {"x": number, "y": -number},
        }
        for number in range(2)
    ]


def pair(identity: str, **fields) -> list[dict]:
    return [
        {
            "id": identity,
            "chosen": [question(identity), assistant("A piece.")],
            "rejected": [question(identity), assistant("A cake.")],
            **fields,
        }
    ]


def scored_pair(identity: str) -> list[dict]:
    return pair(
        identity, scores={"rm": {"chosen": 1, "rejected": 0}}, metadata={"subset": "hep-cpp"}
    )


def corrupted_pair(identity: str) -> list[dict]:
    return [scored_pair(identity)[0] | {"corruption": {"kind": "reply", "turn": 1, "distance": 0}}]


def right_and_wrong(identity: str) -> list[dict]:
    about = {"subset": "Math", "domain": "math"}
    return [
        candidate
        | {
            "metadata": {**about, "correct": number < 3},
            "sample": number,
            "scores": {"rm": -number},
        }
        for number, candidate in enumerate(candidates(identity) * 3)
    ]


def judged_pair(identity: str) -> list[dict]:
    return pair(identity, winner="chosen")


def categorized_pair(identity: str) -> list[dict]:
    about = {"category_path": "Pairwise_set/Helpfulness/Chat"}
    return [scored_pair(identity)[0] | {"metadata": about}]


def scored_comparison(identity: str) -> list[dict]:
    [record] = scored_pair(identity)
    about = {"domain": "ml", "assistant_behavior_type": "evasion", "bad_round_index": 1}
    return [
        {
            "id": identity,
            "a": record["chosen"],
            "b": record["rejected"],
            "winner": "a",
            "scores": {"rm": {"a": 1, "b": 0}},
            "metadata": about | {"source": "mmlu-pro-law", "model_a": "x", "model_b": "y"},
        }
    ]


def voted_pair(identity: str) -> list[dict]:
    return pair(
        identity,
        votes=[{"judge": "x", "order": order, "winner": "chosen"} for order in ("ab", "ba")],
    )


def contrasted_pair(identity: str) -> list[dict]:
    return pair(identity, contrast=[{"message": 1, "instruction": "What is there to bake?"}])


@dataclass
class Row:
    """How a command is run: the words after `music`, the records that make one good input, and what it is like."""

    words: str
    good: Callable[[str], list[dict]]  # from an id
    field: str = "messages"  # where a record holds its conversation, or the first of them
    options: tuple[str, ...] = ()
    with_llm_options: bool = False  # asks a chat model; gets the scripted server
    scores: bool = False  # needs a reward model; gets a toy
    filters: bool = True  # one good input gives one or more records with its id; else the output is something whole
    passes: bool = True  # fields it does not know are in its output, too
    unique: bool = True  # refuses a second record of the same id
    again: str = "id: 'x' names an earlier record, too; ids must be unique"  # and says so
    datasets: bool = (
        False  # reads rows of any format, in its own words: only what concerns the output holds
    )


ROWS = [
    Row("pair", branches),
    Row(
        "pair", candidates, options=("--best-of", "2", "--a", "x", "--b", "y"), passes=False
    ),  # a contest is made new
    Row(
        "simulate",
        conversation,
        options=("--assistant", "openai/x", "--contrast", "none", "--turns", "1"),
        with_llm_options=True,
    ),
    Row("judge", pair, field="chosen", options=("--judge", "openai/x"), with_llm_options=True),
    Row("score", pair, field="chosen", scores=True),
    Row("show", pair, field="chosen", filters=False, unique=False),
    Row("sample", pair, options=("--emit", "pairs", "-"), datasets=True),
    Row("bench agreement", scored_pair, field="chosen", filters=False),
    Row("bench rewardbench", scored_pair, field="chosen", filters=False),
    Row("bench rewardbench2", right_and_wrong, filters=False),
    Row("bench rmbench", right_and_wrong, filters=False),
    Row("bench sensitivity", corrupted_pair, field="chosen", filters=False),
    Row(
        "bench judges",
        voted_pair,
        field="chosen",
        filters=False,
        again="votes: x has voted on this pair before",
    ),
    Row("bench audit", contrasted_pair, field="chosen", filters=False),
    Row("bench winrate", judged_pair, field="chosen", filters=False),
    Row("bench planrewardbench", scored_pair, field="chosen", filters=False),
    Row("bench judgebench", scored_comparison, field="a", filters=False),
    Row("bench ppe", scored_comparison, field="a", filters=False),
    Row("bench rankjudge", scored_comparison, field="a", filters=False),
    Row("bench rmb", categorized_pair, field="chosen", filters=False),
    Row("bench overoptimization", candidates, options=("--gold", "y"), filters=False),
]
EXCUSED = {
    "train": "writes a folder, not records; its own tests give it bad ones",
    "cache": "reads no records; shows and prunes the file of finished calls",
    "help": "reads the manual; no records",
    "merge": "reads a folder and writes a folder; no records",
    "bench table": "reads metrics, not conversations; its own tests give it bad ones",
    "bench report": "runs other benchmarks on its records; its own tests give it bad ones",
    "serve": "reads requests, not records; its own tests give it bad ones",
}


@pytest.fixture(scope="module")
def address():
    """Where a chat model listens that has a verdict for everything."""
    with serve(reply=lambda _: "It is so. [[A]]") as server:
        yield server.base_url


def named(row: Row) -> str:
    return " ".join((row.words, *row.options[:1]))


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory):
    """A toy that scores, made once, and its folder."""
    from toys import backbone

    from musiccli.reward_model import checkpoint

    folder = backbone(tmp_path_factory.mktemp("models") / "toy")
    return checkpoint.create(str(folder)), folder


def ready(request, monkeypatch, tmp_path) -> Row:
    """The row of a parametrised fixture, in an empty folder, with the model it needs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    extra = ()
    if request.param.with_llm_options:
        extra = ("--no-cache", "--api-base", request.getfixturevalue("address"))
    if request.param.scores:
        toy, folder = request.getfixturevalue("reward_model")
        monkeypatch.setattr("musiccli.reward_model.checkpoint.load", lambda *_: toy)
        extra = ("--model", folder)
    return replace(request.param, options=(*request.param.options, *extra))


@pytest.fixture(params=ROWS, ids=named)
def row(request, monkeypatch, tmp_path):
    return ready(request, monkeypatch, tmp_path)


@pytest.fixture(params=[row for row in ROWS if not row.datasets], ids=named)
def reader(request, monkeypatch, tmp_path):
    """A row whose command reads records, and says of bad ones what `records` says."""
    return ready(request, monkeypatch, tmp_path)


def run(row: Row, *arguments: object, **settings) -> Done:
    return music(*row.words.split(), *row.options, *arguments, **settings)


CLEAN_RUNS: dict[str, Done] = {}  # by the name of a row


def clean_run(row: Row) -> Done:
    """How a row's command runs on two good inputs, "x" and "y"; it is run once."""
    if named(row) not in CLEAN_RUNS:
        write("clean.jsonl", *row.good("x"), *row.good("y"))
        CLEAN_RUNS[named(row)] = run(row, "clean.jsonl")
    return CLEAN_RUNS[named(row)]


def commands(group=None, before: str = "") -> dict[str, typer.core.TyperCommand]:
    """Every command there is, by its name with its groups'."""
    found = {}
    for name, command in (group or typer.main.get_command(app)).commands.items():
        found |= (
            commands(command, f"{before}{name} ")
            if hasattr(command, "commands")
            else {before + name: command}
        )
    return found


def broken(row: Row, **changes) -> dict:
    """A good record, changed; a change to `...` takes the field away."""
    fields = row.good("bad")[0] | changes
    return {name: value for name, value in fields.items() if value is not ...}


def bad_lines(row: Row) -> dict[str, tuple[bytes | dict, str]]:
    """What may be wrong with a line, and how its error begins behind "file:line: "."""
    it = row.field
    twice = [question("bad"), question("bad")]
    return {
        "broken JSON": (b'{"id": "bad", ', "is not JSON: "),
        "bad UTF-8": (b'{"id": "b\xffd"}', "is not UTF-8 (byte 10)"),
        "no object": (b"[1, 2]", "is JSON, but not an object; a record is {...}"),
        "NaN": (b'{"id": "bad", "x": NaN}', "is not JSON: "),
        "field missing": (
            broken(row, **{it: ...}),
            f"{it}: is missing; it should be a list of messages",
        ),
        "field is a number": (
            broken(row, **{it: 3}),
            f"{it}: is a number; it should be a list of messages",
        ),
        "field is an object": (
            broken(row, **{it: {"x": 1}}),
            f"{it}: is an object; it should be a list of messages",
        ),
        "empty conversation": (broken(row, **{it: []}), f"{it}: is an empty list; "),
        "roles do not alternate": (
            broken(row, **{it: twice}),
            f"{it}[1]: role is user where assistant ",
        ),
        "unknown role": (
            broken(row, **{it: [{"role": "bot", "content": "x"}]}),
            f"{it}[0]: role is 'bot'; ",
        ),
        "message is a string": (broken(row, **{it: ["hello"]}), f"{it}[0]: is a string; "),
        "content is a number": (
            broken(row, **{it: [assistant("x") | {"content": 1}]}),
            f"{it}[0]: content is a number; ",
        ),
        "content is empty": (
            broken(row, **{it: [assistant(" ")]}),
            f"{it}[0]: content of this assistant message is empty",
        ),
        "id is a list": (broken(row, id=["x"]), "id: is a list; it should be a string"),
        "metadata is a string": (
            broken(row, metadata="x"),
            "metadata: is a string; it should be an object",
        ),
        "too long": (broken(row, padding="x" * 3000), "the line is longer than "),
    }


def test_every_command_stands_in_the_table_or_is_excused():
    rows, there = {row.words for row in ROWS}, set(commands())
    assert there - rows - EXCUSED.keys() == set(), (
        "give the new command a Row, or a reason in EXCUSED"
    )
    assert rows - there == set() and EXCUSED.keys() & rows == set()


@pytest.mark.slow
@pytest.mark.parametrize("fault", bad_lines(ROWS[0]))
def test_a_bad_record_stops_the_run_with_one_line_that_names_it(reader, fault, monkeypatch):
    monkeypatch.setattr("musiccli.core.jsonl.reader.MAX_LINE", 2048)
    line, said = bad_lines(reader)[fault]
    write("in.jsonl", line, *reader.good("x"))
    done = run(reader, "in.jsonl", "-o", "out.jsonl")
    assert (done.status, done.out, len(done.lines)) == (2, b"", 1)
    assert done.err.startswith(f"music {reader.words}: error: in.jsonl:1: {said}")
    assert os.listdir() == ["in.jsonl"]


@pytest.mark.parametrize("fault", bad_lines(ROWS[0]))
def test_a_bad_record_can_be_skipped_counted_and_kept(reader, fault, monkeypatch):
    monkeypatch.setattr("musiccli.core.jsonl.reader.MAX_LINE", 2048)
    line, said = bad_lines(reader)[fault]
    number = len(reader.good("x")) + 1
    write("in.jsonl", *reader.good("x"), line, *reader.good("y"))
    clean = clean_run(reader)
    done = run(reader, "in.jsonl", "--on-error", "skip", "--rejects", "bad.jsonl")
    assert (clean.status, done.status, done.out) == (0, 1, clean.out)
    assert done.lines[0].startswith(f"music {reader.words}: in.jsonl:{number}: {said}")
    assert done.lines[-1].startswith(f"music {reader.words}: ") and "; 1 failed" in done.lines[-1]
    assert len(done.lines) == len(clean.lines) + (
        1 if clean.lines[-1:] and "written" in clean.lines[-1] else 2
    )
    [kept] = jsonl.read(["bad.jsonl"], lambda record: record)
    assert kept["error"].startswith(f"in.jsonl:{number}: {said}")
    if isinstance(line, dict) and fault != "too long":
        assert {**line, "error": kept["error"]}.items() <= kept.items()


NOTHING = {  # what a command reads, the options, and what it says where nothing comes of it
    "pair": (branches("x")[:1], (), "in.jsonl:1: dropped (other branch missing)"),
    "pair --best-of": (candidates("x")[:1], (), "in.jsonl:1: ids with too few candidates"),
    "sample --emit": (conversation("x"), (), "in.jsonl:1: dropped (nobody ranked it)"),
    "bench agreement": (
        [scored_pair("x")[0] | {"winner": "tie"}],
        (),
        "in.jsonl:1: left out (label is a tie)",
    ),
}


@pytest.mark.parametrize("name", NOTHING)
def test_nothing_written_of_what_was_read_is_status_1_with_the_reason_and_a_record(
    name, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    [row] = [row for row in ROWS if named(row) == name]
    good, options, example = NOTHING[name]
    write("in.jsonl", *good)
    words = [word for word in row.options if word != "-"]
    done = music(*row.words.split(), *words, *options, "in.jsonl")
    assert (done.status, done.out) == (1, b"")
    assert done.lines[-1].endswith(f"; nothing came out, for example of {example}")
    monkeypatch.setattr("musiccli.core.progress._quiet", False)  # and again after this test
    quiet = music("--quiet", *row.words.split(), *words, *options, "in.jsonl")
    assert (quiet.status, len(quiet.lines)) == (1, 1)


def test_ties_alone_make_no_pair_and_are_no_fault(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [sides] = pair("x")
    tie = {"id": "x", "a": sides["chosen"], "b": sides["rejected"], "winner": "tie"}
    write("ties.jsonl", tie)
    done = music("sample", "ties.jsonl", "--emit", "pairs")
    assert (done.status, done.out) == (0, b"") and "; 1 dropped (tie); " in done.err
    write("mixed.jsonl", tie, {**tie, "id": "y", "winner": None})
    assert music("sample", "mixed.jsonl", "--emit", "pairs").status == 1


def test_records_before_a_bad_one_are_written_whole(reader):
    write("in.jsonl", *reader.good("x"), b"?")
    done = run(reader, "in.jsonl")
    assert done.status == 2
    if reader.filters:
        assert {record["id"] for record in done.records} <= {"x"} and done.out.endswith(
            (b"\n", b"")
        )


def test_an_id_names_one_record(reader):
    write("in.jsonl", *reader.good("x"), *reader.good("x"))
    done = run(reader, "in.jsonl")
    if not reader.unique:
        assert done.status == 0
        return
    assert done.status == 2
    assert (
        done.lines[-1]
        == f"music {reader.words}: error: in.jsonl:{len(reader.good('x')) + 1}: {reader.again}"
    )


@pytest.mark.parametrize(
    "path, content, said",
    [
        ("in.jsonl", b"", "in.jsonl: is empty; expected JSONL, one record a line"),
        ("in.jsonl", b" \n\n", "in.jsonl: is empty; expected JSONL, one record a line"),
        ("none.jsonl", None, "none.jsonl: no such file"),
        ("folder", None, "folder: is a folder; expected a JSONL file"),
        (
            "-",
            b"",
            "<stdin>: is empty; expected JSONL, one record a line; did the command before it fail?",
        ),
    ],
    ids=["empty", "blank", "missing", "folder", "nothing piped"],
)
def test_an_input_without_records_is_one_line(reader, path, content, said):
    if path == "in.jsonl":
        write("in.jsonl", content)
        if not content:
            open(path, "wb").close()
    if path == "folder":
        os.mkdir(path)
    done = run(reader, path, "-o", "out.jsonl")
    assert (done.status, done.out, done.lines) == (2, b"", [f"music {reader.words}: error: {said}"])
    assert not os.path.exists("out.jsonl")


def test_files_pipes_and_compressed_files_give_the_same(reader):
    given = lines(*reader.good("x"), *reader.good("y"))
    write("in.jsonl", *reader.good("x"), *reader.good("y"))
    with gzip.open("in.jsonl.gz", "wb") as file:
        file.write(given)
    first, *others = (
        run(reader, "in.jsonl"),
        run(reader, "in.jsonl.gz"),
        run(reader, "-", given=given),
        run(reader, given=given),
    )
    assert first.out and first.status == 0
    assert [(done.status, done.out) for done in others] == [(0, first.out)] * 3


def test_every_line_of_standard_output_is_a_record(row):
    done = run(row, given=lines(*row.good("x"), *row.good("y")))
    if row.words != "show":
        assert all(isinstance(record, dict) for record in done.records) and done.records
    if row.filters:
        assert [record["id"] for record in done.records] == ["x", "y"]


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.filters and row.passes], indirect=True, ids=named
)
def test_unknown_fields_pass_through(row):
    zebra = {"stripes": [1, 2.5, None, True, "ü \u2028 \x00"], "deep": {"er": []}}
    done = run(row, given=lines(*({**record, "zebra": zebra} for record in row.good("x"))))
    assert [record.get("zebra") for record in done.records] == [zebra] * len(done.records) != []


def test_an_output_file_is_what_standard_output_would_be(row):
    given = lines(*row.good("x"), *row.good("y"))
    piped = run(row, given=given)
    for name, unpack in (("out.jsonl", bytes), ("out.jsonl.gz", gzip.decompress)):
        done = run(row, "-o", name, given=given)
        with open(name, "rb") as file:
            assert (done.status, done.out, unpack(file.read())) == (0, b"", piped.out)
    assert sorted(os.listdir()) == ["out.jsonl", "out.jsonl.gz"]


def test_an_output_that_existed_stays_when_the_run_fails(row):
    write("out.jsonl", b"before")
    assert run(row, "-o", "out.jsonl", given=lines(*row.good("x"), b"?")).status == 2
    assert os.listdir() == ["out.jsonl"] and Path("out.jsonl").read_bytes() == b"before\n"


def test_an_output_over_its_own_input_is_refused(reader):
    before = write("in.jsonl", *reader.good("x"), *reader.good("y")).read_bytes()
    done = run(reader, "in.jsonl", "-o", "./in.jsonl")
    said = f"music {reader.words}: error: --output ./in.jsonl: this run's own input or output; name another file"
    assert (done.status, done.lines) == (2, [said])
    assert Path("in.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("-o", "none/out.jsonl"), "none/out.jsonl: cannot be written: there is no such folder"),
        (("-o", "folder"), "folder: is a folder; name a file to write"),
        (
            ("--rejects", "none/bad.jsonl"),
            "none/bad.jsonl: cannot be written: there is no such folder",
        ),
        (
            ("-o", "out.jsonl", "--rejects", "./out.jsonl"),
            "--rejects ./out.jsonl: this run's own input or output; name another file",
        ),
        (("--rejects", "-"), "--rejects -: this run's own input or output; name another file"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_anything_is_read(row, arguments, said):
    os.mkdir("folder")
    done = run(row, "none.jsonl", *arguments)
    assert (done.status, done.lines) == (2, [f"music {row.words}: error: {said}"])
    assert os.listdir() == ["folder"] and os.listdir("folder") == []


def test_rejects_never_replace_the_input(reader):
    write("in.jsonl", *reader.good("x"))
    done = run(reader, "in.jsonl", "--rejects", "./in.jsonl")
    said = f"music {reader.words}: error: --rejects ./in.jsonl: this run's own input or output; name another file"
    assert (done.status, done.lines) == (2, [said])
    assert os.listdir() == ["in.jsonl"] and os.path.getsize("in.jsonl")


def test_a_reader_who_has_seen_enough_is_no_error(row):
    reader, writer = os.pipe()
    os.close(reader)
    done = run(row, given=lines(*row.good("x"), *row.good("y")), stdout=io.FileIO(writer, "wb"))
    assert done.status == 0
    assert not [line for line in done.lines if "rror" in line or "written" in line]


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", [None, "1"])
@pytest.mark.parametrize("words", ["pair", "show"])
def test_head_closes_a_pipe_quietly(words, unbuffered, tmp_path):
    write(
        tmp_path / "in.jsonl",
        *(record for number in range(2000) for record in branches(f"x{number}")),
    )
    script = 'set -o pipefail; "$@" | head -n 1'
    done = subprocess.run(
        ["bash", "-c", script, "bash", *COMMAND, words, tmp_path / "in.jsonl"],
        capture_output=True,
        env=environment(PYTHONUNBUFFERED=unbuffered),
    )
    assert (done.returncode, done.stderr, done.stdout.count(b"\n")) == (0, b"", 1)


@pytest.mark.parametrize("name", commands())
def test_help_shows_a_pipeline(name):
    done = music(*name.split(), "--help")
    assert (done.status, done.err) == (0, "")
    help = done.out.decode()
    assert any(
        line.strip().startswith("music ") or " music " in line
        for line in help.splitlines()
        if " | " in line
    )
    assert help.startswith(f"Usage: music {name} [OPTIONS]")
    assert not re.search(r"<(str|int|float|list)\b", help)  # the types of Python


@pytest.mark.parametrize("name", ["", "bench"])
def test_help_of_a_group_names_its_commands(name):
    done = music(*name.split(), "--help")
    assert done.status == 0
    listed = {
        line.split()[0]
        for line in done.out.decode().partition("Commands:")[2].splitlines()
        if line[:3].strip()
    }
    assert {
        word.split()[-1 if name else 0] for word in commands() if word.startswith(name)
    } <= listed


@pytest.mark.parametrize(
    "arguments, said",
    [
        ("frob", "music: error: No such command 'frob' (music --help shows what there is)"),
        ("pair --frob", "music pair: error: No such option: --frob"),
        (
            "pair --on-error maybe",
            "music pair: error: Invalid value for '--on-error': 'maybe' is not one of",
        ),
        (
            "bench frob",
            "music bench: error: No such command 'frob' (music bench --help shows what there is)",
        ),
        ("bench winrate --seed x", "music bench winrate: error: Invalid value for '--seed': "),
    ],
)
def test_wrong_usage_is_one_line_and_names_the_help(arguments, said):
    done = music(*arguments.split())
    assert (done.status, done.out, len(done.lines)) == (2, b"", 1)
    assert done.err.startswith(said) and done.err.endswith("--help shows what there is)\n")


def fractional_options() -> list[tuple[str, str]]:
    """Every option of every command that is a number with a fraction: command and option."""
    return [
        (name, option.opts[0])
        for name, command in commands().items()
        for option in command.params
        if option.type_descriptor.annotation in (float, float | None)
    ]


def test_there_are_fractional_options():
    assert {
        ("simulate", "--timeout"),
        ("train", "--margin-scale"),
        ("cache", "--prune"),
        ("serve", "--patience"),
        ("bench audit", "--confidence"),
    } <= {*fractional_options()}


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("command, option", fractional_options())
def test_a_number_that_is_none_or_infinite_is_refused_in_one_line(command, option, value):
    if (option, value) == ("--max-cost", "inf"):
        return  # its default: no limit
    done = music(*command.split(), option, value)
    assert (done.status, done.out, len(done.lines)) == (2, b"", 1), done.err
    assert done.err.startswith(f"music {command}: error: Invalid value for '{option}': ")


INTERRUPTS = [
    *((row, "INT", False) for row in ROWS if not row.scores),
    (ROWS[0], "TERM", False),
    *((row, "TERM", True) for row in ROWS if named(row) in ("pair", "judge --judge")),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "row, sent, deaf",
    INTERRUPTS,
    ids=[f"{named(row)} {sent}{' deaf' * deaf}" for row, sent, deaf in INTERRUPTS],
)
def test_an_interrupted_run_says_so_and_leaves_nothing(row, sent, deaf, tmp_path):
    """`deaf` to Ctrl-C is what a script makes of its background jobs: SIGTERM ends them all the same."""
    handle = signal.SIG_IGN if deaf else signal.SIG_DFL  # whatever these tests run under
    options = (*row.options, "--no-cache") if row.with_llm_options else row.options
    forked = not deaf and named(row) != "pair"  # a fork hears Ctrl-C whatever it was told
    with start(
        *row.words.split(),
        *options,
        "-o",
        "out.jsonl",
        command=preloaded.command() if forked else COMMAND,
        cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, handle),
    ) as process:
        wait_until(lambda: os.listdir(tmp_path))  # the partial output
        wait_until_reading(process, preloaded.program(process.pid) if forked else None)
        process.send_signal(getattr(signal, f"SIG{sent}"))
        status = process.wait(timeout=120)  # its standard input stays open
        err = process.stderr.read()
    assert (status, err.decode()) == (130, f"music {row.words}: interrupted\n")
    assert os.listdir(tmp_path) == []


def test_a_fault_of_ours_is_one_line_and_its_trace_is_for_debug(monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("musiccli.pair.preferences.join_branches", fail)
    done = music("pair", given=b"{}")
    said = (
        "music pair: error: ZeroDivisionError: two lines (a fault of ours; --debug shows where)\n"
    )
    assert (done.status, done.err) == (2, said)
    with pytest.raises(ZeroDivisionError):
        music("pair", "--debug", given=b"{}")
