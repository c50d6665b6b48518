"""The manual and README: their tables of options are the program's, and every example runs.

`python tests/test_manual.py` writes the tables of options anew.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import preloaded
import pytest
import typer
from console import music
from openai_server import serve
from scripted import scripted_reply
from toys import TINY, backbone

from musiccli import manual
from musiccli.cli.main import app
from musiccli.llm.prices import listed_prices

ROOT = Path(__file__).parent.parent
PAGES = {
    page: Path(manual.__file__).parent / f"{page}.md" for page in (manual.INDEX, *manual.pages())
}
README = ROOT / "README.md"
TABLE = re.compile(r"(<!-- options: music (\w+) -->\n)(.*?)(<!-- /options -->)", re.DOTALL)
STAND_INS = {  # what an example names, and what takes its place in the tests
    "gemini/gemini-2.5-flash": "hosted_vllm/any",
    "openai/gpt-4o": "hosted_vllm/other",
    "local/smollm2": "hosted_vllm/any",
    "local/gemma3-270m": "toy",
    "http://127.0.0.1:8000/v1": "$SERVER",
    "sample skywork --stream": "sample pairs.jsonl",
    "sample skywork": "sample pairs.jsonl",
    "sample ultrafeedback": "sample pairs.jsonl",
    "sample allenai/WildChat-4.8M --stream": "sample pairs.jsonl",
    "sample hh-helpful": "sample pairs.jsonl",
    "sample nectar": "sample pairs.jsonl",
    "sample pku-saferlhf --emit pairs --label safety": "sample pairs.jsonl --emit pairs",
    "--exclude rewardbench": "--exclude heldout.jsonl",
}


# A model at a provider, as texts for people name it; openai/NAME stands for any
PROVIDER_MODEL = re.compile(r"\b(?:gemini|openai|anthropic|deepseek|mistral)/(?!NAME)\w[\w.-]*")


def texts_for_people() -> list[Path]:
    """Manual, README, recipes, and the code with its help; not what reads datasets of the hub."""
    code = [path for path in (ROOT / "musiccli").rglob("*.py") if "sample" not in path.parts]
    recipes = [
        path for path in (ROOT / "recipes").rglob("*") if path.suffix in (".sh", ".md", ".py")
    ]
    return [*PAGES.values(), README, *recipes, *code]


def test_every_model_that_is_named_has_a_price():
    names = {
        name: path.relative_to(ROOT)
        for path in texts_for_people()
        for name in PROVIDER_MODEL.findall(path.read_text("utf-8"))
    }
    assert {"gemini/gemini-2.5-flash", "openai/gpt-4o"} <= names.keys()
    assert {name: path for name, path in names.items() if listed_prices(name) is None} == {}


# Tables of options


def option_rows(command) -> dict[str, str]:
    """Each option of a command, and its help with its default, as its help shows them."""
    context = command.make_context("music", [], resilient_parsing=True)
    rows = {}
    for parameter in command.params:
        if not parameter.opts[0].startswith("-") or parameter.name == "help":
            continue
        names, help = (" ".join(text.split()) for text in parameter.get_help_record(context))
        help, _, extra = help.partition(" [")
        default = re.search(r"default: ([^;\]]+)", extra)
        if default:
            help += f" (`{default[1]}`)"
        elif "required" in extra:
            help += " (required)"
        rows[f"`{escaped(names)}`"] = escaped(help)
    return rows


def escaped(text: str) -> str:
    """Text that does not end a cell of a table."""
    return text.replace("|", "\\|")


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def options_of(name: str) -> str:
    """The table of a command's options; for a group, with the commands that have each."""
    command = typer.main.get_command(app).commands[name]
    if not hasattr(command, "commands"):
        rows = [[option, help] for option, help in option_rows(command).items()]
        return table(["option", "what it does (default)"], rows)
    owners: dict[tuple[str, str], list[str]] = {}
    for member, subcommand in command.commands.items():
        for option, help in option_rows(subcommand).items():
            owners.setdefault((option, help), []).append(member)
    everybody = len(command.commands)
    rows = [
        [option, help, "all" if len(members) == everybody else ", ".join(members)]
        for (option, help), members in owners.items()
    ]
    return table(["option", "what it does (default)", "benchmarks"], rows)


def renewed(text: str) -> str:
    """A page with its tables of options as the program has them now."""
    return TABLE.sub(
        lambda match: f"{match[1]}\n## Options\n\n{options_of(match[2])}\n{match[4]}", text
    )


@pytest.mark.parametrize("page", PAGES)
def test_the_table_of_options_is_the_programs(page):
    text = PAGES[page].read_text("utf-8")
    assert text == renewed(text), "stale; python tests/test_manual.py writes it anew"


def test_every_command_has_a_page_with_its_options():
    commands = set(typer.main.get_command(app).commands) - {"help"}
    documented = {
        page
        for page, file in PAGES.items()
        if f"<!-- options: music {page} -->" in file.read_text("utf-8")
    }
    assert documented == commands


# Reading it


@pytest.mark.parametrize("page", PAGES)
def test_help_shows_a_page(page):
    shown = music("help", page)
    assert (shown.status, shown.err) == (0, "")
    assert shown.out.decode() == PAGES[page].read_text("utf-8")


def test_help_without_a_page_lists_all_pages():
    index = music("help").out.decode()
    assert set(re.findall(r"\((\w+)\.md\)", index)) == set(manual.pages())


def test_a_page_that_is_not_there_is_one_line():
    missing = music("help", "nothing")
    assert missing.status == 2
    assert missing.err.startswith("music help: error: nothing: no such page; there are bench, ")
    asked = music("help", "Trian").lines
    assert asked == ["music help: error: Trian: no such page; did you mean train?"]


@pytest.mark.parametrize("file", [README, *PAGES.values()], ids=lambda file: file.name)
def test_links_lead_somewhere(file):
    for target in re.findall(r"\]\(([^)#]+)\)", file.read_text("utf-8")):
        assert target.startswith("https://") or (file.parent / target).exists(), target


# Examples


def examples(text: str) -> list[str]:
    """The command lines of a page: what stands behind "$ " in its console blocks."""
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    joined = "\n".join(blocks).replace("\\\n", " ")
    lines = [line[2:] for line in joined.splitlines() if line.startswith("$ ")]
    return [line for line in lines if line.startswith(("music ", "head "))]


def python_examples(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def run_line(line: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess:
    for named, instead in STAND_INS.items():
        line = line.replace(named, instead)
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with every file that the examples name, a server for their models, `music` on PATH."""
    folder = tmp_path_factory.mktemp("manual")
    for name in ("pairs", "heldout", "seeds", "prompts", "personas"):
        shutil.copy(TINY / f"{name}.jsonl", folder)
    shutil.copy(TINY / "heldout.jsonl", folder / "code.jsonl")
    (folder / "judgments.csv").write_text(
        "question,answer_1,answer_2,best\nHow far?,A mile.,No.,1\nHow long?,Yes.,An hour.,2\n"
    )
    backbone(folder / "toy")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    with serve(reply=scripted_reply) as server:
        environment = os.environ | {
            "PATH": f"{preloaded.programs()}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "SERVER": server.base_url,
            "HOSTED_VLLM_API_BASE": server.base_url,
            "MUSIC_CACHE": os.environ.get("MUSIC_CACHE", str(Path.home() / ".cache" / "musiccli")),
        }
        calls = "--cache calls.sqlite"
        for line in (
            f"music simulate seeds.jsonl --assistant hosted_vllm/any --turns 1 {calls} -o branches.jsonl",
            "music pair branches.jsonl -o music.jsonl",
            "music train pairs.jsonl --model toy --batch 8 --steps 1 --lora 4 --out rm-lora",
            "for name in rm base gold; do cp -r rm-lora $name; done",
            "music simulate prompts.jsonl --assistant hosted_vllm/any --contrast none --samples 4 "
            f"--turns 1 {calls} -o candidates.jsonl",
            "music score candidates.jsonl --model rm --as music | music score --model base "
            "--as baseline | music score --model rm -o scored.jsonl",
            "music pair scored.jsonl --best-of 2,4 --a music --b baseline -o contests.jsonl",
            f"music judge heldout.jsonl --judge hosted_vllm/any {calls} -o judged.jsonl",
            "music bench winrate judged.jsonl -o winrate.jsonl",
            "music score heldout.jsonl --model rm | music bench agreement -o agreement.jsonl",
            "cp agreement.jsonl rewardbench.jsonl",
        ):
            made = run_line(line, folder, environment)
            assert made.returncode == 0, f"{line}\n{made.stderr}"
        yield folder, environment


DOCUMENTS = {"README of the project": README, **PAGES}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name, file in DOCUMENTS.items() if examples(file.read_text("utf-8"))]
)
def test_every_example_runs(name, workplace):
    folder, environment = workplace
    for line in examples(DOCUMENTS[name].read_text("utf-8")):
        ran = run_line(line, folder, environment)
        assert ran.returncode == 0, f"{line}\n{ran.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name, file in DOCUMENTS.items() if python_examples(file.read_text("utf-8"))]
)
def test_every_python_example_runs(name, workplace):
    folder, environment = workplace
    for code in python_examples(DOCUMENTS[name].read_text("utf-8")):
        ran = subprocess.run(
            [preloaded.python(), "-c", code],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, f"{code}\n{ran.stderr}"


if __name__ == "__main__":
    for page in PAGES.values():
        page.write_text(renewed(page.read_text("utf-8")), "utf-8")
