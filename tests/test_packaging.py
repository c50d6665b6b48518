"""What the package imports is declared, and what it reads beside its code is shipped with it."""

import ast
import re
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
DISTRIBUTIONS = {"backports": "backports.zstd", "openvino": "openvino_genai"}  # by import name
LATER = {"compression"}  # of the standard library of newer Pythons


def imported() -> set[str]:
    """The top-level names of all packages that the code imports, ours and Python's aside."""
    names = set()
    for file in (ROOT / "musiccli").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
    return names - sys.stdlib_module_names - LATER - {"musiccli"}


def declared() -> set[str]:
    extras = PROJECT["project"]["optional-dependencies"]
    used = [name for name in extras if name != "test"]
    requirements = [
        *PROJECT["project"]["dependencies"],
        *(one for name in used for one in extras[name]),
    ]
    return {re.match(r"[\w.-]+", requirement)[0].replace("-", "_") for requirement in requirements}


def test_what_is_imported_is_declared():
    names = {DISTRIBUTIONS.get(name, name) for name in imported()}
    assert names - declared() == set()


def test_files_beside_the_code_are_shipped():
    patterns = [
        f"musiccli/{pattern}"
        for pattern in PROJECT["tool"]["setuptools"]["package-data"]["musiccli"]
    ]
    files = [
        str(file.relative_to(ROOT)) for file in (ROOT / "musiccli").rglob("*") if file.is_file()
    ]
    beside = [file for file in files if not file.endswith((".py", ".pyc"))]
    assert beside
    assert [file for file in beside if not any(fnmatch(file, p) for p in patterns)] == []


def pins(name: str) -> dict[str, str]:
    """The lines of a file of requirements, by package: what follows "NAME==VERSION"."""
    text = (ROOT / ".ci" / name).read_text("utf-8")
    lines = [line.split(" ", 1) for line in text.splitlines() if line and line[0] != "#"]
    return {line[0].lower().replace("_", "-"): line[-1] for line in lines}


def test_every_tested_version_is_locked_by_its_hash():
    locked = pins("lock.txt")
    builds = {name for name in locked if name.startswith("setuptools==")}  # they build music itself
    unlocked = {name for name in pins("constraints.txt") if name.startswith("torch==")}
    assert len(builds) == len(unlocked) == 1
    assert set(locked) - builds == set(pins("constraints.txt")) - unlocked
    assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", rest) for rest in locked.values())


def test_installing_takes_only_locked_files():
    lines = (ROOT / "recipes" / "install.sh").read_text("utf-8").splitlines()
    assert any("--require-hashes --no-deps --requirement .ci/lock.txt" in line for line in lines)
