"""How many items a verdict needs, before anything runs.

With `discordance` 5 %, alpha 5 % and power 80 % one task needs 3,133 items for a margin of 1 point and 819 for 2
points; 4,887 and 1,260 where three tasks must pass jointly. All metrics must pass, so their powers multiply
(they are taken as independent; the two text metrics are not, which errs on the safe side).
"""

import math
from collections.abc import Callable, Mapping, Sequence

from configs.quality import Margins, QualitySettings, SequentialSettings
from tasks.quality.looks import Aim, most_powerful, plan_looks
from tasks.quality.power import Performance, divergence_power, plan_performance, text_power
from tasks.quality.sequential import LookPlan
from tasks.store.record import Record

SECTION_SPREAD_NATS = 0.03
"""Standard deviation between sections of the change in NLL a token that a good candidate shows.

On sections of 230 tokens it was about 0.16 x sqrt(KL): 0.022 where KL is 0.02 nats. A little more is planned.
"""

KL_SPREAD_FRACTION = 0.7
"""Standard deviation of the KL of sections, a fraction of their mean; 0.5 to 0.6 was measured."""

ONE_LOOK = SequentialSettings(kind="none")

UNDECIDABLE_POWER = 0.5
"""A plan that would not pass even an equal candidate in half of all runs is refused."""

MOST_SAMPLES = 1_000_000
"""Where the search for a number of samples ends."""


class PlanError(ValueError):
    """The configured number of items cannot decide the configured margin."""


class MetricPlan(Record):
    """What one metric needs, for a candidate that is in truth equal (for KL: at half the margin).

    Attributes:
        task: name of the task; "text" for perplexity and KL.
        metric: "accuracy", "perplexity" or "kl".
        unit: what is counted, "items" or "sections".
        margin: as configured: fraction of items, fraction of the perplexity, nats a token.
        alpha: one-sided level, after the division by the number of tries.
        chosen: samples that the config allows.
        power: chance that the metric passes with them.
        expected: samples that an equal candidate is judged on, on average; `chosen` where there is one look.
        needed: samples for the wanted power of this metric alone; None above one million.
        needed_jointly: samples for the wanted power of all metrics together; None above one million.
        smallest_margin: smallest margin that `chosen` passes with the joint power; None for KL, where power
            does not depend on the margin, and where no margin below 1 would do.
    """

    task: str
    metric: str
    unit: str
    margin: float
    alpha: float
    chosen: int
    power: float
    expected: float
    needed: int | None
    needed_jointly: int | None
    smallest_margin: float | None


Measure = Callable[[int, float], Performance]
"""From a number of samples and a margin."""


def plan_items(
    margins: Margins,
    *,
    alpha: float,
    tries: int,
    power: float,
    discordance: float,
    tasks: Sequence[str],
    items: int | Mapping[str, int],
    sections: int,
    sequential: SequentialSettings = ONE_LOOK,
    design_effect: float = 1.0,
    section_spread_nats: float = SECTION_SPREAD_NATS,
    kl_spread_fraction: float = KL_SPREAD_FRACTION,
) -> tuple[MetricPlan, ...]:
    """Plan every metric that has a margin.

    Args:
        margins: largest losses allowed.
        alpha: one-sided error rate of a PASS, over all tries.
        tries: candidates that may be judged on the items.
        power: wanted chance that an equal candidate passes on all metrics.
        discordance: expected share of items whose answer changes.
        tasks: names of the accuracy tasks.
        items: items that may be drawn in all, of every task or by the task's name.
        sections: sections of text.
        sequential: the looks at a task's items; one look by default.
        design_effect: variance of clustered over independent items; 1 where items share nothing.
        section_spread_nats: expected standard deviation between sections of the change in NLL a token.
        kl_spread_fraction: expected standard deviation of the KL of sections over its mean.
    """
    level = alpha / tries
    growth, nats, points = margins.perplexity_fraction, margins.kl_nats, margins.accuracy
    count = (growth is not None) + (nats is not None) + (len(tasks) if points is not None else 0)
    joint = power ** (1 / max(count, 1))

    def perplexity(n: int, margin: float) -> Performance:
        return text_power(n, math.log1p(margin) / section_spread_nats, level)

    def divergence(n: int, margin: float) -> Performance:
        return divergence_power(n, kl_spread_fraction, level)

    def accuracy(n: int, margin: float) -> Performance:
        return plan_performance(most_powerful(n, level, sequential), margin, discordance, design_effect)

    plans = []
    if growth is not None:
        plans.append(_plan("perplexity", growth, sections, perplexity, level, power, joint))
    if nats is not None:
        plans.append(_plan("kl", nats, sections, divergence, level, power, joint))
    if points is not None and tasks:
        share = _task_share(power, math.prod(plan.power for plan in plans), len(tasks))
        aim = Aim(margin=points, discordance=discordance, power=share, design_effect=design_effect)
        sizes = dict.fromkeys(tasks, items) if isinstance(items, int) else items
        planned: dict[int, MetricPlan] = {}  # tasks of one size share a plan, which takes a second
        for size in {sizes[task] for task in tasks}:
            looks = plan_looks(size, level, sequential, aim)
            drawn = plan_performance(looks, points, discordance, design_effect)
            each = _plan("accuracy", points, size, accuracy, level, power, joint)
            planned[size] = each.model_copy(update={"power": drawn.power, "expected": drawn.expected})
        plans += [planned[sizes[task]].model_copy(update={"task": task}) for task in tasks]
    return tuple(plans)


def plan_tasks(quality: QualitySettings, margins: Margins, sizes: Mapping[str, int]) -> dict[str, LookPlan]:
    """The looks at every task that has the accuracy margin, from the settings alone.

    Args:
        quality: levels, wanted power and expected discordance.
        margins: what is judged; the text metrics' power is their share of the wanted one.
        sizes: items that each task may draw.
    """
    if margins.accuracy is None or not sizes:
        return {}
    text = plan_items(
        margins.model_copy(update={"accuracy": None}), alpha=quality.alpha, tries=quality.tries, power=quality.power,
        discordance=quality.discordance, tasks=(), items=0, sections=quality.text.gate_sections,
    )  # fmt: skip
    share = _task_share(quality.power, joint_power(text), len(sizes))
    aim = Aim(margin=margins.accuracy, discordance=quality.discordance, power=share)
    level = quality.alpha / quality.tries
    return {name: plan_looks(size, level, quality.sequential, aim) for name, size in sizes.items()}


def _task_share(power: float, of_text: float, tasks: int) -> float:
    """Power that each task must have for `power` of all metrics, where the text has `of_text`; 1 where none would do."""
    return 1.0 if of_text <= power else (power / of_text) ** (1 / tasks)


def joint_power(plans: Sequence[MetricPlan]) -> float:
    """Chance that an equal candidate passes on every metric."""
    return math.prod(plan.power for plan in plans)


def refuse_undecidable(plans: Sequence[MetricPlan]) -> None:
    """Refuse a config with which even an equal candidate would more often than not fail to pass.

    Raises:
        PlanError: the joint power is below 50 %, or nothing has a margin.
    """
    if not plans:
        raise PlanError("quality.margins: no margin is set, so no verdict is possible; set at least one")
    joint = joint_power(plans)
    if joint >= UNDECIDABLE_POWER:
        return
    weakest = min(plans, key=lambda plan: plan.power)
    setting = "quality.tasks.items" if weakest.unit == "items" else "quality.text.gate_sections"
    smallest = "" if weakest.smallest_margin is None else f", or a margin of {weakest.smallest_margin:.3g}"
    raise PlanError(
        f"{setting}: {weakest.metric} of {weakest.task}: {weakest.chosen} {weakest.unit} cannot decide a margin of "
        f"{weakest.margin:g}: an equal candidate would pass in {100 * joint:.0f} % of runs only; allow "
        f"{weakest.needed_jointly or f'more than {MOST_SAMPLES}'} {weakest.unit}{smallest}"
    )


def _plan(
    metric: str,
    margin: float,
    chosen: int,
    measure: Measure,
    alpha: float,
    power: float,
    joint: float,
) -> MetricPlan:
    now = measure(chosen, margin)
    return MetricPlan(
        task="text",
        metric=metric,
        unit="items" if metric == "accuracy" else "sections",
        margin=margin,
        alpha=alpha,
        chosen=chosen,
        power=now.power,
        expected=now.expected,
        needed=_smallest_number(lambda n: measure(n, margin).power, power),
        needed_jointly=_smallest_number(lambda n: measure(n, margin).power, joint),
        smallest_margin=None
        if metric == "kl"
        else _smallest_margin(lambda m: measure(chosen, m).power, joint),
    )


def _smallest_number(power_at: Callable[[int], float], power: float) -> int | None:
    """Bisection; the power of a discrete test is a saw whose teeth, about 1 %, the answer is exact up to."""
    low, high = 0, 64
    while power_at(high) < power:
        low, high = high, 2 * high
        if high > MOST_SAMPLES:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_at(middle) >= power else (middle, high)
    return high


def _smallest_margin(power_at: Callable[[float], float], power: float) -> float | None:
    low, high = 0.0, 0.999
    if power_at(high) < power:
        return None
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if power_at(middle) >= power else (middle, high)
    return high
