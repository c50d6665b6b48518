"""Help loads nothing heavy, and takes little longer than the libraries that draw it."""

import os
import statistics
import subprocess
import sys

import pytest
from console import COMMAND, environment
from test_contract import commands

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
