"""Stage 2: which weight formats and KV-cache types are tried, how long, and by whom."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from configs.engine import SchedulerSettings
from configs.section import Section
from configs.space import QuantizeSpace, WeightCandidate


class ParallelSettings(Section):
    """Who builds and screens what `candidates` names; a space is searched one step after another.

    Speed and memory are always measured one at a time, by the rollout's own process.
    """

    runner: Literal["threads", "dask", "ray"] = Field(
        "threads",
        description="Prefect's task runner; dask, ray: package prefect-dask or prefect-ray, and a Prefect server in PREFECT_API_URL",
    )
    workers: int = Field(
        1, ge=1, description="candidates at a time, each in a process with `threads` threads"
    )
    address: str | None = Field(
        None,
        min_length=1,
        description="running Dask scheduler or Ray cluster, whose workers see the store; null: on this machine",
    )

    @model_validator(mode="after")
    def _possible(self) -> "ParallelSettings":
        if self.address is not None and self.runner == "threads":
            raise ValueError("address is that of a cluster; set runner to dask or ray, or leave it out")
        return self

    @property
    def is_serial(self) -> bool:
        """One candidate after another in the rollout's own process."""
        return self.runner == "threads" and self.workers == 1

    @property
    def is_here(self) -> bool:
        """Whether the workers share this machine."""
        return self.address is None


class QuantizeSettings(Section):
    """Stage 2."""

    candidates: tuple[WeightCandidate, ...] = Field((), description="named one by one")
    space: tuple[QuantizeSpace, ...] = Field(
        (), description="products of settings, searched beside the candidates; one alone needs no list"
    )
    scheduler: SchedulerSettings = SchedulerSettings()
    tries: int = Field(
        1,
        ge=1,
        description="candidates judged on the gate items, the next best where one does not pass; each is one of quality.tries",
    )
    budget_minutes: float | None = Field(
        None, gt=0, description="no further candidate is begun after this time; null: all that are worth it"
    )
    max_build_mib: float | None = Field(
        None, gt=0, description="memory that a build may take, MiB; null: what the machine has left"
    )
    parallel: ParallelSettings = ParallelSettings()
    long_context_tokens: tuple[int, ...] = Field(
        (),
        description=(
            "prompt lengths at which what survives the screen is measured once more, one stream with 16 new tokens, each cache type "
            "beside the others; none: it is not"
        ),
    )

    @field_validator("long_context_tokens")
    @classmethod
    def _lengths(cls, contexts: tuple[int, ...]) -> tuple[int, ...]:
        if any(tokens < 1 for tokens in contexts) or len(set(contexts)) < len(contexts):
            raise ValueError("prompt lengths are above 0 and each is given once")
        return contexts

    @field_validator("space", mode="before")
    @classmethod
    def _one_or_more(cls, raw: Any) -> Any:
        return () if raw is None else (raw,) if isinstance(raw, dict) else raw

    @model_validator(mode="after")
    def _something_to_try(self) -> "QuantizeSettings":
        if not self.candidates and not self.space:
            raise ValueError("nothing to try; give candidates, a space, or both")
        return self

    @property
    def recoverable(self) -> tuple[WeightCandidate, ...]:
        """Those declared whose loss training could win back."""
        return tuple(each for each in self.declared if each.weights.recovery_objection is None)

    @property
    def declared(self) -> tuple[WeightCandidate, ...]:
        """The candidates, then those of the space that are not among them, one cache type each."""
        named = (
            each.model_copy(update={"kv_cache": (kv_cache,)})
            for each in self.candidates
            for kv_cache in each.kv_cache
        )
        return tuple(dict.fromkeys([*named, *(each for space in self.space for each in space.candidates)]))
