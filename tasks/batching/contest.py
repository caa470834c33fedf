"""The release against other scheduler settings of the same artifact, in interleaved pairs on the configured load.

Two engines are open at a time, the release's all along. Without a load a pair compares throughput on the request list, all at once;
with one it compares goodput. Every pair has its own prompts, the same for both sides.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from types import TracebackType
from typing import Self

from configs.load_profile import LoadSettings
from tasks.engines.protocol import EngineError, GenerationRequest
from tasks.release.candidate import Candidate
from tasks.release.measuring import open_candidate, open_served, prompt_tokens
from tasks.release.quiet import quiet
from tasks.release.workspace import Workspace
from tasks.serving.interleaved import SlotRunner, log_ratios
from tasks.serving.latency import generate, throughput, warm_up
from tasks.serving.load_comparison import serve_in_turn
from tasks.serving.load_driver import LoadDriver
from tasks.serving.load_measures import good_requests
from tasks.serving.load_record import LoadComparison
from tasks.serving.requests import prompts, request_list
from tasks.serving.workload import Workload, make_workload

logger = logging.getLogger(__name__)


class Contest:
    """Context manager that holds the release open.

    Attributes:
        failed: why a setting did not run, by its name.
    """

    def __init__(
        self,
        workspace: Workspace,
        release: Candidate,
        options: Mapping[str, Candidate],
        *,
        first_slot: int = 0,
    ) -> None:
        """Nothing is opened before the context is entered.

        Args:
            workspace: of the rollout.
            release: what every option is compared with.
            options: by name.
            first_slot: number of the first pair, which draws its prompts.
        """
        self._workspace, self._release, self._options = workspace, release, options
        self._tokens = prompt_tokens(workspace)
        self._stack = ExitStack()
        self._present: SlotRunner | None = None
        self._slots = first_slot
        self.failed: dict[str, str] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._present = _runner(self._workspace, self._release, self._tokens, stack)
            self._stack = stack.pop_all()  # it opened: the context holds it from now on
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def pairs(self, name: str, count: int) -> list[float]:
        """Log-ratios of `count` new pairs of a setting; none where it does not run, which `failed` then says."""
        if name in self.failed:
            return []
        logger.info("  %s: %d pairs", name, count)
        try:
            return self.decisive_pairs(self._options[name], count)
        except (EngineError, MemoryError) as error:
            self.failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"
            logger.warning("  %s: %s", name, self.failed[name])
            return []

    def decisive_pairs(self, candidate: Candidate, count: int) -> list[float]:
        """Log-ratios of `count` new pairs.

        Raises:
            EngineError: one of the two does not run.
        """
        if self._present is None:
            raise ValueError("the contest is entered as a context manager first")
        slots = range(self._slots, self._slots + count)
        self._slots += count + count % 2  # a new pair of slots begins an ABBA block
        with ExitStack() as stack:
            proposed = _runner(self._workspace, candidate, self._tokens, stack)
            return log_ratios(slots, self._present, proposed)


def _runner(workspace: Workspace, candidate: Candidate, tokens: list[int], stack: ExitStack) -> SlotRunner:
    """Open a candidate, warm it up, and measure it slot by slot."""
    config = workspace.config
    if config.load is None:
        engine = stack.enter_context(open_candidate(workspace, candidate))
        warm_up(engine, tokens)
        return lambda slot: throughput(generate(engine, request_list(config.requests, tokens, run=slot)))
    driver = _driver(workspace, candidate, config.load, tokens, stack)
    return _goodput(driver, config.load, tokens)


def _goodput(driver: LoadDriver, load: LoadSettings, tokens: list[int]) -> Callable[[int], float]:
    def measured(slot: int) -> float:
        run = driver.run(make_workload(load, tokens, run=slot))
        # Half a request more, or a run without a good one would have no logarithm (Haldane 1956, Anscombe 1956).
        return (good_requests(run, load.slo) + 0.5) / run.seconds

    return measured


def _driver(
    workspace: Workspace, candidate: Candidate, load: LoadSettings, tokens: list[int], stack: ExitStack
) -> LoadDriver:
    longest = make_workload(load, tokens).longest_tokens
    engine = stack.enter_context(closing(open_served(workspace, candidate, max(longest, 8))))
    driver = LoadDriver(engine)
    short = [GenerationRequest(prompt, 4, ignore_eos=True) for prompt in prompts(tokens, 2, 4, "warm-up")]
    driver.run(Workload(tuple(short), (0.0, 0.0)))
    return driver


def compare_under_load(
    workspace: Workspace, load: LoadSettings, release: Candidate, proposal: Candidate | None
) -> LoadComparison:
    """The release and its proposal under the load, in turn; the release alone where nothing is proposed.

    Raises:
        EngineError: one of them does not run.
    """
    tokens = prompt_tokens(workspace)
    with ExitStack() as stack:
        stack.enter_context(quiet(workspace.store))
        candidates = [release] if proposal is None else [release, proposal]
        drivers = {each.name: _driver(workspace, each, load, tokens, stack) for each in candidates}
        served = serve_in_turn(load, drivers, tokens)
    return LoadComparison(
        before=served[release.name], after=None if proposal is None else served[proposal.name]
    )
