"""What follows a run beside its log: a picture of it, and accelerate's trackers."""

import os
import subprocess

import preloaded
import pytest
from build import read, unloadable, write
from console import music
from toys import backbone, pairs

from musiccli.train import curves


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run's line, as words, and its folder."""
    folder = tmp_path_factory.mktemp("runs")
    given = write(folder / "pairs.jsonl", *pairs(8))
    line = [
        "train",
        given,
        "--model",
        backbone(folder / "base", num_hidden_layers=1),
        "--batch",
        4,
        "--steps",
        4,
        "--eval",
        given,
        "--eval-every",
        2,
    ]
    done = music(*line, "--out", folder / "rm")
    assert done.status == 0, done.err
    return line, folder / "rm"


@pytest.mark.slow
@pytest.mark.parametrize(
    "suffix, begins", [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_a_finished_run_is_drawn_without_training_again(trained, tmp_path, suffix, begins):
    line, out = trained
    done = music(*line, "--out", out, "--plot", tmp_path / f"curves.{suffix}")
    assert (done.status, len(done.lines)) == (0, 1)
    assert (tmp_path / f"curves.{suffix}").read_bytes().startswith(begins)


@pytest.mark.slow
def test_several_runs_are_drawn_together_under_their_names(trained, tmp_path):
    line, out = trained
    other = tmp_path / "with_$_sign" / "rm"
    other.mkdir(parents=True)
    (other / "log.jsonl").write_bytes((out / "log.jsonl").read_bytes() + b'{"step":5,"lo')
    third = tmp_path / "third"
    third.mkdir()
    (third / "log.jsonl").write_bytes((out / "log.jsonl").read_bytes())
    done = music(
        *line,
        "--out",
        out,
        "--plot",
        tmp_path / "all.svg",
        "--plot-beside",
        other,
        "--plot-beside",
        third,
    )
    assert done.status == 0, done.err
    found = curves.read_logs([str(out), str(other), str(third)])
    assert list(found) == [str(out), str(other), "third"]
    assert [len(steps) for steps in found.values()] == [4, 4, 4]
    assert b"third" in (tmp_path / "all.svg").read_bytes()


@pytest.mark.slow
def test_the_same_logs_give_the_same_bytes_and_others_others(trained):
    steps = read(trained[1] / "log.jsonl")
    drawn = curves.draw_curves({"rm": steps}, "svg")
    assert drawn == curves.draw_curves({"rm": steps}, "svg")
    for name in ("loss", "accuracy", "margin", "eval_loss", "eval_accuracy", "eval_margin"):
        changed = [*steps[:-1], steps[-1] | {name: steps[-1][name] + 0.3}]
        assert curves.draw_curves({"rm": changed}, "svg") != drawn, name


@pytest.mark.parametrize(
    "values, expected",
    [([1.0, 5.0, 3.0], [1.0, 5.0, 3.0]), ([0.0, 3.0] * 20, [1.5] + [1.0, 2.0] * 19 + [1.5])],
)
def test_a_running_mean_is_centered(values, expected):
    assert curves.running_mean(values) == pytest.approx(expected)


@pytest.mark.parametrize(
    "more, says",
    [
        (
            ("--plot", "curves.jpg"),
            "--plot curves.jpg: expected a file that ends in .png, .svg, .pdf",
        ),
        (("--plot", "/absent/curves.png"), "--plot /absent/curves.png: there is no such folder"),
        (
            ("--plot-beside", "/nowhere"),
            "/nowhere/log.jsonl: cannot be read: No such file or directory",
        ),
        (
            ("--tracker", "diary"),
            "--tracker diary: there is aim, clearml, comet_ml, dvclive, mlflow, swanlab, "
            "tensorboard, "
            "trackio, wandb",
        ),
        (
            ("--tracker", "comet_ml"),
            "--tracker comet_ml: its package is not installed; pip install comet-ml",
        ),
    ],
)
def test_what_cannot_be_is_said_before_the_model_is_loaded(tmp_path, more, says):
    given = write(tmp_path / "pairs.jsonl", *pairs(4))
    base = unloadable(tmp_path / "base")
    line = ("train", given, "--model", base, "--batch", 4, "--out", tmp_path / "rm")
    done = music(*line, *more)
    assert (done.status, done.lines) == (2, [f"music train: error: {says}"])
    assert not (tmp_path / "rm").exists()


TRACKIO = """
import json, os
def note(*what):
    with open(os.environ["NOTES"], "a") as file:
        print(json.dumps(what), file=file)
class config:
    update = staticmethod(lambda values, **_: note("config", values))
class Run:
    log = staticmethod(lambda values, step: note("log", step, values))
    finish = staticmethod(lambda: note("finish"))
def init(project):
    if "REFUSE" in os.environ:
        raise RuntimeError("no\\nkey")
    note("init", project)
    return Run
"""

TRACKIO_IS_THERE = """
from accelerate import tracking
if tracking.is_trackio_available() and "trackio" not in map(str, tracking._available_trackers):
    tracking._available_trackers.append(tracking.LoggerType.TRACKIO)  # as at accelerate's import
"""


@pytest.fixture
def tracked(trained, tmp_path):
    """Runs with a stand-in for the package trackio, and gives what accelerate told it."""
    (tmp_path / "trackio.py").write_text(TRACKIO)
    (tmp_path / "trackio-1.0.dist-info").mkdir()
    (tmp_path / "trackio-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: trackio\nVersion: 1.0\n"
    )
    (tmp_path / "sitecustomize.py").write_text(TRACKIO_IS_THERE)
    notes = tmp_path / "notes.jsonl"
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "NOTES": str(notes)}

    def run(*more, **settings):
        line = [
            *preloaded.command(),
            *map(str, trained[0]),
            "--out",
            str(tmp_path / "rm"),
            "--tracker",
            "trackio",
            *more,
        ]
        done = subprocess.run(line, capture_output=True, text=True, env=environment | settings)
        return done, read(notes) if notes.exists() else []

    return run


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--num-processes", "2")])
def test_a_tracker_is_told_the_settings_and_every_step_once(tracked, tmp_path, more):
    done, told = tracked(*more)
    assert done.returncode == 0, done.stderr
    assert [one[0] for one in told] == ["init", "config", "log", "log", "log", "log", "finish"]
    assert told[0][1] == "music" and told[1][1]["batch"] == 4 and None not in told[1][1].values()
    steps = read(tmp_path / "rm" / "log.jsonl")
    assert [one[1] for one in told[2:6]] == [step["step"] for step in steps] == [1, 2, 3, 4]
    assert told[3][2]["loss"] == steps[1]["loss"]
    turns, one = next(iter(steps[1]["eval_by_turns"].items()))
    assert told[3][2][f"eval_by_turns/{turns}/accuracy"] == one["accuracy"]


@pytest.mark.slow
def test_a_tracker_that_refuses_is_one_line(tracked):
    done, told = tracked(REFUSE="1")
    assert (done.returncode, told) == (2, [])
    assert done.stderr.splitlines()[-1] == "music train: error: --tracker: RuntimeError: no key"
