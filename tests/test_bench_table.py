"""`music bench table` joins the metric files of several runs."""

import pytest
from build import lines, read, scored_pair, write
from console import music

from musiccli.bench import table


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def measure(folder, name, right, model="rm", benchmark="agreement", count=20, order=1):
    """The metric file of one run: `model` has `right` of the pairs right, which come in an order."""
    records = [
        scored_pair(
            number,
            0,
            0,
            scores={model: {"chosen": int(number < right), "rejected": 0.5}},
            corruption={"kind": "reply", "distance": 1},
        )
        for number in range(count)[::order]
    ]
    source = write(folder / f"{name}.records", *records)
    done = music("bench", benchmark, source, "-o", f"{name}.jsonl")
    assert done.status == 0, done.err
    return f"{name}.jsonl"


def cells(done, model):
    """The words of the first line of the table that begins with the model."""
    return next(line.split() for line in done.lines if line.split()[:1] == [model])


def test_runs_of_several_models_and_benchmarks_are_one_table(folder):
    files = [
        measure(folder, "a", 15, "small"),
        measure(folder, "b", 19, "large"),
        measure(folder, "c", 10, "large", "sensitivity"),
    ]
    done = music("bench", "table", *files, "--html", "page.html", "--markdown", "table.md")
    assert done.status == 0, done.err
    assert [cells(done, "large")[place] for place in (1, 4, 7)] == ["95.0", "50.0", "72.5"]
    assert cells(done, "small")[1] == "75.0" and len(cells(done, "small")) == 4
    assert done.records == [row for name in files for row in read(folder / name)]
    assert "<table>" in (folder / "page.html").read_text()
    assert "| large | 95.0" in (folder / "table.md").read_text()


def test_one_model_on_two_files_of_a_benchmark_has_two_columns_named_by_the_files(folder):
    done = music("bench", "table", measure(folder, "votes", 15), measure(folder, "facts", 5))
    assert {row["benchmark"] for row in done.records} == {
        "agreement (votes)",
        "agreement (facts)",
    }
    assert [cells(done, "rm")[place] for place in (1, 4, 7)] == ["75.0", "25.0", "50.0"]


def test_models_that_measured_different_pairs_share_no_column(folder):
    """Not even where the pairs are as many: their figures do not compare."""
    votes = measure(folder, "votes", 15, "small"), measure(folder, "again", 19, "large", order=-1)
    facts = write(
        folder / "facts",
        *[
            scored_pair(n, 0, 0, scores={"other": {"chosen": 1, "rejected": 0}})
            for n in range(100, 120)
        ],
    )
    assert music("bench", "agreement", facts, "-o", "facts.jsonl").status == 0
    together = write(
        "all.jsonl", *[row for name in (*votes, "facts.jsonl") for row in read(folder / name)]
    )
    assert {row["benchmark"] for row in music("bench", "table", *votes).records} == {"agreement"}
    done = music("bench", "table", *votes, "facts.jsonl", "--markdown", "table.md")
    assert "agreement: not the same records in votes, again (20), facts (20)" in done.err
    assert "| agreement (votes, again) | agreement (facts) | mean |" in (
        folder / "table.md"
    ).read_text("utf-8").replace("\\", "")
    assert [len(cells(done, model)) for model in ("small", "large", "other")] == [4, 4, 4]
    columns = {row["benchmark"] for row in music("bench", "table", together).records}
    assert len(columns) == 2 and all(name.startswith("agreement (all, data ") for name in columns)


def test_metric_files_without_data_are_told_apart_by_the_number_of_pairs(folder):
    def metric(model, count):
        row = {"benchmark": "b", "model": model, "subset": "all", "metric": "accuracy"}
        return row | {"value": 0.5, "count": count}

    files = [
        write(f"{model}.jsonl", metric(model, count))
        for model, count in zip("xyz", (9, 9, 8), strict=True)
    ]
    done = music("bench", "table", *files)
    assert [row["benchmark"] for row in done.records] == ["b (x, y)", "b (x, y)", "b (z)"]
    assert "b: not the same records in x, y (9), z (8); a column for each" in done.err


@pytest.mark.parametrize(
    "field, value, problem",
    [
        ("model", None, "model: should be text, as music bench writes it"),
        ("value", "high", "value: should be a number or null"),
        ("count", 1.5, "count: should be a whole number"),
    ],
)
def test_what_is_no_metric_record_is_refused_with_its_field(field, value, problem):
    row = {"benchmark": "x", "model": "m", "subset": "all", "metric": "accuracy", "value": 0.5}
    done = music("bench", "table", given=lines(row | {"count": 1} | {field: value}))
    assert done.status == 2 and problem in done.err


def test_a_model_has_one_color_and_place_in_all_panels_of_the_figure():
    """The second benchmark lists the models in another order, and lacks the first of them."""
    figure = pytest.importorskip("matplotlib.figure").Figure()
    rows = [
        {"benchmark": benchmark, "model": model, "subset": "all", "metric": "accuracy"}
        | {"value": 0.5, "low": 0.4, "high": 0.6, "count": 9}
        for benchmark, models in (("x", ["one", "two", "three"]), ("y", ["three", "two"]))
        for model in models
    ]
    drawn: dict[str, set] = {}
    for panel in table.panels(rows):
        axes = figure.subplots()
        table.plot(axes, panel)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            point = handle.lines[0]
            drawn.setdefault(label, set()).add((point.get_color(), *point.get_xdata()))
    assert sorted(drawn) == ["one", "three", "two"]
    assert {len(looks) for looks in drawn.values()} == {1}
    assert len(set.union(*drawn.values())) == 3


def test_the_best_of_each_run_has_a_star(folder):
    def rows(models, first):
        for number, model in enumerate(models):
            row = {"benchmark": "rewardbench", "model": model, "subset": "all", "count": 100}
            value = first - number / 100
            yield row | {"metric": "average", "value": value, "low": 0.5, "high": 0.95}
            if number:
                yield row | {"metric": "holm_p", "value": 0.01, "against": models[0]}

    files = write("1.jsonl", *rows("ABCD", 0.8)), write("2.jsonl", *rows("EFGH", 0.9))
    done = music("bench", "table", *files)
    assert [cells(done, model)[1] for model in "AEBF"] == ["80.0*", "90.0*", "79.0", "89.0"]
