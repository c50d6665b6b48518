"""What is a fault of simulated text, what is not, and how rarely people's text is called faulty."""

from pathlib import Path

import pytest
from build import talk

from musiccli.core import text_checks
from musiccli.core.jsonl import Rejects
from musiccli.core.run_stats import RunStats
from musiccli.prompts import feedback
from musiccli.sample.config import SampleConfig
from musiccli.sample.sampler import sample
from musiccli.sample.sources import read_rows
from musiccli.simulate import faults

EGGS = talk("How do I boil an egg?", "Put it into boiling water for eight minutes.")


@pytest.mark.parametrize(
    "text",
    [
        "Could you explain that again, please?",
        "Thanks! But what about the yolk?",
        "And now in French.",
        "好的，那蛋黄呢？",
        "I run my own server; the user field is empty.",
        "ok",
        "👍",
        "9",
        "Here is the definition of chemistry that I found online: the study of matter.",
        "I don't feel comfortable in jeans.",
        "I'm sorry, I can't find the pan.",
        "I'm sorry for the delay, but I don't have the pan.",
        "Should I boil it in a pan? Should I boil it in a pot? Or may I bake it?",
        "How do I use {{ name }} in a template?",
        "How do I fry an egg?",
    ],
)
def test_what_a_user_would_say_is_no_fault(text):
    assert faults.user_fault(text, EGGS) is None


@pytest.mark.parametrize(
    "text, name",
    [
        ("", "empty"),
        ("...", "empty"),
        ("```", "empty"),
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("I’m sorry, but I can’t continue this.", "refusal"),
        ("As an AI language model, I do not eat eggs.", "refusal"),
        ("I cannot assist with this request.", "refusal"),
        ("I'm not comfortable writing that.", "refusal"),
        ("I must decline.", "refusal"),
        ("As a helpful AI, I'm here for you.", "refusal"),
        ("I'm sorry for any confusion, but as a chatbot, I boil no eggs.", "refusal"),
        ("I don't have the ability to help with eggs.", "refusal"),
        ("You're welcome! Is there anything else you need?", "role flip"),
        ("Great question! It depends.", "role flip"),
        ("Put it in cold water. Let me know if you have any other questions!", "role flip"),
        ("Here are some tips for boiling eggs: use a timer.", "role flip"),
        ("**User:** how long?", "role flip"),
        ("I'd be happy to help you with eggs.", "role flip"),
        ("I apologize for the confusion.", "role flip"),
        ("Here's the next user message: how long?", "prompt leak"),
        ("{{transcript}}", "prompt leak"),
        ("You are a helpful AI assistant named Elena. I look for eggs.", "prompt leak"),
        ("How do I boil an egg", "repeat"),
        ("put it into boiling water, for eight minutes", "repeat"),
        ("I cannot find your pan. I cannot find your pan.", "repeats itself"),
        ("Thanks!", "goodbye"),
    ],
)
def test_what_spoils_a_simulated_user_has_a_name(text, name):
    assert faults.user_fault(text, EGGS) == name


@pytest.mark.parametrize(
    "text, name",
    [
        ("It does not say how long the egg keeps.", "review leak"),
        ("it does not say how long the eggs keeps", "review leak"),
        ("How long does the egg keep?", None),
        ("Listen: it does not say how long the egg keeps. Ask that.", "review leak"),
    ],
)
def test_a_user_does_not_give_out_the_review_that_its_message_was_made_of(text, name):
    assert faults.user_fault(text, EGGS, "It does not say how long the egg keeps.") == name
    assert faults.user_fault(text, EGGS) is None


@pytest.mark.parametrize(
    "text, name",
    [
        ("It does not say how long.", None),
        ('The reply refuses: "I can\'t help with that."', None),
        ("---", "empty"),
        ("I'm sorry, but I can't help with that.", "refusal"),
    ],
)
def test_a_reviewer_may_find_anything_but_has_to_review(text, name):
    assert faults.review_fault(text) == name


@pytest.mark.parametrize(
    "text",
    [
        "Thanks",
        "Great. Thank you for the information.",
        "Thanks! I will definitely look into buying these.",
        "Okay, fair enough. Goodbye.",
        "That will be all for now. Thank you!",
        "I don't like it much, but thanks anyway.",
        "Take care!",
        "Bye, have a great day",
        "I want to thank you for your deep work.",
        "Thank you so much for all of this! I feel much more confident now about the dinner, and "
        "I really appreciate how patient you were with my many questions. I'll be sure to report "
        "how it went. Have a wonderful evening!",
    ],
)
def test_a_message_that_only_thanks_or_leaves_is_a_goodbye(text):
    assert faults.says_goodbye(text)


@pytest.mark.parametrize(
    "text",
    [
        "Thanks, now do the same for tea.",
        "Thank you. Translate it into French.",
        "Thanks! What about the yolk?",
        "Thanks, but that is not what I meant.",
        "Great, thanks, and also list the pans.",
        "Thanks. I have a small truck.",
        "Thanks, could you shorten it",
        "Explain it again please, thanks.",
        "I take care of my mother.",
        "Thanks, I need it for six people.",
        "Thank you, I'm curious how long it keeps.",
        "Have a look at this: 1 + 1.",
        "Thanks. The third step is wrong.",
        "That's all the eggs I have.",
    ],
)
def test_thanks_that_go_on_are_no_goodbye(text):
    assert not faults.says_goodbye(text)


@pytest.mark.parametrize(
    "text",
    [
        "Sure, here is how: boil it.",
        "Thank you! Goodbye.",
        "Here is a recipe.",
        "9",
        "I'm sorry, but I can't help with that.",
        "As an AI, I have no eggs.",
    ],
)
def test_what_an_assistant_would_say_is_no_fault(text):
    assert faults.reply_fault(text, EGGS[:1]) is None


@pytest.mark.parametrize(
    "text, name",
    [
        ("Fry it in oil.", None),
        ("I'm sorry, but I cannot help with frying.", "refusal"),
        ("Oil.\nUser: and then?", "role flip"),
        ("Here is the answer to the modified instruction: oil.", "leak"),
        ("The rewritten user question is easy.", "leak"),
        ("To answer a different question: oil.", "leak"),
        ("<reply>Oil.", "leak"),
        ("How do I fry an egg? Use oil.", "leak"),
        ("Try oil instead of what you asked.", "leak"),
        ("These are two different questions.", None),
        ("Put it into boiling water for eight minutes!", "repeat"),
        ("I'm sorry for your loss, but I do not have the ability to help.", "refusal"),
        ("A humble egg, what a humble egg. A humble egg, what a humble egg.", "repeats itself"),
        ("先把米洗干净。先把米洗干净。先把米洗干净。", "repeats itself"),
        ("先把米洗干净，再加水煮饭，最后把饭盛出来。", None),
    ],
)
def test_what_spoils_a_contrasted_reply_has_a_name(text, name):
    assert faults.contrast_reply_fault(text, "How do I fry an egg?", EGGS) == name


def test_a_contrasted_reply_that_gives_the_plain_answer_is_a_fault_where_that_is_there():
    answer = "Boil it for eight minutes in salted water."
    for text, name in ((answer.lower(), "same answer"), ("Fry it in oil.", None)):
        assert faults.contrast_reply_fault(text, "How to fry?", EGGS[:1], answer) == name
        assert faults.contrast_reply_fault(text, "How to fry?", EGGS[:1]) is None


@pytest.mark.parametrize(
    "instruction, name",
    [
        ("How do I fry an egg?", None),
        ("how do I boil an egg", "not rewritten"),
        ("Do I boil an egg?", "not rewritten"),
        ("User: fry", "role flip"),
        ("I can't rewrite this request.", "refusal"),
    ],
)
def test_what_spoils_a_rewritten_instruction_has_a_name(instruction, name):
    assert faults.rewrite_fault(instruction, "How do I boil an egg?") == name


def test_an_instruction_that_repeats_the_plain_answer_is_no_rewriting():
    answer = "Boil it for eight minutes in salted water. Then put it into cold water."
    for instruction in ("boil it for eight minutes in salted water", answer):
        assert faults.rewrite_fault(instruction, "How?", answer) == "not rewritten"
        assert faults.rewrite_fault(instruction, "How?") is None
    assert faults.rewrite_fault("How long does it keep?", "How?", answer) is None


@pytest.mark.parametrize(
    "first, second, same",
    [
        ("Boil it for eight minutes.", "boil it, for eight minutes!", True),
        ("Boil it.", "Fry it.", False),
        ("Tell me about the eggs in the basket", "Tell me about the egg in the basket", True),
        ("What is 2 + 2?", "What is 2 + 3?", False),
        ("What causes the phases of the Moon?", "What causes the faces of the Moon?", False),
    ],
)
def test_messages_are_alike_in_nearly_the_same_words(first, second, same):
    assert text_checks.alike(first, second) is same


@pytest.mark.parametrize(
    "text, english",
    [
        ("How long does the egg have to boil?", True),
        ("Merci!", True),  # of a word or two it cannot be told
        ("for item in eggs: print(item)", True),
        ("La Paz is the seat of the government of Bolivia.", True),
        ("9 + 9", True),
        ("Könntest du mir sagen, wie lange das Ei kochen muss?", False),
        ("Combien de temps dois-je cuire un œuf ?", False),
        ("¿Cuánto tiempo tengo que cocer el huevo para que la yema quede blanda?", False),
        ("Сколько варить яйцо?", False),
        ("好的，那蛋黄呢？", False),
        ("卵をどのくらい茹でますか？", False),
    ],
)
def test_text_in_another_language_is_recognized(text, english):
    assert text_checks.is_english(text) is english


def test_text_without_spaces_is_compared_by_its_characters():
    instruction = "请告诉我怎样煎一个鸡蛋"
    assert text_checks.quotes(f"{instruction}，先放油。", instruction)
    assert not text_checks.quotes("告诉我，先放油。", "告诉我")  # too short to tell
    long = "鸡蛋要先放进冷水里，然后用中火煮到水开，再继续煮八分钟左右，最后放进冰水里冷却。" * 3
    assert text_checks.alike(long, long.replace("最后", "之后"))
    assert not text_checks.alike(long, long[::-1])


def test_every_fault_that_is_asked_again_has_words_for_it():
    texts = feedback.load("paper")
    for role, names in {
        "user": (
            "empty",
            "refusal",
            "role flip",
            "prompt leak",
            "review leak",
            "repeat",
            "repeats itself",
            "goodbye",
            "early stop",
            "cut off",
        ),
        "reviewer": ("empty", "refusal", "cut off"),
        "assistant": ("empty", "role flip", "repeat", "repeats itself", "cut off"),
        "rewrite": ("empty", "refusal", "not rewritten", "role flip", "cut off"),
        "contrast": (
            "empty",
            "unreadable",
            "refusal",
            "not rewritten",
            "same answer",
            "leak",
            "role flip",
            "repeat",
            "repeats itself",
            "cut off",
        ),
    }.items():
        for name in names:
            assert feedback.for_fault(texts, role, name), f"{role} {name}"
    assert feedback.for_fault(texts, "assistant", "refusal") is None
    assert feedback.load("small") == {}


# Real turns

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
FILES = (
    "hh_helpful/anthropic_helpful_0521.jsonl",
    "hh_harmless/test.jsonl.gz",
    "oasst/en_100_tree.jsonl",
    "mtbench101/mtbench101.jsonl",
    "dpo_en_demo/dpo_en_demo.json",
)


@pytest.fixture(scope="module")
def real() -> dict[str, list[tuple[str, list[dict]]]]:
    """By role: (text, history) of every real turn that answers something, each once."""
    if not DATA.is_dir():
        pytest.skip("the public data files are not beside the repository")
    turns_by_role = {"user": {}, "assistant": {}}
    stats = RunStats(Rejects(skip=True, report=lambda text: None))
    rows = read_rows([str(DATA / name) for name in FILES], stats=stats)
    for record in sample(rows, SampleConfig(emit="conversations"), stats=stats):
        messages = record["messages"]
        for index, message in enumerate(messages):
            if index and message["role"] != "system":
                key = message["content"], messages[index - 1]["content"]
                turns_by_role[message["role"]][key] = messages[:index]
    return {
        role: [(text, history) for (text, _), history in turns.items()]
        for role, turns in turns_by_role.items()
    }


def share(names: list, fault: str) -> float:
    return names.count(fault) / len(names)


@pytest.mark.slow
def test_people_are_rarely_taken_for_faulty_simulators(real):
    """What remains of `repeat` are people who write "Go on." again; `goodbye` are real goodbyes."""
    names = [faults.user_fault(text, history) for text, history in real["user"]]
    assert len(names) > 8000
    for name in ("empty", "refusal", "role flip", "prompt leak"):
        assert share(names, name) < 0.0005, name
    assert share(names, "repeat") < 0.005
    assert share(names, "repeats itself") < 0.0005
    assert 0.01 < share(names, "goodbye") < 0.03


@pytest.mark.slow
def test_real_turns_in_english_are_taken_for_english(real):
    names = [text_checks.is_english(text) for turns in real.values() for text, _ in turns]
    assert len(names) > 20_000
    assert share(names, False) < 0.001  # they are in other languages


@pytest.mark.slow
def test_real_replies_rarely_look_like_leaks_or_flips(real):
    replies = real["assistant"]
    assert len(replies) > 15_000
    names = [faults.reply_fault(text, history) for text, history in replies]
    assert share(names, "role flip") < 0.005  # Anthropic HH's replies that begin with "Human:"
    assert share(names, "repeat") < 0.005
    assert share(names, "repeats itself") < 0.002
    assert (
        sum(bool(text_checks.names_an_instruction(text)) for text, _ in replies) / len(replies)
        < 0.0005
    )
    assert (
        sum(text_checks.quotes(text, history[-1]["content"]) for text, history in replies)
        / len(replies)
        < 0.006
    )
