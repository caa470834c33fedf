"""`make bench PART=simulate`: how often the gate is wrong about candidates whose truth is known.

Seeded; the same figures on every machine. Writes docs/bench/simulate.json with every rate, simulate.md with the
claims of the gate and whether they hold, and simulate.svg. A claim counts as met by the exact rate where there
is one, else where the 95 % interval (Clopper & Pearson) of the simulated rate reaches the claimed limit; the rates
themselves stand beside it.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from configs.quality import Margins, SequentialSettings
from tasks.quality.intervals import MIN_ITEM_CLUSTERS, accuracy_limits, effective_clusters
from tasks.quality.looks import Aim, plan_looks
from tasks.quality.planning import plan_items
from tasks.quality.power import accuracy_power, plan_performance
from tasks.quality.sequential import LookLevels, LookPlan, SequentialKind
from tests.benchmarks.simulate_cells import cells, clustered_looks
from tests.benchmarks.simulate_exact import exact_end
from tests.benchmarks.simulate_report import Row, rate, write_report
from tests.benchmarks.simulate_trials import (
    Counts,
    draw,
    judge_of_counts,
    one_look,
    several_looks,
    threshold,
    unpaired_margin,
    unpaired_z,
)

SEED, TRIALS, RATE_TRIALS, ALPHA, POWER, DISCORDANCE, TRIES = 20261122, 10_000, 40_000, 0.05, 0.8, 0.05, 3
SIZE_TOLERANCE, COVERAGE = 0.005, 0.94
KINDS: dict[SequentialKind, str] = {
    "planned": "keiryo_sequential",
    "obrien-fleming": "keiryo_obrien-fleming",
    "confidence-sequence": "keiryo_confidence-sequence",
}
"""Every kind of looks and its name in the report; `keiryo_sequential` is the default."""
SHOWN_MARGIN = 0.02


def main() -> None:
    """Simulate and write docs/bench/simulate.{json,md,svg}."""
    rng = np.random.default_rng(SEED)
    rows = [
        *planned_sizes(rng),
        *sequential_plans(rng),
        *spare_items(rng),
        *clustered_plans(rng),
        *ladder(rng),
        *agreement(rng),
        *coverage(rng),
    ]
    print(write_report(rows, operating_curves(rng)))


def planned_items(tasks: int, margin: float, kind: SequentialKind = "none", alpha: float = ALPHA) -> int:
    """Items a task that the planner asks for, for the joint power."""
    plans = plan_items(
        Margins(perplexity_fraction=None, kl_nats=None, accuracy=margin),
        alpha=alpha, tries=1, power=POWER, discordance=DISCORDANCE, tasks=[f"t{i}" for i in range(tasks)],
        items=1000, sections=60, sequential=SequentialSettings(kind=kind),
    )  # fmt: skip
    needed = plans[0].needed_jointly
    if needed is None:
        raise ValueError(f"no number of items decides a margin of {margin}")
    return needed


def aim(tasks: int, margin: float) -> Aim:
    """What each of several tasks is planned for."""
    return Aim(margin=margin, discordance=DISCORDANCE, power=POWER ** (1 / tasks))


def planned_sizes(rng: np.random.Generator) -> Iterator[Row]:
    """One look at the planner's number of items: every gate on the same draws."""
    for tasks, margin in ((1, 0.01), (1, 0.02), (3, 0.01), (3, 0.02)):
        items = planned_items(tasks, margin)
        work = f"{tasks} task{'s' * (tasks > 1)}, margin {margin:.0%}, {items} items each"
        # the hardest candidate for a PASS of all: one task exactly at the margin, the others equal
        worse = draw(rng, items, DISCORDANCE, [margin] + [0.0] * (tasks - 1), RATE_TRIALS)
        equal = draw(rng, items, DISCORDANCE, [0.0] * tasks, RATE_TRIALS)
        exact = accuracy_power(items, margin, DISCORDANCE, ALPHA, loss=margin)
        kept = accuracy_power(items, margin, DISCORDANCE, ALPHA)
        exact *= kept ** (tasks - 1)
        gate, fair = one_look(worse, margin, ALPHA), one_look(equal, margin, ALPHA)
        yield rate("keiryo/accuracy/false_accept", work, gate.passed, most=ALPHA, exact=exact)
        yield rate("keiryo/accuracy/false_reject", work, ~fair.passed, most=1 - POWER, exact=1 - kept**tasks)
        yield rate("keiryo/accuracy/false_fail", work, gate.failed, most=ALPHA + SIZE_TOLERANCE)
        for name, accepted in _naive(worse, margin).items():
            yield rate(f"{name}/accuracy/false_accept", work, accepted)
        for name, accepted in _naive(equal, margin).items():
            yield rate(f"{name}/accuracy/false_reject", work, ~accepted)


def _naive(counts: Counts, margin: float) -> dict[str, np.ndarray]:
    return {
        "naive_threshold": threshold(counts, margin),
        "unpaired_z": unpaired_z(counts, ALPHA),
        "unpaired_margin": unpaired_margin(counts, margin, ALPHA),
    }


def sequential_plans(rng: np.random.Generator) -> Iterator[Row]:
    """Every kind at its own planned size: error rates, and items against all and against one look."""
    for kind in KINDS:
        for tasks, margin in ((1, 0.01), (1, 0.02), (3, 0.02)):
            plan = _plan(kind, planned_items(tasks, margin, kind), tasks, margin)
            yield from _error_rates(rng, plan, tasks, margin)


def spare_items(rng: np.random.Generator) -> Iterator[Row]:
    """500 items where fewer would do, as of a benchmark task: what a plan makes of the power that it does not need."""
    tasks, margin, discordance = 3, 0.03, 0.03
    for kind in KINDS:
        goal = Aim(margin=margin, discordance=discordance, power=POWER ** (1 / tasks))
        plan = plan_looks(500, ALPHA, SequentialSettings(kind=kind), goal)
        work = f"{tasks} tasks, margin {margin:.0%}, at most 500 items each, {discordance:.0%} change"
        for truth, losses in (("equal", [0.0] * tasks), ("at margin", [margin] + [0.0] * (tasks - 1))):
            ended = several_looks(_pieces(rng, plan, losses, discordance), plan, margin)
            if truth == "equal":
                power = plan_performance(plan, margin, discordance).power ** tasks
                most = 1 - POWER if power >= POWER else None  # the planner says what 500 items can decide
                name = f"{KINDS[kind]}/accuracy/false_reject"
                yield rate(name, work, ~ended.passed, most=most, planned=1 - power)
            else:
                yield rate(f"{KINDS[kind]}/accuracy/false_accept", work, ended.passed, most=ALPHA)
            yield rate(
                f"{KINDS[kind]}/accuracy/items_of_its_most", f"{work}; {truth}", ended.items / 500, most=1.0
            )


def _plan(kind: SequentialKind, items: int, tasks: int, margin: float) -> LookPlan:
    return plan_looks(items, ALPHA, SequentialSettings(kind=kind), aim(tasks, margin))


def _error_rates(rng: np.random.Generator, plan: LookPlan, tasks: int, margin: float) -> Iterator[Row]:
    items, name = plan.items[-1], f"{KINDS[plan.kind]}/accuracy"
    work = f"{tasks} task{'s' * (tasks > 1)}, margin {margin:.0%}, at most {items} items each"
    worse = several_looks(_pieces(rng, plan, [margin] + [0.0] * (tasks - 1)), plan, margin)
    equal = several_looks(_pieces(rng, plan, [0.0] * tasks), plan, margin)
    bad = several_looks(_pieces(rng, plan, [2 * margin] + [0.0] * (tasks - 1)), plan, margin)
    planned = plan_performance(plan, margin, DISCORDANCE)
    exact = exact_end(plan, margin, DISCORDANCE, margin).passed if tasks == 1 else None
    yield rate(f"{name}/false_accept", work, worse.passed, most=ALPHA, exact=exact)
    yield rate(f"{name}/false_reject", work, ~equal.passed, most=1 - POWER, planned=1 - planned.power**tasks)
    yield rate(f"{name}/false_fail", work, worse.failed, most=ALPHA + SIZE_TOLERANCE)
    for truth, ended in (("equal", equal), ("at margin", worse), ("twice the margin", bad)):
        single = planned_items(tasks, margin)
        share, drawn = ended.items / single, f"{work}; {truth}; one look needs {single}"
        # a confidence sequence is not claimed to need fewer: it pays for looks at any time
        claim = None if plan.kind == "confidence-sequence" else 1.0
        yield rate(f"{name}/items_of_one_look", drawn, share, most=claim)
        yield rate(f"{name}/items_of_its_most", drawn, ended.items / items, most=1.0)


def clustered_plans(rng: np.random.Generator) -> Iterator[Row]:
    """Alpha-spending plans on clustered items, a candidate exactly at the margin, drawn to the end."""
    for clusters, size, correlation, chances in (
        (100, 10, 0.1, (0.065, 0.035, 0.9)),
        (60, 10, 0.05, (0.04, 0.01, 0.95)),
        (200, 10, 0.05, (0.03, 0.01, 0.96)),
        (100, 10, 0.2, (0.065, 0.035, 0.9)),
    ):
        margin = chances[0] - chances[1]
        data = (
            f"{clusters} clusters of {size}, {chances[0]:.1%} lost, {chances[1]:.1%} gained, "
            f"correlation {correlation:g}, margin {margin:.0%}"
        )
        for kind in ("planned", "obrien-fleming"):
            plan = _plan(kind, clusters * size, 1, margin)
            accepted, failed = np.zeros(TRIALS, dtype=bool), np.zeros(TRIALS, dtype=bool)
            seen = clustered_looks(rng, correlation, np.full(clusters, size), chances, plan.items, TRIALS)
            for look, counts in enumerate(seen, start=1):
                low, high = accuracy_limits(*counts, LookLevels(plan=plan, look=look).levels(1)[0])
                enough = effective_clusters(counts[2]) >= MIN_ITEM_CLUSTERS
                accepted |= enough & (high < margin)
                failed |= enough & (low > margin)
            name = f"{KINDS[kind]}/clustered accuracy"
            yield rate(f"{name}/false_accept", data, accepted, most=ALPHA)
            yield rate(f"{name}/false_fail", data, failed, most=ALPHA + SIZE_TOLERANCE)


def _pieces(
    rng: np.random.Generator, plan: LookPlan, losses: Sequence[float], discordance: float = DISCORDANCE
) -> list[Counts]:
    return [draw(rng, int(items), discordance, losses, TRIALS) for items in np.diff(plan.items, prepend=0)]


def ladder(rng: np.random.Generator) -> Iterator[Row]:
    """Several candidates, each exactly at the margin, meet the items one after the other until one passes."""
    margin, items = SHOWN_MARGIN, planned_items(1, SHOWN_MARGIN, alpha=ALPHA / TRIES)
    work = f"{TRIES} candidates, margin {margin:.0%}, {items} items"
    tried = [draw(rng, items, DISCORDANCE, [margin], RATE_TRIALS) for _ in range(TRIES)]
    for name, alpha, most in (("keiryo", ALPHA / TRIES, ALPHA), ("keiryo_without_correction", ALPHA, None)):
        accepted = np.any([one_look(counts, margin, alpha).passed for counts in tried], axis=0)
        yield rate(f"{name}/ladder/false_accept", work, accepted, most=most)
    for name in ("naive_threshold", "unpaired_z", "unpaired_margin"):
        accepted = np.any([_naive(counts, margin)[name] for counts in tried], axis=0)
        yield rate(f"{name}/ladder/false_accept", work, accepted)
    equal = one_look(draw(rng, items, DISCORDANCE, [0.0], RATE_TRIALS), margin, ALPHA / TRIES)
    yield rate("keiryo/ladder/false_reject", work, ~equal.passed, most=1 - POWER)
    plan = plan_looks(items, ALPHA / TRIES, SequentialSettings(), aim(1, margin))
    looks = [several_looks(_pieces(rng, plan, [margin]), plan, margin).passed for _ in range(TRIES)]
    yield rate("keiryo_sequential/ladder/false_accept", work, np.any(looks, axis=0), most=ALPHA)


def agreement(rng: np.random.Generator, trials: int = 60) -> Iterator[Row]:
    """The same draws through `judge` on per-sample tables: the share on which both say the same."""
    margin, losses = SHOWN_MARGIN, [0.008, 0.0]
    items = planned_items(1, margin)
    counts = draw(rng, items, DISCORDANCE, losses, trials)
    fast = one_look(counts, margin, ALPHA)
    verdicts = [judge_of_counts(row, margin, ALPHA).verdict for row in counts]
    same = (np.array(verdicts) == "PASS") == fast.passed
    same &= (np.array(verdicts) == "FAIL") == fast.failed
    yield rate("judge/one look/agrees", f"2 tasks, {items} items each", same, least=1.0)
    for kind in KINDS:
        plan = _plan(kind, items, 1, margin)
        sizes = np.diff(plan.items, prepend=0)
        pieces = [draw(rng, int(size), DISCORDANCE, [0.012], trials) for size in sizes]
        ended = several_looks(pieces, plan, margin)
        same = [
            _drawn_on(np.cumsum([piece[trial] for piece in pieces], axis=0), plan, margin)
            == (bool(ended.passed[trial]), bool(ended.failed[trial]), float(ended.items[trial]))
            for trial in range(trials)
        ]
        yield rate(f"judge/{kind}/agrees", f"1 task, at most {items} items", np.array(same), least=1.0)


def _drawn_on(sums: Counts, plan: LookPlan, margin: float) -> tuple[bool, bool, float]:
    for look, counts in enumerate(sums, start=1):
        verdict = judge_of_counts(counts, margin, ALPHA, {"t0": LookLevels(plan=plan, look=look)})
        if verdict.settled:
            break
    return verdict.verdict == "PASS", verdict.verdict == "FAIL", float(plan.items[look - 1])


def coverage(rng: np.random.Generator) -> Iterator[Row]:
    """Every interval: two-sided coverage at nominal 95 %, and each side's size at 5 %."""
    for cell in cells(rng, TRIALS):
        low, high = cell.limits(ALPHA / 2)
        inside = (low <= cell.truth) & (cell.truth <= high)
        low, high = cell.limits(ALPHA)
        covered, above, below = None, None, None
        if cell.exact is not None:
            covered = 1 - sum(cell.exact(ALPHA / 2))
            above, below = cell.exact(ALPHA)
        name = f"keiryo/{cell.method}"
        least, most = (COVERAGE, ALPHA + SIZE_TOLERANCE) if cell.claimed else (None, None)
        yield rate(f"{name}/coverage", cell.data, inside, least=least, exact=covered)
        yield rate(
            f"{name}/upper limit below the truth", cell.data, high < cell.truth, most=most, exact=below
        )
        yield rate(f"{name}/lower limit above the truth", cell.data, low > cell.truth, most=most, exact=above)


def operating_curves(rng: np.random.Generator) -> dict[str, list[tuple[float, float]]]:
    """Chance of acceptance by true loss, one task at the planner's size of one look."""
    margin, items = SHOWN_MARGIN, planned_items(1, SHOWN_MARGIN)
    plan = _plan("planned", items, 1, margin)
    curves: dict[str, list[tuple[float, float]]] = {}
    for loss in np.linspace(-0.01, 0.045, 23):
        counts = draw(rng, items, DISCORDANCE, [float(loss)], TRIALS)
        accepted = {"keiryo": one_look(counts, margin, ALPHA).passed, **_naive(counts, margin)}
        accepted["keiryo_sequential"] = several_looks(_pieces(rng, plan, [float(loss)]), plan, margin).passed
        for name, passed in accepted.items():
            curves.setdefault(name, []).append((float(loss), float(passed.mean())))
    return curves


if __name__ == "__main__":
    main()
