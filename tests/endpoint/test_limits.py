"""A full queue, a client that hangs up, the time limit, a dead engine and an orderly stop; the test moves the engine's clock."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import openai
import pytest
from served import LONG_S, MODEL, Served, until

from configs.serve import ServeLimits

Serving = Callable[..., AbstractContextManager[Served]]


def ask(served: Served, text: str, **options: Any) -> str:
    made = served.client().completions.create(model=MODEL, prompt=f"say:{text}", max_tokens=99, **options)
    return str(made.choices[0].text)


def test_a_full_queue_is_a_503_that_says_when_to_come_back(serving: Serving) -> None:
    limits = ServeLimits(queue_requests=1, retry_after_s=7)
    with serving(limits=limits, slots=1) as served, ThreadPoolExecutor(2) as pool:
        served.engine.clock.stop()
        running: list[Future[str]] = [pool.submit(ask, served, text) for text in ("first", "second")]
        until(lambda: served.endpoint.admission.inside == 2)
        with pytest.raises(openai.InternalServerError) as refused:
            ask(served, "third")
        assert refused.value.status_code == 503
        assert refused.value.response.headers["retry-after"] == "7"
        assert refused.value.code == "queue_full"
        assert served.http().get("/health").status_code == 200
        served.engine.clock.run()
        assert [each.result(LONG_S) for each in running] == ["first", "second"]
        assert ask(served, "third") == "third"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_slot(serving: Serving, stream: bool) -> None:
    with serving(slots=1) as served, ThreadPoolExecutor(1) as pool:
        served.engine.clock.stop()
        served.engine.clock.tick(3)
        connection = served.ask_by_hand("x" * 90, stream=stream)
        until(lambda: served.endpoint.streams.running == 1)
        if stream:
            assert connection.recv(9) == b"HTTP/1.1 "
        connection.close()
        until(lambda: served.endpoint.admission.inside == 0)
        following = pool.submit(ask, served, "next")
        until(lambda: served.endpoint.admission.inside == 1)
        served.engine.clock.tick(len("next") + 4)  # far too few for what the first one asked for
        assert following.result(LONG_S) == "next"
        assert served.engine.cancelled == [0]
        assert served.metric('keiryo_requests_total{route="/v1/completions",status="499"}') == 1


def test_a_client_that_hangs_up_while_it_waits_leaves_the_queue(serving: Serving) -> None:
    with serving(slots=1) as served, ThreadPoolExecutor(1) as pool:
        served.engine.clock.stop()
        first = pool.submit(ask, served, "first")
        until(lambda: served.endpoint.streams.waiting == 1)
        connection = served.ask_by_hand("second")
        until(lambda: served.endpoint.streams.waiting == 2)
        connection.close()
        until(lambda: served.endpoint.streams.waiting == 1)
        served.engine.clock.run()
        assert first.result(LONG_S) == "first"
        until(lambda: served.engine.cancelled == [1])


def test_the_time_limit_is_a_504(serving: Serving) -> None:
    with serving(limits=ServeLimits(request_s=2)) as served:
        served.engine.clock.stop()
        with pytest.raises(openai.InternalServerError) as refused:
            ask(served, "never")
        assert refused.value.status_code == 504
        assert "limits.request_s" in str(refused.value)
        assert served.endpoint.admission.inside == 0


def test_after_the_first_token_the_time_limit_is_an_error_event(serving: Serving) -> None:
    with serving(limits=ServeLimits(request_s=5)) as served:
        served.engine.clock.stop()
        served.engine.clock.tick(2)
        stream = served.client().completions.create(model=MODEL, prompt="say:abcdef", stream=True)
        said = []
        with pytest.raises(openai.APIError, match=r"limits\.request_s"):
            said += [chunk.choices[0].text for chunk in stream]
        until(lambda: served.endpoint.admission.inside == 0)
        assert served.metric('keiryo_requests_total{route="/v1/completions",status="504"}') == 1


def test_a_dead_engine_is_a_503_and_ends_the_server(serving: Serving) -> None:
    with serving() as served, ThreadPoolExecutor(2) as pool:
        served.engine.clock.stop()
        running = [pool.submit(ask, served, text) for text in ("one", "two")]
        until(lambda: served.endpoint.admission.inside == 2)
        served.engine.breaks = "out of memory"
        served.engine.clock.run()
        for each in running:
            with pytest.raises(openai.InternalServerError, match="out of memory") as refused:
                each.result(LONG_S)
            assert refused.value.status_code == 503
        assert served.endpoint.streams.failure == "out of memory"
        assert served.endpoint.health() == (503, "failed: out of memory")
        served.thread.join(LONG_S)
        assert not served.thread.is_alive()


def test_sigterm_finishes_what_runs_and_takes_nothing_new(serving: Serving) -> None:
    with serving(slots=1) as served, ThreadPoolExecutor(2) as pool:
        served.engine.clock.stop()
        running = [pool.submit(ask, served, text) for text in ("first", "second")]
        until(lambda: served.endpoint.admission.inside == 2)
        http = served.http()
        served.terminate()
        until(lambda: served.endpoint.admission.stopping)
        assert http.get("/health").status_code == 503
        with pytest.raises(openai.InternalServerError) as refused:
            ask(served, "third")
        assert (refused.value.status_code, refused.value.code) == (503, "stopping")
        assert "retry-after" in refused.value.response.headers
        served.engine.clock.run()
        assert sorted(each.result(LONG_S) for each in running) == ["first", "second"]
        served.thread.join(LONG_S)
        assert not served.thread.is_alive()


def test_what_outlasts_the_grace_is_told_so(serving: Serving) -> None:
    with serving(limits=ServeLimits(grace_s=0.2)) as served:
        served.engine.clock.stop()
        served.engine.clock.tick(2)
        stream = served.client().completions.create(model=MODEL, prompt="say:abcdef", stream=True)
        assert next(iter(stream)).choices[0].text == "a"
        served.terminate()
        with pytest.raises(openai.APIError, match=r"limits\.grace_s"):
            list(stream)
        served.thread.join(LONG_S)
        assert not served.thread.is_alive()
