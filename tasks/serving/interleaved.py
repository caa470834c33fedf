"""Several candidates measured in turn on one machine, so that drift of the machine meets all of them alike.

A block measures every candidate in order and then in reverse (ABBA), which cancels drift that is linear in
time. One slot is one measurement of one candidate: block b fills slots 2b and 2b + 1.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from configs.schema import RequestSettings
from tasks.engines.protocol import Engine
from tasks.release.ledger import Speeds
from tasks.serving.latency import decode_rate, generate, repeat_shares, throughput
from tasks.serving.requests import one_stream_requests, request_list

SlotRunner = Callable[[int], float]
"""Measures one candidate in slot i and returns tokens a second."""


def interleave(blocks: int, runners: Mapping[str, SlotRunner]) -> Speeds:
    """Run every candidate in every slot, in ABBA order.

    Args:
        blocks: at least 1; an interval needs 8. Block b fills slots 2b and 2b + 1.
        runners: by candidate name; all engines are open, warmed up and otherwise idle.

    Raises:
        ValueError: no blocks, or a candidate whose rate is not above 0.
        EngineError: an engine failed.
    """
    if blocks < 1 or not runners:
        raise ValueError(f"blocks is {blocks} and candidates are {len(runners)}; both must be at least 1")
    return Speeds(tokens_per_s=_fill(range(2 * blocks), runners))


def log_ratios(slots: Iterable[int], present: SlotRunner, proposed: SlotRunner) -> list[float]:
    """Natural logarithm of proposed over present, slot by slot; slots that follow each other make ABBA blocks.

    Raises:
        ValueError: a figure is not above 0.
        EngineError: an engine failed.
    """
    figures = _fill(slots, {"present": present, "proposed": proposed})
    pairs = zip(figures["present"], figures["proposed"], strict=True)
    return [math.log(after) - math.log(before) for before, after in pairs]


def _fill(slots: Iterable[int], runners: Mapping[str, SlotRunner]) -> dict[str, tuple[float, ...]]:
    """Every candidate in every slot, in order in even slots and in reverse in odd ones."""
    figures: dict[str, list[float]] = {name: [] for name in runners}
    for slot in slots:
        for name in list(runners) if slot % 2 == 0 else reversed(list(runners)):
            rate = runners[name](slot)
            if not rate > 0:
                raise ValueError(f"{name} measured {rate} tokens/s in slot {slot}; a rate must be above 0")
            figures[name].append(rate)
    return {name: tuple(rates) for name, rates in figures.items()}


def throughput_runner(
    engine: Engine, settings: RequestSettings, text_tokens: Sequence[int], blocks: int
) -> SlotRunner:
    """All requests in flight: every slot serves the list.

    A source that serves one request after another takes slot i's share of the list instead, so that it serves
    all of it once over the run: its rate does not depend on how many wait, and the whole list in each slot
    would take minutes.
    """
    shares = repeat_shares(engine.settings, request_list(settings, text_tokens), 2 * blocks)
    return lambda slot: throughput(generate(engine, shares[slot]))


def decode_runner(
    engine: Engine, settings: RequestSettings, text_tokens: Sequence[int], blocks: int
) -> SlotRunner:
    """One stream, decoding only; slot i has the same prompt for every candidate."""
    requests = one_stream_requests(settings, text_tokens, 2 * blocks)
    return lambda slot: decode_rate(generate(engine, [requests[slot]]))
