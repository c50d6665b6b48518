"""`music score`: what it adds, that neighbors change nothing, and what it cannot score."""

import gzip
import json
import shutil
import sqlite3
from contextlib import closing

import preloaded
import psutil
import pytest
import torch
from build import lines, talk, write
from console import environment, music, start, wait_until
from toys import backbone, needs_data, pairs, tiny
from toys import mtbench101 as conversations

from musiccli.core.errors import InputError, RecordError
from musiccli.core.jsonl import Rejects
from musiccli.core.records import Record
from musiccli.core.run_stats import RunStats
from musiccli.core.store import Store
from musiccli.reward_model import checkpoint
from musiccli.reward_model.network import RewardNetwork
from musiccli.score.config import ScoreConfig
from musiccli.score.scorer import score

CLOSE = {"abs": 1e-5, "rel": 1e-4}


@pytest.fixture(scope="module")
def rm(tmp_path_factory):
    """The folder of a reward model whose head is random."""
    folder = tmp_path_factory.mktemp("rm") / "toy"
    checkpoint.save(checkpoint.create(str(backbone(folder.parent / "base", "gemma2"))), folder)
    return folder


@pytest.fixture(scope="module")
def model(rm):
    return checkpoint.load(str(rm))


def conversation(name, *texts, **fields):
    return Record(
        {"id": name, "messages": talk(*texts), "metadata": {}, **fields}, f"in.jsonl:{name}"
    )


def reward(model, messages):
    """One conversation's reward, by itself."""
    with torch.inference_mode():
        return model.network([[model.chat_template.encode(messages, every_turn=False)]])[0].item()


def scored(model, records, stats=None, store=None, **config):
    return list(score(records, model, "rm", ScoreConfig(**config), store=store, stats=stats))


# What is added


@pytest.mark.slow
def test_a_conversation_gets_a_number(model):
    [found] = scored(model, [conversation("c", "q", "a", "r", "b")])
    assert found["scores"] == {
        "rm": pytest.approx(reward(model, talk("q", "a", "r", "b")), **CLOSE)
    }
    assert "turn_scores" not in found


@pytest.mark.parametrize("names", [("chosen", "rejected"), ("a", "b")])
def test_a_pair_gets_a_number_a_side_under_its_own_history(model, names):
    sides = [
        talk("one thing", "yes", "then", "good"),
        talk("another thing", "no", "so", "bad", "but", "worse"),
    ]
    [found] = scored(model, [Record({"id": "p", **dict(zip(names, sides, strict=True))})])
    assert found["scores"]["rm"] == {
        name: pytest.approx(reward(model, side), **CLOSE)
        for name, side in zip(names, sides, strict=True)
    }
    assert found["scores"]["rm"][names[0]] != pytest.approx(
        found["scores"]["rm"][names[1]], abs=1e-3
    )


def test_per_turn_scores_are_those_of_each_prefix_alone(model):
    texts = ["q", "a", "r", "b b b", "s", "c"]
    [found] = scored(model, [conversation("c", *texts)], per_turn=True)
    expected = [reward(model, talk(*texts[:stop])) for stop in (2, 4, 6)]
    assert found["turn_scores"]["rm"] == pytest.approx(expected, **CLOSE)
    assert found["scores"]["rm"] == found["turn_scores"]["rm"][-1]
    assert len({round(value, 3) for value in expected}) == 3


def test_last_only_shows_the_model_the_last_turn_alone(model):
    one, other = talk("q", "a", "r", "b"), talk("other", "history", "r", "c")
    [found] = scored(model, [Record({"id": "p", "chosen": one, "rejected": other})], last_only=True)
    assert found["scores"]["rm"] == {
        "chosen": pytest.approx(reward(model, one[2:]), **CLOSE),
        "rejected": pytest.approx(reward(model, other[2:]), **CLOSE),
    }
    assert found["chosen"] == one


def test_last_only_keeps_the_system_message(model):
    system = {"role": "system", "content": "be brief"}
    [found] = scored(
        model,
        [Record({"id": "c", "messages": [system, *talk("q", "a", "r", "b")]})],
        last_only=True,
    )
    assert found["scores"]["rm"] == pytest.approx(reward(model, [system, *talk("r", "b")]), **CLOSE)


@pytest.mark.slow
def test_what_reads_the_same_scores_the_same_whoever_stands_beside(model):
    """Not nearly the same: a strict comparison would take rounding for an opinion."""
    end = [
        "and what do you say of this?",
        "not much, it is rather long for a reply to be told apart by rounding",
    ]
    records = [
        Record(
            {
                "id": f"p{number}",
                "chosen": talk(f"{number}", "x" * number, *end),
                "rejected": talk("other", *["y"] * (2 * number + 1), *end),
            }
        )
        for number in range(1, 40)
    ]
    *found, alone = scored(model, [*records, conversation("alone", *end)], last_only=True)
    assert {score for one in found for score in one["scores"]["rm"].values()} == {
        alone["scores"]["rm"]
    }
    assert len({one["scores"]["rm"]["chosen"] for one in scored(model, records)}) == len(records)


@pytest.mark.slow
@needs_data
def test_per_turn_scores_of_real_conversations_and_pairs_are_those_of_each_prefix(model):
    talks = conversations(8)
    records = [Record({"id": str(number), "messages": one}) for number, one in enumerate(talks)]
    records += [
        Record(
            {
                "id": f"p{number}",
                "a": talks[number],
                "b": [*talks[number][:-1], talks[number + 1][-1]],
            }
        )
        for number in range(4)
    ]
    for record, found in zip(records, scored(model, records, per_turn=True), strict=True):
        sides = (
            {"messages": record["messages"]}
            if "messages" in record
            else {"a": record["a"], "b": record["b"]}
        )
        for side, messages in sides.items():
            turns = (
                found["turn_scores"]["rm"]
                if side == "messages"
                else found["turn_scores"]["rm"][side]
            )
            expected = [reward(model, messages[:stop]) for stop in range(2, len(messages) + 1, 2)]
            assert turns == pytest.approx(expected, abs=1e-4, rel=1e-3)


def test_other_fields_and_scores_by_others_stay(model):
    before = conversation(
        "c", "q", "a", score=7, scores={"other": 1.5}, turn_scores={"other": [1.5]}, sample=3
    )
    [found] = scored(model, [before], per_turn=True)
    assert {name: found[name] for name in before if name not in ("scores", "turn_scores")} == {
        name: before[name] for name in before if name not in ("scores", "turn_scores")
    }
    assert found["scores"].keys() == {"other", "rm"} and found["scores"]["other"] == 1.5
    assert found["turn_scores"].keys() == {"other", "rm"}
    assert scored(model, [conversation("c", "q", "a", scores=None)])[0]["scores"].keys() == {"rm"}


def test_a_second_run_replaces_the_scores_of_the_same_name(model):
    before = conversation(
        "c", "q", "a", scores={"rm": 99.0}, turn_scores={"rm": [99.0], "other": [1.5]}
    )
    [found] = scored(model, [before])
    assert found["scores"]["rm"] == pytest.approx(reward(model, talk("q", "a")), **CLOSE)
    assert found["turn_scores"] == {"other": [1.5]}


@pytest.mark.slow
def test_scores_that_are_replaced_are_counted_in_the_last_line(rm, tmp_path):
    once = music("score", "--model", rm, "--no-cache", given=lines(*tiny("heldout")[:3]))
    again = music("score", "--model", rm, "--no-cache", given=once.out + lines(tiny("heldout")[3]))
    assert again.lines[-1].endswith("; 3 scores of this name replaced")
    other = music("score", "--model", rm, "--no-cache", "--as", "mine", given=once.out)
    assert "replaced" not in once.err + other.err and other.records[0]["scores"].keys() == {
        "toy",
        "mine",
    }


# Whoever stands beside


def candidates(prompts=3, samples=5):
    """Best-of-N candidates, all of a prompt together."""
    shared = "a prompt that all share, long enough to be laid out once " * 2
    return [
        conversation(
            f"prompt{prompt}",
            shared,
            f"answer {n}",
            "and then" * n,
            "more " * (n + prompt),
            sample=n,
        )
        for prompt in range(prompts)
        for n in range(samples)
    ]


@pytest.mark.slow
def test_outputs_of_shards_joined_are_the_output_of_the_whole_run(rm, tmp_path, monkeypatch):
    monkeypatch.setattr("musiccli.score.scorer.WINDOW", 3)
    write(tmp_path / "in.jsonl", *tiny("heldout")[:10])
    line = ("score", tmp_path / "in.jsonl", "--model", rm, "--no-cache")
    shards = [music(*line, "--shard", f"{number}/3") for number in (1, 2, 3)]
    assert b"".join(shard.out for shard in shards) == music(*line).out
    assert [len(shard.records) for shard in shards] == [3, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize("budget", [1, 64, 150, 100_000])
def test_candidates_of_a_prompt_score_as_each_alone_whatever_the_budget(model, budget):
    found = scored(model, candidates(), budget=budget)
    assert [(one["id"], one["sample"]) for one in found] == [
        (one["id"], one["sample"]) for one in candidates()
    ]
    assert [one["scores"]["rm"] for one in found] == pytest.approx(
        [reward(model, one["messages"]) for one in candidates()], **CLOSE
    )


@pytest.mark.slow
def test_a_forward_pass_stays_within_the_budget_where_one_sequence_does(model, monkeypatch):
    rows = []
    real = model.network._packed

    def watch(groups, budget):
        from musiccli.reward_model.packing import pack

        rows.append(len(pack(groups)))
        return real(groups, budget)

    monkeypatch.setattr(model.network, "_packed", watch)
    single = max(len(model.chat_template.encode(one["messages"]).ids) for one in candidates())
    scored(model, candidates(samples=12), budget=2 * single)
    assert max(rows) <= 2 * single
    together, rows[:] = sum(rows), []
    scored(
        model,
        [{**one, "id": number} for number, one in enumerate(candidates(samples=12))],
        budget=2 * single,
    )
    assert together < 0.85 * sum(rows)  # a shared prompt is computed once


@pytest.mark.slow
def test_a_padded_forward_pass_stays_within_the_budget_too(rm, monkeypatch):
    model = checkpoint.load(str(rm))
    model.network = RewardNetwork(model.network.core, packed=False)
    model.network.core.set_attn_implementation("eager")
    records, shapes, real = (
        [*candidates(), conversation("c", "q", "a")],
        [],
        model.network.backbone.forward,
    )
    monkeypatch.setattr(
        model.network.backbone,
        "forward",
        lambda **given: shapes.append(given["input_ids"].numel()) or real(**given),
    )
    longest = max(len(model.chat_template.encode(one["messages"]).ids) for one in records)
    found = scored(model, records, budget=3 * longest)
    assert max(shapes) <= 3 * longest and len(shapes) < len(records)
    assert [one["scores"]["rm"] for one in found] == pytest.approx(
        [reward(model, one["messages"]) for one in records], **CLOSE
    )


@pytest.mark.slow
def test_output_keeps_input_order_over_many_windows(model, monkeypatch):
    monkeypatch.setattr("musiccli.score.scorer.WINDOW", 7)
    records = [Record(one) for one in pairs(20)] + candidates()
    found = scored(model, records, budget=100)
    assert [one["id"] for one in found] == [one["id"] for one in records]
    for record, one in zip(records, found, strict=True):
        sides = one["scores"]["rm"] if "chosen" in record else {"messages": one["scores"]["rm"]}
        assert sides == pytest.approx(
            {side: reward(model, record[side]) for side in sides}, **CLOSE
        )


# What cannot be scored


def test_a_conversation_that_ends_with_the_user_is_named(model):
    with pytest.raises(RecordError) as caught:
        scored(model, [conversation("c", "q", "a", "r")])
    assert (
        str(caught.value) == "in.jsonl:c: messages: ends with the user; there is no reply to score"
    )


def test_scores_that_are_no_object_are_named(model):
    with pytest.raises(RecordError) as caught:
        scored(model, [conversation("c", "q", "a", scores=[1, 2])])
    assert str(caught.value) == "in.jsonl:c: scores: is not an object of scores by model"


def test_bad_records_are_stepped_over_and_the_rest_keeps_its_scores(model):
    stats = RunStats(Rejects(skip=True))
    records = [conversation("a", "q", "a"), conversation("b", "q"), conversation("c", "r", "b")]
    found = scored(model, records, stats)
    assert [one["id"] for one in found] == ["a", "c"]
    assert found[1]["scores"]["rm"] == pytest.approx(reward(model, talk("r", "b")), **CLOSE)
    assert stats.rejects.count == 1


def test_too_long_conversations_lose_oldest_exchanges_and_are_counted(model):
    stats = RunStats()
    texts = ["first " * 30, "second " * 30, "q", "a"]
    [found] = scored(model, [conversation("c", *texts)], max_length=60, per_turn=True, stats=stats)
    assert stats.phrases() == {"cut to fit": 1}
    assert found["scores"]["rm"] == pytest.approx(reward(model, talk("q", "a")), **CLOSE)
    assert len(found["turn_scores"]["rm"]) == 1
    assert found["messages"] == talk(*texts)


def test_both_sides_lose_the_same_exchanges(model):
    history = ["first " * 30, "second " * 30, "q"]
    sides = {"chosen": talk(*history, "a"), "rejected": talk(*history, "b", "r", "and " * 20)}
    [found] = scored(model, [Record({"id": "p", **sides})], max_length=100)
    assert found["scores"]["rm"] == {
        side: pytest.approx(reward(model, messages[2:]), **CLOSE)
        for side, messages in sides.items()
    }


def test_what_cannot_be_cut_is_rejected(model):
    said, long = [], "word " * 100
    stats = RunStats(Rejects(skip=True, report=said.append))
    pair = Record(
        {"id": "p", "chosen": talk(long, "a", "q", "b"), "rejected": talk(long, "other", "q", "b")},
        "f:1",
    )
    assert scored(model, [pair, conversation("c", long, "a")], stats=stats, max_length=50) == []
    assert said == [
        f"{where}: is longer than 50 tokens and cannot be cut without losing what differs"
        for where in ("f:1", "in.jsonl:c")
    ]


def test_no_conversation_is_longer_than_the_model_takes(model):
    assert model.context_length == 2048
    stats = RunStats()
    scored(
        model, [conversation("c", "word " * 3000, "a", "q", "b")], max_length=10_000, stats=stats
    )
    assert stats.phrases() == {"cut to fit": 1}


def test_a_reward_that_is_no_number_is_a_failure_not_a_null(rm, tmp_path):
    broken = checkpoint.load(str(rm))
    broken.network.core.score.weight.data.fill_(float("nan"))
    with pytest.raises(RecordError, match=r"in.jsonl:c: the reward is not a number"):
        scored(broken, [conversation("c", "q", "a")])


def test_memory_that_does_not_suffice_is_one_line(model, monkeypatch):
    monkeypatch.setattr(model.network, "_packed", lambda *_: torch.empty(1 << 50))
    with pytest.raises(
        InputError,
        match=r"^memory does not suffice; a smaller `budget` or `max_length` takes less$",
    ):
        scored(model, [conversation("c", "q", "a")])


# The command


def test_records_go_through_the_command_in_order_with_their_scores(rm, tmp_path):
    given = "".join(json.dumps(one) + "\n" for one in [*tiny("heldout"), *tiny("seeds")[:3]])
    done = music("score", "--model", rm, "--on-error", "skip", given=given.encode())
    assert done.status == 1  # seeds end with the user
    assert [one["id"] for one in done.records][:16] == [one["id"] for one in tiny("heldout")]
    assert all(
        one["scores"].keys() == {"toy"} and one["scores"]["toy"].keys() == {"chosen", "rejected"}
        for one in done.records[:16]
    )
    assert "<stdin>:17: messages: ends with the user; there is no reply to score" in done.err


@pytest.mark.slow
def test_compressed_files_and_names(rm, tmp_path):
    file = tmp_path / "in.jsonl.gz"
    file.write_bytes(gzip.compress(write(tmp_path / "in.jsonl", *tiny("heldout")).read_bytes()))
    out = tmp_path / "out.jsonl.gz"
    done = music("score", file, "--model", f"{rm}/", "--as", "mine", "--per-turn", "-o", out)
    assert (done.status, done.out) == (0, b"")
    [last] = done.lines
    assert last.startswith("music score: 16 records written in ")
    found = [json.loads(line) for line in gzip.decompress(out.read_bytes()).splitlines()]
    plain = music("score", tmp_path / "in.jsonl", "--model", f"{rm}/").records
    for one, other, before in zip(found, plain, tiny("heldout"), strict=True):
        assert one["scores"]["mine"] == pytest.approx(other["scores"]["toy"], **CLOSE)
        assert {side: len(turns) for side, turns in one["turn_scores"]["mine"].items()} == {
            side: len(before[side]) // 2 for side in ("chosen", "rejected")
        }


def test_a_missing_model_is_one_line(tmp_path):
    done = music(
        "score", write(tmp_path / "in.jsonl", *tiny("heldout")), "--model", tmp_path / "none"
    )
    assert (done.status, done.out) == (2, b"")
    assert done.lines == [
        f"music score: error: {tmp_path / 'none'}: no such folder; expected a model's folder, a "
        "hub id or local/NAME"
    ]


@pytest.mark.slow
def test_what_was_cut_is_said_in_the_last_line_and_nowhere_else(rm, tmp_path):
    file = write(
        tmp_path / "in.jsonl",
        conversation("c", "word " * 90, "a", "q", "b"),
        conversation("d", "q", "a"),
    )
    shutil.copytree(rm, tmp_path / "rm")
    config = tmp_path / "rm" / "tokenizer_config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"model_max_length": 50})
    )  # tokenizers warn of it
    _, err = start(
        "score", file, "--model", tmp_path / "rm", "--max-length", 64, command=preloaded.command()
    ).communicate()
    [last] = err.decode().splitlines()
    assert last.endswith("; 1 cut to fit")


# Kept scores


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "scores.sqlite")
    yield store
    store.close()


def computed(model, monkeypatch):
    """How many sequences each forward pass had from now on."""
    passes, real = [], model.network.forward
    monkeypatch.setattr(
        model.network,
        "forward",
        lambda groups, **settings: passes.append(sum(map(len, groups))) or real(groups, **settings),
    )
    return passes


def test_what_was_scored_is_not_computed_again(model, monkeypatch, store):
    first = scored(model, candidates(), store=store)
    passes, stats = computed(model, monkeypatch), RunStats()
    more = conversation("new", "another question", "and its answer")
    assert scored(model, [*candidates(), more], store=store, stats=stats)[:-1] == first
    assert sum(passes) == 1 and stats.number("sequences_from_the_cache") == len(candidates())
    assert scored(model, candidates(), store=None) == first and sum(passes) == 1 + len(candidates())


def test_turn_scores_are_kept_apart_from_last_scores(model, store):
    plain = scored(model, candidates(), store=store)
    turns = scored(model, candidates(), store=store, per_turn=True)
    assert [one["turn_scores"]["rm"][-1] for one in turns] == pytest.approx(
        [one["scores"]["rm"] for one in plain]
    )
    assert all(len(one["turn_scores"]["rm"]) == 2 for one in turns)


@pytest.mark.slow
def test_another_model_in_the_same_folder_computes_anew(model, rm, tmp_path, store):
    folder = tmp_path / "toy"
    shutil.copytree(rm, folder)
    first = scored(checkpoint.load(str(folder)), candidates(), store=store)
    other = checkpoint.create(str(folder))
    other.network.core.score.weight.data.neg_()
    checkpoint.save(other, folder)
    again = scored(checkpoint.load(str(folder)), candidates(), store=store)
    assert [one["scores"]["rm"] for one in again] == pytest.approx(
        [-one["scores"]["rm"] for one in first], **CLOSE
    )


def test_equal_texts_score_the_same_in_different_windows(model, monkeypatch, store):
    monkeypatch.setattr("musiccli.score.scorer.WINDOW", 3)
    records = [
        conversation(f"{number}", "q" * (number % 3), "the same answer") for number in range(30)
    ]
    found = scored(model, records, store=store)
    assert len({one["scores"]["rm"] for one in found}) == 3


def test_a_reward_that_is_no_number_is_not_kept(rm, store):
    broken = checkpoint.load(str(rm))
    kept = broken.network.core.score.weight.data.clone()
    for weight in (float("nan"), kept):
        broken.network.core.score.weight.data[:] = weight
        rejects = Rejects(skip=True)
        found = scored(broken, [conversation("c", "q", "a")], store=store, stats=RunStats(rejects))
        assert (len(found), rejects.count) == ((0, 1) if weight is not kept else (1, 0))


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_and_ends_as_an_unbroken_one(rm, tmp_path, monkeypatch):
    monkeypatch.setenv("MUSIC_CACHE", str(tmp_path / "cache"))
    records = lines(*(conversation(f"{n}", f"question {n}", f"answer {n}") for n in range(300)))
    line = ("score", "--model", rm, "-o", tmp_path / "out.jsonl")
    broken = start(*line, command=preloaded.command())
    broken.stdin.write(records)  # it stays open, so that the run cannot end before it is killed
    broken.stdin.flush()
    wait_until(lambda: kept(tmp_path / "cache" / "scores.sqlite") or broken.poll() is not None)
    broken.kill()
    broken.communicate()
    assert not (tmp_path / "out.jsonl").exists()
    assert 0 < kept(tmp_path / "cache" / "scores.sqlite") < 300
    done = music(*line, given=records)
    assert done.status == 0 and "sequences from the cache" in done.lines[-1]
    unbroken = music("score", "--model", rm, "--no-cache", given=records)
    assert (tmp_path / "out.jsonl").read_bytes() == unbroken.out


def kept(file) -> int:
    """How many scores stand in a cache, which another process may be making."""
    if not file.exists():
        return 0
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
            return database.execute("select count(*) from calls").fetchone()[0]
    except sqlite3.OperationalError:
        return 0


# Several processes


@pytest.mark.slow
@pytest.mark.parametrize("skip", [False, True])
def test_two_processes_score_as_one_in_input_order(rm, tmp_path, skip):
    records = [
        conversation(
            f"{number}", f"question {number}", "word " * (1 + 7 * number % 50), "and", f"{number}"
        )
        for number in range(60)
    ]
    records += [
        conversation("one prompt", "and many candidates", f"answer {number}", sample=number)
        for number in range(15)
    ]
    bad = [conversation("bad", "ends with the user")] * skip
    file = write(tmp_path / "in.jsonl", *(records[:20] + bad + records[20:]))
    line = ("score", file, "--model", rm, "--no-cache", "--on-error", "skip" if skip else "stop")
    one = music(*line, "--rejects", tmp_path / "one.jsonl")
    two = start(
        *line,
        "--num-processes",
        2,
        "-o",
        tmp_path / "out.jsonl",
        "--rejects",
        tmp_path / "two.jsonl",
        command=preloaded.command(),
    )
    _, err = two.communicate()
    assert (two.returncode, one.status) == (skip, skip)
    found = [json.loads(text) for text in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    assert [each["id"] for each in found] == [each["id"] for each in records]
    assert [each["scores"]["toy"] for each in found] == pytest.approx(
        [each["scores"]["toy"] for each in one.records], **CLOSE
    )
    said = [line for line in err.decode().splitlines() if line.startswith("music score: ")]
    assert said[-1].startswith("music score: 75 records written in ") and len(said) == 1 + skip
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


@pytest.mark.slow
def test_a_bad_record_stops_two_processes_with_one_line(rm, tmp_path):
    given = "".join(
        json.dumps(one) + "\n"
        for one in [conversation(f"{number}", "q", "a") for number in range(15)]
        + [conversation("bad", "ends with the user")]
    )
    two = start(
        *("score", "--model", rm, "--no-cache", "--num-processes", 2, "-o", tmp_path / "out.jsonl"),
        command=preloaded.command(),
    )
    _, err = two.communicate(given.encode())
    assert two.returncode == 2 and not (tmp_path / "out.jsonl").exists()
    [line] = err.decode().splitlines()
    assert line.endswith("<stdin>:16: messages: ends with the user; there is no reply to score")


# A process keeps the scores of its first window of records, and rank 1 never ends its second. New
# interpreters, which apply chat templates, load nothing for this.
WAITING = """
import sys, time

def wait_in(scorer):
    scorer.WINDOW, real = 4, scorer._share

    def share(lines, process_group):
        for number, window in enumerate(real(lines, process_group)):
            while number and process_group.rank:
                time.sleep(0.01)
            yield window

    scorer._share = share

if "musiccli.score.scorer" in sys.modules:
    wait_in(sys.modules["musiccli.score.scorer"])
"""


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others_with_one_line(rm, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WAITING)
    file = write(
        tmp_path / "in.jsonl",
        *(
            conversation(f"{number}", f"question {number}", f"answer {number}")
            for number in range(16)
        ),
    )
    run = start(
        "score",
        file,
        "--model",
        rm,
        "--cache",
        tmp_path / "scores.sqlite",
        "--num-processes",
        2,
        "-o",
        tmp_path / "out.jsonl",
        command=preloaded.command(),
        env=environment(PYTHONPATH=str(tmp_path)),
    )
    wait_until(lambda: kept(tmp_path / "scores.sqlite") or run.poll() is not None)
    [child] = [
        child
        for child in psutil.Process(preloaded.program(run.pid)).children(recursive=True)
        if child.environ().get("RANK") == "1"
    ]
    child.kill()
    _, err = run.communicate(timeout=300)
    assert run.returncode == 2 and not (tmp_path / "out.jsonl").exists()
    assert err.decode().splitlines() == ["music score: error: process 1 was killed by SIGKILL"]
