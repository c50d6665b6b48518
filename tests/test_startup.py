"""Help loads nothing heavy, and takes little longer than the libraries that draw it."""

import json
import os
import statistics
import subprocess
import sys

import pytest
from build import unloadable, write
from console import COMMAND, environment
from test_contract import commands
from toys import pairs

HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "litellm",
    "numpy",
    "peft",
    "accelerate",
    "pandas",
    "matplotlib",
    "aiohttp",
    "scipy",
    "pyarrow",
    "sqlite3",
    "backports.zstd",
)
LIBRARIES = [sys.executable, "-c", "import typer, rich"]


def test_help_loads_nothing_heavy():
    """One new interpreter shows all help; it names the command that was the first to load a library."""
    code = (
        "import sys; from musiccli.cli.main import main\n"
        "loaded = {}\n"
        f"for words in {['', '--version', *commands()]!r}:\n"
        "    sys.argv = ['music', *words.split(), '--help']\n"
        "    try: main()\n"
        "    except SystemExit as ended: assert not ended.code\n"
        f"    for name in {HEAVY}:\n"
        "        if name in sys.modules: loaded.setdefault(name, sys.argv)\n"
        "print(loaded, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "{}\n")
    assert done.stdout.count("Usage: music") == len(commands()) + 1


REFUSED = (  # command lines, and what is wrong with them
    ("train nosuch --model base --out rm", "nosuch: no such file"),
    ("train in --model base --out rm --eval x=nosuch", "nosuch: no such file"),
    ("train in --model base --out in.txt", "in.txt: is a file; --out names a folder"),
    ("train in --model base --out in.txt/rm", "in.txt/rm: cannot be written: "),
    ("train in --model base --out rm --plot x.doc", "--plot x.doc: expected a file"),
    ("train in --init-from empty --out rm", "empty: is a folder without a config.json"),
    ("train in --model ./nosuch --out rm --num-processes 2", "./nosuch: no such folder"),
    ("train in --model base --out rm --epochs 0", "--epochs 0: trains nothing"),
    ("train pair --model base --out rm --epochs 0 --num-processes 2", "--epochs 0: trains nothing"),
    ("train pair --model base --out rm --qlora", "--qlora: needs --lora"),
    ("train pair --model base --out rm --batch 1 --num-processes 2", "--batch 1: every one of 2"),
    ("train pair --model base --out rm --batch 2", "--batch 2: there are 1 pairs"),
    ("train pair --model base --out rm --batch 1 --margin-field x", "--margin-field x: none of"),
    ("train pair --model base --out adapter --batch 1", "adapter: holds something else"),
    ("train pair --model base --out rm --batch 1 --push-to-hub a/b", "--push-to-hub a/b: nobody"),
    ("train pair in --model base --out rm --batch 1", "in:1: chosen: is missing"),
    ("train pair --model base --out rm --batch 1 --eval in", "in:1: chosen: is missing"),
    ("score nosuch --model base", "nosuch: no such file"),
    ("score in --model base", "in:1: has neither messages"),
    ("score in --model a/b/c", "a/b/c: no such folder; expected a model's folder, a hub id"),
    ("score in --model base --shard 9/8", "--shard 9/8: expected K/N"),
    ("serve --model x=./nosuch", "./nosuch: no such folder"),
    ("serve --model base --actor-template in.txt", "in.txt: no such folder"),
    ("serve --model base --model ./base", "--model ./base: another one is called base"),
    ("merge base --out rm", "base: holds no adapter_config.json"),
    ("merge adapter --out rm", "adapter: names no backbone"),
    ("merge adapter --out rm --model ./nosuch", "./nosuch: no such folder"),
    ("merge ia3 --out rm --model base", "ia3: a IA3 adapter cannot be merged"),
    ("simulate nosuch --assistant local/smollm2", "nosuch: no such file"),
    ("simulate in --assistant local/nosuch", "local/nosuch: there is local/smollm2"),
    ("simulate in --assistant local/smollm2 --persona nosuch", "nosuch: no such file"),
    ("judge in --judge local/a/b/c", "local/a/b/c: no such folder"),
    ("bench report nosuch --model base --html x.html", "nosuch: no such file"),
    ("bench report in --model base --html x.html", "in:1: chosen: is missing"),
)


def test_what_a_run_cannot_use_is_refused_before_anything_heavy_is_loaded(tmp_path):
    unloadable(tmp_path / "base")
    (tmp_path / "empty").mkdir()
    for name in ("in", "in.txt"):
        (tmp_path / name).write_text("{}")
    write(tmp_path / "pair", *pairs(1))
    for name, kind in (("adapter", "LORA"), ("ia3", "IA3")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps({"peft_type": kind}))
    code = (
        "import sys; from musiccli.cli.main import main\n"
        f"for words in {[words for words, _ in REFUSED]!r}:\n"
        "    sys.argv = ['music', *words.split()]\n"
        "    try: main()\n"
        "    except SystemExit as ended: assert ended.code == 2\n"
        f"    assert not {{'torch', 'transformers', 'accelerate'}} & {{*sys.modules}}, words\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    for (words, problem), line in zip(REFUSED, done.stderr.splitlines(), strict=True):
        command = " ".join(words.split()[: 1 + words.startswith("bench")])
        assert line.startswith(f"music {command}: error: {problem}")


@pytest.mark.slow
def test_help_costs_at_most_half_again_of_its_libraries(tmp_path):
    """Whole processes, in turn, by their processor time: what else a machine does counts little."""
    settings = {
        "env": environment(PYTHONDONTWRITEBYTECODE=None, PYTHONPYCACHEPREFIX=str(tmp_path)),
    }
    help, libraries = [*COMMAND, "--help"], LIBRARIES
    for command in (help, libraries):
        seconds(command, settings)  # the first of each compiles
    for _ in range(3):  # a machine that is busy unevenly gets more chances
        times = [(seconds(help, settings), seconds(libraries, settings)) for _ in range(9)]
        ratio = statistics.median(first for first, _ in times) / statistics.median(
            second for _, second in times
        )
        if ratio <= 1.5:
            return
    pytest.fail(f"music --help took {ratio:.2f} times as long as importing typer and rich")


def seconds(command, settings):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, **settings)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return used.ru_utime + used.ru_stime
