"""A preloaded program ends as a new interpreter's does, and with the process that started it."""

import os
import signal
import subprocess
import sys

import preloaded
import psutil
import pytest
from console import environment, wait_until

pytestmark = pytest.mark.slow
PROGRAMS = (
    "print(input(), flush=True)",
    "import sys; print(sys.argv, file=sys.stderr); sys.exit(3)",
    "import sys; sys.exit('no')",
    "import atexit; atexit.register(print, 'last')",
    "import os; os.kill(os.getpid(), 9)",
    "import os; os.kill(os.getpid(), 15)",
    "import os; print(os.getcwd(), os.environ['WORD'])",
)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_ends_and_writes_as_in_a_new_interpreter(program, tmp_path):
    real, forked = (
        subprocess.run(
            [interpreter, "-c", program, "x"],
            input="text\n",
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment(WORD="word"),
        )
        for interpreter in (sys.executable, preloaded.python())
    )
    assert (forked.returncode, forked.stdout, forked.stderr) == (
        real.returncode,
        real.stdout,
        real.stderr,
    )


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_client_ends_the_program(how):
    line = [preloaded.python(), "-c", "import time; print(flush=True); time.sleep(600)"]
    with subprocess.Popen(line, stdout=subprocess.PIPE) as client:
        client.stdout.readline()
        program = preloaded.program(client.pid)
        os.kill(client.pid, how)
        assert client.wait() == -how
        wait_until(lambda: not psutil.pid_exists(program))
