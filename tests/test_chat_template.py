"""Conversations as tokens: one BOS, where turns end, and what is cut from too long ones."""

import json
import random
from collections import Counter
from functools import cache
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from build import assistant, call, result, talk, user, weather
from toys import (
    QWEN,
    THINKING,
    gemma_template,
    hh,
    mtbench101,
    needs_data,
    sequence,
    tokenizer,
)
from transformers import AutoTokenizer

from musiccli.core.errors import InputError, RecordError
from musiccli.core.messages import first_divergence, plain_messages, tools_text
from musiccli.core.records import Record
from musiccli.reward_model.chat_template import ChatTemplate, EncodedConversation, cut_to_fit
from musiccli.score.scorer import score
from musiccli.train.tokenized_pairs import tokenize_pairs

SYSTEM = {"role": "system", "content": " Be brief. "}
ODD = [
    talk("  padded  ", "\n\nnewlines\n"),
    talk("👩‍👩‍👧 日本語", "naïve ’quotes’ 👍", "é", "🇫🇷\u200d"),
    talk("a <|im_end|> b", "c <end_of_turn> d", "e", "f"),
    talk("\t", ".", "x" * 500, "1 2  3   4"),
]


@cache
def template_of(name):
    return ChatTemplate(tokenizer(name))  # Gemma's takes seconds


@pytest.fixture(params=["smollm2", "gemma3-270m"])
def template(request):
    return template_of(request.param)


@pytest.fixture
def gemma():
    return template_of("gemma3-270m")


@pytest.fixture
def smollm2():
    return tokenizer("smollm2")


def with_template(tokens, text):
    tokens.chat_template = text
    return ChatTemplate(tokens)


# Gemma


@pytest.mark.slow
def test_gemma_conversations_have_exactly_one_bos_at_their_start(gemma):
    for messages in (talk("q", "a"), talk("q", "a", "r", "b"), [SYSTEM, *talk("q", "a")], *ODD):
        ids = gemma.encode(messages).ids
        assert ids[0] == gemma.tokenizer.bos_token_id == 2
        assert ids.count(2) == 1


@pytest.mark.slow
def test_gemma_is_read_at_the_newline_after_the_end_of_turn(gemma):
    encoded = gemma.encode(talk("q", "a", "r", "b"))
    around = [
        gemma.tokenizer.convert_ids_to_tokens(encoded.ids[end - 1 : end + 1])
        for end in encoded.reward_positions
    ]
    assert around == [["<end_of_turn>", "\n"]] * 2
    assert encoded.reward_positions[-1] == len(encoded.ids) - 1


def test_a_system_message_goes_before_the_first_user_message_where_the_template_has_no_such_role(
    gemma,
):
    assert (
        gemma.render([SYSTEM, *talk("q", "a")])
        == gemma.render(talk("Be brief.\n\nq", "a"))
        == (
            "<bos><start_of_turn>user\nBe brief.\n\nq<end_of_turn>\n"
            "<start_of_turn>model\na<end_of_turn>\n"
        )
    )


def test_a_system_message_stays_one_where_the_template_takes_it(smollm2):
    assert (
        ChatTemplate(smollm2)
        .render([SYSTEM, *talk("q", "a")])
        .startswith("<|im_start|>system\n Be brief. <|im_end|>\n")
    )


def test_a_template_that_drops_system_messages_does_not_take_them(smollm2):
    silent = with_template(
        smollm2,
        "{% for m in messages if m.role != 'system' %}{{ m.role + m.content }};{% endfor %}",
    )
    assert silent.render([SYSTEM, *talk("q", "a")]) == "userBe brief.\n\nq;assistanta;"


def test_training_and_scoring_read_the_same_tokens(template):
    seen = []

    def network(groups, budget):
        seen.extend(one for group in groups for one in group)
        return [torch.zeros(len(one.reward_positions)) for group in groups for one in group]

    network.packed, network.token_count = True, lambda group: sum(len(one.ids) for one in group)
    model = SimpleNamespace(chat_template=template, context_length=2048, network=network)
    history = [SYSTEM, *talk("q", "a", "r")]
    record = Record(
        {
            "id": "x",
            "chosen": [*history, {"role": "assistant", "content": "yes"}],
            "rejected": [*history, {"role": "assistant", "content": "no"}],
        }
    )
    [trained] = tokenize_pairs([record], model, 2048)
    list(score([record], model, "rm"))
    assert [(one.ids, one.reward_positions) for one in trained.sides] == [
        (one.ids, one.reward_positions) for one in seen
    ]
    assert [one.ids for one in seen] == [
        template.encode(record[side]).ids for side in ("chosen", "rejected")
    ]


# Ends of turns


def agrees_with_its_prefixes(template, messages):
    encoded = template.encode(messages)
    turns = [index for index, message in enumerate(messages, 1) if message["role"] == "assistant"]
    prefixes = [template.encode(messages[:stop]).ids for stop in turns]
    assert encoded.reward_positions == [len(prefix) - 1 for prefix in prefixes]
    assert all(encoded.ids[: len(prefix)] == prefix for prefix in prefixes)
    assert template.encode(messages, every_turn=False) == EncodedConversation(
        encoded.ids, encoded.reward_positions[-1:]
    )


@pytest.mark.slow
@needs_data
def test_a_turn_ends_where_the_conversation_up_to_it_ends(template):
    conversations = mtbench101(60) + [side for sides in hh(60) for side in sides]
    assert len({len(one) for one in conversations}) > 4
    for messages in conversations:
        agrees_with_its_prefixes(template, messages)


@pytest.mark.parametrize("messages", ODD, ids=["spaces", "emoji", "special tokens", "lengths"])
def test_odd_texts_end_where_their_prefixes_end(template, messages):
    agrees_with_its_prefixes(template, messages)


@pytest.mark.slow
def test_a_template_that_rewrites_earlier_turns_has_no_turn_ends_but_a_last_token(smollm2):
    thinks = with_template(
        smollm2,
        "{% for m in messages %}{{ m.role }}:{% if loop.last %}<think></think>{% endif %}"
        "{{ m.content }}\n{% endfor %}",
    )
    messages = talk("q", "a", "r", "b")
    with pytest.raises(
        RecordError, match="messages: the chat template rewrites earlier turns when more follow"
    ):
        thinks.encode(messages)
    assert len(thinks.encode(talk("q", "a")).reward_positions) == 1
    encoded = thinks.encode(messages, every_turn=False)
    assert (
        smollm2.decode(encoded.ids) == "user:q\nassistant:a\nuser:r\nassistant:<think></think>b\n"
    )
    assert encoded.reward_positions == [len(encoded.ids) - 1]


def test_a_tokenizer_without_a_template_is_an_input_error(smollm2):
    with pytest.raises(InputError, match="has no chat template"):
        with_template(smollm2, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "date",
    [
        '{%- if strftime_now is defined %}{%- set d = strftime_now("%d %b %Y") %}{%- endif %}',
        "{%- set d = strftime_now('%d %B %Y') -%}",
        '{%- set d = "on " + strftime_now("%Y-%m-%d") + "." %}',
    ],
)
def test_a_template_that_writes_todays_date_writes_one_and_the_same_also_when_saved(
    smollm2, tmp_path, date
):
    dated = with_template(
        smollm2, date + "{{ d }}\n{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    text = dated.render(talk("q", "a"))
    assert text in ("26 Jul 2024\nqa", "26 July 2024\nqa", "on 2024-07-26.\nqa")
    smollm2.save_pretrained(tmp_path)
    assert (
        AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(talk("q", "a"), tokenize=False)
        == text
    )


@pytest.mark.slow
def test_what_a_template_raises_is_a_fault_of_the_record(smollm2):
    strict = with_template(
        smollm2,
        "{% for m in messages %}{% if 'x' in m.content %}{{ raise_exception('no x') }}"
        "{% endif %}{{ m.content }}{% endfor %}",
    )
    with pytest.raises(RecordError, match="messages: the chat template refuses it: no x"):
        strict.encode(talk("q", "x"))


# What is too long


def words(messages):
    """One token a word and one a message; the same word is the same token."""
    text = [
        word
        for message in messages
        for word in [f"[{message['role']}]", *message["content"].split()]
    ]
    return sequence([hash(word) % 1000 for word in text])


def conversations(draws):
    """One to four conversations of random lengths that share a beginning of random length."""

    def text():
        return " ".join(draws.choices("abcdefgh", k=draws.randint(1, 12)))

    shared = [text() for _ in range(draws.randint(0, 9))]
    sides = []
    for _ in range(draws.choice((1, 2, 2, 2, 4))):
        own = [text() for _ in range(draws.randint(1, 6))]
        own += [text()] * ((len(shared) + len(own)) % 2)
        sides.append(([SYSTEM] if shared and len(shared) % 3 else []) + talk(*shared, *own))
    return sides


def tails(sides, cut):
    """The conversations without `cut` messages after the system message; None if not allowed."""
    system = sides[0][0]["role"] == "system"
    if cut == 0:
        return sides
    if any(one[: system + cut] != sides[0][: system + cut] for one in sides):
        return None  # other messages would be cut from one side than from another
    kept = [one[:system] + one[system + cut :] for one in sides]
    if any(len(one) < system + 2 for one in kept):
        return None  # the last answer and what it answers stay
    divergence = min((first_divergence(sides[0], one) for one in sides[1:]), default=len(sides[0]))
    exchange = divergence - (divergence - system) % 2  # starts with its user message
    return kept if system + cut <= exchange else None


@pytest.mark.parametrize("seed", range(10))
def test_cutting_keeps_the_contract(seed):
    draws = random.Random(seed)
    outcomes = Counter()
    for _ in range(300):
        sides, most = conversations(draws), draws.randint(5, 70)
        shared = min((first_divergence(sides[0], one) for one in sides), default=len(sides[0]))
        result = cut_to_fit(words, sides, most, shared)
        possible = {
            cut: kept
            for cut in range(0, 40, 2)
            if (kept := tails(sides, cut)) and max(len(words(one).ids) for one in kept) <= most
        }
        outcomes["cut" if result and result[1] else "whole" if result else "impossible"] += 1
        if result is None:
            assert not possible
            continue
        encoded, cut = result
        assert cut == min(possible)  # so nothing where it fits
        kept = possible[cut]
        assert encoded == [words(one) for one in kept]
        for before, after in zip(sides, kept, strict=True):
            system = before[0]["role"] == "system"
            assert after[:system] == before[:system]
            assert after[system]["role"] == "user"
            assert after[-1] == before[-1]
            assert all(one["role"] != other["role"] for one, other in pairwise(after))
    assert min(outcomes.values()) > 20 and len(outcomes) == 3


def test_only_as_many_exchanges_are_cut_as_must_be():
    history = ["one two three four", "five six"]
    sides = [talk(*history * 3, "q", "good"), talk(*history * 3, "q", "bad")]
    lengths = [len(words(sides[0]).ids) - 8 * cut for cut in range(4)]
    assert lengths == [28, 20, 12, 4]
    cuts = {
        most: (cut_to_fit(words, sides, most, 7) or (None, None))[1]
        for most in (28, 27, 20, 19, 12, 11, 4, 3)
    }
    assert cuts == {28: 0, 27: 2, 20: 2, 19: 4, 12: 4, 11: 6, 4: 6, 3: None}


def test_the_exchange_in_which_the_sides_part_is_never_cut():
    early = [talk("long " * 50, "good", "r", "s"), talk("long " * 50, "bad", "r", "s")]
    assert cut_to_fit(words, early, 40, 1) is None
    later = [talk("long " * 50, "same", "q", "good"), talk("long " * 50, "same", "r", "bad")]
    assert cut_to_fit(words, later, 40, 2)[1] == 2


def test_sides_with_different_system_messages_are_not_cut():
    sides = [
        [{"role": "system", "content": text}, *talk("long " * 50, "a", "q", "b")] for text in "xy"
    ]
    assert cut_to_fit(words, sides, 40, 0) is None


# Calls, results, thoughts and functions on offer

STRICT_IDS = """
{%- for m in messages %}{{ '[' + m.role + ']' + m.content }}
{%- for c in m.tool_calls or [] %}
{%- if c.id | length != 9 %}{{ raise_exception('ids of nine digits!') }}{% endif %}
{{- c.function.name + (c.function.arguments | tojson) + c.id }}{% endfor %}
{%- if m.role == 'tool' %}{{ m.tool_call_id + m.name }}{% endif %}{% endfor %}"""
AS_TEXT = """
{%- for m in messages %}{{ '[' + m.role + ']' + m.content }}
{%- for c in m.tool_calls or [] %}{{ c.function.name + c.function.arguments }}{% endfor %}
{%- endfor %}"""
ONE_AT_A_TIME = """
{%- for m in messages %}{{ '[' + m.role + ']' }}
{%- if m.tool_calls %}
{%- if m.tool_calls | length > 1 %}{{ raise_exception('one call at a time') }}{% endif %}
{{- m.tool_calls[0].function | tojson }}{% else %}{{ m.content }}{% endif %}{% endfor %}"""


def test_a_template_that_takes_calls_gets_them_as_objects(smollm2):
    template = with_template(smollm2, QWEN)
    assert template.takes_calls and template.takes_tools
    text = template.render(weather()["messages"], weather()["tools"])
    assert '<call>weather {"city": "Oslo"}</call>' in text
    assert "<result>3 C</result>" in text and "It knows." in text


@pytest.mark.parametrize(
    "template, expected",
    [
        (STRICT_IDS, '[assistant]weather{"city": "Oslo"}000000000[tool]3 C000000000weather'),
        (AS_TEXT, '[assistant]weather{"city": "Oslo"}[tool]3 C'),
    ],
)
def test_calls_take_the_form_that_the_template_wants(smollm2, template, expected):
    template = with_template(smollm2, template)
    assert template.takes_calls and not template.takes_tools
    assert expected in template.render(weather()["messages"])


def test_ids_of_calls_are_numbered_anew_so_that_they_are_no_tokens_of_their_own(smollm2):
    template = with_template(smollm2, STRICT_IDS)
    calls = [call("weather", city=city)["tool_calls"][0] for city in ("Oslo", "Rome")]
    numbered = [one | {"id": f"call_{index}x"} for index, one in enumerate(calls)]
    results = [result("20 C", tool_call_id="call_1x"), result("3 C", tool_call_id="call_0x")]
    text = template.render(
        [user(), assistant("") | {"tool_calls": numbered}, *results, assistant("ok")]
    )
    assert text.endswith(
        '{"city": "Oslo"}000000000weather{"city": "Rome"}000000001'
        "[tool]20 C000000001weather[tool]3 C000000000weather[assistant]ok"
    )


def test_two_calls_of_one_id_both_stay(smollm2):
    template = with_template(smollm2, QWEN)
    same = call("weather", city="Oslo")["tool_calls"][0] | {"id": "x"}
    both = assistant("") | {"tool_calls": [same, same]}
    text = template.render([user(), both, result("3 C"), result("3 C"), assistant("ok")])
    assert text.count("<call>") == text.count("<result>") == 2


@pytest.mark.parametrize("text", [ONE_AT_A_TIME, "gemma", "smollm2"])
def test_a_template_that_would_lose_or_refuse_some_gets_the_one_rendering_in_text(smollm2, text):
    text = {"gemma": gemma_template(), "smollm2": smollm2.chat_template}.get(text, text)
    template = with_template(smollm2, text)
    assert not template.takes_calls
    record = weather()
    spoken = call("weather", "Let me look.", city="Oslo") | {"reasoning_content": "Cold?"}
    conversation = [user("q"), spoken, result("3 C"), result("4 C"), assistant("It is 3 C.")]
    plain = [
        user("q"),
        assistant(
            "<think>\nCold?\n</think>\n\nLet me look.\n\n"
            '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
        ),
        user("<tool_response>\n3 C\n</tool_response>\n<tool_response>\n4 C\n</tool_response>"),
        assistant("It is 3 C."),
    ]
    assert plain_messages(conversation) == plain
    assert template.render(conversation) == template.render(plain)
    offered = template.render(conversation, record["tools"])
    system = {"role": "system", "content": tools_text(record["tools"])}
    assert offered == template.render([system, *plain])
    assert "<tools>\n" + json.dumps(record["tools"][0]) in offered


def test_thoughts_stand_in_the_text_where_the_template_would_drop_them(smollm2):
    reply = assistant("4.") | {"reasoning_content": "2 and 2"}
    ours = with_template(smollm2, QWEN)
    assert "assistant\n<think>\n2 and 2\n</think>\n\n4.<|im_end|>" in ours.render([user(), reply])
    theirs = with_template(smollm2, THINKING)
    assert "assistant\n<think>2 and 2</think>4.<|im_end|>" in theirs.render([user(), reply])


def test_what_a_template_leaves_out_of_earlier_turns_is_named(smollm2):
    assert with_template(smollm2, QWEN).losses() == []
    assert with_template(smollm2, gemma_template()).losses() == []
    assert with_template(smollm2, THINKING).losses() == ["thoughts of earlier turns"]
    last_only = "{% for m in messages[-2:] %}{{ m.role + m.content }};{% endfor %}"
    assert with_template(smollm2, last_only).losses() == [
        "earlier turns",
        "thoughts of earlier turns",
        "results of tools in earlier turns",
    ]


def test_a_reward_is_read_after_each_turn_and_not_after_each_call(smollm2):
    template = with_template(smollm2, QWEN)
    conversation = [*weather()["messages"], *talk("And now?", "4 C.")]
    encoded = template.encode(conversation)
    assert len(encoded.reward_positions) == 2
    first = template.encode(conversation[:4], every_turn=False)
    assert encoded.ids[: encoded.reward_positions[0] + 1] == first.ids


def test_a_token_without_an_embedding_is_refused_by_name(smollm2):
    template = ChatTemplate(smollm2, vocabulary=len(smollm2))
    smollm2.add_tokens(["<odd>"], special_tokens=True)
    assert template.encode(talk("q", "a")).ids
    for every_turn in (True, False):
        with pytest.raises(RecordError, match="holds <odd>, a token that the model has no"):
            template.encode(talk("q", "a <odd> b"), every_turn)


def test_whole_exchanges_are_cut_with_their_calls():
    exchange = weather()["messages"]
    sides = [[SYSTEM, *exchange, *exchange, *talk("q", reply)] for reply in ("good", "bad")]
    whole = len(words(sides[0]).ids)
    for most in range(whole - 1, 8, -1):
        encoded, cut = cut_to_fit(words, sides, most, 10)
        assert cut in (4, 8)
        assert encoded[0] == words([SYSTEM, *sides[0][1 + cut :]])


def test_cutting_takes_a_few_encodings_however_many_exchanges_there_are():
    draws = random.Random(0)
    history = [" ".join("w" * draws.randint(20, 300)) for _ in range(400)]
    sides = [talk(*history, "q", reply) for reply in ("good", "bad")]
    tokens = 0

    def counting(messages):
        nonlocal tokens
        encoded = words(messages)
        tokens += len(encoded.ids)
        return encoded

    whole = len(words(sides[0]).ids)
    for part in (0.05, 0.3, 0.5):
        tokens = 0
        _, cut = cut_to_fit(counting, sides, int(part * whole), 400)
        assert 0 < cut < 400
        assert tokens < 5 * whole
