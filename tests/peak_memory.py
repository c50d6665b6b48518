"""The peak memory of a command.

What `wait4` and `getrusage` report of a process is never less than the peak of the process that
started it: fork and exec keep it. Under pytest that is far more than most commands take, so a
command that takes more memory than it should would not be seen. A process that has nothing in
memory therefore stands between.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

STARTER = """\
import os, sys
report, *command = sys.argv[1:]
_, status, used = os.wait4(os.posix_spawn(command[0], command, os.environ), 0)
with open(report, "w") as file:
    file.write(str(used.ru_maxrss))
sys.exit(os.waitstatus_to_exitcode(status))
"""
# For a program that measures itself. `resource` would report the peak of the one that started it.
RESIDENT = """
import re
from pathlib import Path

def resident(name):  # bytes: VmRSS is what is resident now, VmHWM the most that was
    return int(re.search(name + r":\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

def forget_peak():
    Path("/proc/self/clear_refs").write_text("5")
"""


def reporting_peak(report: Path, command: Sequence[str]) -> list[str]:
    """The line that runs `command` and writes its peak memory in KB to `report` as it ends."""
    return [sys.executable, "-I", "-S", "-c", STARTER, str(report), *command]
