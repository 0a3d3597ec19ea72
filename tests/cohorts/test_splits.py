"""Splits: disjoint, complete, of the wanted size, with a share of the heavy tail, and the same in any order."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import config
from pipeline.cohorts.splits import STRATA, SplitError, assign, within_cap

COHORTS = st.lists(st.sampled_from([1, 1, 1, 2, 3, 5, 14, 40, 120]), min_size=1, max_size=150)
SHARES = st.lists(st.floats(0, 1), min_size=5, max_size=5).filter(lambda shares: sum(shares) > 0.1)


def images_of(n_images: list[int]) -> list[str]:
    return [f"patient {i}" for i, n in enumerate(n_images) for _ in range(n)]


def splits_of(shares: list[float]) -> config.Splits:
    return config.Splits(**{name: s / sum(shares) for name, s in zip(config.SPLITS, shares, strict=True)})


@settings(max_examples=60, deadline=None)
@given(COHORTS, SHARES, st.integers(0, 99))
def test_every_patient_has_one_split_and_each_split_and_stratum_its_share(n_images, shares, seed):
    splits = splits_of(shares)
    split_of = assign(images_of(n_images), splits, seed, {})
    assert set(split_of) == {f"patient {i}" for i in range(len(n_images))}
    strata = np.digitize(n_images, STRATA)
    for name, share in splits.shares().items():
        mine = np.array([split_of[f"patient {i}"] == name for i in range(len(n_images))])
        assert abs(mine.sum() - share * len(n_images)) < 1
        for stratum in set(strata):
            assert abs(mine[strata == stratum].sum() - share * (strata == stratum).sum()) < 3


@settings(max_examples=30, deadline=None)
@given(COHORTS, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(n_images, shuffler: random.Random):
    patients = images_of(n_images)
    row_ids = [f"row-{i}" for i in range(len(patients))]
    split_of = assign(patients, config.Splits(), 0, {})
    stays = dict(zip(row_ids, within_cap(row_ids, patients, split_of, {"test": 2}, 0), strict=True))
    shuffled = list(zip(row_ids, patients, strict=True))
    shuffler.shuffle(shuffled)
    row_ids, patients = map(list, zip(*shuffled, strict=True))
    assert assign(patients, config.Splits(), 0, {}) == split_of
    assert dict(zip(row_ids, within_cap(row_ids, patients, split_of, {"test": 2}, 0), strict=True)) == stays


def test_another_seed_gives_other_patients_to_the_heavy_part_of_a_split():
    patients = images_of([40] * 30 + [1] * 300)
    train = [{p for p, s in assign(patients, config.Splits(), seed, {}).items() if s == "train"} for seed in (0, 1)]
    heavy = {f"patient {i}" for i in range(30)}
    assert train[0] & heavy and train[1] & heavy and train[0] & heavy != train[1] & heavy


def test_too_few_patients_for_a_split_is_an_error_that_says_how_many_are_needed():
    patients = images_of([1] * 100)
    with pytest.raises(SplitError, match=r"split train: want 20 patients, got 5 \(0.05 of 100\).*about 420 patients"):
        assign(patients, config.Splits(), 0, {"train": 20})
    assert Counter(assign(images_of([1] * 420), config.Splits(), 0, {"train": 20}).values())["train"] >= 20


def test_a_split_without_a_share_cannot_have_a_least_size():
    splits = config.Splits(train=0, identify=0.25, audit=0.25, control=0.25, test=0.25)
    with pytest.raises(SplitError, match=r"split train: .*a share above 0"):
        assign(images_of([1] * 100), splits, 0, {"train": 1})


def test_a_cap_keeps_that_many_images_of_each_patient_and_not_the_first_ones():
    patients = images_of([6] * 50)
    row_ids = [f"row-{i:06d}" for i in range(300)]
    split_of = {f"patient {i}": "test" if i % 2 else "train" for i in range(50)}
    stays = within_cap(row_ids, patients, split_of, {"test": 2}, origin=0).reshape(50, 6)
    assert stays[::2].all()
    assert (stays[1::2].sum(axis=1) == 2).all()
    assert stays[1::2].any(axis=0).all()  # every position in the table is kept for somebody
