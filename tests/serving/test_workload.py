"""Loads: drawn by seed, the same at every scale, cut from text, with shared prefixes at the given rate."""

import itertools
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from configs.load_profile import LoadSettings
from tasks.serving.trace import TraceError
from tasks.serving.workload import check_load, make_workload

TEXT = list(range(5000))
SLO = {"ttft_ms": 100, "itl_ms": 10}


def load(**settings):
    return TypeAdapter(LoadSettings).validate_python({"slo": SLO, **settings})


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "trace.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n10,400,40\n12,4000,80\n13,100,3000\n20,7,1\n")
    return str(path)


def test_a_trace_is_scaled_in_time_and_length_and_cut(trace):
    made = make_workload(
        load(kind="trace", path=trace, first_row=1, requests=3, time_scale=2, length_scale=0.1, max_prompt_tokens=64,
             max_new_tokens=50),
        TEXT,
    )  # fmt: skip
    assert made.arrivals_s == (0, 0.5, 4)
    assert [(len(r.prompt), r.max_new_tokens) for r in made.requests] == [(64, 8), (10, 50), (1, 1)]
    assert made.longest_tokens == 72
    assert made.offered_requests_per_s == pytest.approx(0.5)


def test_a_trace_that_is_too_short_names_the_settings(trace):
    settings = load(kind="trace", path=trace, first_row=2, requests=3)
    with pytest.raises(TraceError, match=r"holds 4 requests; load\.first_row 2"):
        check_load(settings)


def test_poisson_arrivals_have_the_rate_and_the_spread_of_their_name():
    settings = load(kind="poisson", requests_per_s=4, requests=4000)
    arrivals = make_workload(settings, TEXT).arrivals_s
    gaps = [after - before for before, after in itertools.pairwise(arrivals)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(0.25, rel=0.06)
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(mean**2, rel=0.15)


def test_scale_changes_the_arrivals_and_nothing_else():
    settings = load(kind="poisson", requests_per_s=4, requests=50)
    once, faster = make_workload(settings, TEXT), make_workload(settings, TEXT, scale=3)
    assert faster.requests == once.requests
    assert faster.arrivals_s == pytest.approx([at / 3 for at in once.arrivals_s])
    assert make_workload(settings, TEXT) == once
    clients = load(kind="closed", concurrency=4)
    assert [make_workload(clients, TEXT, scale=scale).clients for scale in (1, 2.5, 0.01)] == [4, 10, 1]


def test_another_run_has_other_text_and_the_same_shape():
    """A prefix cache must not find in the second run what the first one left."""
    settings = load(
        kind="poisson", requests_per_s=4, requests=60, min_prompt_tokens=40, max_prompt_tokens=60,
        shared_prefix={"rate": 0.5, "tokens": 32, "count": 2},
    )  # fmt: skip
    first, second = (make_workload(settings, TEXT, run=run) for run in (0, 1))
    assert [len(r.prompt) for r in first.requests] == [len(r.prompt) for r in second.requests]
    assert all(a.prompt[-8:] != b.prompt[-8:] for a, b in zip(first.requests, second.requests, strict=True))
    heads = [r.prompt[:32] for r in first.requests]
    shared = {head for head in heads if heads.count(head) > 1}
    assert len(shared) == 2
    assert sum(head in shared for head in heads) == pytest.approx(30, abs=10)
    assert {r.prompt[:32] for r in second.requests} & shared == shared


def test_prompts_are_pieces_of_the_text():
    for request in make_workload(load(kind="closed", concurrency=2, requests=20), TEXT).requests:
        assert list(request.prompt) == TEXT[request.prompt[0] : request.prompt[0] + len(request.prompt)]
    with pytest.raises(ValueError, match=r"load\.max_prompt_tokens"):
        make_workload(
            load(kind="closed", concurrency=2, min_prompt_tokens=99, max_prompt_tokens=99), TEXT[:50]
        )
