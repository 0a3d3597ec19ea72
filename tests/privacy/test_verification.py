import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from pipeline import config
from pipeline.privacy.networks import SiameseNetwork
from pipeline.privacy.verification import verification, weighted_auc


class Brightness(SiameseNetwork):
    """A network whose embedding is an image's mean, so that scores can be worked out by hand."""

    def __init__(self, weight: float = -20.0) -> None:
        super().__init__(config.Network(width=1, embedding=1), 16, 1)
        torch.nn.init.constant_(self.head.weight, weight)
        self.eval()

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        return (images.mean((1, 2, 3)) / 2 + 0.5)[:, None]


def flat(levels: list[int]) -> np.ndarray:
    return np.broadcast_to(np.array(levels, np.uint8)[:, None, None, None], (len(levels), 16, 16, 1)).copy()


def measure(levels: list[int], patients: list[int], **changes):
    settled = {"seed": 0, "operating_recall": 0.95, "batch_size": 8, "n_resamples": 200} | changes
    return verification(Brightness(), flat(levels), np.array(patients), **settled)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_the_weighted_auc_is_scikit_learn_s(seed: int, tied: bool) -> None:
    rng = np.random.default_rng(seed)
    same, different = rng.normal(1, 1, 12), rng.normal(0, 1, 15)
    if tied:
        same, different = same.round(), different.round()
    weights = rng.integers(0, 4, 12) + np.eye(12, dtype=int)[0], rng.integers(0, 4, 15) + np.eye(15, dtype=int)[0]
    labels = np.r_[np.ones(12), np.zeros(15)]
    expected = roc_auc_score(labels, np.concatenate([same, different]), sample_weight=np.concatenate(weights))
    assert weighted_auc(same, different, *weights) == pytest.approx(expected)


def test_patients_far_apart_are_told_apart_without_error() -> None:
    found = measure([10, 12, 14, 100, 102, 104, 200, 202, 204], [0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert found.auc[:3] == (1.0, 1.0, 1.0)
    assert (found.auc.n, found.recall.n, found.false_positive_rate.n, found.rank1.n) == (18, 9, 9, 9)
    assert found.false_positive_rate.value == 0.0
    assert found.rank1.value == 1.0
    assert found.n_patients == 3


def test_the_operating_point_is_the_highest_threshold_with_the_recall_asked_for() -> None:
    # Ten patients, pair k apart by k grey levels: 80 % of the pairs are at most 8 apart.
    levels = [level for k in range(1, 11) for level in (20 * k, 20 * k + k)]
    patients = [patient for patient in range(10) for _ in range(2)]
    found = measure(levels, patients, operating_recall=0.8)
    assert found.recall.value == pytest.approx(0.8)
    apart = torch.sigmoid(torch.tensor(4.0 - 20 * 8 / 255))
    assert found.threshold == pytest.approx(apart.item(), abs=1e-4)


def test_rank_one_counts_films_of_patients_with_several_only() -> None:
    # Closest: 0 to 12 (same patient), 12 to 13 (other), 13 to 12 (other), 30 to 13 (same).
    found = measure([0, 12, 13, 30, 200], [0, 0, 1, 1, 2])
    assert found.rank1.n == 4
    assert found.rank1.value == 0.5


def test_the_interval_is_over_patients_so_repeated_films_buy_less_certainty_than_their_pairs_would() -> None:
    rng = np.random.default_rng(0)
    centres = np.repeat(rng.integers(30, 220, 12), 4)
    levels = np.clip(centres + rng.normal(0, 30, 48), 0, 255).astype(int)
    patients = np.repeat(np.arange(12), 4)
    once, repeated = (
        measure(np.repeat(levels, times).tolist(), np.repeat(patients, times).tolist()).auc for times in (1, 6)
    )
    assert once.low <= once.value <= once.high
    if_pairs_were_independent = (once.n / repeated.n) ** 0.5
    assert (repeated.high - repeated.low) / (once.high - once.low) > 2 * if_pairs_were_independent


def test_many_pairs_are_thinned_to_the_number_asked_for() -> None:
    found = measure(list(range(0, 240, 4)), [0] * 30 + [1] * 30, max_pairs=50)
    assert found.recall.n == found.false_positive_rate.n == 50


def test_verification_is_a_function_of_its_seed() -> None:
    levels = np.random.default_rng(0).integers(0, 256, 60).tolist()
    patients = [i // 3 for i in range(60)]
    assert measure(levels, patients, seed=1) == measure(levels, patients, seed=1)
    assert measure(levels, patients, seed=1) != measure(levels, patients, seed=2)


def test_no_patient_with_two_films_is_an_error() -> None:
    with pytest.raises(ValueError, match="want a patient with 2 images, got none"):
        measure([1, 2, 3], [0, 1, 2])
