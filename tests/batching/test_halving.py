"""The search on synthetic tables: it finds a setting within 5 % of the best for a fifth of the grid's pairs."""

import math
import random

import pytest

from configs.tuning import SchedulerGrid, TuningSettings
from tasks.batching.halving import plan_rounds, search

NOISE = 0.03  # standard deviation of one log-ratio: what pairs of a second on two cores have


class Table:
    """Settings with a true log-ratio each; every pair that is asked for is drawn and counted."""

    def __init__(self, truth: dict[str, float], seed: int, noise: float = NOISE) -> None:
        self.truth, self.noise, self.draws = truth, noise, random.Random(seed)
        self.asked: dict[str, int] = dict.fromkeys(truth, 0)

    def measure(self, name: str, pairs: int) -> list[float]:
        self.asked[name] += pairs
        return [self.truth[name] + self.draws.gauss(0, self.noise) for _ in range(pairs)]


def grid(count: int, seed: int) -> dict[str, float]:
    """Log-ratios as a scheduler grid has them: most far behind, a handful close to the best."""
    draws = random.Random(f"grid {seed}")
    return {f"s{index}": -draws.expovariate(1 / 0.25) for index in range(count)}


@pytest.mark.parametrize("count", [12, 24, 48])
def test_within_five_percent_of_the_best_for_a_fifth_of_the_grid(count):
    settings, good, costs = TuningSettings(), 0, []
    for seed in range(300):
        table = Table(grid(count, seed), seed)
        found = search(list(table.truth), settings, table.measure)
        assert found.pairs == sum(table.asked.values())
        assert found.full_pairs == count * 16
        costs.append(found.cost_fraction)
        best = max(table.truth.values())
        good += table.truth[found.tried[0].name] >= best - math.log(1.05)
    assert max(costs) <= 0.2
    assert good / 300 >= 0.97


def test_a_clear_winner_ends_the_search_early_and_a_close_one_does_not():
    clear = Table({"best": 0.5, **{f"s{i}": -i for i in range(11)}}, 1)
    found = search(list(clear.truth), TuningSettings(full_pairs=40), clear.measure)
    assert found.tried[0].name == "best"
    assert "likely better" in found.stopped
    spent = 0
    for seed in range(60):
        close = Table({f"s{i}": 0.0 for i in range(12)}, seed, noise=0.3)
        ended = search(list(close.truth), TuningSettings(full_pairs=40), close.measure)
        spent += ended.stopped == "the pairs are spent"
        assert ended.cost_fraction <= 0.2
    assert found.cost_fraction == 0.05  # two pairs each
    assert spent > 30  # most of them: the best of equals was chosen by its luck


def test_later_rounds_measure_fewer_settings_for_longer():
    table = Table(grid(27, 5), 5)
    found = search(list(table.truth), TuningSettings(tolerance=0.001), table.measure)
    by_round = {n: [t for t in found.tried if t.rounds == n] for n in (1, 2, 3)}
    assert [len(by_round[n]) for n in (1, 2, 3)] == [18, 6, 3]
    assert len(by_round[1][0].log_ratios) < len(by_round[2][0].log_ratios) < len(by_round[3][0].log_ratios)
    assert [t.rounds for t in found.tried] == sorted((t.rounds for t in found.tried), reverse=True)


def test_a_setting_that_does_not_run_is_left_out():
    table = Table({"a": 0.0, "b": -0.5, "broken": 9.0}, 0)
    found = search(
        list(table.truth),
        TuningSettings(),
        lambda name, pairs: [] if name == "broken" else table.measure(name, pairs),
    )
    assert [each.name for each in found.tried] == ["a", "b"]
    nothing = search(["broken"], TuningSettings(), lambda name, pairs: [])
    assert nothing.tried == ()
    with pytest.raises(ValueError, match=r"batching\.schedulers"):
        search([], TuningSettings(), table.measure)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 100])
@pytest.mark.parametrize("fraction", [0.02, 0.2, 1.0])
def test_the_plan_keeps_to_its_cost_unless_one_pair_each_is_more(count, fraction):
    settings = TuningSettings(cost_fraction=fraction)
    rounds = plan_rounds(count, settings)
    assert rounds[0] >= 1
    assert sum(rounds) <= 16
    spent, alive = 0, count
    for pairs in rounds:
        spent += pairs * alive
        alive = math.ceil(alive / 3)
    assert spent <= max(fraction * count * 16, count)


def test_the_grid_is_every_combination_once():
    grid = SchedulerGrid(
        max_num_seqs=(4, 8), max_num_batched_tokens=(64, 128, 256), prefix_caching=(False, True)
    )
    made = grid.settings()
    assert len(made) == len(set(made)) == 12
    assert {(s.max_num_seqs, s.prefix_caching) for s in made} == {
        (4, False),
        (4, True),
        (8, False),
        (8, True),
    }
