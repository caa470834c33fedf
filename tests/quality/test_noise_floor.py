"""The noise floor of the batch size: against statsmodels, and what it refuses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from configs.quality import Margins
from tasks.quality.noise_floor import MarginBelowNoise, noise_floor, refuse_below_floor
from tasks.quality.pairing import SampleError
from tests.quality.test_gate import answers, candidate_of_itself, collect, source, text

ITEMS = 600


def flipped(correct, count):
    changed = np.array(correct, dtype=float)
    changed[:count] = 1 - changed[:count]
    return changed


@pytest.mark.parametrize("count", [0, 1, 9])
def test_the_floor_of_accuracy_is_the_upper_limit_of_clopper_and_pearson(count):
    correct = np.random.default_rng(0).random(ITEMS) < 0.7
    (found,) = noise_floor(collect(answers(correct)), collect(answers(flipped(correct, count))))
    assert found.floor == pytest.approx(proportion_confint(count, ITEMS, alpha=0.1, method="beta")[1])
    assert (found.changed, found.items) == (count, ITEMS)


def test_changes_that_come_in_clusters_raise_the_floor():
    correct = np.ones(ITEMS)
    together, apart = np.arange(ITEMS) // 10, np.arange(ITEMS)
    floors = [
        noise_floor(
            collect(answers(correct, clusters=labels)),
            collect(answers(flipped(correct, 20), clusters=labels)),
        )[0].floor
        for labels in (apart, together)
    ]
    assert floors[1] > 1.4 * floors[0]


def test_the_floor_of_perplexity_and_kl_is_the_far_end_of_the_interval():
    rng = np.random.default_rng(1)
    nats, kl, noise = 3 + rng.normal(0, 0.3, 64), rng.gamma(4, 0.002, 64), rng.normal(0.001, 0.002, 64)
    first = collect(text(nats) + text(kl, "kl"))
    second = collect(text(nats + noise) + text(kl + 0.0005, "kl"))
    perplexity, divergence = noise_floor(first, second)
    low, high = DescrStatsW(noise).tconfint_mean(0.1)
    assert perplexity.floor >= np.expm1(max(abs(low), abs(high))) - 1e-12
    assert perplexity.floor == pytest.approx(np.expm1(max(abs(low), abs(high))), rel=0.15)
    assert divergence.metric == "kl"
    assert divergence.floor == pytest.approx(0.0005)


def test_scored_twice_in_the_same_order_there_is_no_text_noise_and_the_shipped_margins_stand():
    same = candidate_of_itself(source())
    floors = noise_floor(same, same)
    assert {found.metric for found in floors} == {"perplexity", "kl", "accuracy"}
    assert all(found.changed == 0 for found in floors)
    assert all(found.floor == 0 for found in floors if found.metric != "accuracy")
    refuse_below_floor(floors, Margins())


@settings(max_examples=30, deadline=None)
@given(count=st.integers(0, 80), share=st.floats(0.05, 3))
def test_a_margin_below_the_floor_is_refused_and_one_above_it_stands(count, share):
    correct = np.ones(ITEMS)
    floors = noise_floor(collect(answers(correct)), collect(answers(flipped(correct, count))))
    margin = min(share * floors[0].floor, 0.99)
    margins = Margins(perplexity_fraction=None, kl_nats=None, accuracy=margin)
    if margin > floors[0].floor:
        refuse_below_floor(floors, margins)
        return
    with pytest.raises(MarginBelowNoise) as caught:
        refuse_below_floor(floors, margins)
    message = str(caught.value)
    assert message.startswith(f"quality.margins.accuracy = {margin:g}: must be above the noise floor")
    assert f"{count} of {ITEMS} samples" in message
    assert "\n" not in message


def test_few_sections_are_bounded_by_the_one_that_changed_most():
    before, after = np.full(12, 3.0), np.full(12, 3.0)
    after[4] += 0.5
    (floor,) = noise_floor(collect(text(before)), collect(text(after)))
    assert floor.changed == 1
    assert floor.floor == pytest.approx(np.expm1(0.5))


def test_samples_of_other_items_have_no_floor():
    with pytest.raises(SampleError, match="lacks 1 of 600 items"):
        noise_floor(collect(answers(np.ones(600))), collect(answers(np.ones(599))))
    with pytest.raises(ValueError, match=r"alpha=0\.7"):
        noise_floor(collect(answers(np.ones(9))), collect(answers(np.ones(9))), alpha=0.7)
