"""What a call that brought nothing means: whether and when to try again, in words without anybody's key."""

import time
from email.utils import formatdate

import pytest

from musiccli.core.retry_after import parse_retry_after
from musiccli.llm.call import Call, Reply
from musiccli.llm.provider_errors import MAX_MESSAGE, EmptyReply, ProviderError
from musiccli.llm.providers.litellm_provider import provider_error

KEY = "sesame-open-9876543210"
CALL = Call("openai/x", ("id0", "chosen", 0, 0, "assistant", 0), max_tokens=60)


@pytest.mark.parametrize(
    "status, retryable, overloaded, fatal, request_specific",
    [
        (400, False, False, False, True),
        (401, False, False, True, False),
        (402, False, False, True, False),
        (404, False, False, True, False),
        (408, True, False, False, False),
        (413, False, False, False, True),
        (429, True, True, False, False),
        (500, True, False, False, False),
        (503, True, True, False, False),
        (529, True, True, False, False),
    ],
)
def test_the_status_says_what_to_do(status, retryable, overloaded, fatal, request_specific):
    met = ProviderError("no", status)
    assert (met.retryable, met.overloaded) == (retryable, overloaded)
    assert (met.fatal, met.request_specific) == (fatal, request_specific)


def test_an_empty_reply_is_tried_again_and_says_nothing_about_the_server():
    met = EmptyReply(Reply("", "stop", 7, 0, None), CALL)
    assert (met.retryable, met.request_specific, str(met)) == (True, True, "an empty reply")


def test_an_empty_reply_that_used_up_its_tokens_would_come_out_the_same():
    met = EmptyReply(Reply("", "length", 7, 50, None), CALL)
    assert (met.retryable, met.request_specific) == (False, True)
    assert str(met).startswith("an empty reply: all 60 tokens it may write were gone")


@pytest.mark.parametrize(
    "value, seconds",
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("", None),
        (None, None),
        ("soon", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
    ],
)
def test_retry_after_is_read_in_seconds(value, seconds):
    assert parse_retry_after(value) == seconds
    error = RuntimeError("slow down")
    error.litellm_response_headers = {"retry-after": value}
    assert provider_error(error).retry_after == seconds


@pytest.mark.parametrize(
    "text, seconds",
    [
        ('{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "45s"}', 45.0),
        ("Please retry in 36.5s.", 36.5),
        ("Rate limit reached. Please try again in 20ms.", 0.02),
        ("try again in 1m2.5s", 62.5),
        ("try again in 7h12m0s", 25920.0),
        ("try again in a moment", None),
        ("Quota exceeded for 60s windows", None),
    ],
)
def test_a_wait_that_stands_in_the_text_is_read_there(text, seconds):
    assert ProviderError(text, 429).retry_after == seconds
    assert ProviderError(text, 429, retry_after=3.0).retry_after == 3.0
    assert provider_error(RuntimeError("x" * MAX_MESSAGE + text)).retry_after == seconds


@pytest.mark.parametrize("usegmt", [True, False])  # "GMT", and "-0000", which says no zone: UTC
def test_retry_after_may_be_a_date(monkeypatch, usegmt):
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.0)
    assert parse_retry_after(formatdate(1_700_000_090, usegmt=usegmt)) == 90


@pytest.mark.parametrize(
    "secret",
    [
        KEY,
        "token-of-mine",
        "sk-proj-abcdefgh12345678",
        "AIzaSyA1234567890abcdefg",
        "gsk_abcdefghijklmn",
    ],
)
def test_no_key_stands_in_a_refusal(monkeypatch, secret):
    monkeypatch.setenv("HOSTED_VLLM_API_KEY", KEY)
    monkeypatch.setenv("HF_TOKEN", "token-of-mine")
    text = f"Incorrect API key provided: {secret}, at ?key={secret}&alt=json."
    for met in (ProviderError(text), provider_error(RuntimeError(text))):
        assert str(met) == "Incorrect API key provided: [key], at ?key=[key]&alt=json"


def test_a_key_at_the_place_of_the_cut_does_not_show_in_part(monkeypatch):
    monkeypatch.setenv("HOSTED_VLLM_API_KEY", KEY)
    assert "sesame" not in str(ProviderError("x" * (MAX_MESSAGE - 10) + KEY))


def test_the_password_in_an_address_is_taken_out():
    assert (
        str(ProviderError("no connection to http://me:secret@host/v1"))
        == "no connection to http://[key]host/v1"
    )


@pytest.mark.parametrize("prefix", ["", "litellm.APIError: ", "litellm.APIError: APIError: "])
def test_the_names_of_litellms_errors_are_left_out(prefix):
    assert str(provider_error(RuntimeError(f"{prefix}Deepseek says no."))) == "Deepseek says no"
