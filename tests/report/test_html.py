"""The report: one file, no requests, everything shown and everything escaped."""

import re
from html.parser import HTMLParser

import pytest
from clockwork_stream import ClockworkStream, StillClock
from fake_rollout import CONFIG, RESULTS, evidence
from pydantic import TypeAdapter

from configs.load_profile import LoadSettings
from tasks.quality.changed_most import ChangedItem
from tasks.report.figures import draw_figures
from tasks.report.html import headline, render_report
from tasks.serving.energy import EnergyMeter
from tasks.serving.load_comparison import serve_in_turn
from tasks.serving.load_driver import LoadDriver
from tasks.serving.load_record import LoadComparison, ServedLoad

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def page() -> str:
    return render_report(evidence())


class Fetches(HTMLParser):
    """Every attribute by which a page asks for something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "srcset", "data") and not (
                value or ""
            ).startswith("#"):
                self.found.append(f"{tag} {name}={value}")


def test_it_asks_the_network_for_nothing(page: str) -> None:
    parser = Fetches()
    parser.feed(page)
    assert parser.found == []
    assert parser.tags.isdisjoint({"script", "link", "iframe", "object"})
    assert not re.search(r"@import|url\((?!#)", page)


def test_it_shows_every_stage_with_its_reason_and_every_gate_figure(page: str) -> None:
    for result in RESULTS:
        assert f"<b>{result.stage}</b>" in page
        assert result.reason in page
        for metric in result.gate.metrics if result.gate else ():
            assert f"{metric.task} {metric.metric}" in page
    assert "[-1.50 pt, +0.70 pt]" in page  # the interval of the last-word accuracy
    assert "built-in method" not in page
    assert "alpha = 0.05 / 3" in page
    assert "96.7%" in page  # two-sided 1 - 2 alpha at alpha / 3
    assert "Example CPU" in page


def test_the_headline_is_the_ledger_in_one_sentence() -> None:
    assert headline(evidence()).replace("\N{MULTIPLICATION SIGN}", "x") == (
        "tiny-llama, version 2, is 6.12x as fast in one stream and 36.8x with all requests in flight,"
        " 383 MiB smaller, and within every quality margin against the source model."
    )


def test_text_is_escaped() -> None:
    made = evidence()
    spoiled = {"reason": HOSTILE, "text": {"x.md": HOSTILE}}
    stages = tuple(result.model_copy(update=spoiled) for result in made.results)
    hostile = made.model_copy(
        update={
            "results": stages,
            "environment": {HOSTILE: HOSTILE},
            "config": CONFIG.model_copy(update={"name": HOSTILE}),
            "summary": made.summary.model_copy(
                update={"verdict": "FAIL", "reason": HOSTILE, "model": HOSTILE}
            ),
        }
    )
    candidates = tuple(each.model_copy(update={"name": HOSTILE}) for each in RESULTS[1].candidates)
    quantize = stages[1].model_copy(update={"candidates": candidates})
    text = render_report(hostile.model_copy(update={"results": (stages[0], quantize, *stages[2:])}))
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_the_samples_that_changed_most() -> None:
    row = ChangedItem(
        task="capitals", metric="acc", item="7", change="became wrong", change_nats=-1.25, prompt=f"Italy? {HOSTILE}",
        target="Rome", source="Rome", candidate="Oslo",
    )  # fmt: skip
    page = render_report(evidence(), changed={"quantize": (row,), "batching": ()})
    assert "Samples that changed most</h2>" in page
    assert "<summary><b>quantize</b>: 1 shown" in page
    assert "<b>batching</b>:" not in page
    for text in (
        "capitals<br>",
        ">7<",
        "became wrong",
        "-1.250",
        "<td>Rome<td>Rome<td>Oslo",
        "Italy? &lt;script&gt;",
    ):
        assert text in page
    assert "<script" not in page
    assert "Samples that changed most</h2>" not in render_report(evidence())


def test_figures_for_what_there_is() -> None:
    made = evidence()
    assert set(draw_figures(made)) == {
        "ledger-waterfall.svg",
        "gate-forest.svg",
        "pareto-front.svg",
        "latency-percentiles.svg",
        "memory-predicted.svg",
    }
    bare = made.model_copy(update={"results": RESULTS[-1:], "ledger": None})
    assert draw_figures(bare) == {}
    assert "Ledger</h2>" not in render_report(bare)


def test_the_sensitivity_of_layers_is_drawn_once_for_each_set_of_figures() -> None:
    made = evidence()
    layers = {
        f"model.layers.{n}.{kind}": 1e-4 * (n + 1)
        for n in range(3)
        for kind in ("mlp.up_proj", "self_attn.q_proj")
    }
    quantize = RESULTS[1].model_copy(
        update={
            "candidates": tuple(
                each.model_copy(update={"sensitivity": layers}) for each in RESULTS[1].candidates
            )
        }
    )
    drawn = draw_figures(made.model_copy(update={"results": (RESULTS[0], quantize)}))
    assert drawn["layer-sensitivity.svg"].count("predicted KL, nats") == 1
    for text in ("up_proj", "q_proj", RESULTS[1].candidates[0].name):
        assert text in drawn["layer-sensitivity.svg"]


def test_the_front_has_bars_where_there_are_intervals() -> None:
    made = evidence()
    tried = RESULTS[1].candidates[0]
    speed = tried.measurement.performance.model_copy(update={"throughput_runs": (440.0, 470.0, 490.0)})
    with_bars = tried.model_copy(
        update={
            "measurement": tried.measurement.model_copy(update={"performance": speed}),
            "screen": tried.screen | {"kl_nats_ci_low": 0.0040, "kl_nats_ci_high": 0.0052},
        }
    )
    plain, barred = (
        draw_figures(
            made.model_copy(update={"results": (RESULTS[1].model_copy(update={"candidates": (each,)}),)})
        )
        for each in (tried, with_bars)
    )
    lines = [figure["pareto-front.svg"].count("<path") for figure in (plain, barred)]
    assert lines[1] == lines[0] + 2
    page = render_report(
        made.model_copy(update={"results": (RESULTS[1].model_copy(update={"candidates": (with_bars,)}),)})
    )
    assert "kl_nats 0.0045 [0.004, 0.0052]" in page


def test_candidates_that_met_in_pairs_say_how_it_went_and_others_why_not() -> None:
    first, second = RESULTS[1].candidates[:2]
    candidates = (
        first.model_copy(update={"pair_ratio": 1.0413}),
        second.model_copy(update={"unpaired": "not measured beside it: there is <no> room"}),
    )
    quantize = RESULTS[1].model_copy(update={"candidates": candidates})
    page = render_report(evidence().model_copy(update={"results": (quantize,)}))
    assert "1.04\N{MULTIPLICATION SIGN}" in page
    assert "not measured beside it: there is &lt;no&gt; room" in page


def served(scale: float) -> ServedLoad:
    clock = StillClock()
    driver = LoadDriver(ClockworkStream(clock, step_s=lambda running: 0.01 * scale), clock, EnergyMeter([]))
    load = TypeAdapter(LoadSettings).validate_python(
        {"kind": "poisson", "requests_per_s": 5, "requests": 30, "slo": {"ttft_ms": 900, "itl_ms": 25},
         "saturation": {"probes": 4}}
    )  # fmt: skip
    return serve_in_turn(load, {"any": driver}, list(range(500)))["any"]


def test_a_load_before_and_after() -> None:
    made = evidence()
    compared = LoadComparison(before=served(2.0), after=served(1.0))
    loaded = RESULTS[2].model_copy(update={"load": compared})
    with_load = made.model_copy(update={"results": (*RESULTS[:2], loaded, *RESULTS[3:])})
    drawn = draw_figures(with_load)
    assert {"load-latency.svg", "load-saturation.svg", "load-slots.svg"} <= set(drawn)
    page = render_report(with_load)
    assert "Under load</h2>" in page
    for text in ("goodput, requests/s", "inter-token latency", "requests waiting", "before", "after"):
        assert text in page
    ids = [set(re.findall(r'id="([^"]+)"', svg)) for svg in drawn.values()]
    assert sum(map(len, ids)) == len(set().union(*ids))
    alone = draw_figures(
        made.model_copy(
            update={"results": (loaded.model_copy(update={"load": LoadComparison(before=compared.before)}),)}
        )
    )
    assert "after" not in alone["load-latency.svg"]


def test_two_figures_share_no_ids() -> None:
    drawn = draw_figures(evidence())
    ids = [set(re.findall(r'id="([^"]+)"', svg)) for svg in drawn.values()]
    assert sum(map(len, ids)) == len(set().union(*ids))
    for svg, own in zip(drawn.values(), ids, strict=True):
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', svg)) <= own


def test_an_error_is_reported_without_figures() -> None:
    made = evidence()
    failed = made.summary.model_copy(
        update={"verdict": "ERROR", "reason": "quantize: NaN in layer 3", "release": None}
    )
    text = render_report(made.model_copy(update={"summary": failed, "results": RESULTS[:1], "ledger": None}))
    assert "tiny-llama: ERROR. quantize: NaN in layer 3." in text
