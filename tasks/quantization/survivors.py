"""Which screened candidates are worth a full measurement.

Successive halving with a rule in place of a rank: the screen is a few thousand tokens of text, and what it shows to be several times
beyond the margin cannot pass the gate, however fast it is. What lies near the margin stays in: the screen has noise too.
"""

from collections.abc import Sequence

from configs.quality import Margins
from tasks.release.stage_result import CandidateResult

SLACK = 2.0
"""How far beyond a margin a candidate may lie on the search items; between sets of 12 sections, KL varied by less than a third."""


def surviving(screened: Sequence[CandidateResult], margins: Margins) -> frozenset[str]:
    """Names of the candidates to measure: all near the margins, or, where none is, the least divergent one.

    Args:
        screened: with a screen, or with an error where they failed.
        margins: of the gate.
    """
    limits = {"kl_nats": margins.kl_nats, "perplexity_delta_fraction": margins.perplexity_fraction}
    usable = [each for each in screened if each.error is None and each.dropped is None]
    near = {
        each.name
        for each in usable
        if all(each.screen[name] <= SLACK * limit for name, limit in limits.items() if limit is not None)
    }
    if near or not usable:
        return frozenset(near)
    return frozenset({min(usable, key=lambda each: each.screen["kl_nats"]).name})


def why_dropped(result: CandidateResult, margins: Margins) -> str:
    """One line for the reader."""
    kl, limit = result.screen["kl_nats"], margins.kl_nats
    beside = f", margin {limit:g}" if limit is not None else ""
    return f"not measured: KL on the search items is {kl:.3g} nats{beside}"
