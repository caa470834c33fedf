"""Answers that the batch size could tip: the bound from leads, against the truth of simulated models."""

import numpy as np
import pytest
from scipy import stats

from tasks.quality.sample_set import samples_of
from tasks.quality.samples import ItemNote, Samples
from tasks.quality.tipping import tipping_floor, tipping_share
from tests.quality.test_gate import answers

JUDGED, PROBED = 300, 40


def scored(leads: np.ndarray, clusters: np.ndarray | None = None) -> Samples:
    rows = answers(leads > 0, clusters=clusters)
    notes = [
        ItemNote(task="facts", item=row.item, item_hash=row.item_hash, prompt="?", margin_nats=float(lead))
        for row, lead in zip(rows, leads, strict=True)
    ]
    return samples_of(rows, notes)


MOVEMENTS = {
    "normal": lambda rng, n: rng.normal(0, 0.03, n),
    "heavy tails": lambda rng, n: 0.02 * rng.standard_t(4, n),
    "mostly none": lambda rng, n: rng.normal(0, 0.05, n) * (rng.random(n) < 0.5),
}
LEADS = {
    "many near ties": lambda rng, n: rng.normal(0.2, 1.0, n),
    "clear answers": lambda rng, n: rng.normal(3, 5, n),
}


@pytest.mark.parametrize("leads", LEADS)
@pytest.mark.parametrize("movement", MOVEMENTS)
def test_the_bound_holds_in_at_least_95_of_100_trials(movement, leads):
    """Truth: the chance that the sign of a lead turns, by a million draws of the movement."""
    rng = np.random.default_rng(0)
    many = np.abs(MOVEMENTS[movement](rng, 1_000_000))
    many.sort()
    missed = 0
    for _ in range(400):
        lead = LEADS[leads](rng, JUDGED)
        moved = lead[:PROBED] + MOVEMENTS[movement](rng, PROBED)
        found = tipping_floor(scored(lead), scored(moved), alpha=0.05)
        assert found is not None
        # It tips where the movement is beyond the lead, and points the other way: half of those.
        truth = float((1 - np.searchsorted(many, np.abs(lead)) / many.size).mean()) / 2
        missed += found.floor < truth
    assert missed <= 20


def test_gauss_bounds_every_movement_with_one_mode():
    for kind in (stats.norm(), stats.laplace(), stats.uniform(-1, 2), stats.t(5)):
        for lead in np.linspace(0.01, 6, 50) * kind.std():
            assert tipping_share(np.array([lead]), kind.var()) >= 2 * kind.sf(lead) - 1e-12


def test_it_is_far_below_what_counting_as_few_items_could_say():
    rng = np.random.default_rng(1)
    lead = rng.normal(3, 5, JUDGED)
    found = tipping_floor(scored(lead), scored(lead[:PROBED] + rng.normal(0, 0.02, PROBED)), alpha=0.025)
    assert found.method == "leads"
    assert (found.items, found.changed) == (PROBED, 0)
    assert 0.0005 < found.floor < 0.015  # of 40 answers without a change up to 8.8 % may still change


def test_large_movements_are_not_hidden():
    rng = np.random.default_rng(2)
    lead = rng.normal(0.5, 1.0, JUDGED)
    found = tipping_floor(scored(lead), scored(lead[:PROBED] + rng.normal(0, 1.0, PROBED)), alpha=0.025)
    assert found.floor > 0.3
    assert found.floor >= found.changed / PROBED


def test_where_nothing_moves_nothing_tips():
    lead = np.random.default_rng(3).normal(1, 2, JUDGED)
    assert tipping_floor(scored(lead), scored(lead[:PROBED]), alpha=0.025).floor == 0


def test_without_leads_that_say_what_is_right_there_is_no_bound():
    lead = np.linspace(-2, 3, JUDGED)
    bare = samples_of(answers(lead > 0))
    assert tipping_floor(bare, bare, alpha=0.025) is None
    turned = scored(lead).model_copy(update={"rows": samples_of(answers(lead < 0)).rows})
    assert tipping_floor(turned, turned, alpha=0.025) is None


def test_items_of_few_templates_are_counted_instead():
    lead = np.linspace(-2, 3, JUDGED)
    few = np.arange(JUDGED) % 12
    assert tipping_floor(scored(lead, few), scored(lead[:PROBED], few), alpha=0.025) is None
