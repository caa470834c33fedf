"""Which screened candidates are measured."""

import pytest

from configs.quality import Margins
from tasks.quantization.survivors import surviving, why_dropped
from tasks.release.stage_result import CandidateResult

MARGINS = Margins(perplexity_fraction=0.02, kl_nats=0.02, accuracy=None)


def screened(name: str, kl: float, perplexity: float = 0.0, **rest: str) -> CandidateResult:
    screen = {"kl_nats": kl, "perplexity_delta_fraction": perplexity}
    return CandidateResult(name=name, candidate=None, measurement=None, screen=screen, **rest)


@pytest.mark.parametrize(
    ("results", "names"),
    [
        ([screened("int8", 0.009), screened("near", 0.039), screened("int4", 0.36)], {"int8", "near"}),
        ([screened("int8", 0.009, perplexity=0.05), screened("fine", 0.03)], {"fine"}),
        ([screened("int4", 0.36), screened("better", 0.11)], {"better"}),
        ([screened("broken", 0.001, error="it broke"), screened("int4", 0.36)], {"int4"}),
        ([screened("late", 0.001, dropped="the budget was spent"), screened("int4", 0.36)], {"int4"}),
        ([screened("broken", 0.001, error="it broke")], set()),
    ],
)
def test_what_is_near_the_margins_survives_or_else_the_least_divergent(results, names):
    assert surviving(results, MARGINS) == names


def test_a_margin_that_is_not_set_drops_nothing():
    free = Margins(perplexity_fraction=None, kl_nats=None, accuracy=0.03)
    assert surviving([screened("int4", 0.36), screened("int8", 0.01)], free) == {"int4", "int8"}


def test_the_reason_names_the_figure_and_the_margin():
    assert why_dropped(screened("int4", 0.363), MARGINS) == (
        "not measured: KL on the search items is 0.363 nats, margin 0.02"
    )
