"""Text of the model in training is read back into messages, or refused."""

import pytest
from build import assistant, call, result, system, talk, user, weather
from toys import JSON_CALLS, QWEN, gemma_template, tokenizer

from musiccli.core.errors import InputError, RecordError
from musiccli.reward_model.chat_template import ChatTemplate
from musiccli.serve.actor_template import ActorTemplate

LLAMA3 = (  # in the manner of Llama 3
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
)
MISTRAL = (  # in the manner of Mistral: no system message, and a space before each reply
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
    "{% else %} {{ m.content }}<|endoftext|>{% endif %}{% endfor %}"
)
QWEN3 = (  # in the manner of Qwen 3: the last reply begins with empty thoughts
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if loop.last and m.role == 'assistant' "
    "and '</think>' not in m.content %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}"
)
CONVERSATIONS = [
    talk("q", "a"),
    talk("What is\n\n2 + 2?", "4.\n\nIndeed: `4`", "Why?", "Because\n"),
    talk("q", "a", "r", "b", "s", "c"),
]


def template(name):
    """SmolLM2's tokenizer, with its own chat template or another one."""
    tokens = tokenizer("smollm2")
    if name != "smollm2":
        tokens.chat_template = name
    return tokens


def stripped(messages):
    """The messages without spaces at their ends, which templates trim."""
    return [{**message, "content": message["content"].strip()} for message in messages]


@pytest.mark.parametrize("name", ["smollm2", gemma_template(), LLAMA3, MISTRAL, QWEN3])
@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_what_the_template_writes_is_read_back(name, messages):
    tokens = template(name)
    actor = ActorTemplate(tokens)
    text = tokens.apply_chat_template(messages, tokenize=False)
    for ended in (text, text.rstrip(), text.strip() + (tokens.pad_token or "") * 3):
        found = stripped(actor.read(ended).messages)
        if name == QWEN3:  # empty thoughts stay with the reply that they stand in
            found[-1]["content"] = found[-1]["content"].removeprefix("<think>\n\n</think>\n\n")
        assert found == stripped(messages)


@pytest.mark.parametrize("name", ["smollm2", LLAMA3, QWEN3])
def test_a_system_message_is_read_back(name):
    tokens = template(name)
    messages = talk("q", "a", "r", "b", system="Be brief.")
    text = tokens.apply_chat_template(messages, tokenize=False)
    found = ActorTemplate(tokens).read(text).messages
    assert stripped(found)[0] == {"role": "system", "content": "Be brief."}
    assert len(found) == 5


def test_a_system_message_that_the_template_adds_is_none_of_the_conversation():
    tokens = template("smollm2")
    text = tokens.apply_chat_template(talk("q", "a"), tokenize=False)
    assert "helpful AI assistant" in text
    short = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
    for given in (text, short, short.removesuffix("<|im_end|>\n")):
        assert ActorTemplate(tokens).read(given).messages == talk("q", "a")


def test_a_bos_that_is_missing_or_doubled_changes_nothing():
    tokens = template(LLAMA3)
    tokens.bos_token = "<|endoftext|>"
    actor, text = ActorTemplate(tokens), tokens.apply_chat_template(talk("q", "a"), tokenize=False)
    assert text.startswith("<|endoftext|>")
    for given in (text, "<|endoftext|>" + text, text.removeprefix("<|endoftext|>")):
        assert actor.read(given).messages == talk("q", "a")


def test_a_reply_may_be_empty():
    tokens = template("smollm2")
    text = tokens.apply_chat_template(talk("q"), tokenize=False, add_generation_prompt=True)
    assert ActorTemplate(tokens).read(text).messages == talk("q", "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "q",
        "<|im_start|>user\nq<|im_end|>\n",
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>tool\n3<|im_end|>\n<|im_start|>assistant\na",
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n<|im_start|>assistant\nb",
        "<start_of_turn>user\nq<end_of_turn>\n<start_of_turn>model\na<end_of_turn>\n",
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|endoftext|>b",
    ],
)
def test_what_the_template_does_not_write_is_refused(text):
    with pytest.raises(RecordError, match="the text"):
        ActorTemplate(template("smollm2")).read(text)


def test_a_template_that_drops_turns_is_refused():
    with pytest.raises(InputError, match="cannot be read"):
        ActorTemplate(template("{{ messages[-1].content }}"))


def test_a_template_without_marks_is_refused():
    with pytest.raises(InputError, match="puts no marks between messages"):
        ActorTemplate(template("{% for m in messages %}{{ m.content }}\n{% endfor %}"))


TWICE = assistant("I look.") | {
    "tool_calls": [*call("weather", city="Oslo")["tool_calls"], *call("now")["tool_calls"]]
}
TOOL_TURNS = [
    weather()["messages"],
    [
        system("Be brief."),
        *talk("q", "a", "Where is it warm?"),
        TWICE,
        result("3 C"),
        result("Monday"),
        call("weather", city="Rome {1}"),
        result("9 C"),
        *talk("", "In Rome.", "r", "b")[1:],
    ],
    [user("q"), call("weather", "I look.", city="Oslo")],
]


@pytest.mark.parametrize("messages", TOOL_TURNS)
@pytest.mark.parametrize("tools", [None, weather()["tools"], weather()["tools"] * 2])
@pytest.mark.parametrize("name", [JSON_CALLS, "smollm2", gemma_template()])
def test_calls_results_and_functions_on_offer_are_read_back(name, messages, tools):
    actor = ActorTemplate(template(name))
    reply = actor.read(actor._template.render(messages, tools or ()))
    shown = messages
    if name == gemma_template() and messages[0]["role"] == "system" and not tools:
        shown = ChatTemplate(template(name)).fold_system(messages)  # it stays in the user's text
    assert stripped(reply.messages) == shown
    assert reply.tools == tools


@pytest.mark.parametrize(
    "call",
    [
        "<tool_call>\nweather(Oslo)\n</tool_call>",
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}\n</tool_call>',
        '<tool_call>\n{"name": "weather"}\n</tool_call>',
        '<tool_call>\n{"arguments": {"city": "Oslo"}, "name": "weather"}\n</tool_call>',
        '<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call> and more',
        '<tool_call>\n{"name": "weather", "arguments": ' + '{"a":' * 100_000,
    ],
)
def test_a_call_that_the_template_would_not_write_is_text(call):
    actor = ActorTemplate(template(JSON_CALLS))
    text = actor._template.render(talk("q", call, "r", "b"))
    assert actor.read(text).messages == talk("q", call, "r", "b")


def test_calls_and_functions_in_a_form_that_is_not_read_are_refused_by_name():
    actor = ActorTemplate(template(QWEN))
    with pytest.raises(RecordError, match=r"^the text holds calls in a form"):
        actor.read(actor._template.render(weather()["messages"]))
    with pytest.raises(RecordError, match=r"^the text holds functions on offer in a form"):
        actor.read(actor._template.render(talk("q", "a"), weather()["tools"]))
    assert actor.read(actor._template.render(talk("q", "a"))).messages == talk("q", "a")
