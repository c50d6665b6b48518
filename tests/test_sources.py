"""Rows are read from files, folders, pipes and the hub; anything else is an error of one line."""

import gzip
import json
import re
from datetime import date
from decimal import Decimal

import pytest
from backports import zstd

from musiccli.core.errors import InputError, RecordError
from musiccli.core.jsonl import Rejects
from musiccli.core.run_stats import RunStats
from musiccli.sample import sources
from musiccli.sample.hub_datasets import PARQUET

ROWS = [{"prompt": "one"}, {"prompt": "two"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
LIST = json.dumps(ROWS, indent=1).encode()


def read(*names, rejects=None, say=lambda text: None, **settings):
    rows = sources.read_rows(names, stats=RunStats(rejects, say), **settings)
    return [(source, row.where, dict(row)) for source, row in rows]


def write(path, data):
    pack = {".gz": gzip.compress, ".zst": zstd.compress}.get(path.suffix, bytes)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pack(data))
    return str(path)


def parquet(path, rows):
    datasets = pytest.importorskip("datasets")
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows).to_parquet(str(path))
    return str(path)


@pytest.mark.parametrize(
    "name", ["a.b.jsonl", "a.b.json", "a.b.jsonl.gz", "a.b.jsonl.zst", "a.b.json.gz", "a.b.ndjson"]
)
@pytest.mark.parametrize(
    "data, places",
    [(LINES, (":1", ":2")), (LIST, ("[0]", "[1]")), (b"\n " + LIST, ("[0]", "[1]"))],
    ids=["lines", "list", "list after spaces"],
)
def test_json_is_read_as_lines_or_as_a_list_by_its_content(tmp_path, name, data, places):
    path = write(tmp_path / name, data)
    assert read(path) == [
        ("a.b", path + place, row) for place, row in zip(places, ROWS, strict=True)
    ]


@pytest.mark.slow
def test_parquet_rows_are_plain_lists_and_objects(tmp_path):
    rows = [{"chosen": [{"role": "user", "content": "q"}], "score": 1.5}]
    path = parquet(tmp_path / "part.parquet", rows)
    assert read(path) == [("part", f"{path}[0]", rows[0])]


def test_what_json_cannot_hold_is_told_by_its_size(tmp_path):
    message = {"role": "user", "content": "q"}
    path = parquet(
        tmp_path / "part.parquet",
        [
            {
                "messages": [message | {"image": b"\xff"}],
                "cost": Decimal("1.5"),
                "on": date(2024, 1, 31),
            }
        ],
    )
    assert read(path) == [
        (
            "part",
            f"{path}[0]",
            {"messages": [message | {"image": {"bytes": 1}}], "cost": 1.5, "on": "2024-01-31"},
        )
    ]


@pytest.mark.parametrize("name", ["a[1].parquet", "b*c.parquet", "d[x]/e.parquet"])
def test_a_files_name_is_no_pattern(tmp_path, name):
    parquet(tmp_path / "bxc.parquet", [{"prompt": "another"}])
    path = parquet(tmp_path / name, ROWS)
    assert [row for *_, row in read(path)] == ROWS


def test_a_folder_is_its_data_files_in_order(tmp_path):
    first = write(tmp_path / "a.jsonl", LINES)
    second = write(tmp_path / "sub" / "b.json", LIST)
    write(tmp_path / "LICENSE", b"not data")
    write(tmp_path / ".cache" / "c.jsonl", LINES)
    places = [where for _, where, _ in read(str(tmp_path))]
    assert places == [f"{first}:1", f"{first}:2", f"{second}[0]", f"{second}[1]"]


def test_a_split_chooses_among_a_folders_files(tmp_path):
    for name in (
        "data/train-00000-of-00001",
        "data/test-00000-of-00001",
        "data/train_sft-00000-of-00001",
    ):
        parquet(tmp_path / f"{name}.parquet", [{"prompt": name}])
    assert [row["prompt"] for *_, row in read(str(tmp_path), split="test")] == [
        "data/test-00000-of-00001"
    ]
    assert [row["prompt"] for *_, row in read(str(tmp_path), split="train")] == [
        "data/train-00000-of-00001"
    ]
    with pytest.raises(InputError, match=r"`split` dev: no data file in .* has that name"):
        read(str(tmp_path), split="dev")


def test_a_dataset_that_was_saved_to_disk_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[1:])}
    ).save_to_disk(str(tmp_path / "saved"))
    folder = str(tmp_path / "saved")
    assert [row for *_, row in read(folder)] == ROWS
    assert read(folder, split="test") == [("saved", f"{folder}[0]", ROWS[1])]
    with pytest.raises(InputError, match="choose one of its splits with `split`: train, test"):
        read(folder, split="dev")


def test_several_names_follow_each_other(tmp_path):
    names = [write(tmp_path / "b.jsonl", LINES), write(tmp_path / "a.jsonl", LINES)]
    assert [source for source, *_ in read(*names)] == ["b", "b", "a", "a"]


def test_lines_and_items_that_are_no_objects_go_to_the_rejects(tmp_path):
    reports = []
    rejects = Rejects(skip=True, report=reports.append)
    lines = write(tmp_path / "a.jsonl", b'{"prompt": "one"}\n{"torn": \n')
    items = write(tmp_path / "b.json", b'["text", {"prompt": "two"}]')
    assert [row for *_, row in read(lines, items, rejects=rejects)] == ROWS
    assert [line.split(": ")[0] for line in reports] == [f"{lines}:2", f"{items}[0]"]
    with pytest.raises(RecordError, match=re.escape(f"{items}[0]: is JSON, but not an object")):
        read(items)


@pytest.mark.parametrize(
    "name, settings, error",
    [
        (
            "missing.jsonl",
            {},
            "missing.jsonl: no such file or folder, no short name (music help datasets lists them) ",
        ),
        (
            "data/missing.parquet",
            {},
            "data/missing.parquet: no such file or folder, no short name (music help datasets lists them) ",
        ),
        (
            "rankjugde",
            {},
            "rankjugde: no such file or folder, no short name (perhaps rankjudge) and",
        ),
        ("a/b/c", {}, "and no hub id (OWNER/NAME)"),
        ("{torn.json}", {}, "torn.json: is not JSON: "),
        ("{torn.jsonl.gz}", {}, "torn.jsonl.gz: damaged: "),
        ("{torn.parquet}", {}, "torn.parquet: cannot be read as Parquet: "),
        ("{empty.jsonl}", {}, "empty.jsonl: is empty"),
        (
            "{good.jsonl}",
            {"split": "train"},
            "`split` train: names a part of a folder or of a hub dataset",
        ),
        ("{good.jsonl}", {"revision": "abc"}, "`revision` abc: pins a hub dataset"),
        ("{good.jsonl}", {"config": "abc"}, "`config` abc: names a part of a hub dataset"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(tmp_path, name, settings, error):
    files = {
        "torn.json": b'[{"a": 1}, {"b"',
        "torn.jsonl.gz": None,
        "torn.parquet": b"PAR1 torn",
        "empty.jsonl": b"",
        "good.jsonl": LINES,
    }
    for file, data in files.items():
        (tmp_path / file).write_bytes(gzip.compress(LINES)[:20] if data is None else data)
    with pytest.raises(InputError) as caught:
        read(re.sub(r"{(.*)}", rf"{tmp_path}/\1", name), **settings)
    assert error in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_found_before_the_first_row_is_read(tmp_path):
    with pytest.raises(InputError):
        sources.read_rows([write(tmp_path / "a.jsonl", LINES), "missing.jsonl"])


# The hub, without a network


@pytest.fixture
def hub(monkeypatch):
    """Stands in for datasets.load_dataset: remembers what was asked for."""
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(path, **settings):
        asked.append({"path": path, **settings})
        if path == "nobody/nothing":
            raise ConnectionError("Couldn't reach 'nobody/nothing' on the Hub\nmore lines")
        data = datasets.Dataset.from_list(ROWS)
        return (
            data
            if settings["split"]
            else datasets.DatasetDict({"train": data, "test": data.select([0])})
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(sources, "hub_problem", lambda: None)
    return asked


@pytest.mark.parametrize(
    "name, settings, asked",
    [
        (
            "rewardbench",
            {},
            {
                "path": "allenai/reward-bench",
                "name": None,
                "data_dir": None,
                "split": "filtered",
                "revision": "168d848cdbbea9764fae4a544dc9ca1e6cca4931",
            },
        ),
        (
            "hh-helpful",
            {"split": "test"},
            {
                "path": "Anthropic/hh-rlhf",
                "name": None,
                "data_dir": "helpful-base",
                "split": "test",
                "revision": "09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa",
            },
        ),
        (
            "skywork",
            {"revision": "main"},
            {
                "path": "Skywork/Skywork-Reward-Preference-80K-v0.2",
                "name": None,
                "data_dir": None,
                "split": "train",
                "revision": "main",
            },
        ),
        (
            "some/data",
            {},
            {"path": "some/data", "name": None, "data_dir": None, "split": None, "revision": None},
        ),
        (
            "rankjudge",
            {},
            {
                "path": "Layer6/RankJudge",
                "name": "pairs",
                "data_dir": None,
                "split": "train",
                "revision": None,
            },
        ),
        (
            "summarize",
            {},
            {
                "path": "openai/summarize_from_feedback",
                "name": None,
                "data_dir": "comparisons",
                "split": "train",
                "revision": "refs/convert/parquet",
            },
        ),
    ],
)
def test_names_are_looked_up_and_options_stand_over_the_table(hub, name, settings, asked):
    rows = read(name, **settings)
    assert hub == [asked]
    assert rows == [
        (asked["path"], f"{asked['path']}[{number}]", row) for number, row in enumerate(ROWS)
    ]


def test_a_short_name_has_a_split_and_if_pinned_a_whole_commit_and_none_overlaps_rewardbench():
    for dataset in sources.SHORT_NAMES.values():
        assert dataset.split
        if dataset.revision not in (None, PARQUET):
            assert re.fullmatch(r"[0-9a-f]{40}", dataset.revision)
        assert dataset.path != sources.CONTAMINATED


def test_data_that_is_not_pinned_is_said_so(hub):
    reports = []
    read("some/data", say=reports.append)
    read("webgpt", say=reports.append)
    read(sources.CONTAMINATED, revision="abcdef0123456789", say=reports.append)
    assert reports == [
        "reading some/data at main, which may change; `revision` COMMIT pins it",
        "reading openai/webgpt_comparisons at refs/convert/parquet",
        f"reading {sources.CONTAMINATED} at abcdef01",
        f"{sources.CONTAMINATED} overlaps RewardBench; skywork (v0.2) does not",
    ]


def test_a_hub_that_cannot_be_reached_is_one_line(hub):
    with pytest.raises(InputError) as caught:
        read("nobody/nothing")
    assert str(caught.value) == (
        "nobody/nothing: no such file here, and it cannot be loaded from the hub: "
        "Couldn't reach 'nobody/nothing' on the Hub"
    )


def test_what_is_on_the_disk_comes_before_a_short_name(hub, tmp_path, monkeypatch):
    write(tmp_path / "hh" / "rows.jsonl", LINES)
    monkeypatch.chdir(tmp_path)
    assert [row for *_, row in read("hh")] == ROWS and hub == []


@pytest.fixture
def configured(tmp_path, monkeypatch):
    """The hub's some/data stands in a folder, with two configurations."""
    datasets = pytest.importorskip("datasets")
    for name in ("easy", "hard"):
        write(
            tmp_path / "data" / name / "rows.jsonl", json.dumps({"prompt": name}).encode() + b"\n"
        )
    write(
        tmp_path / "data" / "README.md",
        b"---\nconfigs:\n- config_name: easy\n  data_files: easy/rows.jsonl\n"
        b"- config_name: hard\n  data_files: hard/rows.jsonl\n---\n",
    )
    load = datasets.load_dataset

    def load_dataset(path, **settings):
        cache = str(tmp_path / "cache")
        return load(str(tmp_path / "data"), **settings | {"revision": None}, cache_dir=cache)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(sources, "hub_problem", lambda: None)


@pytest.mark.slow
def test_a_stream_gives_the_same_rows_and_keeps_nothing(tmp_path, configured):
    many = [json.dumps({"prompt": str(number)}).encode() for number in range(250)]
    write(tmp_path / "data" / "hard" / "rows.jsonl", b"\n".join(many) + b"\n")
    streamed = read("some/data", config="hard", stream=True)
    assert [row["prompt"] for *_, row in streamed] == [str(number) for number in range(250)]
    kept = [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    assert not any(file.stat().st_size for file in kept)
    assert read("some/data", config="hard") == streamed
    assert list((tmp_path / "cache").rglob("*.arrow"))
    with pytest.raises(InputError, match="choose one of its configurations with `config`"):
        read("some/data", stream=True)


@pytest.mark.slow
def test_a_stream_that_breaks_off_is_one_line(tmp_path, configured):
    whole = (tmp_path / "data" / "hard" / "rows.jsonl").read_bytes()
    write(tmp_path / "data" / "hard" / "rows.jsonl", whole * 3 + b'{"prompt": "no en')
    with pytest.raises(InputError) as caught:
        read("some/data", config="hard", stream=True)
    assert str(caught.value).startswith("some/data: ") and "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_configuration_is_chosen_and_all_are_listed_where_that_is_missing(configured):
    assert [row for *_, row in read("some/data", config="hard")] == [{"prompt": "hard"}]
    for settings in ({}, {"config": "medium"}):
        with pytest.raises(InputError) as caught:
            read("some/data", **settings)
        assert str(caught.value) == (
            "some/data: choose one of its configurations with `config`: easy, hard"
        )
