"""Pareto fronts on settings whose answers can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline import front
from pipeline.estimate import Estimate
from pipeline.front import Point

SOME_LOSSES = st.integers(0, 12).flatmap(lambda n: arrays(float, (n, 3), elements=st.integers(0, 4).map(float)))


def setting(ratio: float, auroc: float, kept_frac: float = 0.5, half: float = 0.0) -> Point:
    return Point(
        Estimate(ratio, ratio - half, ratio + half, 100), Estimate(auroc, auroc - half, auroc + half, 100), kept_frac
    )


def test_a_setting_that_another_beats_in_everything_is_not_on_the_front() -> None:
    losses = front.losses(
        [setting(0.1, 0.9), setting(0.2, 0.8), setting(0.3, 0.95), setting(0.1, 0.7, kept_frac=0.9)]
    )
    assert front.non_dominated(losses).tolist() == [True, False, True, True]


def test_equal_settings_do_not_dominate_each_other() -> None:
    assert front.non_dominated(front.losses([setting(0.1, 0.9)] * 2)).tolist() == [True, True]


def test_a_setting_is_given_up_only_if_the_intervals_say_so() -> None:
    clear = [setting(0.1, 0.9, half=0.01), setting(0.2, 0.8, half=0.01)]
    unclear = [setting(0.1, 0.9, half=0.06), setting(0.2, 0.8, half=0.06)]
    assert front.may_be_on_front(clear).tolist() == [True, False]
    assert front.may_be_on_front(unclear).tolist() == [True, True]


def test_who_keeps_more_may_be_on_the_front_whatever_it_leaks() -> None:
    points = [setting(0.01, 0.99, kept_frac=0.5), setting(0.9, 0.5, kept_frac=0.51)]
    assert front.may_be_on_front(points).all()


@given(SOME_LOSSES)
def test_the_order_to_climb_holds_everyone_once_and_the_front_first(losses: np.ndarray) -> None:
    order = front.most_promising(losses)
    assert sorted(order) == list(range(len(losses)))
    n_front = int(front.non_dominated(losses).sum()) if len(losses) else 0
    assert set(order[:n_front]) == set(np.flatnonzero(front.non_dominated(losses)).tolist() if len(losses) else [])


def test_within_a_front_the_ends_climb_first_and_crowded_settings_last() -> None:
    losses = np.array([[0.0, 1.0], [0.48, 0.5], [0.5, 0.49], [1.0, 0.0], [0.52, 0.45]])
    order = front.most_promising(losses)
    assert set(order[:2]) == {0, 3}
    assert order[-1] == 2


def test_the_recommended_setting_is_the_most_useful_one_that_surely_meets_the_constraint() -> None:
    points = [setting(0.04, 0.85, half=0.01), setting(0.07, 0.9, half=0.02), setting(0.09, 0.95, half=0.02)]
    assert front.recommended(points, max_ratio=0.1) == 1
    assert front.recommended(points, max_ratio=0.06) == 0
    assert front.recommended(points, max_ratio=0.01) is None


def test_of_equally_useful_settings_the_one_that_keeps_more_is_recommended() -> None:
    assert front.recommended([setting(0.01, 0.9, 0.4), setting(0.02, 0.9, 0.6)], 0.1) == 1


@pytest.mark.parametrize(
    ("losses", "volume"),
    [
        ([], 0.0),
        ([[0.5, 0.5, 0.5]], 0.125),
        ([[0.0, 0.5, 0.5], [0.5, 0.0, 0.5]], 0.5 * 0.75),
        ([[0.0, 0.0, 0.5], [0.5, 0.5, 0.0]], 0.5 + 0.5 * 0.25),
        ([[0.2, 0.2, 1.0], [1.5, 0.0, 0.0]], 0.0),
    ],
)
def test_a_hypervolume_is_the_volume_worked_out_by_hand(losses: list[list[float]], volume: float) -> None:
    found = front.hypervolume(np.array(losses).reshape(-1, 3), np.ones(3))
    assert found == pytest.approx(volume)


@given(SOME_LOSSES)
def test_a_hypervolume_depends_on_the_front_alone(losses: np.ndarray) -> None:
    reference = np.full(3, 3.5)
    on_front = losses[front.non_dominated(losses)] if len(losses) else losses
    assert front.hypervolume(losses, reference) == pytest.approx(front.hypervolume(on_front, reference))


def test_the_interval_over_seeds_is_wide_enough_for_one_more_run() -> None:
    generator = np.random.default_rng(0)
    n_inside, widths = 0, []
    for _ in range(400):
        values = generator.normal((0.3, 0.5, 0.6, 0.7), 0.02, (3, 4))
        groups = [[Estimate(v, v - 0.01, v + 0.01, 100) for v in column[:2]] for column in values.T]
        found = front.over_seeds(groups)
        n_inside += sum(one.low <= value <= one.high for one, value in zip(found, values[2], strict=True))
        widths.append(found[0].high - found[0].low)
    assert n_inside >= 0.93 * 1600
    assert np.mean(widths) < 0.2  # of two runs alone: t is 12.7, and the interval over 0.5 wide


def test_runs_that_agree_by_luck_are_not_surer_than_each_of_them() -> None:
    same = [Estimate(0.05, 0.04, 0.06, 1000)] * 3
    (found,) = front.over_seeds([same])
    assert found.low <= 0.04 and found.high >= 0.06 and found.value == pytest.approx(0.05)


def test_one_run_alone_keeps_its_own_interval() -> None:
    one = Estimate(0.05, 0.04, 0.06, 1000)
    assert front.over_seeds([[one], [one]]) == [one, one]
