"""Two candidates in one process of their own, measured in turn: which of them is faster, whatever the machine does meanwhile.

`ratios_in_pairs` is the parent's part, `serve_in_pairs` the child's.
"""

import math
import sys
from contextlib import ExitStack
from pathlib import Path

from configs.schema import RequestSettings
from tasks.engines.protocol import Engine
from tasks.release.alone import ServeJob, answer, asked, open_job
from tasks.release.candidate import mean_speed
from tasks.serving.interleaved import SlotRunner, decode_runner, log_ratios, throughput_runner
from tasks.serving.latency import warm_up
from tasks.store.record import Record
from tasks.store.store import Store


class Pair(Record):
    """Who is measured.

    Attributes:
        present, proposed: served on the same requests.
        blocks: of the ABBA order, two slots each.
    """

    present: ServeJob
    proposed: ServeJob
    blocks: int


class PairRequest(Record):
    """Everything that the process is told."""

    store: Path
    answer: Path
    pair: Pair


class Ratios(Record):
    """Speed of the proposed over that of the present, slot by slot: one stream and all in flight, geometric mean."""

    ratios: tuple[float, ...]


def ratios_in_pairs(store: Store, pair: Pair) -> Ratios:
    """Let a fresh process serve both.

    Raises:
        EngineError: the two did not work in one process, or it died.
    """
    return asked(
        store,
        "tasks.release.in_pairs",
        lambda path: PairRequest(store=store.home, answer=path, pair=pair),
        Ratios,
    )


def serve_in_pairs(store: Store, pair: Pair) -> Ratios:
    """Open both and measure them in turn.

    Raises:
        EngineError: one does not work.
        StoreError: an artifact is missing or damaged.
        ValueError: a figure is not above 0.
    """
    with ExitStack() as stack:
        present, proposed = (
            stack.enter_context(open_job(store, job)) for job in (pair.present, pair.proposed)
        )
        job = pair.present
        return Ratios(ratios=speed_ratios(present, proposed, job.requests, job.text_tokens, pair.blocks))


def speed_ratios(
    present: Engine, proposed: Engine, requests: RequestSettings, text_tokens: tuple[int, ...], blocks: int
) -> tuple[float, ...]:
    """The ratios of two open engines, after a warm-up; a slot has the same prompts for both."""

    def runner(engine: Engine) -> SlotRunner:
        warm_up(engine, text_tokens)
        decode = decode_runner(engine, requests, text_tokens, blocks)
        throughput = throughput_runner(engine, requests, text_tokens, blocks)
        return lambda slot: mean_speed(decode(slot), throughput(slot))

    return tuple(math.exp(each) for each in log_ratios(range(2 * blocks), runner(present), runner(proposed)))


def main(text: str) -> None:
    """Answer the request that stands on standard input."""
    request = PairRequest.model_validate_json(text)
    answer(request.answer, lambda: serve_in_pairs(Store(request.store), request.pair))


if __name__ == "__main__":
    main(sys.stdin.read())
