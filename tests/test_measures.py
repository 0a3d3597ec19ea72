"""From scores to metrics: every figure of hand-made tables worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import measures
from pipeline.measures import Metrics, Risk, control_threshold
from pipeline.privacy import risk

NEAREST = "r00"


def scored(
    reid: Sequence[float], audit: Sequence[float], nearest: Sequence[str] | None = None, **more: Any
) -> pa.Table:
    """A table of scores; both columns as wide as on disk."""
    columns = {
        "row_id": [f"s{i:04d}" for i in range(len(reid))],
        "reid_score": pa.array(reid, pa.float32()),
        "nearest_row_id": nearest or [NEAREST] * len(reid),
        "audit_score": pa.array(audit, pa.float32()),
    }
    return pa.table(columns | more)


# Patient -> images: one of each band of `measures.SIZES`
SIZES = {"a": 1, "b": 3, "c": 4, "d": 13, "e": 30}
TRAIN = [(f"{patient}{i:02d}", patient) for patient, n in SIZES.items() for i in range(n)]


def scores(**changes: Any) -> Risk:
    """Control thresholds at percentile 75: 0.4 by the filter's network, 0.8 by the auditor."""
    given = {
        "control": scored([0.5, 0.1, 0.4, 0.2, 0.3], [0.2, 0.4, 0.6, 0.8, 1.0]),
        "test": scored([0.4, 0.39, 0.9, 0.1], [0.7, 0.8, 0.1, 0.1]),
        "test_patients": np.array([0, 0, 1, 2]),
        "teacher": scored(
            [0.9, 0.1, 0.4, 0.5, 0.39, 0.9],
            [0.9, 0.9, 0.9, 0.9, 0.9, 0.1],
            nearest=[f"e{i:02d}" for i in range(6)],
            prompt_row_id=["a00", "b00", "b02", "c03", "d00", "e29"],
        ),
        "kept": scored([0.1, 0.39, 0.2, 0.1], [0.9, 0.1, 0.1, 0.1], nearest=["a00", "a00", "b00", "c00"]),
        "student": scored([0.1, 0.1, 0.1, 0.1, 0.8], [0.1, 0.1, 0.1, 0.8, 0.8], nearest=["a00"] * 4 + ["b00"]),
        "student_private": scored([0.4, 0.3], [0.1, 0.1], prompt_row_id=["a00", "e05"]),
        "changed": pa.table(
            {
                "kind": ["blur", "blur", "noise", "near_duplicate", "near_duplicate"],
                "patient": [0, 1, 0, 0, 1],
                "filter_network": pa.array([0.9, 0.2, 0.6, 0.7, 0.1], pa.float32()),
                "auditor": pa.array([0.8, 0.8, 0.7, 0.9, 0.9], pa.float32()),
            }
        ),
        "baseline": {
            "filter_network": np.array([0.4, 0.1, 0.1, 0.1], np.float32),
            "auditor": np.array([0.9, 0.9], np.float32),
        },
        "train": pa.table({"row_id": [r for r, _ in TRAIN], "patient_id": [p for _, p in TRAIN]}),
        "percentile": 75.0,
        "shown": {
            "control": np.array([[1, 0], [1, 1], [-1, 0], [0, 0]], np.int8),
            "teacher": np.array([[1, 0], [1, 0], [0, 1], [0, 0], [0, 1], [1, 1]], np.int8),
            "student": np.array([[1, 0]] * 4 + [[0, 1]], np.int8),
        },
        "findings": ["edema", "mass"],
    }
    return Risk(**(given | changes))


@pytest.fixture(scope="module")
def found() -> Metrics:
    return measures.privacy(scores(), filter_threshold=0.5)


@pytest.mark.parametrize(
    ("key", "share", "n"),
    [
        ("control/reid_ratio", 2 / 4, 4),
        ("control/audit_ratio", 1 / 4, 4),
        ("baseline/reid_ratio", 1 / 4, 4),
        ("baseline/audit_ratio", 2 / 2, 2),
        ("teacher/reid_ratio", 4 / 6, 6),
        ("teacher/audit_ratio", 5 / 6, 6),
        ("filtered/reid_ratio", 0 / 4, 4),
        ("filtered/audit_ratio", 1 / 4, 4),
        ("student/reid_ratio", 1 / 5, 5),
        ("student/audit_ratio", 2 / 5, 5),
        ("student_private_prompts/reid_ratio", 1 / 2, 2),
        ("student_private_prompts/audit_ratio", 0 / 2, 2),
        ("teacher/excess", 4 / 6 - 2 / 4, 4),
        ("teacher/audit_excess", 5 / 6 - 1 / 4, 4),
        ("student/excess", 1 / 5 - 2 / 4, 4),
        ("student/audit_excess", 2 / 5 - 1 / 4, 4),
        ("teacher/reid_ratio_images_1", 1, 1),
        ("teacher/reid_ratio_images_2-3", 1 / 2, 2),
        ("teacher/reid_ratio_images_4-12", 1, 1),
        ("teacher/reid_ratio_images_13-29", 0, 1),
        ("teacher/reid_ratio_images_30+", 1, 1),
        ("student_private_prompts/reid_ratio_images_1", 1, 1),
        ("student_private_prompts/reid_ratio_images_30+", 0, 1),
        ("control/reid_ratio_finding_edema", 1 / 2, 2),
        ("control/reid_ratio_finding_none", 1 / 2, 2),
        ("teacher/reid_ratio_finding_edema", 2 / 3, 3),
        ("teacher/reid_ratio_finding_mass", 2 / 3, 3),
        ("teacher/reid_ratio_finding_none", 1, 1),
        ("student/reid_ratio_finding_mass", 1, 1),
        ("filter_network/near_duplicate_recall", 1 / 2, 2),
        ("filter_network/perturbed_recall_blur", 1 / 2, 2),
        ("filter_network/perturbed_recall_noise", 1, 1),
        ("filter_network/perturbed_recall", 2 / 3, 3),
        ("auditor/near_duplicate_recall", 2 / 2, 2),
        ("auditor/perturbed_recall_blur", 2 / 2, 2),
        ("auditor/perturbed_recall_noise", 0, 1),
        ("auditor/perturbed_recall", 2 / 3, 3),
    ],
)
def test_a_privacy_metric_is_the_share_worked_out_by_hand(found: Metrics, key: str, share: float, n: int) -> None:
    estimate = found[f"privacy/{key}"]
    assert (estimate.value, estimate.n) == (pytest.approx(share), n)
    assert estimate.low <= estimate.value <= estimate.high


def test_images_of_one_test_patient_do_not_count_as_independent(found: Metrics) -> None:
    flags = np.array([True, False, True, False])
    assert found["privacy/control/reid_ratio"] == risk.clustered(flags, np.array([0, 0, 1, 2]))


def test_the_control_threshold_is_a_score_that_occurs_and_rounded_up() -> None:
    control = np.array([0.5, 0.1, 0.4, 0.2, 0.3])
    assert [control_threshold(control, p) for p in (50, 75, 76, 95)] == [0.3, 0.4, 0.5, 0.5]


def test_the_ratio_does_not_depend_on_the_rule_of_the_filter(found: Metrics) -> None:
    other = measures.privacy(scores(), filter_threshold=None)
    assert {key for key in found if other[key] != found[key]} == {
        "privacy/filter_network/near_duplicate_recall",
        "privacy/filter_network/perturbed_recall",
        "privacy/filter_network/perturbed_recall_blur",
        "privacy/filter_network/perturbed_recall_noise",
    }
    assert other["privacy/filter_network/perturbed_recall"].value == 0  # without a threshold nothing is caught


def test_the_recall_counts_a_copy_at_the_threshold_as_caught() -> None:
    at_and_under = pa.array([0.5, 0.49], pa.float32())
    columns = {"kind": ["blur"] * 2, "patient": [0, 1], "filter_network": at_and_under, "auditor": at_and_under}
    changed = pa.table(columns)
    found = measures.privacy(scores(changed=changed), filter_threshold=0.5)
    assert found["privacy/filter_network/perturbed_recall_blur"].value == 1 / 2


def test_the_learned_rate_is_of_as_many_images_of_each_subject(found: Metrics) -> None:
    n_train = len(TRAIN)
    # Four test images are the fewest: of the teacher's six neighbours, all different, four count.
    assert found["privacy/teacher/learned_rate"].value == pytest.approx(4 / n_train)
    assert found["privacy/control/learned_rate"].value == pytest.approx(1 / n_train)
    subjects = ("control", "teacher", "filtered", "student")
    assert {found[f"privacy/{subject}/learned_rate"].n for subject in subjects} == {n_train}
    assert found["privacy/teacher/most_frequent_neighbour"][::3] == (1 / 4, 4)
    assert found["privacy/control/most_frequent_neighbour"][::3] == (1, 4)


def test_the_images_that_the_learned_rate_counts_are_not_those_of_the_first_training_rows() -> None:
    # The teacher's samples stand in the order of the records that prompted them, ten of each; a tenth of them counts.
    n_rows, n_samples = 100, 1000
    names = [f"{i:03d}" for i in range(n_rows)]
    teacher = scored(
        [0.1] * n_samples,
        [0.1] * n_samples,
        nearest=[names[i // 10] for i in range(n_samples)],
        prompt_row_id=[names[i // 10] for i in range(n_samples)],
    )
    unseen = scored([0.1] * 100, [0.1] * 100)
    train = pa.table({"row_id": names, "patient_id": names})
    private = scored([0.1], [0.1], prompt_row_id=["000"])
    others: dict[str, Any] = dict.fromkeys(("test", "student", "kept"), unseen)
    others["shown"] = {name: np.zeros((n, 2)) for name, n in (("control", 100), ("teacher", 1000), ("student", 100))}
    given = scores(teacher=teacher, train=train, student_private=private, test_patients=np.arange(100), **others)
    found = measures.privacy(given, None)
    # 100 of 1000 samples drawn evenly meet 1 - 0.9^10 = 65 % of the rows; the first 100 meet 10 %.
    assert found["privacy/teacher/learned_rate"].value == pytest.approx(0.65, abs=0.12)
