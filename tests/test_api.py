"""The Python API: scores as `music score` gives them, records in and out, and a light import."""

import json
import subprocess
import sys

import pytest
import torch
from build import talk, write
from console import music
from toys import backbone, pairs, tiny

import musiccli
from musiccli import InputError, MusicError, RecordError, RewardModel, read_records, write_records
from musiccli.reward_model import checkpoint

CLOSE = {"abs": 1e-5, "rel": 1e-4}
TALKS = [
    talk("q", "a"),
    talk("q", "a", "why", "because"),
    [{"role": "system", "content": "be brief"}, *talk("hello there", "general " * 9)],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rm") / "toy"
    checkpoint.save(checkpoint.create(str(backbone(folder.parent / "base", "gemma2"))), folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return RewardModel.load(folder)


def alone(model, messages, every_turn=False):
    """The rewards of one conversation in a forward pass of its own."""
    with torch.inference_mode():
        encoded = model.chat_template.encode(messages, every_turn)
        return model.network([[encoded]])[0].tolist()


@pytest.mark.slow
def test_scores_are_those_of_the_command(model, folder, tmp_path):
    given = write(tmp_path / "in.jsonl", *({"messages": messages} for messages in TALKS))
    done = music("score", given, "--model", folder, "--no-cache", "--per-turn")
    scores, turn_scores = model.score(TALKS), model.score_turns(TALKS)
    assert scores == pytest.approx([one["scores"]["toy"] for one in done.records], **CLOSE)
    for turns, record in zip(turn_scores, done.records, strict=True):
        assert turns == pytest.approx(record["turn_scores"]["toy"], **CLOSE)
    assert [len(turns) for turns in turn_scores] == [1, 2, 1]
    assert len({round(score, 3) for score in scores}) == 3


@pytest.mark.parametrize("budget", [1, 100, 10_000])
def test_scores_do_not_depend_on_the_budget_or_on_neighbors(model, budget):
    question = "a question that all candidates share, long enough to be laid out once " * 2
    candidates = [
        talk(question, f"answer {number}", "and", "so " * (number + 1)) for number in range(9)
    ]
    candidates.append(candidates[0])
    expected = [alone(model, messages)[-1] for messages in candidates]
    scores = model.score(candidates, budget=budget)
    assert scores == pytest.approx(expected, **CLOSE) and scores[0] == scores[-1]


def test_candidates_of_one_question_share_its_computation(model, monkeypatch):
    lengths, real = [], model.network.backbone.forward

    def watch(**arguments):
        lengths.append(arguments["input_ids"].numel())
        return real(**arguments)

    monkeypatch.setattr(model.network.backbone, "forward", watch)
    question = "a question of many words " * 20
    candidates = [talk(question, f"answer {number}") for number in range(8)]
    model.score(candidates)
    assert sum(lengths) < 0.3 * sum(len(model.chat_template.encode(one).ids) for one in candidates)


def test_records_score_as_their_messages_and_stay_as_they_are(model):
    records = [{"messages": messages, "metadata": None} for messages in TALKS]
    before = json.dumps(records)
    assert model.score(iter(records)) == model.score(TALKS)
    assert json.dumps(records) == before
    assert model.score([]) == model.score_turns([]) == []


def test_a_long_conversation_loses_its_oldest_exchanges(model):
    messages = talk("first " * 30, "second " * 30, "q", "a")
    assert model.score([messages], max_length=60) == pytest.approx(
        alone(model, talk("q", "a")), **CLOSE
    )
    assert len(model.score_turns([messages], max_length=60)[0]) == 1


@pytest.mark.parametrize(
    "conversation, problem",
    [
        (talk("q", "a", "r"), "messages: ends with the user; there is no reply to score"),
        (talk("word " * 90, "a"), "is longer than 60 tokens and cannot be cut"),
        ([{"role": "bot", "content": "a"}], "messages[0]: role is 'bot'"),
        ({"text": "q"}, "messages: is missing"),
        ([], "messages: is an empty list"),
    ],
)
def test_a_conversation_that_cannot_be_scored_is_named(model, conversation, problem):
    with pytest.raises(RecordError) as caught:
        model.score([TALKS[0], conversation], max_length=60)
    assert str(caught.value).startswith(f"conversation 1: {problem}")


def test_a_reward_that_is_not_a_number_is_an_error(folder):
    broken = RewardModel.load(folder)
    broken.network.core.score.weight.data.fill_(float("nan"))
    with pytest.raises(RecordError, match="conversation 0: the reward is not a number"):
        broken.score(TALKS)


def test_a_missing_model_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        RewardModel.load(tmp_path / "none")


@pytest.mark.parametrize("name", ["records.jsonl", "records.jsonl.gz", "records.jsonl.zst"])
def test_records_are_read_as_they_were_written(tmp_path, name):
    records = [*tiny("heldout"), {"anything": ["é", 1.5, None]}]
    assert write_records(tmp_path / name, records) == len(records)
    assert list(read_records(tmp_path / name)) == records


def test_a_file_is_whole_or_is_not_there(tmp_path):
    def broken():
        yield {"id": "first"}
        raise KeyError

    path = tmp_path / "out.jsonl"
    for expected in (None, b'{"id":"before"}\n'):
        if expected:
            path.write_bytes(expected)
        with pytest.raises(KeyError):
            write_records(path, broken())
        assert (path.read_bytes() if path.exists() else None) == expected
        assert list(tmp_path.iterdir()) == [path] * bool(expected)


def test_unreadable_files_and_lines_are_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_records(tmp_path / "none.jsonl")
    path = tmp_path / "in.jsonl"
    path.write_text('{"id": "a"}\n[1, 2]\n')
    records = read_records(path)
    assert next(records) == {"id": "a"}
    with pytest.raises(RecordError, match=r"in\.jsonl:2"):
        next(records)


def test_errors_are_music_errors():
    assert issubclass(InputError, MusicError) and issubclass(RecordError, MusicError)


def test_all_names_are_there_and_others_are_not(tmp_path):
    assert all(getattr(musiccli, name) for name in musiccli.__all__)
    assert set(musiccli.__all__) <= set(dir(musiccli))
    assert not hasattr(musiccli, "Trainer")


def test_importing_it_loads_nothing_heavy():
    code = (
        "import sys, musiccli; from musiccli import read_records\n"
        "heavy = {'torch', 'transformers', 'numpy', 'orjson'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_pairs_are_scored_side_by_side(model):
    sides = [record[side] for record in pairs(4) for side in ("chosen", "rejected")]
    expected = [alone(model, messages)[-1] for messages in sides]
    assert model.score(sides) == pytest.approx(expected, **CLOSE)
