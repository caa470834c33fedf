"""OpenAI's own client against a server whose engine says what it is told."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import openai
import pytest
from served import MODEL, Served, until

from configs.serve import ServeLimits

Serving = Callable[..., AbstractContextManager[Served]]
TEXT = "héllo 軽量 🚀 end"


def test_a_completion_with_its_usage(serving: Serving) -> None:
    with serving() as served:
        made = served.client().completions.create(model=MODEL, prompt=f"say:{TEXT}", max_tokens=100)
        assert made.choices[0].text == TEXT
        assert made.choices[0].finish_reason == "stop"
        assert made.model == MODEL
        assert made.system_fingerprint == "parrot/1@0"
        assert made.usage is not None
        spoken = len(TEXT.encode()) + 1  # a token a byte, and the one that ends the text
        assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (
            len(f"say:{TEXT}".encode()),
            spoken,
        )
        assert made.usage.total_tokens == made.usage.prompt_tokens + spoken


def test_an_adapter_is_a_model_of_its_own(serving: Serving) -> None:
    with serving(adapters=("support", "sales")) as served:
        client = served.client()
        assert [card.id for card in client.models.list()] == [MODEL, "support", "sales"]
        assert client.models.retrieve("sales").id == "sales"
        for name in (MODEL, "support", "sales"):
            made = client.completions.create(model=name, prompt="say:hi")
            assert (made.model, made.choices[0].text) == (name, "hi")
        assert [asked.adapter for asked in served.engine.asked] == [None, "support", "sales"]
        with pytest.raises(
            openai.NotFoundError, match="'other' is not served here; 'parrot', 'support', 'sales' are"
        ):
            client.completions.create(model="other", prompt="say:hi")


def test_length_ends_a_text_and_sixteen_tokens_are_openais_default(serving: Serving) -> None:
    with serving() as served:
        client = served.client()
        short = client.completions.create(model=MODEL, prompt="say:abcdef", max_tokens=3)
        assert (short.choices[0].text, short.choices[0].finish_reason) == ("abc", "length")
        unsaid = client.completions.create(model=MODEL, prompt=f"say:{'x' * 40}")
        assert unsaid.choices[0].text == "x" * 16
        chat = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x" * 40}])
        assert chat.choices[0].message.content == "x" * 40
        on = client.completions.create(
            model=MODEL, prompt="say:ab", max_tokens=6, extra_body={"ignore_eos": True}
        )
        assert on.usage is not None
        assert on.usage.completion_tokens == 6


def test_prompts_as_token_ids(serving: Serving) -> None:
    with serving() as served:
        client = served.client()
        client.completions.create(model=MODEL, prompt="say:hi")
        ids = list(served.engine.asked[0].generation.prompt)
        for prompt in (ids, [ids], ["say:hi"]):
            assert client.completions.create(model=MODEL, prompt=prompt).choices[0].text == "hi"
        with pytest.raises(openai.BadRequestError, match="999 is no token id"):
            client.completions.create(model=MODEL, prompt=[999])


def test_a_chat_goes_through_the_models_template(serving: Serving) -> None:
    messages: list[Any] = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
    ]
    with serving() as served:
        made = served.client().chat.completions.create(
            model=MODEL, messages=messages, max_completion_tokens=9
        )
        assert made.choices[0].message.content == "d"
        assert made.choices[0].message.role == "assistant"
        prompt = served.engine._tokenizer.decode(list(served.engine.asked[0].generation.prompt))
        assert prompt == "[system]be brief\n[user]ab\n[assistant]c\n[user]d\nsay:d"
        again = [*messages, made.choices[0].message, {"role": "user", "content": "e"}]
        made = served.client().chat.completions.create(model=MODEL, messages=again)
        assert made.choices[0].message.content == "e"
        with pytest.raises(openai.BadRequestError, match="starts with the assistant"):
            served.client().chat.completions.create(model=MODEL, messages=messages[2:])


def test_streaming_never_splits_a_character(serving: Serving) -> None:
    with serving() as served:
        chunks = list(
            served.client().completions.create(
                model=MODEL,
                prompt=f"say:{TEXT}",
                max_tokens=100,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        *pieces, usage = chunks
        texts = [piece.choices[0].text for piece in pieces]
        assert "".join(texts) == TEXT
        assert not any("\ufffd" in text for text in texts)
        assert len(pieces) > len(TEXT) / 2
        assert [piece.choices[0].finish_reason for piece in pieces[-2:]] == [None, "stop"]
        assert usage.choices == []
        assert usage.usage is not None
        assert usage.usage.completion_tokens == len(TEXT.encode()) + 1
        assert len({chunk.id for chunk in chunks}) == 1


def test_a_streamed_chat(serving: Serving) -> None:
    with serving() as served:
        stream = served.client().chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": TEXT}], stream=True
        )
        deltas = [chunk.choices[0] for chunk in stream]
        assert deltas[0].delta.role == "assistant"
        assert [each.delta.role for each in deltas[1:]] == [None] * (len(deltas) - 1)
        assert "".join(each.delta.content or "" for each in deltas) == TEXT
        assert deltas[-1].finish_reason == "stop"


def test_a_stream_is_server_sent_events(serving: Serving) -> None:
    body = {"model": MODEL, "prompt": "say:ab", "stream": True}
    with serving() as served:
        http = served.http()
        response = http.post("/v1/completions", json=body)
        assert response.headers["content-type"].startswith("text/event-stream")
        events = response.text.split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""]
        assert all(json.loads(event.removeprefix("data: ")) for event in events[:-2])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("stop", "said", "until_match"),
    [
        (["four"], "one two three ", "one two three four"),
        ("t", "one ", "one t"),
        ([" th", "two t"], "one ", "one two t"),
        (["never", "e f"], "one two thre", "one two three f"),
    ],
)
def test_stop_strings_are_never_sent(
    serving: Serving, stream: bool, stop: Any, said: str, until_match: str
) -> None:
    with serving() as served:
        served.engine.clock.stop()
        served.engine.clock.tick(len(until_match))  # and no step more: the answer needs none
        made = served.client().completions.create(
            model=MODEL, prompt="say:one two three four five", max_tokens=99, stop=stop, stream=stream
        )
        choices = [chunk.choices[0] for chunk in made] if stream else [made.choices[0]]
        assert "".join(choice.text for choice in choices) == said
        assert choices[-1].finish_reason == "stop"
        served.engine.clock.run()
        until(lambda: served.engine.cancelled == [0])  # the rest is not computed


def test_sampling_goes_to_the_engine(serving: Serving) -> None:
    with serving() as served:
        client = served.client()
        client.completions.create(model=MODEL, prompt="say:a", temperature=0.7, top_p=0.9, seed=5)
        for _ in range(3):
            client.completions.create(model=MODEL, prompt="say:a", temperature=1)
        client.completions.create(model=MODEL, prompt="say:a")
        given, *drawn, greedy = (each.sampling for each in served.engine.asked)
        assert (given.temperature, given.top_p, given.seed) == (0.7, 0.9, 5)
        assert len({each.seed for each in drawn}) == 3  # nobody asked for the same draws
        assert greedy.temperature == 0  # what the gate judged


def test_an_engine_that_does_not_draw_says_so(serving: Serving) -> None:
    with serving(samples=False) as served:
        with pytest.raises(openai.BadRequestError, match="ask for temperature 0"):
            served.client().completions.create(model=MODEL, prompt="say:a", temperature=0.7)
        made = served.client().completions.create(model=MODEL, prompt="say:a", temperature=0)
        assert made.choices[0].text == "a"


REFUSED: dict[str, tuple[dict[str, Any], int, str | None]] = {
    "two answers": ({"n": 2}, 400, "n"),
    "log-probabilities": ({"logprobs": 1}, 400, "logprobs"),
    "a penalty": ({"presence_penalty": 0.5}, 400, "presence_penalty"),
    "an unknown field": ({"top_k": 4}, 400, "top_k"),
    "a number as text": ({"max_tokens": "5"}, 400, "max_tokens"),
    "no token": ({"max_tokens": 0}, 400, "max_tokens"),
    "too hot": ({"temperature": 2.5}, 400, "temperature"),
    "five stop strings": ({"stop": list("abcde")}, 400, "stop"),
    "an empty stop string": ({"stop": ""}, 400, "stop"),
    "two prompts": ({"prompt": ["a", "b"]}, 400, "prompt"),
    "no prompt at all": ({"prompt": None}, 400, "prompt"),
    "no tokens as a prompt": ({"prompt": []}, 400, "prompt"),
    "too long a prompt": ({"prompt": "x" * 101}, 400, "prompt"),
    "too long a completion": ({"max_tokens": 51}, 400, "max_tokens"),
    "more than the cache holds": ({"prompt": "x" * 95, "max_tokens": 30}, 400, "max_tokens"),
    "another model": ({"model": "gpt-4"}, 404, "model"),
}


@pytest.fixture(scope="module")
def small() -> ServeLimits:
    return ServeLimits(prompt_tokens=100, new_tokens=50, body_bytes=2048)


def test_what_cannot_be_done_is_refused_by_name(serving: Serving, small: ServeLimits) -> None:
    with serving(limits=small, sequence_tokens=120) as served:
        http = served.http()
        for what, (change, status, param) in REFUSED.items():
            body = {"model": MODEL, "prompt": "say:a", **change}
            response = http.post("/v1/completions", json=body)
            error = response.json()["error"]
            assert response.status_code == status, what
            assert str(error["param"]).startswith(str(param)), (what, error)
            assert error["type"] == "invalid_request_error"
            assert error["message"], what
        assert served.engine.asked == []
        assert http.post("/v1/completions", json={"model": MODEL, "prompt": "say:a"}).status_code == 200


def test_what_is_no_request_is_refused(serving: Serving, small: ServeLimits) -> None:
    json_type = {"content-type": "application/json"}
    with serving(limits=small) as served:
        http = served.http()
        for content, headers, status in (
            (b"{", json_type, 400),
            (b"[]", json_type, 400),
            (b"\xff\xfe", json_type, 400),
            (b"[" * 2000, json_type, 400),
            (b"{}", {"content-type": "text/plain"}, 415),
            (b"x" * 2049, json_type, 413),
        ):
            response = http.post("/v1/completions", content=content, headers=headers)
            assert response.status_code == status, content[:9]
            assert response.json()["error"]["message"]
        pieces = http.post("/v1/completions", content=(b"x" * 1000 for _ in range(9)), headers=json_type)
        assert pieces.status_code == 413  # no length was announced
        assert http.get("/v1/other").json()["error"]["type"] == "invalid_request_error"
        assert http.get("/v1/completions").status_code == 405
        with pytest.raises(openai.NotFoundError):
            served.client().models.retrieve("gpt-4")
        assert [each.id for each in served.client().models.list()] == [MODEL]


def test_the_api_key(serving: Serving) -> None:
    with serving(key="s3cret") as served:
        http = served.http()
        assert served.client("s3cret").completions.create(model=MODEL, prompt="say:a").choices[0].text == "a"
        for wrong in ("s3cre", "s3cret2", "schlüssel".encode().decode("latin-1")):
            headers = {"authorization": f"Bearer {wrong}".encode("latin-1", "replace")}
            response = http.post("/v1/completions", json={"model": MODEL, "prompt": "say:a"}, headers=headers)
            assert response.status_code == 401
            assert "s3cret" not in response.text
        with pytest.raises(openai.AuthenticationError):
            served.client("other").models.list()
        assert http.get("/v1/models").status_code == 401
        assert http.get("/health").status_code == 200
        assert served.engine.asked[1:] == []


def test_metrics_count_what_happened(serving: Serving) -> None:
    with serving() as served:
        client = served.client()
        client.completions.create(model=MODEL, prompt="say:abcd", max_tokens=3)
        list(client.completions.create(model=MODEL, prompt="say:ab", stream=True))
        with pytest.raises(openai.BadRequestError):
            client.completions.create(model=MODEL, prompt="say:ab", n=2)
        assert served.metric('keiryo_requests_total{route="/v1/completions",status="200"}') == 2
        assert served.metric('keiryo_requests_total{route="/v1/completions",status="400"}') == 1
        assert served.metric("keiryo_prompt_tokens_total") == len("say:abcd") + len("say:ab")
        assert served.metric("keiryo_generated_tokens_total") == 3 + 3
        assert served.metric("keiryo_time_to_first_token_seconds_count") == 2
        assert served.metric("keiryo_inter_token_seconds_count") == 4
        assert served.metric("keiryo_requests_running") == served.metric("keiryo_requests_waiting") == 0
