"""The declared space, searched: screened and shortly timed in the order of the strategy, within the budget.

Every figure is remembered by the store under what it depends on, so a search that was killed finds all but the step in progress. A step
that fails is recorded with its reason, and the search goes on; an error is never remembered.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence

from configs.engine import EngineSettings
from configs.space import WeightCandidate
from tasks.quantization.candidate_needs import CandidatePreflight
from tasks.quantization.options import Option, brief, options_of
from tasks.quantization.out_of_memory import memory_errors
from tasks.quantization.sensitivity import estimated_nats
from tasks.quantization.strategy import Step, Strategy
from tasks.quantization.survivors import SLACK
from tasks.release.measuring import measure_on
from tasks.release.stage_result import CandidateResult
from tasks.release.workspace import Workspace

logger = logging.getLogger(__name__)

SCORE_SECONDS_A_GIB = 10.0
"""Opening an engine and scoring the search text, of f32 weights; rough, the first steps correct it."""
CLEARLY_FASTER = 1.1
"""A short run tells speeds this far apart."""

Screen = Callable[[Workspace, WeightCandidate, EngineSettings], CandidateResult]


def explore(
    workspace: Workspace,
    named: Mapping[str, CandidateResult],
    predicted: Sequence[CandidatePreflight],
    screen: Screen,
    failures: tuple[type[BaseException], ...],
    left_s: Callable[[], float],
) -> list[CandidateResult]:
    """Search the space; the results of what is not among the named candidates, tried or not.

    Args:
        workspace: of the rollout.
        named: what was screened because it was named, by the name before it was built; it is known to the search.
        predicted: every declared candidate, by the preflight.
        screen: builds and screens one; its result says what went wrong.
        failures: what may go wrong while a candidate is timed.
        left_s: seconds that the budget has left.
    """
    config = workspace.config
    settings = config.quantize
    if settings is None or not settings.space:
        return []
    for number, space in enumerate(settings.space):
        logger.info("quantize.space.%d: %s", number, space.said)
    score_s = SCORE_SECONDS_A_GIB * 4 * workspace.architecture.parameters / 2**30
    options = options_of(config, {each.name: each for each in predicted}, score_s)
    search = _Search(workspace, Strategy(options, limit_nats=_limit_nats(workspace)), screen, failures)
    search.learn(named)
    # A budget that is too small for anything still pays for the first candidate.
    while (step := search.strategy.next(left_s() if search.strategy.nats else math.inf)) is not None:
        search.take(step)
    refused = [each for each in predicted if each.refused is not None and each.name not in named]
    return [
        *search.concluded(),
        *(
            CandidateResult(name=each.name, candidate=None, measurement=None, dropped=each.refused)
            for each in refused
        ),
    ]


class _Search:
    """The results of one search beside its strategy."""

    def __init__(
        self,
        workspace: Workspace,
        strategy: Strategy,
        screen: Screen,
        failures: tuple[type[BaseException], ...],
    ) -> None:
        self.strategy = strategy
        self._workspace, self._screen, self._failures = workspace, screen, failures
        self._named: set[str] = set()
        self._results: dict[str, CandidateResult] = {}

    def learn(self, named: Mapping[str, CandidateResult]) -> None:
        """Tell the strategy what the named candidates came out at."""
        for option in self.strategy.options:
            result = named.get(option.name)
            if result is None:
                continue
            self._named.add(option.name)
            if "kl_nats" in result.screen:
                self.strategy.screened(option, result.screen["kl_nats"], build_s=0, score_s=option.score_s)
            self.strategy.close(option)  # known, and not to be proposed: the stage measures what was named

    def take(self, step: Step) -> None:
        """Do a step and tell the strategy what came out."""
        began_s = time.monotonic()
        if step.kind == "screen":
            result = self._screen(self._workspace, step.option.declared, step.option.engine)
        else:
            result = self._timed(step.option)
        self._results[step.option.name] = result
        self._tell(step, result, time.monotonic() - began_s)

    def _tell(self, step: Step, result: CandidateResult, seconds: float) -> None:
        option, strategy = step.option, self.strategy
        if result.error is not None:
            strategy.close(option)
        elif step.kind == "time":
            strategy.timed(option, result.metrics["perf/brief_tokens_per_s"], seconds=seconds)
        else:
            nats = result.screen["kl_nats"]
            was_there = option.build_s == 0 or strategy.is_built(option)
            build_s = 0.0 if was_there else min(result.metrics.get("time/build_s", 0.0), seconds)
            strategy.screened(option, nats, build_s=build_s, score_s=seconds - build_s)
            strategy.estimate(estimated_nats(self._workspace, option, nats, strategy.options))

    def _timed(self, option: Option) -> CandidateResult:
        result = self._results[option.name]
        if result.candidate is None:
            raise ValueError(f"{option.name} was never built")
        requests = brief(self._workspace.config.requests)
        try:
            with memory_errors():
                speed = measure_on(self._workspace, result.candidate, requests).performance
        except self._failures as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            logger.warning("%s failed: %s", result.name, reason)
            return result.model_copy(update={"error": reason})
        return result.model_copy(
            update={"metrics": result.metrics | {"perf/brief_tokens_per_s": speed.mean_tokens_per_s}}
        )

    def concluded(self) -> list[CandidateResult]:
        """Every option that was not named: what came out, and why it goes no further where it does not."""
        worthwhile = {step.option.name for step in self.strategy.worthwhile()}
        return [
            self._concluded(option, option.name in worthwhile)
            for option in self.strategy.options
            if option.name not in self._named
        ]

    def _concluded(self, option: Option, is_worthwhile: bool) -> CandidateResult:
        result = self._results.get(option.name)
        if result is not None and (result.error is not None or is_worthwhile):
            return result
        nats = self.strategy.predicted_nats(option)
        if result is None:
            because = "the budget was spent" if is_worthwhile else "nothing is expected to be gained"
            return CandidateResult(
                name=option.name, candidate=None, measurement=None,
                dropped=f"not tried: {because}; KL is predicted to be {nats:.2g} nats, the weights {option.weights_mib:.0f} MiB",
            )  # fmt: skip
        reason = self._why_not_measured(option)
        return result if reason is None else result.model_copy(update={"dropped": f"not measured: {reason}"})

    def _why_not_measured(self, option: Option) -> str | None:
        """Of an option that was screened: why it cannot be the choice; None where it may, or the screen itself says so."""
        better = self.strategy.better_than(option, CLEARLY_FASTER)
        if better is not None:
            return f"{better} is faster in a short run, and neither larger nor further from the source"
        is_near = option.name in self.strategy.nats and self.strategy.is_near(option)
        if is_near and option.name not in self.strategy.speed:
            return "what is known of its relatives leaves nothing to be gained by it"
        return None


def _limit_nats(workspace: Workspace) -> float | None:
    """Divergence beyond which nothing can pass; None where recovery may start from what is further away."""
    adapt, nats = workspace.config.adapt, workspace.config.quality.margins.kl_nats
    if nats is None or (adapt is not None and adapt.recovery is not None):
        return None
    return SLACK * nats


def seconds_left(began_s: float, minutes: float | None) -> float:
    """Of a budget; endless where there is none."""
    return math.inf if minutes is None else 60 * minutes - (time.monotonic() - began_s)
