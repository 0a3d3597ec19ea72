"""AUROC against hand-worked tables and scikit-learn, and its intervals over patients."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import roc_auc_score

from pipeline.seeds import numpy_generator
from pipeline.utility.auroc import auroc, bootstrap_auroc, macro_auroc, micro_auroc, retention

FINDINGS = ["effusion", "pneumothorax"]


def column(*values: float, dtype=np.float32) -> np.ndarray:
    return np.array(values, dtype)[:, None]


@pytest.mark.parametrize(
    ("labels", "scores", "wanted"),
    [
        ((0, 0, 1, 1), (0.1, 0.2, 0.3, 0.4), 1.0),
        ((1, 1, 0, 0), (0.1, 0.2, 0.3, 0.4), 0.0),
        ((0, 1, 0, 1), (0.1, 0.2, 0.3, 0.4), 0.75),  # 3 of the 4 pairs in order
        ((0, 1, 1), (0.5, 0.5, 0.9), 0.75),  # one tie, one in order
        ((0, 1, 0, 1), (0.5, 0.5, 0.5, 0.5), 0.5),
        ((0, -1, 1, -1), (0.1, 0.9, 0.2, 0.0), 1.0),  # unknown labels are left out
    ],
)
def test_auroc_is_the_share_of_pairs_in_order(labels, scores, wanted):
    assert auroc(column(*labels, dtype=np.int8), column(*scores)) == pytest.approx([wanted])


@given(
    arrays(np.int8, 30, elements=st.integers(-1, 1)),
    arrays(np.float32, 30, elements=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])),
)
def test_auroc_with_ties_equals_scikit_learn(labels, scores):
    known = labels >= 0
    assume(len(np.unique(labels[known])) == 2)
    wanted = roc_auc_score(labels[known], scores[known])
    assert auroc(labels[:, None], scores[:, None])[0] == pytest.approx(wanted, abs=1e-12)


@given(arrays(np.float64, (20, 2), elements=st.floats(-1e3, 1e3, width=16)))
def test_auroc_is_mirrored_when_scores_change_sign(scores):
    labels = np.tile(np.array([[0, 1], [1, 0], [1, 1], [0, 0]], np.int8), (5, 1))
    assert auroc(labels, -scores) == pytest.approx(1 - auroc(labels, scores), abs=1e-12)


def test_macro_and_micro_equal_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (200, 4)).astype(np.int8)
    scores = (labels + rng.normal(size=labels.shape)).round(1)
    assert macro_auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores, average="macro"))
    assert micro_auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores, average="micro"))


def test_a_finding_that_nobody_has_does_not_enter_the_macro_mean():
    labels = np.array([[0, 0], [1, 0], [0, 0], [1, 0]], np.int8)
    scores = np.array([[0.1, 0.3], [0.8, 0.1], [0.2, 0.2], [0.9, 0.4]])
    assert np.isnan(auroc(labels, scores)[1])
    assert macro_auroc(labels, scores) == 1.0


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="want finite scores, got 1"):
        auroc(column(0, 1, dtype=np.int8), column(0.1, np.nan))


def cohort(n_patients: int, images_each: int, seed: int, noise: float = 1.0):
    """Labels and scores that patients share, so that the images of one patient are no independent evidence."""
    rng = np.random.default_rng(seed)
    patients = np.repeat([f"p{i}" for i in range(n_patients)], images_each)
    labels = np.repeat(rng.integers(0, 2, (n_patients, 2)), images_each, axis=0).astype(np.int8)
    errors = np.repeat(rng.normal(size=(n_patients, 2)), images_each, axis=0)
    return labels, (labels + noise * errors), patients


def test_the_interval_does_not_shrink_when_every_image_is_repeated():
    labels, scores, patients = cohort(80, 1, seed=1)
    alone = bootstrap_auroc(labels, scores, patients, FINDINGS, n_resamples=500, seed=0)
    repeated = [each.repeat(10, axis=0) for each in (labels, scores, patients)]
    ten_times = bootstrap_auroc(*repeated, FINDINGS, n_resamples=500, seed=0)
    for name in ("macro", "micro", *FINDINGS):
        assert ten_times[name][:3] == pytest.approx(alone[name][:3])
        assert ten_times[name].n == 10 * alone[name].n


def test_a_resample_equals_scikit_learn_on_the_repeated_images():
    labels, scores, patients = cohort(12, 2, seed=2)
    labels[3, 0] = -1
    _names, members = np.unique(patients, return_inverse=True)
    estimates = bootstrap_auroc(labels, scores, patients, FINDINGS, n_resamples=1, seed=7)
    times = numpy_generator(7, "auroc").multinomial(12, np.full(12, 1 / 12), 1)[0][members]
    rows = np.repeat(np.arange(len(labels)), times)
    known = rows[labels[rows, 0] >= 0]
    wanted = [roc_auc_score(labels[known, 0], scores[known, 0]), roc_auc_score(labels[rows, 1], scores[rows, 1])]
    assert [estimates[name].low for name in FINDINGS] == pytest.approx(wanted)
    assert estimates["macro"].low == pytest.approx(np.mean(wanted))
    flat = labels[rows] >= 0
    assert estimates["micro"].low == pytest.approx(roc_auc_score(labels[rows][flat], scores[rows][flat]))


def test_the_interval_holds_the_true_value_about_as_often_as_it_says():
    truth = macro_auroc(*cohort(20_000, 1, seed=99)[:2])
    held = 0
    for seed in range(100):
        labels, scores, patients = cohort(60, 3, seed)
        macro = bootstrap_auroc(labels, scores, patients, FINDINGS, n_resamples=200, seed=seed)["macro"]
        held += macro.low <= truth <= macro.high
    assert 85 <= held <= 100


def test_a_finding_of_four_patients_has_no_key():
    labels, scores, patients = cohort(40, 3, seed=3)
    labels[:, 1] = 0
    labels[:12, 1] = 1  # twelve images, four patients
    estimates = bootstrap_auroc(labels, scores, patients, FINDINGS, n_resamples=50, seed=0)
    assert set(estimates) == {"effusion", "macro", "micro"}
    assert estimates["macro"].value == estimates["effusion"].value


def test_nothing_is_estimated_without_a_positive():
    labels, scores, patients = cohort(20, 1, seed=4)
    labels[:] = 0
    assert bootstrap_auroc(labels, scores, patients, FINDINGS, n_resamples=10, seed=0) == {}
    assert retention(labels, scores, scores, patients, n_resamples=10, seed=0) is None


def test_a_classifier_retains_all_of_itself():
    labels, scores, patients = cohort(50, 2, seed=5)
    assert retention(labels, scores, scores, patients, n_resamples=50, seed=0)[:3] == (1.0, 1.0, 1.0)


def test_paired_resamples_make_retention_sharper_than_either_auroc():
    labels, scores, patients = cohort(200, 1, seed=6)
    blurred = scores + 0.3 * np.random.default_rng(0).normal(size=scores.shape)
    ratio = retention(labels, blurred, scores, patients, n_resamples=300, seed=0)
    macro = bootstrap_auroc(labels, scores, patients, FINDINGS, n_resamples=300, seed=0)["macro"]
    assert ratio.value == pytest.approx(macro_auroc(labels, blurred) / macro_auroc(labels, scores))
    assert ratio.high - ratio.low < (macro.high - macro.low) / macro.value


def test_a_student_that_guesses_retains_nothing_above_chance():
    labels, scores, patients = cohort(200, 1, seed=7)
    guesses = np.random.default_rng(0).normal(size=scores.shape)
    plain, above = (
        retention(labels, guesses, scores, patients, n_resamples=300, seed=0, above_chance=above)
        for above in (False, True)
    )
    assert plain.value > 0.5
    assert above.low < 0 < above.high
    macros = macro_auroc(labels, guesses), macro_auroc(labels, scores)
    assert above.value == pytest.approx((macros[0] - 0.5) / (macros[1] - 0.5))
    assert above.n == 200


def test_a_classifier_retains_all_of_itself_above_chance_too():
    labels, scores, patients = cohort(50, 2, seed=5)
    all_of_it = retention(labels, scores, scores, patients, n_resamples=50, seed=0, above_chance=True)
    assert all_of_it[:3] == (1.0, 1.0, 1.0)


def test_retention_of_a_reference_at_chance_is_not_measured():
    labels, scores, patients = cohort(60, 1, seed=8)
    guesses = np.random.default_rng(1).normal(size=scores.shape)
    ratio = retention(labels, scores, guesses, patients, n_resamples=200, seed=0, above_chance=True)
    assert np.isnan(ratio[:3]).all() and ratio.n == 0
    assert set(ratio.as_dict().values()) == {None, 0}
