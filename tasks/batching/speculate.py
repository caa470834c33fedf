"""One way of speculation tried on a candidate, at the concurrency of the request list.

The probe serves the list at two block lengths, one token and some, and gives the acceptance, what a drafted token adds to a round,
and what a round costs however short its block is: on a CPU a pass over block + 1 tokens of every request is no memory-bound pass over
one. With these the closed form names the block length; the candidate with that length is then compared with plain decoding, token by
token and in interleaved runs.
"""

import math
from collections.abc import Sequence

from configs.engine import EngineSettings
from configs.speculation import DraftModel, PromptLookup, SpeculationSearch
from tasks.batching.lossless import Losslessness, check_lossless
from tasks.batching.rounds import Rounds, count_rounds, step_seconds
from tasks.batching.speculation import Speculation, best_block, costs_of_lengths, speculate
from tasks.engines.protocol import Engine, Generation, GenerationRequest
from tasks.quality.intervals import ratio_interval
from tasks.release.candidate import Candidate
from tasks.release.measuring import open_candidate, prompt_tokens
from tasks.release.quiet import quiet
from tasks.release.workspace import Workspace
from tasks.serving.interleaved import interleave, throughput_runner
from tasks.serving.latency import generate, warm_up
from tasks.serving.requests import request_list
from tasks.store.record import Record

PLAIN = "plain"


class SpeculationTrial(Record):
    """What was measured, and what the closed form said before.

    Attributes:
        candidate: under the chosen block length.
        probe: rounds of the request list at the probing length.
        served: rounds at the chosen length.
        draft_step_cost: a step of the draft alone over a step of the model alone, both on the list; 0 without a draft model.
        predicted: the closed form at the chosen length; its costs are what a drafted token added to the probe's rounds, drafting
            and checking together, and what a round took besides, over a plain step.
        published: the closed form as published: drafting costs `draft_step_cost`, checking block + 1 tokens no more than one.
        speedup: throughput on the list over plain decoding, interleaved.
        ci_low: lower end of its interval.
        ci_high: upper end.
        lossless: the comparison with plain decoding.
    """

    candidate: Candidate
    probe: Rounds
    served: Rounds
    draft_step_cost: float
    predicted: Speculation
    published: Speculation
    speedup: float
    ci_low: float
    ci_high: float
    lossless: Losslessness

    def wins(self, needed: float) -> bool:
        """Whether it may be turned on: lossless, and surely faster than `needed` times plain decoding."""
        return self.lossless.lossless and self.ci_low > needed

    @property
    def findings(self) -> str:
        """One line."""
        same = self.lossless
        said = "lossless" if same.lossless else "NOT lossless"
        return (
            f"acceptance {self.probe.acceptance:.2f}, block {self.served.block}: {self.served.tokens_per_round:.2f} tokens a round, "
            f"{self.speedup:.3f}x plain decoding ({self.ci_low:.3f} to {self.ci_high:.3f}; predicted "
            f"{self.predicted.speedup:.3f}), {said} "
            f"({same.identical} identical, {same.tied} tied within {same.tolerance_nats:.2g} nats, {same.different} different)"
        )


def try_speculation(
    workspace: Workspace,
    base: Candidate,
    drafting: PromptLookup | DraftModel,
    search: SpeculationSearch,
    confidence: float,
) -> SpeculationTrial:
    """Measure one way of drafting on a candidate that does not speculate yet.

    Args:
        workspace: of the rollout, with its request list.
        base: the candidate.
        drafting: with the block length of the probe.
        search: how often is measured, and what a tie may be at most.
        confidence: two-sided, of the ratio.

    Raises:
        EngineError: an engine does not work, or the draft does not fit.
        StoreError: an artifact is missing or damaged.
    """
    settings, tokens = workspace.config.requests, prompt_tokens(workspace)
    requests = request_list(settings, tokens)
    if (probe_block := drafting.block_tokens) is None:
        raise ValueError("a probe needs block_tokens: without a block length the closed form says nothing")
    with quiet(workspace.store), open_candidate(workspace, base) as plain:
        expected = _settled(plain, requests, tokens)
        step_s = step_seconds(expected)
        probed = {}
        for length in (1, max(probe_block, 2)):
            trial = speculating(base, drafting.model_copy(update={"block_tokens": length}))
            with open_candidate(workspace, trial) as drafter:
                probed[length] = _settled(drafter, requests, tokens)
        over_step = [(length, step_seconds(made) / step_s - 1) for length, made in probed.items()]
        probe = count_rounds(probed[over_step[1][0]], over_step[1][0])
        draft_step_cost = _draft_step_cost(workspace, base, drafting, requests, tokens, step_s)
        predicted = best_block(probe.acceptance, *costs_of_lengths(*over_step))
        chosen = drafting.model_copy(update={"block_tokens": predicted.block})
        candidate = speculating(base, chosen)
        with open_candidate(workspace, candidate) as fast:
            made = _settled(fast, requests, tokens)
            runners = {
                name: throughput_runner(engine, settings, tokens, search.blocks)
                for name, engine in ((PLAIN, plain), (candidate.name, fast))
            }
            speeds = interleave(search.blocks, runners).tokens_per_s
    speedup = _ratio(speeds[PLAIN], speeds[candidate.name], confidence)
    return SpeculationTrial(
        candidate=candidate,
        probe=probe,
        served=count_rounds(made, predicted.block),
        draft_step_cost=draft_step_cost,
        predicted=predicted,
        published=speculate(predicted.block, probe.acceptance, draft_step_cost),
        speedup=speedup[0],
        ci_low=speedup[1],
        ci_high=speedup[2],
        lossless=check_lossless(
            requests, expected, made, lambda pieces: open_candidate(workspace, base, chunk_tokens=pieces),
            block=predicted.block, max_tie_nats=search.max_tie_nats,
        ),
    )  # fmt: skip


def speculating(base: Candidate, drafting: PromptLookup | DraftModel) -> Candidate:
    """The candidate with speculation turned on.

    Raises:
        ValueError: its engine does not speculate.
    """
    engine = EngineSettings.model_validate(base.engine.model_dump() | {"speculation": drafting.model_dump()})
    how = "prompt lookup" if isinstance(drafting, PromptLookup) else "draft model"
    return base.model_copy(
        update={"name": f"{base.name}, {how}, block {drafting.block_tokens}", "engine": engine}
    )


def _ratio(plain: Sequence[float], fast: Sequence[float], confidence: float) -> tuple[float, float, float]:
    """(mean, low, high) of the ratio over slots measured side by side."""
    found = ratio_interval([math.log(b / a) for a, b in zip(plain, fast, strict=True)], confidence)
    return math.exp(found.estimate), math.exp(found.low), math.exp(found.high)


def _settled(
    engine: Engine, requests: Sequence[GenerationRequest], tokens: Sequence[int]
) -> list[Generation]:
    """The list served once the kernels of its shapes are there."""
    warm_up(engine, tokens)
    generate(engine, requests)
    return generate(engine, requests)


def _draft_step_cost(
    workspace: Workspace,
    base: Candidate,
    drafting: PromptLookup | DraftModel,
    requests: Sequence[GenerationRequest],
    tokens: Sequence[int],
    step_s: float,
) -> float:
    if isinstance(drafting, PromptLookup):
        return 0.0
    alone = base.model_copy(update={"name": "draft", "artifact": drafting.draft})
    with open_candidate(workspace, alone) as engine:
        return step_seconds(_settled(engine, requests, tokens)) / step_s
