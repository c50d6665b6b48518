"""Outputs: no path is used twice, partial files are private and locked, and a kill leaves nothing for long."""

import os
import re
import signal
import stat
import subprocess
import sys
from functools import cache

import preloaded
import pytest
from build import read, talk, unloadable, write
from console import music, start, wait_until
from test_contract import commands as all_commands

from musiccli.cli.paths import PathUse, path_uses, refuse_same_paths
from musiccli.core import jsonl
from musiccli.core.errors import InputError
from musiccli.core.partial_files import (
    PARTIAL_FILE,
    PARTIAL_FOLDER,
    empty_folder,
    locked_folder,
    partial_folder,
)

SAME = "this run's own input or output; name another file"
NEEDED = {  # what else a command must be given before it looks at its paths
    "train": [("--out", "rm")],
    "merge": [("adapter",), ("--out", "rm")],
    "score": [("--model", "m")],
    "sample": [("data",)],
    "bench report": [("--model", "m"), ("--html", "page.html")],
}
PLAIN = {  # what the text of an option or argument is, where it is no path
    *(
        "COMMIT",
        "DAYS",
        "NAME=COLUMN,...",
        "NAME|FIELD",
        "[NAME=]DIR|ID",
        "ADDRESS",
        "KEY",
        "MS",
        "MB",
        "S",
        "DOLLARS",
        "FIELD",
        "FIELD=VALUE",
        "ID",
        "N",
        "N,N,...",
        "NAME",
        "PAGE",
    ),
    *(
        "[MODEL=]EFFORT",
        "POLICY",
        "REPO",
        "SECONDS",
        "STEPS",
        "TOKENS",
        "[MODEL=]URL",
        "DRAWS",
        "FACTOR",
        "COEF",
    ),
    *("RANK", "SHELL", "K/N", "KIND=P,...", "FRACTION"),
}
WORDS = {  # options with few values, and a name; help shows their kind
    *(
        "ranked",
        "emit",
        "next_speaker",
        "kinds",
        "turn",
        "split",
        "on_error",
        "color",
        "user_turns",
    ),
    *("schedule",),
}
PATHS = {"FILE", "[NAME=]FILE", "DIR", "DIR|ID", "SET|FOLDER", "DATASET"}
MODELS = {("train", "model"), ("merge", "model")}  # a MODEL that is read
CHAT_MODELS = {  # one that is called, and a folder behind local/
    *(("simulate", option) for option in ("assistant", "user", "contraster")),
    *(("judge", "judges"), ("bench audit", "judges")),
}


@cache
def commands() -> dict:
    return all_commands()


def uses(name: str) -> dict[str, PathUse]:
    """What a command does with the path of each of its options."""
    command = commands()[name].callback
    return command.path_uses


def pairs_of_paths() -> list[tuple[str, str, str]]:
    """(command, an option that is written, another path of the command)."""
    return [
        (name, written, other)
        for name in commands()
        for written in uses(name)
        if uses(name)[written].written
        for other in uses(name)
        if other != written
        and not ({written, other} == {"html", "output"} and uses(name)["html"].replaces)
    ]


def spelled_as_value(name: str, option: str, path: str) -> str:
    """A path as the option takes it."""
    return f"local/{path}" if (name, option) in CHAT_MODELS else path


def typed(name: str, option: str, path: str) -> list[str]:
    """The option with a path, as people type it."""
    [parameter] = [p for p in commands()[name].params if p.name == option]
    spelled = [text for text in parameter.opts if text.startswith("-")]
    path = spelled_as_value(name, option, path)
    return [spelled[0], path] if spelled else [path]


def inputs(folder) -> None:
    write(folder / "in.jsonl", {"id": "x", "chosen": talk("q", "a"), "rejected": talk("q", "b")})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MUSIC_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("name", commands())
def test_every_path_of_a_command_is_in_the_guard(name):
    """A new option with a new metavar needs a place here, and a path needs a PathUse."""
    for parameter in commands()[name].params:
        metavar = parameter.metavar
        if getattr(parameter, "is_flag", False):
            continue
        if (metavar or "").startswith("<"):  # the values that it takes
            continue
        if metavar is None:
            assert parameter.name in WORDS, f"give {parameter.name} a metavar: is it a path?"
            continue
        if name == "serve":  # it writes nothing, and reads no records
            assert metavar in PATHS | PLAIN, metavar
            continue
        is_path = metavar in PATHS or (name, parameter.name) in MODELS | CHAT_MODELS
        assert is_path or metavar in PLAIN | {"MODEL"}, f"{parameter.name}: is {metavar} a path?"
        assert is_path == (parameter.name in uses(name)), parameter.name


@pytest.mark.parametrize("same", ["path", "link", "hard link"])
def test_an_output_is_no_other_path_of_the_run(same, folder):
    (folder / "far").mkdir()
    inputs(folder / "far")
    path = os.path.join("far", "in.jsonl")
    second = "far/../far/in.jsonl"
    if same == "link":
        os.symlink(path, second := "link")
    elif same == "hard link":
        os.link(path, second := "link")
    for name, written, other in pairs_of_paths():
        values = dict.fromkeys(uses(name)) | {written: second}
        values[other] = [spelled_as_value(name, other, path)]
        with pytest.raises(InputError, match=f"^`({written}|{other})` .*: {SAME}$"):
            refuse_same_paths(uses(name), values)


@pytest.mark.parametrize(
    "name, written", [key for key in dict.fromkeys((n, w) for n, w, _ in pairs_of_paths())]
)
def test_the_guard_comes_before_anything_is_opened(name, written, folder):
    inputs(folder)
    before = (folder / "in.jsonl").read_bytes()
    other = next(option for option in uses(name) if option not in (written, "output"))
    arguments = [*typed(name, written, "in.jsonl"), *typed(name, other, "./in.jsonl")]
    for words in NEEDED.get(name, ()):
        if words[0] not in arguments and not (len(words) == 1 and other in ("datasets", "adapter")):
            arguments += words
    done = music(*name.split(), *arguments)
    assert (done.status, done.out, len(done.lines)) == (2, b"", 1), done.err
    assert done.err.startswith(f"music {name}: error: --") and done.err.endswith(f": {SAME}\n")
    assert os.listdir() == ["in.jsonl"] and (folder / "in.jsonl").read_bytes() == before


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
@pytest.mark.parametrize("no_cache", [(), ("--no-cache",)])
def test_no_output_replaces_the_usual_cache(folder, suffix, no_cache):
    (folder / "cache").mkdir()
    write(folder / "cache" / f"calls.sqlite{suffix}", b"calls")
    inputs(folder)
    path = f"cache/calls.sqlite{suffix}"
    done = music("judge", "in.jsonl", "-o", path, *no_cache)
    assert done.lines == [f"music judge: error: --cache {folder}/{path}: {SAME}"]
    assert (folder / path).read_bytes() == b"calls\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        '"$@" show < in.jsonl -o in.jsonl',
        '"$@" show < in.jsonl --html in.jsonl',
        '"$@" show < in.jsonl --rejects in.jsonl',
        '"$@" show in.jsonl >> in.jsonl',
        '"$@" show in.jsonl > out.jsonl --rejects out.jsonl',
    ],
)
def test_redirected_streams_are_in_the_guard(folder, line):
    inputs(folder)
    before = (folder / "in.jsonl").read_bytes()
    done = subprocess.run(
        ["sh", "-c", line, "sh", *preloaded.command()], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.endswith(f": {SAME}\n")
    assert (folder / "in.jsonl").read_bytes() == before


def test_a_device_may_take_several_outputs(folder):
    inputs(folder)
    assert music("show", "in.jsonl", "-o", "/dev/null", "--rejects", "/dev/null").status == 0


def test_a_page_may_go_to_standard_output_in_place_of_the_text(folder):
    inputs(folder)
    assert music("show", "in.jsonl", "--html", "-").out.startswith(b"<!doctype html>")


FOLDERS = [  # (command, an option that may be a folder): `in.jsonl` is no folder elsewhere
    (name, option)
    for name in commands()
    for option, use in uses(name).items()
    if use.names != "path" or option in ("datasets", "exclude", "adapter", "plot_beside")
]


@pytest.mark.parametrize("name, outer", FOLDERS)
@pytest.mark.parametrize("place", ["rm/new", "rm/deep/new", "rm/old", "link"])
def test_nothing_is_written_into_a_folder_of_the_run(name, outer, place, folder):
    """Neither a new file, nor an old one, nor one that the folder holds by a link."""
    (folder / "rm" / "deep").mkdir(parents=True)
    write(folder / "rm" / "old", b"old")
    write(folder / "link", b"link")
    os.symlink("../link", folder / "rm" / "model.safetensors")
    expected = "lies in `{}` .*, which this run {}; name a place elsewhere$"
    for written in (option for option in uses(name) if uses(name)[option].written):
        if written != outer:
            values = dict.fromkeys(uses(name)) | {written: place}
            if uses(name)[written].names == "folder":  # it takes no file's place
                refuse_same_paths(uses(name), values | {outer: "rm", written: "rm/new"})
                continue
            values[outer] = spelled_as_value(name, outer, "rm")
            does = "writes" if uses(name)[outer].written else "reads"
            with pytest.raises(InputError, match=expected.format(outer, does)):
                refuse_same_paths(uses(name), values)


@pytest.mark.parametrize("inner", ["files", "model", "init_from", "held_out", "accelerate_config"])
def test_nothing_is_read_from_a_folder_that_is_written(inner, folder):
    values = dict.fromkeys(uses("train")) | {"out": "rm", inner: "rm/adapter"}
    with pytest.raises(InputError, match="rm/adapter: lies in `out` rm, which this run writes; "):
        refuse_same_paths(uses("train"), values)


def test_places_beside_a_folder_are_free(folder):
    (folder / "rm").mkdir()
    for name, outer in FOLDERS:
        values = dict.fromkeys(uses(name)) | {outer: spelled_as_value(name, outer, "rm")}
        written = [option for option in uses(name) if uses(name)[option].written]
        for number, option in enumerate(written):
            if option != outer:
                refuse_same_paths(uses(name), values | {option: f"rm{number}.jsonl"})


def test_a_set_of_prompts_and_a_models_name_are_no_folders(folder):
    for name in ("paper", "openai"):
        (folder / name).mkdir()
    values = dict.fromkeys(uses("judge")) | {"prompts": "paper", "judges": ["openai/x"]}
    refuse_same_paths(uses("judge"), values | {"output": "paper/out", "rejects": "openai/x"})


@pytest.mark.parametrize("model", ["local/gemma3-270m", "cache/models/gemma3-270m-1"])
def test_no_output_replaces_a_bundled_model(model, folder):
    path = "cache/models/gemma3-270m-1/model.safetensors"
    done = music("score", "--model", model, "-o", path)
    assert done.status == 2 and f"--output {path}: lies in --model " in done.err


@pytest.mark.slow
def test_a_stream_that_is_redirected_into_a_folder_is_in_the_guard(folder):
    (folder / "rm").mkdir()
    line = '"$@" score --model rm > rm/out.jsonl'
    done = subprocess.run(
        ["sh", "-c", line, "sh", *preloaded.command()], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("music score: error: --output -: lies in --model rm, which")


def test_what_a_killed_run_left_may_be_read_but_not_while_its_output_is_written(folder):
    inputs(folder)
    os.rename("in.jsonl", ".out.jsonl.partial")
    done = music("show", ".out.jsonl.partial", "-o", "out.jsonl")
    assert done.lines == [f"music show: error: --output out.jsonl: {SAME}"]
    assert music("show", ".out.jsonl.partial", "-o", "other.jsonl").status == 0


def partial(folder) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(".partial")]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_file_is_private_until_it_is_complete(folder, umask):
    before = os.umask(umask)
    try:
        output = jsonl.open_output("out.jsonl")
        [name] = partial(folder)
        assert stat.S_IMODE(os.stat(name).st_mode) == PARTIAL_FILE
        output.write({"id": 1})
        output.close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat("out.jsonl").st_mode) == 0o666 & ~umask
    assert os.listdir() == ["out.jsonl"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_a_file_that_is_replaced_keeps_its_mode(folder, mode):
    write(folder / "out.jsonl", b"before").chmod(mode)
    output = jsonl.open_output("out.jsonl")
    assert stat.S_IMODE(os.stat(partial(folder)[0]).st_mode) == PARTIAL_FILE
    output.close()
    assert stat.S_IMODE(os.stat("out.jsonl").st_mode) == mode


@pytest.mark.parametrize("kind", ["link", "dangling link", "named pipe"])
def test_what_lies_in_the_way_of_a_partial_file_is_not_followed(folder, kind):
    output = jsonl.open_output("out.jsonl")
    [name] = partial(folder)
    output.discard()
    write(folder / "private", b"private")
    if kind == "named pipe":
        os.mkfifo(name)
    else:
        os.symlink("private" if kind == "link" else "nowhere", name)
    with pytest.raises(InputError, match=r"^out.jsonl: cannot be written: .* is in the way; "):
        jsonl.open_output("out.jsonl")
    assert (folder / "private").read_bytes() == b"private\n" and not os.path.exists("nowhere")


def test_a_second_run_into_one_output_is_refused(folder):
    with start("pair", "-o", "out.jsonl") as first:
        wait_until(lambda: partial(folder))
        inputs(folder)
        before = set(os.listdir())
        second = music("show", "in.jsonl", "-o", "out.jsonl")
        said = "out.jsonl: another run is writing it; wait for that, or name another"
        assert (second.status, second.lines) == (2, [f"music show: error: {said}"])
        assert set(os.listdir()) == before
        first.kill()


def test_what_a_killed_run_left_is_cleared_by_the_next(folder):
    inputs(folder)
    with start("pair", "-o", "out.jsonl", "--rejects", "bad.jsonl") as run:
        wait_until(lambda: len(partial(folder)) == 2)
        run.send_signal(signal.SIGKILL)
    assert len(partial(folder)) == 2
    done = music("show", "in.jsonl", "-o", "out.jsonl", "--rejects", "bad.jsonl")
    assert done.status == 0 and sorted(os.listdir()) == ["bad.jsonl", "in.jsonl", "out.jsonl"]


def test_a_run_whose_partial_file_was_taken_replaces_nothing(folder):
    """Where the file system knows no locks, somebody may take a run for a dead one."""
    write(folder / "out.jsonl", b"before")
    output = jsonl.open_output("out.jsonl")
    os.unlink(partial(folder)[0])
    second = jsonl.open_output("out.jsonl")
    with pytest.raises(InputError, match="another run has removed its partial file"):
        output.close()
    second.write({"id": 2})
    second.close()
    assert read(folder / "out.jsonl") == [{"id": 2}] and os.listdir() == ["out.jsonl"]


def test_without_locks_no_partial_file_is_removed(folder, monkeypatch):
    first = jsonl.open_output("out.jsonl")

    def no_locks(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(InputError, match="is another run's; remove it if that run has ended"):
        jsonl.open_output("out.jsonl")
    first.close()
    jsonl.open_output("out.jsonl").close()
    assert os.listdir() == ["out.jsonl"]


@pytest.mark.slow
def test_many_runs_into_one_output_leave_one_whole_file(folder):
    """Whoever comes second is refused; nobody finds half a file, and nothing is left behind."""
    code = (
        "import sys\nfrom musiccli.core import jsonl\nfrom musiccli.core.errors import InputError\n"
        "for _ in range(300):\n"
        "    try:\n        output = jsonl.open_output('out.jsonl')\n"
        "    except InputError as error:\n"
        "        assert 'another run is writing it' in str(error), error\n        continue\n"
        "    for _ in range(20): output.write({'by': sys.argv[1], 'x': 'x' * 4000})\n"
        "    output.close()\n"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", code, str(number)], stderr=subprocess.PIPE)
        for number in range(4)
    ]
    errors = [run.communicate()[1] for run in runs]
    assert errors == [b""] * 4 and os.listdir() == ["out.jsonl"]
    records = read(folder / "out.jsonl")
    assert len(records) == 20 and len({record["by"] for record in records}) == 1


def test_two_runs_into_one_folder_are_refused(folder):
    (folder / "rm").mkdir()
    with locked_folder(folder / "rm"), pytest.raises(InputError, match="another run is writing"):
        locked_folder(folder / "rm").__enter__()
    with partial_folder(folder / "new") as scratch:
        assert stat.S_IMODE(scratch.stat().st_mode) == PARTIAL_FOLDER
        with pytest.raises(InputError, match="another run is writing"):
            partial_folder(folder / "new").__enter__()
    with locked_folder(folder / "rm"):
        assert os.listdir() == ["rm"]


KILLED = (
    "import os, pathlib\nfrom musiccli.core.partial_files import partial_folder\n"
    "with partial_folder(pathlib.Path('new')) as scratch:\n"
    "    (scratch / 'deep').mkdir()\n    os._exit(9)\n"
)


@pytest.mark.slow
def test_a_folder_that_a_killed_run_left_is_cleared(folder):
    assert subprocess.run([sys.executable, "-c", KILLED]).returncode == 9
    assert os.listdir(".new.partial") == ["deep"]
    with partial_folder(folder / "new") as scratch:
        assert os.listdir(scratch) == []
    assert os.listdir() == []


def test_an_empty_folder_or_file_is_cleared(folder):
    (folder / ".new.partial").mkdir()
    with partial_folder(folder / "new"):
        pass
    (folder / ".out.jsonl.partial").touch()
    jsonl.open_output("out.jsonl").close()
    assert os.listdir() == ["out.jsonl"]


@pytest.mark.parametrize("kind", ["file", "folder", "link to a folder"])
def test_what_somebody_keeps_under_the_name_of_a_partial_file_stays(kind, folder):
    (folder / "mine").mkdir()
    write(folder / "mine" / "data", b"mine")
    if kind == "file":
        write(folder / ".new.partial", b"mine")
    elif kind == "folder":
        os.rename("mine", ".new.partial")
    else:
        os.symlink("mine", ".new.partial")
    before = sorted(os.walk("."))
    for write_something in (
        lambda: jsonl.open_output("new"),
        lambda: partial_folder(folder / "new").__enter__(),
        lambda: empty_folder(folder / ".new.partial"),
    ):
        with pytest.raises(InputError, match="is in the way; no run left it there, so move it"):
            write_something()
    assert sorted(os.walk(".")) == before
    if kind == "file":
        assert (folder / ".new.partial").read_bytes() == b"mine\n"


@pytest.mark.slow
def test_train_refuses_a_folder_that_another_run_writes(folder):
    (folder / "rm").mkdir()
    write(folder / "in.jsonl", {"id": "x", "chosen": talk("q", "a"), "rejected": talk("q", "b")})
    unloadable(folder / "base")
    with locked_folder(folder / "rm"):
        done = music("train", "in.jsonl", "--model", "base", "--batch", 1, "--out", "rm")
    said = "rm: another run is writing it; wait for that, or name another"
    assert (done.status, done.lines) == (2, [f"music train: error: {said}"])


def test_a_store_is_written_by_several_runs(folder):
    """The cache is shared: it has locks of its own."""
    for _ in range(2):
        assert music("cache", "--cache", "calls.sqlite").status == 0


def test_the_use_of_a_path_stands_in_the_annotation():
    from typing import Annotated

    use = PathUse(written=True)
    assert path_uses({"a": Annotated[str, use], "b": str}) == {"a": use}
    assert re.fullmatch(r"[\w ;']+", SAME)
