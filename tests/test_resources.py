"""A container's or a job's limits count, wherever among its cgroups they are."""

import os
import sys

import psutil
import pytest
import torch

from musiccli.core.resources import available_bytes, cores, file_mappings
from musiccli.cpu.threads import limit_threads

NO_LIMIT = "9223372036854771712"  # of version 1
FREE = psutil.virtual_memory().total  # more than is available


@pytest.fixture
def root(tmp_path):
    """Write files beneath a folder that stands for the root of the file system, by their paths."""

    def write(files: dict[str, str]):
        for path, text in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(f"{text}\n")
        return tmp_path

    return write


def cgroup(folder: str, limit: object, used: int, cache: int = 0) -> dict[str, str]:
    """The files of a cgroup of version 2."""
    return {
        f"sys/fs/cgroup/{folder}/memory.max": str(limit),
        f"sys/fs/cgroup/{folder}/memory.current": str(used),
        f"sys/fs/cgroup/{folder}/memory.stat": f"anon 7\ninactive_file {cache}\nactive_file 9",
    }


def cgroup_v1(folder: str, limit: object, used: int, cache: int = 0) -> dict[str, str]:
    folder = f"sys/fs/cgroup/memory/{folder}"
    return {
        f"{folder}/memory.limit_in_bytes": str(limit),
        f"{folder}/memory.usage_in_bytes": str(used),
        f"{folder}/memory.stat": f"inactive_file 5\ntotal_inactive_file {cache}",
    }


def test_a_cgroup_leaves_its_limit_without_what_is_used_and_not_given_back(root):
    place = root({"proc/self/cgroup": "0::/pod/app", **cgroup("pod/app", 9000, 5000, 1500)})
    assert available_bytes(place) == 5500


@pytest.mark.parametrize("narrow", ["job", "job/step", "job/step/task"])
def test_the_narrowest_of_the_enclosing_cgroups_holds(narrow, root):
    files = {"proc/self/cgroup": "0::/job/step/task"}
    for folder in ("job", "job/step", "job/step/task"):
        files |= cgroup(folder, 3000 if folder == narrow else FREE, 1000)
    files |= cgroup("job/other", 2000, 1000) | cgroup("other", 1500, 1000)
    assert available_bytes(root(files)) == 2000


@pytest.mark.parametrize("path", ["/", "/docker/0123", "/../../pod/app"])
def test_a_container_sees_its_own_cgroup_as_the_outermost(path, root):
    assert (
        available_bytes(root({"proc/self/cgroup": f"0::{path}", **cgroup("", 4000, 100)})) == 3900
    )


@pytest.mark.parametrize("task", [NO_LIMIT, "4000"])
def test_version_1_is_read_too(task, root):
    files = {
        "proc/self/cgroup": "12:cpuset:/x\n4:memory:/slurm/job_1/task_0\n1:name=systemd:/\n0::/",
        **cgroup_v1("", NO_LIMIT, FREE),
        **cgroup_v1("slurm/job_1", 3000, 2500, 500),
        **cgroup_v1("slurm/job_1/task_0", task, 2500, 500),
        **cgroup("unified", 10, 0),  # no cgroup, but the place of all of version 2
    }
    del files["sys/fs/cgroup/unified/memory.max"]
    assert available_bytes(root(files)) == 1000


def test_a_cgroup_that_has_used_more_than_its_limit_leaves_nothing(root):
    place = root({"proc/self/cgroup": "0::/pod", **cgroup("pod", 1000, 2000, 10)})
    assert available_bytes(place) == 0


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"proc/self/cgroup": "0::/pod"},
        {"proc/self/cgroup": "0::/pod", **cgroup("pod", "max", 100)},
        {"proc/self/cgroup": "4:memory:/pod", **cgroup_v1("pod", NO_LIMIT, 100)},
    ],
    ids=["no cgroups", "no files", "no limit", "no limit in version 1"],
)
def test_without_a_limit_all_that_the_machine_has_free_is_available(files, root):
    available = psutil.virtual_memory().available
    assert available_bytes(root(files)) == pytest.approx(available, rel=0.2)


def test_a_limit_above_what_the_machine_has_free_changes_nothing(root):
    place = root({"proc/self/cgroup": "0::/pod", **cgroup("pod", 2 * FREE, 0)})
    assert available_bytes(place) <= FREE


@pytest.mark.parametrize(
    "quota, count",
    [("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("max 100000", 8)],
)
def test_a_quota_of_the_processors_counts_as_cores(quota, count, root, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8), raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    files = {"proc/self/cgroup": "0::/pod/app", "sys/fs/cgroup/pod/cpu.max": quota}
    assert cores(root(files | {"sys/fs/cgroup/pod/app/cpu.max": "900000 100000"})) == count
    amount, period = quota.replace("max", "-1").split()
    place = root(
        {
            "proc/self/cgroup": "3:cpu,cpuacct:/pod/app",
            "sys/fs/cgroup/cpu/pod/cpu.cfs_quota_us": amount,
            "sys/fs/cgroup/cpu/pod/cpu.cfs_period_us": period,
        }
    )
    assert cores(place) == count


def test_torch_computes_with_no_more_threads_than_there_are_cores(monkeypatch):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(cores() + 3)
        monkeypatch.setenv("OMP_NUM_THREADS", "9")
        limit_threads()
        assert torch.get_num_threads() == cores() + 3
        monkeypatch.delenv("OMP_NUM_THREADS")
        limit_threads()
        assert torch.get_num_threads() == cores()
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(sys.platform != "linux", reason="there is no proc")
def test_memory_that_a_file_is_mapped_to_is_told_from_other_memory(tmp_path):
    (tmp_path / "weights").write_bytes(bytes(4096))
    mapped = torch.from_file(str(tmp_path / "weights"), size=1024)
    mappings = file_mappings()
    assert any(mapped.data_ptr() in mapping for mapping in mappings)
    assert not any(torch.zeros(1024).data_ptr() in mapping for mapping in mappings)


def test_without_proc_no_file_is_known_to_be_mapped(tmp_path):
    assert file_mappings(tmp_path) == []
