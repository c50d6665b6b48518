"""README is short, names only files that are there, and gives the commands that the gate runs."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def test_it_can_be_read_in_four_minutes():
    assert len(README.split()) <= 900


def test_files_that_it_names_are_there():
    named = set(re.findall(r"(?:recipes|\.ci|musiccli)/[\w./-]+", README))
    assert named
    assert {path for path in named if not (ROOT / path).exists()} == set()


def test_the_gate_calls_its_commands():
    gate = (ROOT / ".ci" / "run").read_text()
    assert "bash recipes/install.sh" in gate and "bash recipes/install.sh" in README
    assert ".venv/bin/pytest" in gate and "    .venv/bin/pytest\n" in README
