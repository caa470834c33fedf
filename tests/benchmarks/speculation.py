"""`make bench PART=speculation`: prompt lookup and a draft model on Spec-Bench, against plain greedy decoding of the same artifact.

Work: the demo model as the demo releases it (OpenVINO, int8 weights, u8 cache, activations rounded in groups of 32); the first turns of
Spec-Bench (Xia et al. 2024) by its six tasks, drawn by seed among the prompts that fit, as chats; greedy answers that end at their end
token or at NEW_TOKENS. The draft is the first third of the model's own layers, untrained, in int8.

At each load (one request, and one of every task together) probes at blocks 1 and 4 give acceptance and costs; the closed form takes the
block, and every group is then served by all ways in turn, forth and back. The measured speed-up is of decoding: tokens after the first
over the time from the last first token to the end. Its interval is over groups and repeats. Outputs are compared by the rule of
tasks/batching/lossless.py; how many differ between plain decoding alone and plain decoding together is said beside.
"""

import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from configs.engine import EngineSettings
from configs.speculation import DraftModel, DraftSearch, PromptLookup
from configs.weights import WeightSettings
from flows.offline import prepare_environment
from tasks.batching.draft_model import shallow_copy
from tasks.batching.lossless import Losslessness, check_lossless
from tasks.batching.rounds import count_rounds, step_seconds
from tasks.batching.speculation import best_block, costs_of_lengths, speculate
from tasks.compression.build import build_artifact
from tasks.engines.open import open_engine
from tasks.engines.protocol import Engine, Generation, GenerationRequest
from tasks.models.sources import acquire
from tasks.store.artifact import Artifact
from tasks.store.store import Store, store_home
from tests.benchmarks.spec_bench_prompts import TASKS, draw_prompts
from tests.benchmarks.speculation_report import Found, report
from tests.conftest import DEMO_MODEL

PER_TASK = int(os.environ.get("PER_TASK", "2"))
NEW_TOKENS = int(os.environ.get("NEW_TOKENS", "32"))
REPEATS = int(
    os.environ.get("REPEATS", "4")
)  # of a group of several; a request alone is one of many and served once
PROBE_BLOCK = 4
MAX_TIE_NATS = 0.25
LAYERS_FRACTION = DraftSearch().layers_fraction
PLAIN, LOOKUP, DRAFT = "plain", "prompt lookup", "draft model"
Drafting = PromptLookup | DraftModel
Outputs = dict[str, list[Generation]]


@dataclass(frozen=True)
class Model:
    """The served artifact, its draft, and how both are opened."""

    target: Artifact
    draft: Artifact

    def open(self, drafting: Drafting | None, slots: int, chunk_tokens: int = 64) -> Engine:
        """The model, with speculation or without."""
        draft = self.draft if isinstance(drafting, DraftModel) else None
        return open_engine(
            self.target, settings(drafting, slots), draft=draft, chunk_tokens=chunk_tokens, batch_tokens=8192
        )


def main() -> None:
    """Measure and write docs/bench/speculation.{json,md}."""
    prepare_environment(store_home(), hub=False, threads=2)
    began_s = time.monotonic()
    model, prompts = prepare()
    found: list[Found] = []
    rates: dict[str, list[float]] = {}
    plain: dict[str, list[Generation]] = {}
    for load, groups in loads(prompts).items():
        at_load, speeds, plain[load] = measure(model, load, groups)
        found += at_load
        rates |= {f"{way}|{load}": runs for way, runs in speeds.items()}
        print(f"{load}: done after {time.monotonic() - began_s:.0f} s", file=sys.stderr, flush=True)
    alone, together = plain.values()
    same = sum(one.tokens == other.tokens for one, other in zip(alone, together, strict=True))
    report(found, rates, same, len(alone))


def prepare() -> tuple[Model, list[list[GenerationRequest]]]:
    """The artifacts, and the prompts in groups of one of every task."""
    store = Store(store_home())
    source = acquire(DEMO_MODEL, store)
    target = build_artifact(store, source, "openvino", WeightSettings(bits=8, symmetric=False), ())
    shallow = shallow_copy(store, source, LAYERS_FRACTION)
    draft = build_artifact(store, shallow, "openvino", WeightSettings(bits=8, symmetric=False), ())
    return Model(target, draft), draw_prompts(source.folder, PER_TASK, NEW_TOKENS)


def settings(drafting: Drafting | None, slots: int) -> EngineSettings:
    """The demo's release."""
    return EngineSettings.model_validate(
        {
            "engine": "openvino", "kv_cache": "u8", "activation_group": 32, "threads": 2,
            "scheduler": {"max_num_seqs": slots, "max_num_batched_tokens": 512, "cache_mib": 256},
            "speculation": None if drafting is None else drafting.model_dump(),
        }
    )  # fmt: skip


def loads(prompts: Sequence[Sequence[GenerationRequest]]) -> dict[str, list[list[GenerationRequest]]]:
    """What is served together, by the name of the load; the prompts come in one order."""
    return {
        "1 request": [[request] for group in prompts for request in group],
        f"{len(TASKS)} requests": [list(group) for group in prompts],
    }


def measure(
    model: Model, load: str, groups: Sequence[Sequence[GenerationRequest]]
) -> tuple[list[Found], dict[str, list[float]], list[Generation]]:
    """Probe, choose, serve interleaved and compare both ways at one load."""
    slots = len(groups[0])
    first = groups[:1] if slots > 1 else groups[:3]  # served once for the kernels of their shapes
    probing: dict[str, Drafting] = {
        LOOKUP: PromptLookup(block_tokens=PROBE_BLOCK),
        DRAFT: DraftModel(draft=model.draft.digest, block_tokens=PROBE_BLOCK),
    }
    with ExitStack() as stack:
        plain = stack.enter_context(model.open(None, slots))
        serve(plain, first)
        step_s = mean_step(serve(plain, groups))
        with open_engine(model.draft, settings(None, slots)) as drafter:
            serve(drafter, first)
            draft_cost = mean_step(serve(drafter, groups)) / step_s
        probes: dict[str, list[list[Generation]]] = {}
        chosen = {}
        for way, drafting in probing.items():
            over_step = []
            for length in (1, PROBE_BLOCK):
                with model.open(drafting.model_copy(update={"block_tokens": length}), slots) as engine:
                    serve(engine, first)
                    probes[way] = serve(engine, groups)
                over_step.append((length, mean_step(probes[way]) / step_s - 1))
            acceptance = count_rounds(flat(probes[way]), PROBE_BLOCK).acceptance
            chosen[way] = best_block(acceptance, *costs_of_lengths(*over_step))
        engines = {PLAIN: plain}
        for way, drafting in probing.items():
            fitted = drafting.model_copy(update={"block_tokens": chosen[way].block})
            engines[way] = stack.enter_context(model.open(fitted, slots))
            serve(engines[way], first)
        outputs, rates = interleaved(engines, groups)
    requests = [request for group in groups for request in group]
    found = []
    for way, made in probes.items():
        cost = draft_cost if way == DRAFT else 0.0
        acceptance = by_task(flat(made))
        found.append(
            Found(
                way=way, load=load, acceptance=acceptance, rounds=count_rounds(outputs[way], chosen[way].block),
                draft_step_cost=cost, predicted=chosen[way],
                published=speculate(chosen[way].block, acceptance["all"], cost),
                ratios=tuple(b / a for a, b in zip(rates[PLAIN], rates[way], strict=True)),
                lossless=compare(model, requests, outputs[PLAIN], outputs[way], chosen[way].block),
            )
        )  # fmt: skip
    return found, rates, outputs[PLAIN]


def interleaved(
    engines: Mapping[str, Engine], groups: Sequence[Sequence[GenerationRequest]]
) -> tuple[Outputs, dict[str, list[float]]]:
    """Every group by every engine in turn, forth and back: decoding tokens a second, and the outputs of the first time."""
    outputs: Outputs = defaultdict(list)
    rates: dict[str, list[float]] = defaultdict(list)
    repeats = REPEATS if len(groups[0]) > 1 else 1
    for place, group in enumerate(groups):
        for repeat in range(repeats):
            for way in list(engines) if (place + repeat) % 2 == 0 else reversed(list(engines)):
                made = engines[way].generate(group)
                rates[way].append(decoding_rate(made))
                if repeat == 0:
                    outputs[way] += made
    return outputs, rates


def serve(engine: Engine, groups: Sequence[Sequence[GenerationRequest]]) -> list[list[Generation]]:
    """Group after group."""
    return [engine.generate(group) for group in groups]


def flat(groups: Sequence[Sequence[Generation]]) -> list[Generation]:
    """All requests in order."""
    return [made for group in groups for made in group]


def mean_step(groups: Sequence[Sequence[Generation]]) -> float:
    """Seconds of a step: the mean over groups; an answer of two tokens has none that counts."""
    return statistics.fmean(step_seconds(group) for group in groups if max(len(g.tokens) for g in group) > 2)


def decoding_rate(made: Sequence[Generation]) -> float:
    """Tokens after each request's first over the time from the last first token to the end; prompts are not decoding."""
    begun = max(one.token_times_s[0] for one in made)
    later = [at for one in made for at in one.token_times_s[1:] if at > begun]
    return len(later) / (max(later) - begun)


def by_task(made: Sequence[Generation]) -> dict[str, float]:
    """Acceptance of each task's requests, which come in the order of TASKS again and again, and of all."""
    found = {
        name: count_rounds(made[place :: len(TASKS)], PROBE_BLOCK).acceptance
        for place, name in enumerate(TASKS)
    }
    return found | {"all": count_rounds(made, PROBE_BLOCK).acceptance}


def compare(
    model: Model,
    requests: Sequence[GenerationRequest],
    plain: Sequence[Generation],
    other: Sequence[Generation],
    block: int,
) -> Losslessness:
    """By the rule of tasks/batching/lossless.py."""
    return check_lossless(
        requests,
        plain,
        other,
        lambda pieces: model.open(None, 1, pieces),
        block=block,
        max_tie_nats=MAX_TIE_NATS,
    )


if __name__ == "__main__":
    main()
