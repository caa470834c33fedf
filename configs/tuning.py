"""How the batching stage searches scheduler settings, and when it believes what it found."""

from itertools import product

from pydantic import Field

from configs.engine import SchedulerSettings
from configs.section import Section


class SchedulerGrid(Section):
    """Every combination of these values is tried. The type of the KV cache is not among them: quality fixed it."""

    max_num_seqs: tuple[int, ...] = Field((8, 16, 32), min_length=1, description="requests decoded together")
    max_num_batched_tokens: tuple[int, ...] = Field(
        (256, 1024), min_length=1, description="tokens of one scheduler step"
    )
    cache_mib: tuple[int, ...] = Field((512,), min_length=1, description="KV cache, MiB")
    prefix_caching: tuple[bool, ...] = Field(
        (False,), min_length=1, description="reuse blocks of equal prefixes"
    )
    split_prefill: tuple[bool, ...] = Field(
        (True,), min_length=1, description="mix prompt chunks with decoding"
    )
    threads: tuple[int | None, ...] = Field(
        (None,), min_length=1, description="compute threads of the engine; null: the recipe's"
    )

    def settings(self) -> tuple[SchedulerSettings, ...]:
        """All combinations, in the order of the values."""
        names = tuple(SchedulerGrid.model_fields)
        combinations = product(*(getattr(self, name) for name in names))
        return tuple(SchedulerSettings(**dict(zip(names, each, strict=True))) for each in combinations)


class TuningSettings(Section):
    """Successive halving over the settings, each against the present ones in interleaved pairs."""

    full_pairs: int = Field(
        16,
        ge=2,
        description="pairs with which the full grid would measure every setting; the cost is counted against it",
    )
    cost_fraction: float = Field(
        0.2, gt=0, le=1, description="share of the full grid's pairs that the search may spend"
    )
    keep_fraction: float = Field(
        1 / 3, gt=0, lt=1, description="share of the settings that go on after each round"
    )
    tolerance: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="ends when no other setting is likely to be better than the best by this",
    )
