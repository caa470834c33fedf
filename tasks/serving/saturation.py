"""The saturation point: the highest load that still meets the SLO, by bisection.

Load is a factor on the configured one (`scale` of `make_workload`). From 1 it is doubled while the SLO is met, or halved while
it is missed, until a met and a missed load lie side by side; then their geometric mean is tried. Attainment falls with load but
for noise, so the search ends at a resolution that noise leaves meaning in.

Stop rule: the missed load is at most 1 + tolerance times the met one; or `probes` loads were measured.
"""

import math
from collections.abc import Callable, Sequence

from configs.load_profile import SaturationSettings, SloSettings
from tasks.serving.load_record import LoadMeasures, LoadPoint, Saturation


def find_saturation(
    measure: Callable[[float], LoadPoint], slo: SloSettings, settings: SaturationSettings
) -> Saturation:
    """Search the highest load that meets the SLO.

    Args:
        measure: serves the load at a scale.
        slo: its attainment is the target.
        settings: resolution and most probes.
    """
    points: list[LoadPoint] = []
    stopped = f"{settings.probes} loads were measured"
    while len(points) < settings.probes:
        met, missed = _bracket(points, slo.attainment)
        if met is not None and missed is not None:
            if missed <= met * (1 + settings.tolerance):
                stopped = f"the missed load is within {settings.tolerance:.0%} of the met one"
                break
            scale = math.sqrt(met * missed)
        elif met is not None:
            scale = 2 * met
        else:
            scale = 1.0 if missed is None else missed / 2
        points.append(measure(scale))
    met, missed = _bracket(points, slo.attainment)
    return Saturation(
        points=tuple(sorted(points, key=lambda point: point.scale)),
        met_scale=met,
        missed_scale=missed,
        target=slo.attainment,
        stopped=stopped,
    )


def _bracket(points: Sequence[LoadPoint], target: float) -> tuple[float | None, float | None]:
    """The lowest missed load, and the highest met one below it: a lucky probe above a missed one does not count."""
    missed = min((p.scale for p in points if p.attainment < target), default=None)
    met = [p.scale for p in points if p.attainment >= target and (missed is None or p.scale < missed)]
    return max(met, default=None), missed


def load_point(scale: float, measures: LoadMeasures) -> LoadPoint:
    """The point of a load that was measured."""
    return LoadPoint(
        scale=scale,
        offered_requests_per_s=measures.offered_requests_per_s,
        attainment=measures.slo_attainment.mean,
        goodput_requests_per_s=measures.goodput_requests_per_s.mean,
        throughput_tokens_per_s=measures.throughput_tokens_per_s.mean,
        ttft_ms_p95=measures.ttft_ms.p95.mean,
        itl_ms_p95=measures.itl_ms.p95.mean,
    )
