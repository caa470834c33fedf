"""Two candidates under one load, run by run in turn, and where each of them saturates."""

from collections.abc import Mapping, Sequence

from configs.load_profile import LoadSettings
from tasks.serving.load_driver import LoadDriver, LoadRun
from tasks.serving.load_measures import summarize_runs
from tasks.serving.load_record import LoadPoint, Saturation, ServedLoad
from tasks.serving.saturation import find_saturation, load_point
from tasks.serving.workload import make_workload


def serve_in_turn(
    load: LoadSettings, drivers: Mapping[str, LoadDriver], text_tokens: Sequence[int]
) -> dict[str, ServedLoad]:
    """Serve the load `load.repeats` times on every engine, in order and in reverse in turn; then search each one's saturation.

    Args:
        load: what is served.
        drivers: by candidate name, warmed up.
        text_tokens: token ids to cut prompts from.

    Raises:
        EngineError: an engine failed.
        TraceError: the trace cannot be used.
    """
    runs: dict[str, list[LoadRun]] = {name: [] for name in drivers}
    for number in range(load.repeats):
        workload = make_workload(load, text_tokens, run=number)
        for name in list(drivers) if number % 2 == 0 else reversed(list(drivers)):
            runs[name].append(drivers[name].run(workload))
    return {
        name: ServedLoad(
            candidate=name,
            measures=summarize_runs(
                each,
                load.slo,
                offered_requests_per_s=make_workload(load, text_tokens).offered_requests_per_s,
                price_per_hour=load.price_per_hour,
            ),
            saturation=saturation_of(load, drivers[name], text_tokens),
        )
        for name, each in runs.items()
    }


def saturation_of(load: LoadSettings, driver: LoadDriver, text_tokens: Sequence[int]) -> Saturation | None:
    """The curve of one engine, one run a load; None where the load does not ask for it.

    Raises:
        EngineError: it failed.
    """
    if load.saturation is None:
        return None
    probes = iter(range(load.repeats, load.repeats + load.saturation.probes))

    def probe(scale: float) -> LoadPoint:
        workload = make_workload(load, text_tokens, scale=scale, run=next(probes))
        measures = summarize_runs(
            [driver.run(workload)], load.slo, offered_requests_per_s=workload.offered_requests_per_s
        )
        return load_point(scale, measures)

    return find_saturation(probe, load.slo, load.saturation)
