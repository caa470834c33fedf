"""Coverage and size of every interval of the gate, cell by cell, on data of known truth."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tasks.quality.confidence_sequence import sequence_limits
from tasks.quality.intervals import accuracy_limits, text_limits
from tasks.quality.paired_proportions import score_limits
from tasks.quality.power import accuracy_power

Floats = NDArray[np.float64]
Limits = Callable[[float], tuple[Floats, Floats]]
"""From a one-sided level to the lower and the upper limits of all trials."""

FEWEST_CHANGES = 20
"""Expected changed answers below which no coverage is claimed."""


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        method: which interval.
        data: how the data were drawn.
        truth: what the limits should enclose.
        limits: of all trials.
        claimed: False for a cell that is shown as what remains: no coverage is claimed there.
        exact: chances that the lower limit lies above and the upper one below the truth, at a one-sided level.
    """

    method: str
    data: str
    truth: float
    limits: Limits
    claimed: bool = True
    exact: Callable[[float], tuple[float, float]] | None = None


def cells(rng: np.random.Generator, trials: int) -> Iterator[Cell]:
    """Every cell, drawn when it is asked for."""
    yield from _independent(rng, trials)
    yield from _clustered(rng, trials)
    yield from _changes(rng, trials)
    yield from _divergences(rng, trials)
    yield from _watched(rng, trials)


def _independent(rng: np.random.Generator, trials: int) -> Iterator[Cell]:
    for items in (400, 600, 1260, 3133):
        for discordance in (0.02, 0.035, 0.05, 0.1, 0.2):
            for loss in (0.0, 0.01, 0.02, 0.03, 0.05):
                if items * discordance < FEWEST_CHANGES or loss > discordance:
                    continue
                chances = [(discordance + loss) / 2, (discordance - loss) / 2, 1 - discordance]
                lost, gained, _ = rng.multinomial(items, chances, size=trials).T

                yield Cell(
                    "accuracy",
                    f"{items} items, {discordance:.1%} change, loss {loss:.0%}",
                    loss,
                    partial(_score_limits, lost, gained, items),
                    exact=partial(_exact_misses, items, discordance, loss),
                )


def _score_limits(lost: Floats, gained: Floats, items: int, alpha: float) -> tuple[Floats, Floats]:
    return score_limits(lost, gained, items, stats.norm.isf(alpha))


def _exact_misses(items: int, discordance: float, loss: float, alpha: float) -> tuple[float, float]:
    """A test at the truth that rejects is a limit beyond it; the lower side is that of the swapped models."""
    below, above = (accuracy_power(items, x, discordance, alpha, loss=x) for x in (loss, -loss))
    return above, below


def _clustered(rng: np.random.Generator, trials: int) -> Iterator[Cell]:
    mixed = np.repeat([2, 8, 20], 20)
    sizes = {
        "60 clusters of 10": np.full(60, 10),
        "200 clusters of 3": np.full(200, 3),
        "40 clusters of 15": np.full(40, 15),
        "60 clusters of 2 to 20": mixed,
    }
    for name, size in sizes.items():
        for lost, gained in ((0.0375, 0.0075), (0.05, 0.0), (0.065, 0.035)):
            for correlation in (0.02, 0.1, 0.2, 0.4):
                counts = clustered_counts(rng, correlation, size, (lost, gained, 1 - lost - gained), trials)
                data = f"{name}, {lost:.1%} lost, {gained:.1%} gained, correlation {correlation:g}"
                claimed = correlation <= (0.1 if gained == 0 else 0.2)
                yield Cell(
                    "clustered accuracy", data, lost - gained, partial(accuracy_limits, *counts), claimed
                )


def _changes(rng: np.random.Generator, trials: int) -> Iterator[Cell]:
    """Changes in NLL a token about 1; a good candidate's are nearly symmetric with heavy tails."""
    noises: dict[str, Callable[[tuple[int, int]], Floats]] = {
        "normal": lambda shape: rng.normal(0, 1, shape),
        "t with 3 df": lambda shape: rng.standard_t(3, shape),
        "normal + exponential": lambda shape: rng.normal(0, 1, shape) + rng.exponential(1, shape) - 1,
        "exponential": lambda shape: rng.exponential(1, shape) - 1,
    }
    for sections in (60, 80, 120):
        for name, noise in noises.items():
            values, weights = _sections(rng, 1 + noise((trials, sections)))
            limits = partial(text_limits, values, weights, skewed=False)
            yield Cell("perplexity", f"{sections} sections, {name}", 1.0, limits)


def _divergences(rng: np.random.Generator, trials: int) -> Iterator[Cell]:
    for sections in (60, 80, 120):
        for spread in (0.5, 0.7, 0.9):
            shape = (trials, sections)
            sigma = math.sqrt(math.log1p(spread**2))
            drawn = {
                "gamma": rng.gamma(1 / spread**2, spread**2, shape),
                "lognormal": rng.lognormal(-(sigma**2) / 2, sigma, shape),
            }
            if spread == 0.7:
                worse = np.where(rng.random(shape) < 0.1, 3.0, 1.0) / 1.2
                drawn["one in ten three times as divergent, gamma"] = drawn["gamma"] * worse
            for name, nats in drawn.items():
                values, weights = _sections(rng, nats)
                limits = partial(text_limits, values, weights, skewed=True)
                yield Cell("kl", f"{sections} sections, {name}, spread {spread:g}", 1.0, limits)


def _watched(rng: np.random.Generator, trials: int) -> Iterator[Cell]:
    """The confidence sequence, wrong if it is wrong at any of 20 looks."""
    looks = np.arange(1, 21) * 150
    for discordance, loss in ((0.05, 0.0), (0.05, 0.03), (0.1, 0.01)):
        chances = [(discordance + loss) / 2, (discordance - loss) / 2, 1 - discordance]
        counts = rng.multinomial(150, chances, size=(trials // 4, looks.size)).cumsum(1)

        def limits(alpha: float, counts: Floats = counts) -> tuple[Floats, Floats]:
            low, high = sequence_limits(counts[..., 0], counts[..., 1], looks, alpha)
            return low.max(-1), high.min(-1)

        yield Cell(
            "confidence sequence",
            f"20 looks at 150 items, {discordance:.0%} change, loss {loss:.0%}",
            loss,
            limits,
        )


def clustered_counts(
    rng: np.random.Generator,
    correlation: float,
    sizes: NDArray[np.int64],
    chances: tuple[float, float, float],
    trials: int,
) -> tuple[Floats, Floats, Floats]:
    """Lost, gained and all items a cluster, each of shape (trials, clusters): Dirichlet-multinomial."""
    shares = _shares(rng, correlation, sizes.size, chances, trials)
    counts = rng.multinomial(np.broadcast_to(sizes, (trials, sizes.size)), shares).astype(np.float64)
    return counts[..., 0], counts[..., 1], np.broadcast_to(sizes, (trials, sizes.size)).astype(np.float64)


def clustered_looks(
    rng: np.random.Generator,
    correlation: float,
    sizes: NDArray[np.int64],
    chances: tuple[float, float, float],
    looks: Sequence[int],
    trials: int,
) -> Iterator[tuple[Floats, Floats, Floats]]:
    """As `clustered_counts`, at each look: the items of all clusters come in random order."""
    shares = _shares(rng, correlation, sizes.size, chances, trials)
    order = rng.permuted(np.tile(np.repeat(np.arange(sizes.size), sizes), (trials, 1)), axis=1)
    order += sizes.size * np.arange(trials)[:, None]
    counts, drawn = np.zeros((trials, sizes.size, 3)), np.zeros((trials, sizes.size))
    for first, last in pairwise((0, *looks)):
        added = np.bincount(order[:, first:last].ravel(), minlength=drawn.size).reshape(drawn.shape)
        counts += rng.multinomial(added, shares)
        drawn += added
        yield counts[..., 0], counts[..., 1], np.maximum(drawn, 1e-9)


def _shares(
    rng: np.random.Generator,
    correlation: float,
    clusters: int,
    chances: tuple[float, float, float],
    trials: int,
) -> Floats:
    """Each cluster's own chances of (lost, gained, unchanged), Dirichlet, shape (trials, clusters, 3)."""
    concentration = (1 - correlation) / correlation * np.array(chances)
    drawn = rng.gamma(np.maximum(concentration, 1e-12), size=(trials, clusters, 3))
    drawn[..., np.array(chances) == 0] = 0
    total = drawn.sum(-1, keepdims=True)
    shares: Floats = np.where(total > 0, drawn / np.where(total > 0, total, 1), [0.0, 0.0, 1.0])
    return shares


def _sections(rng: np.random.Generator, per_token: Floats) -> tuple[Floats, Floats]:
    weights = rng.integers(60, 300, per_token.shape).astype(np.float64)
    return per_token * weights, weights
