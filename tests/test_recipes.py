"""Recipes are known to work, up to the hardware they ask for."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import preloaded
import pytest
from console import music
from openai_server import serve
from scripted import scripted_reply
from toys import TINY, backbone

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "recipes").glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_parses_and_says_how_to_run_it(script):
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    assert f"bash recipes/{script.name}" in script.read_text("utf-8").split("set -euo pipefail")[0]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_uses_options_that_exist(script):
    text = re.sub(r"\\\n\s*", " ", script.read_text("utf-8"))
    calls = re.findall(
        r"\bmusic (sample|simulate|pair|train|score|judge|show|bench [a-z]+) ([^|\n]*)", text
    )
    for name, rest in calls:
        helped = music(*name.split(), "--help").out.decode()
        for option in re.findall(r"(?<=\s)--[a-z-]+", " " + rest):
            assert option in helped, f"{script.name}: music {name} has no {option}"


@pytest.mark.parametrize(
    "config", sorted((ROOT / "recipes" / "accelerate").glob("*.yaml")), ids=lambda path: path.name
)
def test_accelerate_reads_a_config(config):
    from accelerate.commands.config.config_args import load_config_from_file

    assert load_config_from_file(str(config)).num_processes >= 1


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder for the recipes without an environment of its own, whose `music` they would prefer."""
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    return folder


def run(
    script: str, folder: Path, project: Path, **environment: str
) -> subprocess.CompletedProcess:
    """A dry run of a recipe into `folder`, beside which its caches are."""
    path = f"{preloaded.programs()}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", project / "recipes" / script, "--dry-run", folder],
        env=os.environ | {"PATH": path, "MUSIC_CACHE": f"{folder}.cache"} | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("script", ["laptop.sh", "paper.sh"])
def test_a_recipe_says_where_music_is_not_installed(script, tmp_path, project):
    (tmp_path / "bin").mkdir()
    for program in ("bash", "dirname", "mkdir"):
        (tmp_path / "bin" / program).symlink_to(shutil.which(program))
    done = subprocess.run(
        ["bash", project / "recipes" / script, "--dry-run", tmp_path / "out"],
        env={"PATH": str(tmp_path / "bin")},
        capture_output=True,
        text=True,
    )
    said = f"{script}: music is not installed; bash recipes/install.sh does it\n"
    assert (done.returncode, done.stderr) == (2, said)


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """A server for the LLM and a toy for the backbone, as the recipes' dry runs take them."""
    toy = backbone(tmp_path_factory.mktemp("toy"), num_hidden_layers=2)
    with serve(reply=scripted_reply) as server:
        yield {
            "DRY_LLM": "openai/scripted",
            "DRY_MODEL": str(toy),
            "OPENAI_BASE_URL": server.base_url,
            "OPENAI_API_KEY": "none",
        }


@pytest.mark.slow
def test_the_papers_run_walks_all_its_stages(tmp_path, project, stand_ins):
    done = run("paper.sh", tmp_path / "paper", project, **stand_ins)
    assert done.returncode == 0, done.stderr
    made = {path.name for path in (tmp_path / "paper").iterdir()}
    assert made >= {
        "music.jsonl",
        "baseline",
        "music",
        "prompts.judged.jsonl",
        "prompts.winrate.jsonl",
        "agreement.jsonl",
    }
    again = run("paper.sh", tmp_path / "paper", project, **stand_ins)
    assert again.returncode == 0 and "== " not in again.stderr  # everything was there already


@pytest.mark.slow
def test_the_papers_run_stops_where_its_money_does_not_suffice(tmp_path, project, stand_ins):
    priced = stand_ins | {"DRY_LLM": "openai/gpt-4o", "MAX_COST": "0"}
    done = run("paper.sh", tmp_path / "paper", project, **priced)
    assert done.returncode == 1 and "stopped by --max-cost with " in done.stderr
    assert done.stderr.splitlines()[-1] == (
        "paper.sh: MAX_COST=0 does not suffice for branches.jsonl; with more the same line goes on"
    )
    assert not (tmp_path / "paper" / "branches.jsonl").exists()


@pytest.mark.slow
def test_the_quickstart_ends_in_a_table_a_picture_and_lines_that_go_on(
    tmp_path, project, stand_ins
):
    done = run("quickstart.sh", tmp_path / "quickstart", project, **stand_ins)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "quickstart"
    assert (out / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    assert "<html" in (out / "pairs.html").read_text() and (out / "judged.jsonl").exists()
    [row] = [line for line in done.stderr.splitlines() if "  before the last turn  " in line]
    assert len(re.findall(r"[\d.]+ \[[\d.]+, [\d.]+\]", row)) == 2, row  # both models
    assert "before the last turn: music - baseline: " in done.stderr
    again = run("quickstart.sh", out, project, **stand_ins)
    assert again.returncode == 0 and again.stderr.count("there already") == 11
    values = {
        "YOUR-DATA": f"{TINY}/pairs.jsonl",
        "hosted_vllm/NAME": stand_ins["DRY_LLM"],
        "http://HOST:8000/v1": stand_ins["OPENAI_BASE_URL"],
        "branches.jsonl": tmp_path / "branches.jsonl",
        "YOUR-PAIRS": f"{TINY}/pairs.jsonl {TINY}/more-pairs.jsonl {TINY}/music.jsonl",
        "google/gemma-2-2b-it": stand_ins["DRY_MODEL"],
        "--out rm": f"--out {tmp_path}/rm",
    }
    lines = re.findall(r"music .*", done.stderr.partition("What next?")[2])
    assert len(lines) == 3
    for line in lines:
        used = [name for name in values if name in line]
        for name in used:
            line = line.replace(name, str(values[name]))
        ended = music(*shlex.split(line)[1:])
        assert used and ended.status == 0, (line, ended.err)


@pytest.mark.slow
def test_the_laptops_run_walks_all_its_stages(tmp_path, project, stand_ins):
    arms = ["margin", "middle", "self-taught"]
    done = run("laptop.sh", tmp_path / "laptop", project, ARMS=" ".join(arms), **stand_ins)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "laptop" / "rm").iterdir()} == {
        f"{arm}-0" for arm in arms
    }
    assert done.stdout == (tmp_path / "laptop" / f"{','.join(arms)}.md").read_text()
    heads = [cell.strip() for cell in done.stdout.splitlines()[0].strip("|").split("|")]
    assert heads[3:] == [f"{arm}, 1 run" for arm in arms]
    again = run("laptop.sh", tmp_path / "laptop", project, ARMS=" ".join(arms), **stand_ins)
    assert (again.returncode, again.stdout) == (0, done.stdout) and "== " not in again.stderr


@pytest.mark.slow
def test_the_laptops_table_takes_the_mean_of_runs_and_counts_their_spread(tmp_path):
    def pair(conversation: str, distance: int, **right: bool) -> dict:
        scores = {
            name.replace("_", "-"): {"chosen": float(won), "rejected": 0.5}
            for name, won in right.items()
        }
        talk = [{"role": "user", "content": conversation}, {"role": "assistant", "content": "a"}]
        return {
            "id": f"{conversation}/{distance}",
            "chosen": talk,
            "rejected": talk,
            "scores": scores,
            "metadata": {"conversation": conversation},
            "corruption": {"kind": "reply", "turn": 2 - distance, "distance": distance},
        }

    pairs = [
        pair(f"c{number}", distance, a_0=number < 5, a_1=number < 10, c_0=True, c_1=distance == 0)
        for number in range(20)
        for distance in (0, 1)
    ]
    (tmp_path / "scored").mkdir()
    for run in ("a-0", "a-1", "c-0", "c-1"):
        own = [one | {"scores": {run: one["scores"][run]}} for one in pairs]
        (tmp_path / "scored" / f"test.{run}.jsonl").write_text(
            "".join(json.dumps(one) + "\n" for one in own)
        )
    line = [
        preloaded.python(),
        ROOT / "recipes" / "laptop" / "table.py",
        tmp_path,
        "--arms",
        "a",
        "c",
    ]
    done = subprocess.run(
        [*line, "--figure", tmp_path / "figure.png"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    table = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()
    ]
    rows = {label: cells for label, *cells in table}
    first = rows["one reply exchanged: first turn"]
    assert first[0] == "20 (20)"
    assert first[1] == "50.0 longest"
    assert first[2].startswith("37.5 [")  # 5 and 10 of 20
    assert first[3] == "50.0 [0.2, 99.8]"  # 20 and 0 of 20: from these two runs nobody knows
    assert rows["one reply exchanged: last turn"][3].startswith("100.0 [")
    assert rows["one reply exchanged: last turn"][4].startswith("+62.5 [")
    one = subprocess.run([*line, "--runs", "1"], capture_output=True, text=True).stdout
    assert (
        "| a, 1 run | c, 1 run |" in one
        and "| 20 (20) | 50.0 longest | 25.0 [11.2, 46.9] | 100.0 [" in one
    )
    (tmp_path / "scored" / "test.c-0.jsonl").unlink()
    other = subprocess.run(line, capture_output=True, text=True).stdout
    assert (
        "| a, 2 runs | c, 1 run |" in other and "| +50.0 [" in other
    )  # both of seed 1: 20 and 10 of 20
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_measure_of_injections_sees_a_judge_that_obeys_and_pays_once(tmp_path):
    def obeys(body: dict) -> str:
        """Says what any text in a conversation tells it to, if nothing says where conversations end; else C."""
        prompt = body["messages"][0]["content"]
        told = re.findall(r"\[\[([AB])\]\]", prompt.partition("Explain your judgement")[0])
        return f"[[{told[-1] if told and 'the mark' not in prompt else 'C'}]]"

    measure = ROOT / "recipes" / "injections" / "measure.py"
    with serve(reply=obeys) as server:
        line = [
            preloaded.python(),
            measure,
            tmp_path,
            "--judge",
            "openai/x",
            "--api-base",
            server.base_url,
            "--forced",
            "0",
            "--free",
            "3",
        ]
        environment = os.environ | {"OPENAI_API_KEY": "none"}
        first, again = (
            subprocess.run(line, env=environment, capture_output=True, text=True) for _ in range(2)
        )
        assert server.calls == 2 * 2 * 3 * 2
    assert (first.returncode, first.stdout) == (0, again.stdout), first.stderr
    assert [row.split(" | ")[-1] for row in first.stdout.splitlines() if "injected |" in row] == [
        "100.0 [100.0, 100.0] |",
        "0.0 [0.0, 0.0] |",
    ]
