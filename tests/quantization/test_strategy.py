"""The search over a table whose truth is known: it finds the best early, wastes nothing, and does not depend on chance or order."""

import itertools
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pytest

from configs.quantize import QuantizeSettings
from tasks.quantization.front import growth, hypervolume, pareto, volume
from tasks.quantization.options import Option, served
from tasks.quantization.strategy import Step, Strategy

SPACE = [
    {"compute": ["f32", "bf16"], "kv_cache": ["f32", "u8", "u4"], "activation_group": [0, 32]},
    {
        "engine": ["openvino"], "bits": [4], "kv_cache": ["u8"], "activation_group": [32],
        "calibration": ["awq", "awq+scale_estimation", "gptq"], "int8_ratio": [0.0, 0.2], "max_bytes_fraction": [None, 0.18],
    },
]  # fmt: skip
SCORE_S = 5.0
LIMIT_NATS = 0.04


def options() -> tuple[Option, ...]:
    settings = QuantizeSettings.model_validate({"space": SPACE})
    return tuple(
        Option(
            name=f"{declared.engine} {declared.weights.label}, {engine.serving_label}",
            declared=declared,
            engine=engine,
            weights_mib=truth_mib(declared.weights.bits, declared.weights.int8_ratio),
            build_s=30.0
            if declared.weights.calibration == "none"
            else 90.0,  # both are wrong, by factors of 3 and 2
            score_s=10.0,
        )
        for declared in settings.declared
        for engine in served(declared, settings, 2)
    )


def truth_mib(bits: int, eight: float) -> float:
    return 20 + 16 * (bits + 4 * eight)


def truth_nats(option: Option) -> float:
    weights, engine = option.weights, option.engine
    nats = 0.006 if weights.bits == 8 else 0.4
    nats *= {"awq": 0.8, "awq+scale_estimation": 0.6, "gptq": 0.4}.get(weights.calibration, 1.0)
    nats *= 0.5 if weights.int8_ratio or weights.max_bytes_fraction else 1.0
    nats *= 1.0 if weights.symmetric else 0.9
    return nats + {"u4": 0.03, "u8": 0.0002}.get(engine.kv_cache, 0) + 0.0008 * (engine.compute == "bf16")


def truth_speed(option: Option) -> float:
    engine = option.engine
    speed = 9000 / (option.weights_mib + 30) * (1.4 if engine.engine == "openvino" else 0.8)
    speed *= 1.3 if engine.compute == "bf16" else 1.0
    return speed * (1.15 if engine.activation_group else 1.0) * (1.08 if engine.kv_cache != "f32" else 1.0)


def truth_build_s(option: Option) -> float:
    return {"none": 9.0, "awq": 60.0, "awq+scale_estimation": 80.0, "gptq": 160.0}[option.weights.calibration]


@dataclass
class Table:
    """Replays the truth to a strategy and keeps the clock."""

    strategy: Strategy
    spent_s: float = 0.0

    def steps(self, budget_s: float = math.inf) -> Iterator[Step]:
        built = set()
        while (step := self.strategy.next(budget_s - self.spent_s)) is not None:
            option = step.option
            if step.kind == "time":
                self.spent_s += SCORE_S
                self.strategy.timed(option, truth_speed(option), seconds=SCORE_S)
            else:
                build_s = 0.0 if option.build in built else truth_build_s(option)
                built.add(option.build)
                self.spent_s += build_s + SCORE_S
                self.strategy.screened(option, truth_nats(option), build_s=build_s, score_s=SCORE_S)
            yield step


def best() -> Option:
    """The fastest within the margin of 0.02 nats."""
    return max((each for each in options() if truth_nats(each) <= LIMIT_NATS / 2), key=truth_speed)


def grid_s() -> float:
    """What trying everything takes."""
    builds = {each.build: truth_build_s(each) for each in options()}
    return sum(builds.values()) + 2 * SCORE_S * len(options())


def test_it_finds_the_best_in_a_third_of_the_time_of_the_grid():
    table = Table(Strategy(options(), limit_nats=LIMIT_NATS))
    wanted = best().name
    for _ in table.steps():
        if wanted in table.strategy.speed:
            break
    assert wanted in table.strategy.speed
    assert table.spent_s <= grid_s() / 3


def test_no_step_is_proposed_twice_and_nothing_is_timed_before_it_is_screened():
    steps = [(step.kind, step.option.name) for step in Table(Strategy(options())).steps()]
    assert len(set(steps)) == len(steps)
    for number, (kind, name) in enumerate(steps):
        assert kind == "screen" or ("screen", name) in steps[:number]


def test_the_whole_front_is_found_without_trying_everything():
    table = Table(Strategy(options()))
    tried = {step.option.name for step in table.steps()}
    everything = {each.name: each for each in options()}
    nats = {name: truth_nats(each) for name, each in everything.items()}
    speed = {name: truth_speed(each) for name, each in everything.items()}
    goodness = [(math.log(s / 10), math.log(3 / nats[n])) for n, s in speed.items()]
    found = [(math.log(speed[n] / 10), math.log(3 / nats[n])) for n in table.strategy.speed]
    assert hypervolume(pareto(found)) >= 0.98 * hypervolume(pareto(goodness))
    assert len(tried) < 0.8 * len(everything)


def test_where_no_limit_says_what_is_wanted_all_three_objectives_are_filled():
    def enclosed(names: Iterable[str]) -> float:
        return volume(
            (
                math.log(truth_speed(each) / 10),
                math.log(400 / each.weights_mib),
                math.log(3 / truth_nats(each)),
            )
            for each in options()
            if each.name in names
        )

    table = Table(Strategy(options()))
    list(table.steps())
    assert enclosed(table.strategy.speed) >= 0.999 * enclosed([each.name for each in options()])
    with_a_limit = Table(Strategy(options(), limit_nats=LIMIT_NATS))
    list(with_a_limit.steps())
    assert with_a_limit.spent_s < table.spent_s / 2


def test_where_no_step_of_the_fronts_fits_the_budget_one_of_all_three_objectives_does():
    strategy = Strategy(options())
    dear = {each.name for each in options() if truth_build_s(each) > 9}
    for option in strategy.options:  # all that is cheap is screened, the first half of it is timed
        if option.name not in dear:
            strategy.screened(option, truth_nats(option), build_s=9.0, score_s=SCORE_S)
    for option in [each for each in strategy.options if each.name not in dear][::2]:
        strategy.timed(option, truth_speed(option), seconds=SCORE_S)
    left = {step.option.name for step in strategy.worthwhile()}
    assert left & dear
    while (step := strategy.next(2 * SCORE_S)) is not None:
        assert step.kind == "time"
        strategy.timed(step.option, truth_speed(step.option), seconds=SCORE_S)
        left.discard(step.option.name)
    assert left <= dear


def test_what_cannot_pass_is_not_built_once_something_can():
    table = Table(Strategy(options(), limit_nats=LIMIT_NATS))
    steps = list(table.steps())
    within = next(n for n, step in enumerate(steps) if truth_nats(step.option) < LIMIT_NATS)
    assert not [step for step in steps[within + 1 :] if step.option.weights.calibration != "none"]


def test_the_cheap_relative_is_tried_before_the_dear_format():
    steps = list(Table(Strategy(options())).steps())
    for number, step in enumerate(steps):
        if step.option.weights.calibration == "gptq":
            before = {each.option.family for each in steps[:number] if each.option.is_nearest}
            assert step.option.family in before


def test_the_order_of_the_options_has_no_meaning():
    shuffled = list(options())
    random.Random(3).shuffle(shuffled)
    one, other = (
        [(step.kind, step.option.name) for step in Table(Strategy(each)).steps()]
        for each in (options(), shuffled)
    )
    assert one == other


@pytest.mark.parametrize("budget_s", [0.0, 30.0, 120.0, 600.0])
def test_no_step_is_begun_that_is_not_expected_to_end_within_the_budget(budget_s):
    table = Table(Strategy(options()))
    before_s = 0.0
    for _ in table.steps(budget_s):
        assert before_s < budget_s
        before_s = table.spent_s
    # A build may take longer than it was expected to; the one that was begun is the last.
    assert table.spent_s <= budget_s + max(truth_build_s(each) for each in options())
    if budget_s >= 120:
        assert table.strategy.speed


def test_what_fails_is_not_proposed_again_and_the_rest_goes_on():
    strategy = Strategy(options())
    first = strategy.next()
    assert first is not None
    strategy.close(first.option)
    names = [step.option.name for step in Table(strategy).steps()]
    assert first.option.name not in names
    assert len(names) > 5


def test_an_estimate_decides_between_relatives_before_they_are_built():
    dear = [each for each in options() if each.weights.calibration == "gptq" and each.engine.compute == "f32"]
    one, other = dear[0], dear[-1]
    strategy = Strategy(dear)
    strategy.estimate({one.name: 0.3, other.name: 0.05})
    assert strategy.predicted_nats(other) < 0.5 * strategy.predicted_nats(one)
    strategy.screened(other, 0.2, build_s=100, score_s=5)  # what is measured stands above what was estimated
    assert strategy.predicted_nats(other) == pytest.approx(0.2, rel=0.05)


def test_a_rival_must_be_clearly_faster_and_no_worse_otherwise():
    one, other, *_ = (each for each in options() if each.weights.bits == 8)
    strategy = Strategy(options())
    for option, nats, speed in ((one, 0.008, 100.0), (other, 0.007, 109.0)):
        strategy.screened(option, nats, build_s=9, score_s=5)
        strategy.timed(option, speed, seconds=5)
    assert strategy.better_than(one, 1.1) is None
    assert strategy.better_than(one, 1.05) == other.name
    assert strategy.better_than(other, 1.05) is None


def test_fronts_and_their_areas_are_those_of_the_closed_form():
    points = [(1.0, 3.0), (2.0, 2.0), (2.0, 1.0), (3.0, 0.5), (0.5, 0.5)]
    front = pareto(points)
    assert front == [(1.0, 3.0), (2.0, 2.0), (3.0, 0.5)]
    assert hypervolume(front) == pytest.approx(3 + 2 + 0.5)
    assert growth(front, (2.0, 1.0)) == 0
    assert growth(front, (3.0, 2.0)) == pytest.approx(1.5)
    assert growth(front, (-1.0, 9.0)) == 0
    assert hypervolume([]) == 0
    everyone = [(x / 7, y / 5) for x, y in itertools.product(range(1, 8), range(1, 6))]
    assert hypervolume(pareto(everyone)) == pytest.approx(1.0)


def test_the_volume_of_three_objectives_is_that_of_the_union_of_boxes():
    assert volume([]) == 0
    assert volume([(1, 2, 3)]) == 6
    assert volume([(1, 2, 3), (2, 1, 1)]) == 7  # 6 + 2, less the 1 they share
    assert volume([(1, 2, 3), (2, 1, 1), (1, 1, 1), (5, -1, 5)]) == 7
