"""The memory and the processors that this process may use.

Linux counts both in control groups (cgroups): a container, a service and a job of Slurm each have
one. What takes more memory than a cgroup allows is killed, and what computes for longer waits.
Cgroups enclose each other, and the narrowest limit holds. The files are those of the kernel's
admin-guide/cgroup-v2.rst and admin-guide/cgroup-v1/.
"""

import math
import os
import sys
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

ROOT = Path("/")
# Of each version: the limit, what is used, and what of it in memory.stat is file cache that the
# kernel gives back.
MEMORY_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def available_bytes(root: Path = ROOT) -> int:
    """Bytes of memory that this process may still take.

    Args:
        root: the folder that holds proc and sys.
    """
    import psutil  # 30 ms

    left = (_bytes_left(cgroup) for cgroup in _cgroups(root, "memory"))
    return max(0, int(min([psutil.virtual_memory().available, *left])))


def file_mappings(root: Path = ROOT) -> list[range]:
    """Addresses of this process where files are mapped; none where there is no proc.

    Their pages take no memory of the process until they are written to.

    Args:
        root: the folder that holds proc and sys.
    """
    mappings = []
    for line in _text(root / "proc/self/maps").splitlines():
        addresses, _, _, _, inode, *_ = line.split()
        if inode != "0":
            start, stop = (int(address, 16) for address in addresses.split("-"))
            mappings.append(range(start, stop))
    return mappings


def cores(root: Path = ROOT) -> int:
    """How many cores this process may use; a part of one counts as a whole.

    Args:
        root: the folder that holds proc and sys.
    """
    number = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    quotas = (_quota(cgroup) for cgroup in _cgroups(root, "cpu"))
    return max(1, math.ceil(min([number, *quotas])))


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of the cgroups that this process is in, as far as they can be seen.

    A container may see its own cgroup as the outermost, and its path as that of the host.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        mounts = root / "sys/fs/cgroup"
        names = [name for name in path.split("/") if name and name != ".."]
        if not controllers:  # version 2; beside version 1 it is in a folder of its own
            top = mounts / "unified" if (mounts / "unified").is_dir() else mounts
        elif controller in controllers.split(","):
            top = mounts / controller
        else:
            continue
        yield from accumulate(names, Path.joinpath, initial=top)


def _bytes_left(cgroup: Path) -> float:
    """What a cgroup's limit leaves; infinity where it has none."""
    for limit, used, cache in MEMORY_FILES:
        if (most := _text(cgroup / limit).strip()).isdecimal():
            statistics = dict(line.split() for line in _text(cgroup / "memory.stat").splitlines())
            return int(most) - int(_text(cgroup / used) or 0) + int(statistics.get(cache, 0))
    return math.inf


def _quota(cgroup: Path) -> float:
    """How many cores a cgroup may use on average; infinity where it has no limit."""
    files = ("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")  # of version 2, and of 1
    for names in files:
        numbers = " ".join(_text(cgroup / name) for name in names).split()
        if len(numbers) == 2 and numbers[0].isdecimal():
            return int(numbers[0]) / int(numbers[1])
    return math.inf


def _text(file: Path) -> str:
    """What is in a file; nothing where it cannot be read."""
    try:
        return file.read_text()
    except OSError:
        return ""
