"""README says what there is: every command, only options that exist, and only files that are there."""

import re
import shlex
from pathlib import Path

import pytest
from console import music

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
BENCHES = (
    "rewardbench",
    "rewardbench2",
    "rmbench",
    "agreement",
    "winrate",
    "sensitivity",
    "judges",
    "audit",
)
COMMANDS = (
    "sample",
    "simulate",
    "pair",
    "train",
    "merge",
    "score",
    "judge",
    "show",
    "cache",
    *(f"bench {name}" for name in BENCHES),
)


def examples(text: str) -> list[list[str]]:
    """Each `music ...` of the code lines of a Markdown text or a script, as words; a pipe has several."""
    joined = re.sub(r"\\\n\s*", " ", text)
    lines = [
        line.strip().removeprefix("$ ") for line in joined.splitlines() if line.startswith("    ")
    ]
    parts = [
        part.strip()
        for line in lines
        if line.startswith("music ")
        for part in re.split(r"\s[|]\s", line)
    ]
    return [shlex.split(part) for part in parts if re.match(r"music [a-z]+ [^:]*$", part)]


EXAMPLES = examples(README)


def options_of(words: list[str]) -> tuple[str, list[str]]:
    name = " ".join(words[1:3]) if words[1] == "bench" else words[1]
    return name, [word for word in words if re.match(r"--?[a-z]", word)]


def test_there_is_an_example_of_every_command():
    shown = {options_of(words)[0].split()[0] for words in EXAMPLES}
    assert shown == {name.split()[0] for name in COMMANDS}


@pytest.mark.parametrize("words", EXAMPLES, ids=lambda words: " ".join(words)[:60])
def test_an_example_uses_options_that_exist(words):
    name, options = options_of(words)
    helped = music(*name.split(), "--help").out.decode()
    for option in options:
        assert re.search(rf"(^|[\s,]){re.escape(option)}[\s,]", helped), (
            f"music {name} has no {option}"
        )


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_named(name):
    assert f"`{name.split()[-1]}`" in README or f"music {name}" in README or f"### {name}" in README


def test_files_that_readme_names_are_there():
    named = set(re.findall(r"(?:recipes|\.ci|musiccli)/[\w./-]+", README))
    assert named
    assert {path for path in named if not (ROOT / path).exists()} == set()


def test_the_gate_calls_readmes_commands():
    gate = (ROOT / ".ci" / "run").read_text()
    assert "bash recipes/install.sh" in gate and "bash recipes/install.sh" in README
    assert ".venv/bin/pytest" in gate and "    .venv/bin/pytest\n" in README
