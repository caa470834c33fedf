"""Speed figures on an engine whose times are known, and on engines that break their contract."""

import pytest

from configs.engine import EngineSettings, SchedulerSettings
from configs.schema import ProfileSettings, RequestSettings
from tasks.engines.protocol import EngineError, Generation
from tasks.serving.latency import (
    decode_rate,
    kv_cache_effect,
    latency_table,
    measure,
    percentiles_ms,
    table_settings,
)
from tasks.serving.requests import request_list
from tests.fixtures.clockwork_engine import ClockworkEngine

TEXT = list(range(5000))
REQUESTS = RequestSettings(
    count=12, prompt_tokens=10, min_new_tokens=4, max_new_tokens=9, one_stream_new_tokens=6, repeats=3
)


def engine(slots: int, **times: float) -> ClockworkEngine:
    settings = EngineSettings(engine="transformers", scheduler=SchedulerSettings(max_num_seqs=slots))
    return ClockworkEngine(settings, **times)


def test_one_stream_figures_are_the_engines():
    speed = measure(engine(32), REQUESTS, TEXT, load_s=1.5)
    assert speed.ttft_ms.p50 == pytest.approx(50)
    assert speed.itl_ms.p99 == pytest.approx(10)
    assert speed.prefill_tokens_per_s == pytest.approx(10 / 0.05)
    assert speed.decode_tokens_per_s == pytest.approx(100)
    assert speed.load_s >= 1.5


def test_throughput_serves_the_whole_list_at_once():
    speed = measure(engine(32), REQUESTS, TEXT, load_s=0)
    lengths = [request.max_new_tokens for request in request_list(REQUESTS, TEXT)]
    assert speed.throughput_tokens_per_s == pytest.approx(sum(lengths) / (0.05 + (max(lengths) - 1) * 0.01))


def test_one_after_another_each_repeat_serves_another_share_of_the_list():
    opened = engine(1)
    measure(opened, REQUESTS, TEXT, load_s=0)
    listed = request_list(REQUESTS, TEXT)
    shares = opened.calls[1 + REQUESTS.repeats :]
    assert shares == [listed[repeat::8] for repeat in range(REQUESTS.repeats)]


def test_latency_table_has_every_cell_and_needs_room_for_its_batches():
    profile = ProfileSettings(batch_sizes=(1, 4), context_tokens=(8, 64), new_tokens=5)
    with pytest.raises(ValueError, match=r"max_num_seqs is 1"):
        latency_table(engine(1), profile, TEXT)
    wide = ClockworkEngine(table_settings(engine(1).settings, profile))
    rows = latency_table(wide, profile, TEXT)
    assert {(row.batch, row.context_tokens) for row in rows} == {(1, 8), (4, 8), (1, 64), (4, 64)}
    widest = next(row for row in rows if (row.batch, row.context_tokens) == (4, 64))
    assert widest.prefill_tokens_per_s == pytest.approx(4 * 64 / 0.05)
    assert widest.decode_tokens_per_s == pytest.approx(4 * 4 / 0.04)


def test_decode_rate_leaves_out_what_came_during_anothers_prefill():
    early = Generation((1, 1, 1), (0.1, 0.2, 0.5))
    late = Generation((1, 1), (0.3, 0.5))
    assert decode_rate([early, late]) == pytest.approx(2 / 0.2)


def test_kv_cache_effect_compares_the_two_engines():
    profile = ProfileSettings(context_tokens=(16, 32), new_tokens=8)
    effects = kv_cache_effect(engine(1, step_s=0.01), engine(1, step_s=0.08), profile, TEXT)
    assert [effect.context_tokens for effect in effects] == [16, 32]
    assert all(effect.speedup == pytest.approx(8) for effect in effects)


def test_percentiles():
    assert percentiles_ms([i / 1000 for i in range(1, 101)]).p95 == pytest.approx(95.05)


class Short(ClockworkEngine):
    """Stops one token early."""

    def generate(self, requests):
        return [Generation(g.tokens[:-1], g.token_times_s[:-1]) for g in super().generate(requests)]


class Backwards(ClockworkEngine):
    """Times run backwards."""

    def generate(self, requests):
        return [Generation(g.tokens, g.token_times_s[::-1]) for g in super().generate(requests)]


class Forgetful(ClockworkEngine):
    """Loses a request."""

    def generate(self, requests):
        return super().generate(requests)[1:]


@pytest.mark.parametrize(
    ("broken", "said"), [(Short, "tokens"), (Backwards, "forward"), (Forgetful, "answered")]
)
def test_a_broken_engine_is_an_error_not_a_figure(broken, said):
    with pytest.raises(EngineError, match=said):
        measure(broken(engine(4).settings), REQUESTS, TEXT, load_s=0)
