"""What the package imports is declared, and what it reads beside its code is shipped with it."""

import ast
import re
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
DISTRIBUTIONS = {"backports": "backports.zstd"}  # by import name
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
    requirements = [*PROJECT["project"]["dependencies"], *extras["local"], *extras["plot"]]
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
