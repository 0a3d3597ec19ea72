"""Members against strangers: hand-worked areas and rates, and intervals that hold the truth in simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from pipeline import seeds
from pipeline.estimate import Estimate
from pipeline.privacy.membership import comparable, folded, membership_auc, true_positive_rate
from pipeline.privacy.risk import wilson

ONE = ["1"] * 200


def test_the_auc_is_the_share_of_pairs_in_order() -> None:
    auc = membership_auc(np.array([0.9, 0.5]), np.array([0.1, 0.5, 0.7]), ["1"] * 2, ["1"] * 3, seed=0)
    # .9 is over all three; .5 is over .1, ties with .5 and is under .7.
    assert (auc.value, auc.n) == (pytest.approx((3 + 1.5) / 6), 5)


def test_strangers_weigh_as_the_members_strata_do() -> None:
    members, strangers = np.array([0.5, 0.5]), np.array([0.1, 0.1, 0.1, 0.9])
    # Half of the members are of stratum b, so that its one stranger weighs as much as the three of a.
    auc = membership_auc(members, strangers, ["a", "b"], ["a", "a", "a", "b"], seed=0)
    assert auc.value == pytest.approx(0.5)
    assert membership_auc(members, strangers, ONE[:2], ONE[:4], seed=0).value == pytest.approx(0.75)


def test_people_of_a_stratum_that_one_side_lacks_are_left_out_and_counted() -> None:
    member_strata, stranger_strata = ["a", "a", "c"], ["a", "b", "b"]
    kept = comparable(member_strata, stranger_strata)
    assert kept.members.tolist() == [True, True, False]
    assert kept.strangers.tolist() == [True, False, False]
    assert kept.n_left_out == 3
    auc = membership_auc(np.array([0.4, 0.6, 0.0]), np.array([0.5, 0.9, 0.9]), member_strata, stranger_strata, seed=0)
    assert (auc.value, auc.n) == (0.5, 3)


def test_nobody_to_compare_leaves_every_auc_possible() -> None:
    auc = membership_auc(np.array([0.4]), np.array([0.5]), ["a"], ["b"], seed=0)
    assert math.isnan(auc.value) and auc[1:] == (0.0, 1.0, 0)
    assert folded(auc)[1:] == (0.5, 1.0, 0)


def test_somebody_without_a_score_leaves_everything_possible() -> None:
    random = np.random.default_rng(0)
    members, strangers = random.normal(1, 1, 60), random.normal(0, 1, 60)
    for who in (members, strangers):
        kept, who[::3] = who[::3].copy(), np.nan
        auc = membership_auc(members, strangers, ONE[:60], ONE[:60], seed=0)
        rate = true_positive_rate(members, strangers, ONE[:60], ONE[:60], generator=random)
        assert auc[1:] == (0.0, 1.0, 0) and rate.true_positive_rate.n == 0
        who[::3] = kept


@pytest.mark.parametrize(("n_members", "n_strangers"), [(7, 60), (60, 7), (11, 13)])
def test_the_rounding_of_weights_makes_no_certainty(n_members: int, n_strangers: int) -> None:
    strata = [str(i % 3) for i in range(60)]
    auc = membership_auc(np.ones(n_members), np.zeros(n_strangers), strata[:n_members], strata[:n_strangers], seed=0)
    assert auc.value == auc.high == 1 and auc.low < 0.9


@pytest.mark.parametrize("sign", [1, -1])
def test_pairs_that_are_all_in_order_are_not_certainty(sign: int) -> None:
    auc = membership_auc(sign * np.arange(10.0, 20.0), sign * np.arange(8.0), ONE[:10], ONE[:8], seed=0)
    assert auc[:3] == wilson(8 if sign > 0 else 0, 8)[:3]


@pytest.mark.parametrize(
    ("auc", "wanted"),
    [
        (Estimate(0.7, 0.6, 0.8, 9), (0.7, 0.6, 0.8, 9)),
        (Estimate(0.3, 0.2, 0.4, 9), (0.7, 0.6, 0.8, 9)),
        (Estimate(0.45, 0.3, 0.6, 9), (0.55, 0.5, 0.7, 9)),
        (Estimate(0.55, 0.4, 0.7, 9), (0.55, 0.5, 0.7, 9)),
    ],
)
def test_an_auc_under_one_half_is_read_the_other_way_round(auc: Estimate, wanted: tuple[float, ...]) -> None:
    assert folded(auc) == pytest.approx(wanted)


def drawn(random: np.random.Generator, n: int, shares: list[float], lift: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores and strata; people with more films score higher, whether member or not."""
    strata = random.choice(3, n, p=shares)
    return random.normal(np.array([0.0, 0.5, 1.5])[strata] + lift), strata


def test_members_with_more_films_do_not_look_known_by_that_alone() -> None:
    random = seeds.numpy_generator(0, "strata")
    members, of_member = drawn(random, 4000, [0.5, 0.3, 0.2], 0.0)
    strangers, of_stranger = drawn(random, 4000, [0.8, 0.15, 0.05], 0.0)
    matched = membership_auc(members, strangers, of_member, of_stranger, 0, n_resamples=50)
    plain = membership_auc(members, strangers, ["1"] * 4000, ["1"] * 4000, 0, n_resamples=50)
    assert matched.low < 0.5 < matched.high
    assert plain.low > 0.55


@pytest.mark.parametrize(("n_members", "n_strangers"), [(150, 100), (60, 40)])
@pytest.mark.parametrize("lift", [0.0, 1.0])
def test_the_interval_of_the_auc_holds_the_truth(n_members: int, n_strangers: int, lift: float) -> None:
    random = seeds.numpy_generator(0, "auc", lift, n_members)
    levels, shares = np.array([0.0, 0.5, 1.5]), np.array([0.5, 0.3, 0.2])
    above = norm.cdf((levels[:, None] - levels + lift) / np.sqrt(2))
    truth = float(shares @ above @ shares)
    held = 0
    for seed in range(200):
        members, of_member = drawn(random, n_members, [0.5, 0.3, 0.2], lift)
        strangers, of_stranger = drawn(random, n_strangers, [0.7, 0.2, 0.1], 0.0)
        auc = membership_auc(members, strangers, of_member, of_stranger, seed, n_resamples=200)
        held += auc.low <= truth <= auc.high
    assert held / 200 >= 0.95 - 0.05  # three standard errors


def test_the_rate_is_that_of_a_threshold_set_on_other_strangers() -> None:
    generator = seeds.numpy_generator(0, "halves")
    # All strangers score under .2 but 10 of 200: of either half at most five reach the threshold that 5 % may reach.
    strangers = np.concatenate([np.linspace(0.0, 0.2, 190), np.linspace(0.8, 0.9, 10)])
    attack = true_positive_rate(np.array([0.95] * 30 + [0.0] * 70), strangers, ONE[:100], ONE, generator=generator)
    assert (attack.true_positive_rate.value, attack.true_positive_rate.n) == (0.3, 100)
    assert attack.false_positive_rate.n == 100
    assert attack.false_positive_rate.value <= 0.1


def test_too_few_strangers_to_set_a_threshold_measure_nothing() -> None:
    generator = seeds.numpy_generator(0, "halves")
    attack = true_positive_rate(np.ones(50), np.zeros(38), ONE[:50], ONE[:38], generator=generator)
    assert [rate.n for rate in attack] == [0, 0]
    assert all(math.isnan(rate.value) for rate in attack)


def test_the_interval_of_the_rate_holds_the_truth_at_the_wanted_false_positives() -> None:
    random = seeds.numpy_generator(0, "rate")
    truth = float(norm.sf(norm.ppf(0.95) - 1.0))
    held = 0
    for _ in range(300):
        members, strangers = random.normal(1, 1, 200), random.normal(0, 1, 200)
        attack = true_positive_rate(members, strangers, ONE, ONE, generator=random)
        rate = attack.true_positive_rate
        held += rate.low <= truth <= rate.high
    assert held / 300 >= 0.93
