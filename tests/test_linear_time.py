"""Whatever reads text takes a time that grows no faster than the text, also with texts made to be slow.

The times are of this process's CPU, so a busy machine makes no difference.
"""

import contextlib
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from difflib import SequenceMatcher

import pytest
from build import assistant, talk, user

from musiccli.bench.report import markdown, tables
from musiccli.bench.report.html import INTERVAL
from musiccli.cli.option_names import as_typed
from musiccli.core import row_messages, text_checks, thoughts, votes
from musiccli.core.errors import RecordError
from musiccli.core.jsonl.reader import decode
from musiccli.core.records import Record
from musiccli.core.run_stats import RunStats
from musiccli.core.text_safety import visible
from musiccli.judge.verdicts import judge_prompt
from musiccli.llm import provider_errors
from musiccli.llm.call import Reply
from musiccli.llm.providers.litellm_provider import UNUSABLE
from musiccli.prompts import Prompt, transcript
from musiccli.reward_model import card
from musiccli.reward_model.chat_template import DATE_CALL
from musiccli.sample import corruptions, exclusion, formats
from musiccli.show import differences, html, terminal, view
from musiccli.simulate import contrast, faults
from musiccli.simulate.truncation import SENTENCE_END, _last_end, whole_sentences

SMALL, LARGE = 10_000, 100_000  # characters
LARGE_SECONDS = 4.0  # a text of LARGE may take this long, or GROWTH times what SMALL took
GROWTH = 30  # 10 is linear

PIECES = [  # each is repeated until the text is long
    "Go on. ",
    "Go on.",
    "1. ",
    "1.\n",
    "Dr. ",
    "e.g.",
    " . ",
    ".\"')",
    "\n",
    "\n\n",
    "\n \n",
    "\r\n",
    " ",
    "\t",
    "a",
    "a ",
    "ab ",
    "ly ",
    "_",
    "*",
    "**",
    "#",
    "> ",
    "|",
    "`",
    "```\n",
    "```json\n",
    "[",
    "[ [",
    "[[",
    "[[A",
    "[[A]]",
    "[[A]] ",
    "[[A]]!",
    "((",
    "{",
    "{{",
    "{{ ",
    "{{a",
    '{"a":',
    '{"verdict": "A"}\n',
    '"',
    "\\",
    "<instruction>",
    "<instruction><reply>",
    "</instruction>",
    "<reply>",
    "<think>",
    "</think>",
    "<think></think>",
    "[THINK]",
    "Verdict: ",
    "verdict: A ",
    "user:",
    "user\n",
    "User: \n",
    "\n\nHuman: a",
    "\n\nHuman:",
    "\n\nAssistant: a",
    "thanks ",
    "thanks\n",
    "take care ",
    "take care!",
    "i want to ",
    "modified ",
    "modified a ",
    "answer ",
    "here is a ",
    "i'm sorry ",
    "i can't ",
    "missing ",
    "missing api",
    "retryDelay ",
    "try again in 1h1m",
    "sk-",
    "://",
    "://a@",
    "strftime_now('",
    "strftime_now(\"a'",
    "<metadata>",
    "[1, 2] ",
    "\u200b",
    "\u202e",
    "\ud800",
    "ß",
    "é ",
    "中",
    "👍",
    "\x00",
    "9",
    "1 2 ",
]
LOOP = " ".join(f"word{number}" for number in range(150)) + " "
ALONE = {  # pieces that some pattern looks for at the start of a text
    *(
        "user:",
        "here is a ",
        "i'm sorry ",
        "i can't ",
        "Verdict: ",
        "[[A]]",
        "{",
        "<think>",
        "```\n",
    ),
    *("1. ", "\n", " ", "a ", "[", "{{", "> ", '{"verdict": "A"}\n', "\n\nHuman: a"),
}


def texts(size: int) -> dict[str, str]:
    """Adversarial texts of about this many characters, by name."""
    repeated = {piece: (piece * (size // len(piece) + 1))[:size] for piece in PIECES}
    chosen = {f"{piece!r}": f"thanks {text} end [[A]]x" for piece, text in repeated.items()}
    chosen |= {f"{piece!r} alone": repeated[piece] for piece in ALONE}
    draws = random.Random(0)
    chosen["a loop"] = (LOOP * (size // len(LOOP) + 1))[:size]
    chosen["two letters"] = " ".join(draws.choices("xy", k=size // 2))
    chosen["halves"] = "x " * (size // 4) + "y " * (size // 4)
    chosen["nested"] = "[" * (size // 2) + "]" * (size // 2)
    chosen["objects"] = '{"a":' * (size // 6) + "1" + "}" * (size // 6)
    chosen["pieces"] = "".join(draws.choices(PIECES, k=size // 4))[:size]
    chosen["numbers"] = " ".join(map(str, range(size // 6)))
    return chosen


def reply(text: str) -> Reply:
    return Reply(text, "length", 0, max(1, len(text) // 4), 0.0)


HISTORY = talk("What is a fugue?", "A piece.", "Go on. " * 400)
PROMPT = Prompt("x", "{{a}} {{b}} {{marked_a}} {{marked_b}} {{fence}}")
READERS: dict[str, Callable[[str], object]] = {  # everything that looks at text, but two texts
    "whole_sentences": lambda text: whole_sentences(reply(text)),
    "without_thoughts": thoughts.without_thoughts,
    "split_contrast": contrast.split_contrast,
    "limit_reply": lambda text: contrast.limit_reply(reply(text), 10),
    "contrast_fault": lambda text: contrast.contrast_fault(text, "Do it.", HISTORY),
    "contrast_fault 2": lambda text: contrast.contrast_fault(
        f"<instruction>{text}</instruction><reply>{text}</reply>", text, HISTORY
    ),
    "user_fault": lambda text: faults.user_fault(text, HISTORY, text[::-1]),
    "reply_fault": lambda text: faults.reply_fault(text, HISTORY),
    "rewrite_fault": lambda text: faults.rewrite_fault(text, text[1:]),
    "review_fault": faults.review_fault,
    "contrast_reply_fault": lambda text: faults.contrast_reply_fault(text, text, HISTORY),
    "says_goodbye": faults.says_goodbye,
    "leaks": lambda text: text_checks.leaks(text, text),
    "quotes": lambda text: text_checks.quotes(text, text[1:-1]),
    "refuses": text_checks.refuses,
    "read_verdict": votes.read_verdict,
    "read_explanation": votes.read_explanation,
    "judge_prompt": lambda text: judge_prompt(PROMPT, talk("q", text), talk(text, "a"), (0, "x")),
    "prompt": lambda text: transcript(talk(text, text), "mark"),
    "variables": lambda text: (
        Prompt("x", text.replace("{{a", "{{ a")).fill(a="x") if "}}" in text else 0
    ),
    "visible": visible,
    "as_typed": as_typed,
    "provider error": lambda text: str(provider_errors.ProviderError(text, 400)),
    "delay": lambda text: provider_errors.parse_delay(text),
    "keys": provider_errors.redact_keys,
    "litellm": lambda text: UNUSABLE.search(text),
    "dates": lambda text: DATE_CALL.sub("", text),
    "interval": lambda text: INTERVAL.search(text),
    "markdown": lambda text: "".join(markdown.document([tables.Table(text, [], [])], [])),
    "card": lambda text: card.render_card({"base": text}),
    "excluded": lambda text: exclusion.ExcludedPrompts([seed(text)]).overlaps(seed(text)),
    "hh": lambda text: list(_formats(f"\n\nHuman: q{text}\n\nAssistant: a")),
    "joined": lambda text: row_messages.join_user_messages(map(user, text.split("a"))),
    "corruption": lambda text: corruptions._words(text),
    "line": lambda text: _decoded(text.encode("utf-8", "replace")),
    "html": lambda text: html.record_html(  # jinja2 and rich are linear, but slow
        pair(text[: len(text) // 4], text[len(text) // 4 :: -1])
    ),
    "terminal": lambda text: list(
        terminal.terminal_text(
            [pair(text[: len(text) // 10], text[len(text) // 10 :: -1])], width=80
        )
    ),
}


def seed(text: str) -> Record:
    return Record({"id": "x", "messages": [user(text)]})


def pair(left: str, right: str) -> Record:
    return Record(
        {"id": "x", "chosen": talk("q", left), "rejected": talk("q", right), "metadata": {}}
    )


def _formats(text: str):
    with contextlib.suppress(RecordError):
        yield from formats.read(Record({"chosen": text, "rejected": text + "b"}), "x")


def _decoded(line: bytes) -> object:
    try:
        return decode(line, "x:1")
    except RecordError as error:
        return str(error)


def seconds(work: Callable[[], object]) -> float:
    """CPU time of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def check_growth(work: Callable[[str], object], small: str, large: str, name: str) -> None:
    """Fail where the large text takes too long, and much longer than the small one.

    The large one is left out where it would be quick enough if the time grew with the square.
    """
    before = seconds(lambda: work(small))
    if before * (LARGE / SMALL) ** 2 < LARGE_SECONDS:
        return
    taken = seconds(lambda: work(large))
    assert taken < max(LARGE_SECONDS, GROWTH * before), (
        f"{name}: {before:.2f} s became {taken:.1f} s"
    )


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_a_text_made_to_be_slow_is_read_in_linear_time(reader):
    small, large = texts(SMALL), texts(LARGE)
    for name in large:
        check_growth(READERS[reader], small[name], large[name], name)


PAIRS: dict[str, Callable[[int], tuple[str, str]]] = {
    "a loop and a shifted loop": lambda size: (
        (LOOP * (size // len(LOOP)))[:size],
        ("other " + LOOP * (size // len(LOOP)))[: size - 7],
    ),
    "letters and halves": lambda size: (
        "x y " * (size // 4),
        "x " * (size // 4) + "y " * (size // 4),
    ),
    "short and long": lambda size: (
        "a b " * 20 + "!" * size,
        "b " * (size // 4) + "a " * (size // 4),
    ),
    "letters": lambda size: ("ab" * 45 + "!" * size, "a" * (size // 2) + "b" * (size // 2)),
    "two random texts": lambda size: tuple(
        " ".join(random.Random(number).choices("vwxyz", k=size // 2)) for number in range(2)
    ),
    "equal": lambda size: (LOOP * (size // len(LOOP)), LOOP * (size // len(LOOP))),
    "reversed": lambda size: (
        " ".join(map(str, range(size // 6))),
        " ".join(map(str, reversed(range(size // 6)))),
    ),
}
COMPARISONS: dict[str, Callable[[str, str], object]] = {
    "alike": text_checks.alike,
    "changed_spans": differences.changed_spans,
    "leaks": text_checks.leaks,
}


@pytest.mark.slow
@pytest.mark.parametrize("comparison", COMPARISONS)
@pytest.mark.parametrize("texts", PAIRS)
def test_two_texts_are_compared_in_linear_time(comparison, texts):
    text_checks.plain_words.cache_clear()
    for size in (400, 2_000, SMALL, LARGE):  # difflib is slowest below its bounds
        left, right = PAIRS[texts](size)
        taken = seconds(lambda left=left, right=right: COMPARISONS[comparison](left, right))
        assert taken < LARGE_SECONDS, f"{size} characters: {taken:.1f} s"


NOT_AN_END = re.compile(  # looks at the whole text for every end: plain, and quadratic
    r"(?:(?:(?:^|\n)[\s>*_#]*(?:\d+|[A-Za-z])|\b(?:Dr|Mr|Mrs|Ms|Prof|St|vs|Fig|e\.g|i\.e|cf))\."
    r"|[:：][*_\"')\]”’]*|(?:^|\n)#{1,6} [^\n]*)\n*$"
)


def last_end_searched(text: str) -> int:
    ends = (match.end() for match in SENTENCE_END.finditer(text))
    return max((end for end in ends if not NOT_AN_END.search(text, 0, end)), default=0)


def test_the_last_whole_sentence_is_what_a_plain_search_gives():
    draws = random.Random(1)
    pieces = [
        "a",
        "1",
        ".",
        ". ",
        "\n",
        " ",
        "Dr.",
        "i.e.g.",
        "e.g. ",
        "!",
        '"',
        ")",
        "> ",
        "*",
        "。",
        "B. ",
        "12.\n",
        ":",
        "# ",
        "\u2028",
    ]
    for _ in range(5000):
        text = "".join(draws.choices(pieces, k=draws.randint(1, 14)))
        assert _last_end(text) == last_end_searched(text), repr(text)


def test_a_request_is_found_behind_empty_lines():
    assert not faults.says_goodbye("Thanks!\n\n \n\n  add a table")
    assert not faults.says_goodbye("Thanks!\n\t add a table") and not faults.says_goodbye(
        "Thanks, now add one"
    )
    assert faults.says_goodbye("Thanks!\n\n \n\n  what a day")


@pytest.mark.parametrize("size", [3, 30, 150, 390])
def test_words_in_common_are_counted_as_difflib_does(size):
    draws = random.Random(size)
    for _ in range(60):
        first = draws.choices("abcdefghij", k=size)
        second = list(first)
        for _ in range(draws.randint(0, size // 6)):
            second[draws.randrange(len(second))] = draws.choice("klmxyz")
        least = 0.9 * (len(first) + len(second)) / 2
        expected = SequenceMatcher(None, first, second, autojunk=False).ratio() > 0.9
        assert (text_checks._common_words(first, second, least) > least) is expected


def spans_before(left: str, right: str) -> tuple[list, list]:
    """What changed_spans was, without a bound."""
    both = [differences._pieces(text) for text in (left, right)]
    words = [[piece.strip() for piece in pieces] for pieces in both]
    common = (Counter(words[0]) & Counter(words[1])).total()
    if 2 * common < differences.MIN_COMMON_WORDS * (len(words[0]) + len(words[1])):
        return [], []
    blocks = SequenceMatcher(None, *words).get_matching_blocks()[:-1]
    return tuple(
        differences._spans(pieces, [(block[side], block.size) for block in blocks])
        for side, pieces in enumerate(both)
    )


def test_the_words_that_differ_are_those_of_difflib():
    draws = random.Random(2)
    words = [f"w{number}" for number in range(60)]
    for size in (5, 40, 300, 900):
        for _ in range(8):
            left = draws.choices(words, k=size)
            right = list(left)
            for _ in range(draws.randint(0, size // 4)):
                at = draws.randrange(len(right))
                right[at : at + draws.randint(0, 2)] = draws.choices(words, k=draws.randint(0, 3))
                right = right or ["x"]
            texts = " ".join(left), " ".join(right)
            assert differences.changed_spans(*texts) == spans_before(*texts)


@pytest.mark.slow
def test_many_conversations_that_are_alike_are_corrupted_in_linear_time():
    def work(count: int) -> RunStats:
        stats = RunStats()
        records = [
            Record({"id": str(number), "messages": talk("Hello!", "Hi!", "Go on.", "No.")})
            for number in range(count)
        ]
        pool = corruptions.MessagePool(records, stats)
        for record in records:
            corruptions.corrupt(record, random.Random(0), pool=pool)
        return stats

    few, many = seconds(lambda: work(300)), seconds(lambda: work(3000))
    assert many < max(2 * LARGE_SECONDS, GROWTH * few)


@pytest.mark.slow
def test_a_conversation_of_many_messages_is_shown_in_linear_time():
    def work(count: int) -> None:
        view.record_view(Record({"id": "x", "messages": talk(*["word"] * count)}))

    few, many = seconds(lambda: work(4_000)), seconds(lambda: work(40_000))
    assert many < max(LARGE_SECONDS, GROWTH * few)


def test_joined_user_messages_are_what_they_were():
    messages = [user("a"), user("b"), assistant("c"), user(""), user("d"), user("e"), user("f")]
    joined = [user("a\n\nb"), assistant("c"), user(""), user("d\n\ne\n\nf")]
    assert row_messages.join_user_messages(messages) == joined


def test_a_reply_is_not_changed_where_nothing_was_cut():
    whole = replace(reply("Go on. Dr."), finish="stop")
    assert whole_sentences(whole) == (whole, True)
