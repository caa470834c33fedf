"""Where a rollout stands between two stages: the release, the challenger, and what the release still misses."""

from typing import Self

from configs.schema import Goals
from tasks.release.candidate import Candidate, Measurement
from tasks.release.decision import challenger, missed_goals
from tasks.release.stage_result import StageResult
from tasks.store.record import Record


class Progress(Record):
    """The state that the flow carries. A stage's result makes the next one.

    Attributes:
        goals: limits on resources.
        results: every stage so far, in order.
        release: the last candidate that passed everything; the source on the baseline engine at first.
        release_measurement: of the release.
        challenger: the best candidate that meets the goals but did not pass on quality.
        baseline: the source's measurement on the baseline engine.
    """

    goals: Goals
    results: tuple[StageResult, ...]
    release: Candidate
    release_measurement: Measurement
    challenger: Candidate | None = None
    baseline: Measurement

    @classmethod
    def begin(cls, goals: Goals, profile: StageResult) -> Self:
        """After a profile that passed.

        Raises:
            ValueError: it did not: without a measured source there is nothing to compare with.
        """
        if profile.proposal is None or profile.measurement is None:
            raise ValueError(f"the profile has no measured source: {profile.reason}")
        return cls(
            goals=goals,
            results=(profile,),
            release=profile.proposal,
            release_measurement=profile.measurement,
            baseline=profile.measurement,
        )

    def after(self, result: StageResult) -> Self:
        """A kept proposal becomes the release; what was tried may become the challenger."""
        changed: dict[str, object] = {"results": (*self.results, result)}
        if result.kept and result.proposal is not None and result.measurement is not None:
            changed |= {"release": result.proposal, "release_measurement": result.measurement}
        if result.stage == "quantize":
            release = result.proposal if result.kept and result.proposal else self.release
            found = challenger(result.candidates, release, self.goals, self.baseline)
            changed["challenger"] = found.candidate if found else None
        return self.model_copy(update=changed)

    @property
    def going(self) -> bool:
        """Whether another stage may run: an ERROR ends the rollout, so that nothing is built on it."""
        return all(result.verdict != "ERROR" for result in self.results)

    @property
    def missed(self) -> tuple[str, ...]:
        """Goals that the release misses by its own stage's measurement."""
        return missed_goals(self.goals, self.release_measurement, self.baseline)

    @property
    def kept(self) -> tuple[StageResult, ...]:
        """Kept stages in order, the profile first."""
        return tuple(result for result in self.results if result.kept)

    @property
    def release_is_source(self) -> bool:
        """Whether nothing was kept after the profile."""
        return len(self.kept) == 1
