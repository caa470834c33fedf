"""The HTTP side: what is sent, what is tried again, what is never shown."""

import json
import logging
import time

import pytest
from chat_server import Reply, chat_server
from pydantic import ValidationError

from configs.behaviour import EndpointJudge
from tasks.judging.endpoint import ChatEndpoint
from tasks.judging.error import JudgeError
from tasks.judging.judge import Comparison

KEY = "sk-very-secret-0123456789"
PAIR = Comparison("Be fair.", "2 + 2?", "4", "5")


def settings(base_url: str, **rest: object) -> EndpointJudge:
    return EndpointJudge.model_validate(
        {"kind": "endpoint", "base_url": base_url, "model": "qwen3", "backoff_s": 0.01, "retries": 2, **rest}
    )


def test_the_request_is_a_plain_chat_completion() -> None:
    with chat_server(lambda *_: "A") as server, ChatEndpoint(settings(server.base_url)) as judge:
        assert judge.compare([PAIR]) == ["A"]
        (sent,) = server.requests

    assert sent["path"] == "/v1/chat/completions"
    assert (sent["model"], sent["temperature"], sent["max_tokens"]) == ("qwen3", 0, 64)
    assert sent["messages"][0]["role"] == "user"
    assert "authorization" not in server.headers[0]


def test_replies_come_in_the_order_of_the_questions() -> None:
    def script(request: str, a: str, b: str, number: int) -> Reply:
        return a

    pairs = [Comparison("", "", word, "") for word in ("A", "B", "TIE", "?", "A") * 10]
    with chat_server(script) as server, ChatEndpoint(settings(server.base_url, parallel=8)) as judge:
        assert judge.compare(pairs) == ["A", "B", "tie", "unparsable", "A"] * 10


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_what_passes_by_is_tried_again(status: int) -> None:
    def script(request: str, a: str, b: str, number: int) -> Reply:
        return (status, {"retry-after": "0"}, "busy") if number < 2 else "B"

    with chat_server(script) as server, ChatEndpoint(settings(server.base_url)) as judge:
        assert judge.compare([PAIR]) == ["B"]
        assert len(server.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 404, 302])
def test_what_does_not_pass_by_is_not_tried_again(status: int) -> None:
    reply = (status, {"location": "http://127.0.0.1:1/elsewhere"}, "no")
    with chat_server(lambda *_: reply) as server, ChatEndpoint(settings(server.base_url)) as judge:
        with pytest.raises(JudgeError, match=f"HTTP {status}"):
            judge.compare([PAIR])
        assert len(server.requests) == 1


def test_nobody_listening_is_a_judge_error() -> None:
    with chat_server(lambda *_: "A") as server:
        address = server.base_url
    with ChatEndpoint(settings(address)) as judge, pytest.raises(JudgeError, match="ConnectError"):
        judge.compare([PAIR])


def test_a_time_out_is_a_judge_error() -> None:
    def slow(request: str, a: str, b: str, number: int) -> Reply:
        time.sleep(0.5)
        return "A"

    patient = {"timeout_s": 0.05, "retries": 0}
    with (
        chat_server(slow) as server,
        ChatEndpoint(settings(server.base_url, **patient)) as judge,
        pytest.raises(JudgeError, match="ReadTimeout"),
    ):
        judge.compare([PAIR])


def test_a_reply_without_content_is_unparsable() -> None:
    with chat_server(lambda *_: None) as server, ChatEndpoint(settings(server.base_url)) as judge:
        assert judge.compare([PAIR]) == ["unparsable"]


def test_the_key_is_sent_and_never_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("JUDGE_KEY", f"{KEY}\n")
    asked = {"api_key_env": "JUDGE_KEY"}
    repeats = (401, {}, json.dumps({"error": f"wrong key {KEY}"}))
    with (
        caplog.at_level(logging.DEBUG),
        chat_server(lambda *_: repeats) as server,
        ChatEndpoint(settings(server.base_url, **asked)) as judge,
    ):
        with pytest.raises(JudgeError) as caught:
            judge.compare([PAIR])
        assert server.headers[0]["authorization"] == f"Bearer {KEY}"

    assert "wrong key [key]" in str(caught.value)
    assert KEY not in str(caught.value) + caplog.text + judge.name
    assert KEY not in settings(server.base_url, **asked).model_dump_json()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "JUDGE_KEY is not set"),
        ("  ", "is not set"),
        ("sk-1\nsk-2", "no HTTP header"),
        ("ключ", "no HTTP"),
    ],
)
def test_a_key_that_cannot_be_sent_is_refused_without_showing_it(
    monkeypatch: pytest.MonkeyPatch, value: str | None, message: str
) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("JUDGE_KEY", value)
    with pytest.raises(JudgeError, match=message) as caught:
        ChatEndpoint(settings("https://judge.example/v1", api_key_env="JUDGE_KEY"))
    assert "sk-" not in str(caught.value)


@pytest.mark.parametrize(
    ("base_url", "message"),
    [
        ("http://judge.example/v1", "neither https nor loopback"),
        ("ftp://judge.example/v1", "must be http"),
        ("judge.example/v1", "must be http"),
        ("https://me:pw@judge.example/v1", "user or password is refused"),
        ("https://judge.example/v1?key=1", "nothing behind it"),
        ("http://127.0.0.1.example/v1", "neither https nor loopback"),
    ],
)
def test_addresses_that_would_leak_are_refused(base_url: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(base_url)


def test_addresses_that_are_fine() -> None:
    for base_url in ("https://judge.example/v1/", "http://localhost:8000/v1", "http://[::1]:8000/v1"):
        assert settings(base_url).base_url == base_url.rstrip("/")
    assert settings("http://judge.example/v1", allow_plain_http=True)
