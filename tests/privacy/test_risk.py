"""Shares, differences and neighbours, against published examples, scipy and simulation."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, chi2_contingency, norm

from pipeline import seeds
from pipeline.estimate import Estimate
from pipeline.privacy.risk import (
    clustered,
    control_threshold,
    difference,
    excess_over_control,
    learned_rate,
    most_frequent_neighbour,
    ratio_over_control,
    two_proportion_p,
    wilson,
)


@st.composite
def counts(draw: st.DrawFn) -> tuple[int, int]:
    n = draw(st.integers(1, 5_000))
    return draw(st.integers(0, n)), n


@given(counts(), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_agrees_with_scipy(count: tuple[int, int], confidence: float) -> None:
    estimate = wilson(*count, confidence)
    reference = binomtest(*count).proportion_ci(confidence, method="wilson")
    assert estimate.low == pytest.approx(reference.low, abs=1e-9)
    assert estimate.high == pytest.approx(reference.high, abs=1e-9)
    assert estimate.low <= estimate.value <= estimate.high


def test_nothing_measured_leaves_every_share_possible() -> None:
    estimate = wilson(0, 0)
    assert math.isnan(estimate.value) and estimate[1:] == (0.0, 1.0, 0)


def test_more_successes_than_trials_are_refused() -> None:
    with pytest.raises(ValueError, match="got 3 of 2"):
        wilson(3, 2)


# Newcombe 1998, table II, method 10.
@pytest.mark.parametrize(
    ("a", "b", "low", "high"),
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((10, 10), (0, 20), 0.6791, 1.0000),
        ((10, 10), (0, 10), 0.6075, 1.0000),
    ],
)
def test_the_difference_of_two_shares_is_newcombes(
    a: tuple[int, int], b: tuple[int, int], low: float, high: float
) -> None:
    excess = difference(wilson(*a), wilson(*b))
    assert excess.value == pytest.approx(a[0] / a[1] - b[0] / b[1])
    assert (excess.low, excess.high) == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))
    assert excess.n == min(a[1], b[1])


@given(counts(), counts())
def test_exchanging_the_groups_mirrors_the_difference(a: tuple[int, int], b: tuple[int, int]) -> None:
    there, back = difference(wilson(*a), wilson(*b)), difference(wilson(*b), wilson(*a))
    assert there[:3] == pytest.approx((-back.value, -back.high, -back.low))


def test_a_difference_to_nothing_is_unknown() -> None:
    excess = difference(wilson(5, 10), wilson(0, 0))
    assert math.isnan(excess.value) and excess[1:] == (-1.0, 1.0, 0)


@given(counts(), counts())
def test_the_pooled_test_is_half_of_a_chi_square_test(a: tuple[int, int], b: tuple[int, int]) -> None:
    table = np.array([[a[0], a[1] - a[0]], [b[0], b[1] - b[0]]])
    if (table.sum(0) == 0).any():
        assert two_proportion_p(*a, *b) == 1.0
        return
    half = chi2_contingency(table, correction=False)[1] / 2
    expected = half if a[0] * b[1] > b[0] * a[1] else 1 - half
    assert two_proportion_p(*a, *b) == pytest.approx(expected, abs=1e-7)


def test_the_prototypes_third_seed_is_over_its_control() -> None:
    # demo: 7.5 % of 1,500 against 5.8 % of 1,200, z = 1.8
    assert two_proportion_p(113, 1500, 70, 1200) == pytest.approx(0.039, abs=0.003)


def test_images_of_one_patient_each_count_in_full() -> None:
    flags = np.arange(200) % 10 == 0
    assert clustered(flags, np.arange(200)) == pytest.approx(wilson(20, 200), abs=2e-3)


def test_ten_identical_images_of_each_patient_count_as_one() -> None:
    patient_flags = np.arange(40) % 4 == 0
    estimate = clustered(np.repeat(patient_flags, 10), np.repeat(np.arange(40), 10))
    # By hand: residuals 7.5 for ten patients and 2.5 for thirty, squares sum to 750, so that the variance is
    # 40/39 x 750 / 400^2 = .0048077 and .1875 / .0048077 = 39 images count; t for 39 patients is 2.02269.
    effective_n = 39 * (1.959964 / 2.022691) ** 2
    assert estimate == pytest.approx(wilson(0.25 * effective_n, effective_n)._replace(n=400))


def test_agreeing_flags_count_patients_not_images() -> None:
    estimate = clustered(np.zeros(100, bool), np.repeat(["a", "b", "c", "d"], 25))
    assert estimate == wilson(0, 4)._replace(n=100)


def test_the_order_of_images_and_the_names_of_patients_do_not_matter() -> None:
    random = seeds.numpy_generator(0, "shuffle")
    flags, patients = random.random(300) < 0.2, random.integers(0, 60, 300)
    order = random.permutation(300)
    names = np.array([f"p{patient}" for patient in patients[order]])
    assert clustered(flags, patients) == pytest.approx(clustered(flags[order], names))


def test_clustered_intervals_cover_the_truth_where_plain_ones_do_not() -> None:
    random = seeds.numpy_generator(0, "coverage")
    plain = patient_wise = 0
    for _ in range(1000):
        risks = random.beta(1, 9, 80)  # a patient's chance of a flag; 10 % on average
        sizes = random.integers(1, 12, 80)
        patients = np.repeat(np.arange(80), sizes)
        flags = random.random(len(patients)) < risks[patients]
        plain += covers(wilson(int(flags.sum()), len(flags)), 0.1)
        patient_wise += covers(clustered(flags, patients), 0.1)
    assert patient_wise / 1000 == pytest.approx(0.95, abs=0.021)  # three standard errors
    assert plain / 1000 < 0.92


def covers(estimate: Estimate, truth: float) -> bool:
    return estimate.low <= truth <= estimate.high


def test_learned_rate_counts_training_patients_once() -> None:
    assert learned_rate(["a", "b", "a", "a"], n_patients=8) == wilson(2, 8)


def test_the_most_frequent_neighbour_of_equals_is_the_first_by_name() -> None:
    found = most_frequent_neighbour(["b", "a", "b", "a", "c"])
    assert found is not None
    assert (found.row_id, found.share) == ("a", wilson(2, 5))
    assert most_frequent_neighbour([]) is None


@pytest.mark.parametrize("estimate", [wilson(3, 10), wilson(0, 0)])
def test_an_estimate_survives_strict_json(estimate: Estimate) -> None:
    text = json.dumps(estimate.as_dict(), allow_nan=False)
    assert Estimate.from_dict(json.loads(text)) == pytest.approx(estimate, nan_ok=True)


def test_the_threshold_lies_between_order_statistics_of_the_binomial() -> None:
    # Bin(100, .05) has its 2.5th and 97.5th percentile at 1 and 10: the ends are the largest score and the 11th.
    limit = control_threshold(np.arange(1, 101) / 100, 95.0)
    assert limit == pytest.approx((0.96, 0.9, 1.0))


def test_forty_control_scores_cannot_bound_their_95th_percentile_from_above() -> None:
    assert control_threshold(np.arange(40.0), 95.0).high == math.inf


def test_ten_identical_images_of_each_control_patient_widen_the_threshold() -> None:
    values = np.arange(100) / 100
    alone, ten_times = (
        control_threshold(values, 80.0),
        control_threshold(np.repeat(values, 10), 80.0, np.arange(1000) // 10),
    )
    assert ten_times == pytest.approx(alone, abs=0.025)
    as_images = control_threshold(np.repeat(values, 10), 80.0)
    assert as_images.high - as_images.low < 0.5 * (alone.high - alone.low)


def test_a_ratio_carries_the_error_of_its_threshold() -> None:
    control, made = np.arange(1, 101) / 100, np.arange(200) / 200
    # Of 200 images 8 reach .96, 20 reach .90 and none reaches 1.
    own = wilson(8, 200)
    ratio = ratio_over_control(made, control, 95.0)
    assert (ratio.value, ratio.n) == (0.04, 200)
    assert ratio.low == pytest.approx(max(0.0, 0.04 - math.hypot(0.04 - own.low, 0.04)))
    assert ratio.high == pytest.approx(0.04 + math.hypot(own.high - 0.04, 0.06))


def test_what_a_threshold_does_to_both_does_not_widen_their_difference() -> None:
    control, same = np.arange(1, 101) / 100, np.arange(200) / 200
    excess = excess_over_control(same, same, control, 95.0)
    assert excess == difference(wilson(8, 200), wilson(8, 200))


def test_without_control_scores_a_ratio_is_unknown() -> None:
    nothing, some = np.array([]), np.array([0.5])
    assert ratio_over_control(some, nothing, 95.0)[1:] == (0.0, 1.0, 0)
    assert excess_over_control(some, some, nothing, 95.0)[1:] == (-1.0, 1.0, 0)


def unseen(random: np.random.Generator, n: int, images_each: int) -> tuple[np.ndarray, np.ndarray]:
    """Standard normal scores and their patients; half of the variance is the patient's."""
    patients = np.arange(n) // images_each
    return random.normal(0, 0.5**0.5, n)[patients] + random.normal(0, 0.5**0.5, n), patients


@pytest.mark.parametrize("images_each", [1, 3])
@pytest.mark.parametrize(("sizes", "most"), [((1300, 1560, 1500), 0.985), ((60, 40, 300), 1.0)])
@pytest.mark.parametrize("shift", [-0.4, 0.0, 1.5])
def test_ratios_and_excess_hold_the_truth_of_all_strangers(
    sizes: tuple[int, int, int], most: float, images_each: int, shift: float
) -> None:
    random = seeds.numpy_generator(0, "over control", shift, images_each)
    truth = float(norm.sf(norm.ppf(0.95) - shift))
    held = np.zeros(3)
    for _ in range(300):
        (control, of_control), (test, of_test) = (unseen(random, n, images_each) for n in sizes[:2])
        made = random.normal(shift, 1, sizes[2])
        ratio = ratio_over_control(made, control, 95.0, control_clusters=of_control)
        excess = excess_over_control(made, test, control, 95.0, test_clusters=of_test, control_clusters=of_control)
        plain = wilson(int(np.sum(made >= np.percentile(control, 95, method="higher"))), len(made))
        held += covers(ratio, truth), covers(excess, truth - 0.05), covers(plain, truth)
    assert (held[:2] / 300 >= 0.95 - 0.035).all()  # under 95 % by three standard errors
    assert (held[:2] / 300 <= most).all()
    assert held[2] / 300 < 0.93


def test_a_missing_score_is_flagged_among_what_is_judged_and_refused_among_strangers() -> None:
    strangers, missing = np.arange(40.0) / 40, np.array([0.1, math.nan])
    assert ratio_over_control(missing, strangers, 95.0).value == 0.5
    assert excess_over_control(missing, strangers, strangers, 50.0).value == pytest.approx(0.0)
    with pytest.raises(ValueError, match="test scores: want numbers, got 1 missing of 2"):
        excess_over_control(strangers, missing, strangers, 95.0)
    with pytest.raises(ValueError, match="control scores: want numbers, got 1 missing of 2"):
        ratio_over_control(strangers, missing, 95.0)
