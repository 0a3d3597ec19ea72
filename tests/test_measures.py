"""From scores to metrics: every figure of hand-made tables worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import config, measures
from pipeline.estimate import Estimate
from pipeline.measures import Metrics, Risk
from pipeline.privacy import risk
from pipeline.privacy.risk import control_threshold
from pipeline.privacy.rules import none_shown
from pipeline.records import Records, Synthetic
from pipeline.utility import classifier

NEAREST = "a00"


def scored(
    reid: Sequence[float], audit: Sequence[float], nearest: Sequence[str] | None = None, **more: Any
) -> pa.Table:
    """A table of scores; both columns as wide as on disk."""
    columns = {
        "row_id": [f"s{i:04d}" for i in range(len(reid))],
        "reid_score": pa.array(reid, pa.float32()),
        "nearest_row_id": nearest or [NEAREST] * len(reid),
        "audit_score": pa.array(audit, pa.float32()),
        "decoy_score": pa.array(reid, pa.float32()),
        "pixel_copy": pa.array([False] * len(audit)),
    }
    return pa.table(columns | more)


# Patient -> images: one of each band of `measures.SIZES`
SIZES = {"a": 1, "b": 3, "c": 4, "d": 13, "e": 30}
TRAIN = [(f"{patient}{i:02d}", patient) for patient, n in SIZES.items() for i in range(n)]


def scores(**changes: Any) -> Risk:
    """Control thresholds at percentile 75: 0.4 by the filter's network, 0.8 by the auditor."""
    given = {
        "control": scored([0.5, 0.1, 0.4, 0.2, 0.3], [0.2, 0.4, 0.6, 0.8, 1.0]),
        "control_patients": np.arange(5),
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
                "kind": ["blur", "blur", "blur", "noise", "near_duplicate", "near_duplicate"],
                "factor": [1.0, 1.0, 0.5, 1.0, 1.0, 1.0],
                "patient": [0, 1, 0, 0, 0, 1],
                "filter_network": pa.array([0.9, 0.2, 0.9, 0.6, 0.7, 0.1], pa.float32()),
                "auditor": pa.array([0.8, 0.8, 0.1, 0.7, 0.9, 0.9], pa.float32()),
            }
        ),
        "planted": scored(
            [0.9, 0.3, 0.4], [0.8, 0.9, 0.1], row_id=["planted-exact-000", "planted-exact-001", "planted-near-000"]
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
        "k": 1,
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
        ("control/decoy_ratio", 2 / 4, 4),  # as alike to decoys as to training patients
        ("teacher/decoy_ratio", 4 / 6, 6),
        ("teacher/reid_ratio_images_1", 1, 1),
        ("teacher/reid_ratio_images_2-3", 1 / 2, 2),
        ("teacher/reid_ratio_images_4-12", 1, 1),
        ("teacher/reid_ratio_images_13-29", 0, 1),
        ("teacher/reid_ratio_images_30+", 1, 1),
        ("student_private_prompts/reid_ratio_images_1", 1, 1),
        ("student_private_prompts/reid_ratio_images_30+", 0, 1),
        ("control/reid_ratio_finding_edema", 1 / 2, 2),
        ("control/reid_ratio_finding_none", 0 / 1, 1),  # not the one of which a label is unknown
        ("teacher/reid_ratio_finding_edema", 2 / 3, 3),
        ("teacher/reid_ratio_finding_mass", 2 / 3, 3),
        ("teacher/reid_ratio_finding_none", 1, 1),
        ("student/reid_ratio_finding_mass", 1, 1),
        ("filter_network/recall_near_duplicate_x1", 1 / 2, 2),
        ("filter_network/recall_blur_x1", 1 / 2, 2),
        ("filter_network/recall_blur_x0.5", 1, 1),
        ("filter_network/recall_noise_x1", 1, 1),
        ("auditor/recall_near_duplicate_x1", 2 / 2, 2),
        ("auditor/recall_blur_x1", 2 / 2, 2),
        ("auditor/recall_blur_x0.5", 0, 1),
        ("auditor/recall_noise_x1", 0, 1),
        ("filter_network/planted_exact", 1 / 2, 2),
        ("filter_network/planted_near", 1, 1),
        ("auditor/planted_exact", 2 / 2, 2),
        ("auditor/planted_near", 0, 1),
    ],
)
def test_a_privacy_metric_is_the_share_worked_out_by_hand(found: Metrics, key: str, share: float, n: int) -> None:
    estimate = found[f"privacy/{key}"]
    assert (estimate.value, estimate.n) == (pytest.approx(share), n)
    assert estimate.low <= estimate.value <= estimate.high


def test_images_of_one_unseen_patient_do_not_count_as_independent(found: Metrics) -> None:
    control, test = np.array([0.5, 0.1, 0.4, 0.2, 0.3], np.float32), np.array([0.4, 0.39, 0.9, 0.1], np.float32)
    patients = np.array([0, 0, 1, 2])
    of_patients = risk.ratio_over_control(test, control, 75.0, clusters=patients, control_clusters=np.arange(5))
    assert found["privacy/control/reid_ratio"] == of_patients
    films = scores(control_patients=np.array([0, 0, 0, 1, 1]))
    fewer_people = measures.privacy(films, filter_threshold=0.5)["privacy/teacher/reid_ratio"]
    assert fewer_people.low <= found["privacy/teacher/reid_ratio"].low


def test_a_ratio_carries_the_error_of_the_threshold_that_it_counts_from() -> None:
    rng = np.random.default_rng(0)
    many = [scored(*rng.random((2, n)).tolist()) for n in (60, 1000)]
    given = scores(control=many[0], control_patients=np.arange(60), student=many[1], percentile=90.0)
    given = given._replace(shown={**given.shown, "student": np.zeros((1000, 2), np.int8)})
    ratio = measures.privacy(given, None)["privacy/student/reid_ratio"]
    as_drawn = risk.wilson(round(ratio.value * 1000), 1000)
    assert ratio.high - ratio.low > 3 * (as_drawn.high - as_drawn.low)


def test_the_surest_matches_are_those_that_one_in_a_hundred_strangers_reaches() -> None:
    # Percentile 99 of control is 1.0 by the auditor, 75 is 0.8: only half of what is flagged there is surely a match.
    kept = scored([0.1] * 4, [1.0, 0.9, 0.1, 0.1])
    found = measures.privacy(scores(kept=kept), None)
    assert found["privacy/filtered/audit_excess"].value == pytest.approx(2 / 4 - 1 / 4)
    assert found["privacy/filtered/audit_excess_strict"].value == pytest.approx(1 / 4 - 0)
    assert found["privacy/student/audit_excess_strict"].value == pytest.approx(0)


def test_an_image_without_a_score_counts_as_flagged_as_nobody_cleared_it(found: Metrics) -> None:
    student = scored([np.nan, 0.1, 0.1, 0.1, 0.8], [np.nan, 0.1, 0.1, 0.8, 0.8])
    unscored = measures.privacy(scores(student=student), None)
    assert unscored["privacy/student/reid_ratio"].value == pytest.approx(2 / 5)
    assert unscored["privacy/student/audit_ratio"].value == pytest.approx(3 / 5)
    assert unscored["privacy/student/audit_excess"].value > found["privacy/student/audit_excess"].value


def test_a_changed_or_planted_copy_without_a_score_was_not_found() -> None:
    changed = scores().changed.set_column(3, "filter_network", pa.array([np.nan] * 6, pa.float32()))
    planted = scored([np.nan] * 2, [0.9] * 2, row_id=["planted-exact-000", "planted-near-000"])
    found = measures.privacy(scores(changed=changed, planted=planted), filter_threshold=0.5)
    assert found["privacy/filter_network/recall_blur_x1"].value == 0
    assert found["privacy/filter_network/planted_exact"].value == 0


def test_a_control_image_without_a_score_is_an_error_as_its_percentile_would_flag_nothing() -> None:
    control = scored([0.5, np.nan, 0.4, 0.2, 0.3], [0.2, 0.4, 0.6, 0.8, 1.0])
    with pytest.raises(ValueError, match="want numbers, got 1 missing of 5"):
        measures.privacy(scores(control=control), None)
    with pytest.raises(ValueError, match="got 0 missing of 0"):
        control_threshold(np.array([]), 95.0)


def test_a_figure_about_fewer_than_k_patients_is_not_told_by_number_of_images() -> None:
    # Each band holds one patient.
    found = measures.privacy(scores(k=2), None)
    assert not [key for key in found if "ratio_images" in key]


def test_the_band_of_few_patients_cannot_be_had_by_subtraction() -> None:
    bands = {"a": 1, "b": 1, "c": 1, "d": 3, "e": 3, "f": 3, "heavy": 30}
    names = [f"{patient}{i:02d}" for patient, n in bands.items() for i in range(n)]
    train = pa.table({"row_id": names, "patient_id": [name[:-1].rstrip("0123456789") for name in names]})
    assert set(train["patient_id"].to_pylist()) == set(bands)
    teacher = scored([0.1] * len(names), [0.1] * len(names), prompt_row_id=names, nearest=names)
    private = scored([0.1], [0.1], prompt_row_id=names[:1])
    shown = {"control": np.zeros((4, 2)), "teacher": np.zeros((len(names), 2)), "student": np.zeros((5, 2))}
    given = scores(teacher=teacher, train=train, student_private=private, shown=shown, k=2)
    found = measures.privacy(given, None)
    told = {key for key in found if key.startswith("privacy/teacher/reid_ratio_images")}
    assert len(told) == 1  # neither the one of 30 films, nor a band without which it could be told


def test_the_control_threshold_is_a_score_that_occurs_and_rounded_up() -> None:
    control = np.array([0.5, 0.1, 0.4, 0.2, 0.3])
    assert [control_threshold(control, p).value for p in (50.0, 75.0, 76.0, 95.0)] == [0.3, 0.4, 0.5, 0.5]


def test_the_ratio_does_not_depend_on_the_rule_of_the_filter(found: Metrics) -> None:
    other = measures.privacy(scores(), filter_threshold=None)
    kinds = ("near_duplicate_x1", "blur_x1", "blur_x0.5", "noise_x1")
    recalls = {f"privacy/filter_network/recall_{kind}" for kind in kinds}
    assert {key for key in found if other[key] != found[key]} == recalls
    assert {other[key].value for key in recalls} == {0}  # without a threshold nothing is caught


def test_the_recall_counts_a_copy_at_the_threshold_as_caught() -> None:
    at_and_under = pa.array([0.5, 0.49], pa.float32())
    columns = {"kind": ["blur"] * 2, "factor": [1.0] * 2, "patient": [0, 1]}
    changed = pa.table(columns | {"filter_network": at_and_under, "auditor": at_and_under})
    found = measures.privacy(scores(changed=changed), filter_threshold=0.5)
    assert found["privacy/filter_network/recall_blur_x1"].value == 1 / 2


def test_the_learned_rate_is_of_as_many_images_of_each_subject(found: Metrics) -> None:
    n_train = len({patient for _, patient in TRAIN})
    # Four test images are the fewest: of the teacher's six neighbours, all of one patient, four count.
    assert found["privacy/teacher/learned_rate"].value == pytest.approx(1 / n_train)
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
    unseen = scored([0.1] * 100, [0.1] * 100, nearest=["000"] * 100)
    train = pa.table({"row_id": names, "patient_id": names})
    private = scored([0.1], [0.1], prompt_row_id=["000"])
    others: dict[str, Any] = dict.fromkeys(("test", "student", "kept"), unseen)
    others["shown"] = {name: np.zeros((n, 2)) for name, n in (("control", 100), ("teacher", 1000), ("student", 100))}
    given = scores(teacher=teacher, train=train, student_private=private, test_patients=np.arange(100), **others)
    found = measures.privacy(given, None)
    # 100 of 1000 samples drawn evenly meet 1 - 0.9^10 = 65 % of the rows; the first 100 meet 10 %.
    assert found["privacy/teacher/learned_rate"].value == pytest.approx(0.65, abs=0.12)


def people(members: Sequence[float], strangers: Sequence[float], control: Sequence[float], *columns: str) -> pa.Table:
    """A table of `probes`: the lower a score, the more like a member."""
    parts = {"member": members, "stranger": strangers, "control": control}
    names = [part for part, values in parts.items() for _ in values]
    values = [value for part in parts.values() for value in part]
    return pa.table({"part": names, "stratum": [0] * len(names)} | dict.fromkeys(columns, values))


def test_membership_is_the_chance_that_a_members_loss_is_lower_with_strangers_against_each_other_beside() -> None:
    low, high = np.linspace(0.1, 0.2, 60).tolist(), np.linspace(0.3, 0.4, 60).tolist()
    mixed = np.linspace(0.1, 0.4, 60).tolist()
    attacks = {
        "membership_teacher": people(low, high, high, "loss"),  # every member is found
        "membership_student": people(mixed, mixed, mixed, "loss"),  # nobody is
        # the control patients are decoys
        "gaps": people(low, high, low, "filter_network", "auditor", "distance", "student_distance"),
    }
    found = measures.membership(attacks, b"s" * 32)
    value = {key.removeprefix("privacy/"): estimate.value for key, estimate in found.items()}
    assert value["teacher/membership_auc"] == 1 and value["teacher/membership_tpr"] == 1
    assert value["teacher/membership_null_auc"] == value["student/membership_auc"] == pytest.approx(0.5)
    assert found["privacy/student/membership_auc"].low == 0.5
    for attack in ("filtered/gap", "filtered/gap_audit", "filtered/nearness", "student/nearness"):
        assert value[f"{attack}_auc"] == value[f"{attack}_control_auc"] == 1
        assert value[f"{attack}_among_control_auc"] == pytest.approx(0.5)
    assert all(map(measures.is_membership, found)) and not measures.is_membership("privacy/control/reid_ratio")
    assert found["privacy/teacher/membership_auc"].n == 120


def test_an_attack_that_reads_its_score_the_wrong_way_round_is_as_good() -> None:
    low, high = np.linspace(0.1, 0.2, 60).tolist(), np.linspace(0.3, 0.4, 60).tolist()
    backwards = people(high, low, low, "loss", "filter_network", "auditor")
    attacks = dict.fromkeys(("membership_teacher", "membership_student", "gaps"), backwards)
    found = measures.membership(attacks, 0)
    assert found["privacy/student/membership_auc"].value == found["privacy/filtered/gap_auc"].value == 1
    assert found["privacy/student/membership_tpr"].value == found["privacy/filtered/gap_tpr"].value == 1


def test_members_with_many_films_are_told_apart_for_themselves() -> None:
    few, many = np.linspace(0.1, 0.4, 200), np.linspace(0.1, 0.2, 20)
    strangers = np.linspace(0.1, 0.4, 300)
    columns = dict.fromkeys(
        ("loss", "distance", "student_distance"), np.concatenate([few, many, strangers, strangers])
    )
    parts = ["member"] * 220 + ["stranger"] * 300 + ["control"] * 300
    table = pa.table({"part": parts, "stratum": [0] * 200 + [2] * 20 + [0, 0, 2] * 200} | columns)
    attacks = dict.fromkeys(("membership_teacher", "membership_student", "gaps"), table)
    found = measures.membership(attacks, 0)
    for name in ("student/membership", "filtered/nearness", "student/nearness"):
        assert found[f"privacy/{name}_auc"].value < 0.56 < 0.75 < found[f"privacy/{name}_many_auc"].value
    assert "privacy/filtered/gap_many_auc" not in found
    of_nine = table.filter(pa.array([*[True] * 209, *[False] * 11, *[True] * 600]))
    too_few = measures.membership(dict.fromkeys(attacks, of_nine), 0)
    assert too_few["privacy/student/nearness_many_auc"].n == 0
    nobody = measures.membership(
        dict.fromkeys(attacks, table.filter(pa.array([*[True] * 200, *[False] * 20, *[True] * 600]))), 0
    )
    assert "privacy/student/nearness_many_auc" not in nobody


def test_the_positive_control_is_read_as_the_attack_reads_it() -> None:
    low, high = np.linspace(0.1, 0.2, 60).tolist(), np.linspace(0.3, 0.4, 60).tolist()
    backwards = people(high, low, low, "loss", "filter_network", "auditor")
    attacks = dict.fromkeys(("membership_teacher", "membership_student", "gaps"), backwards)
    assert measures.membership(attacks, 0)["privacy/teacher/membership_auc"].value == 0


def of_people(labels: Sequence[Sequence[int]], patients: Sequence[int], images: np.ndarray | None = None) -> Records:
    pixels = np.zeros((len(labels), 8, 8, 1), np.uint8) if images is None else images
    return Records(pa.table({"row_id": []}), pixels, np.array(labels, np.int8), np.array(patients))


def test_a_finding_that_fewer_than_k_patients_have_or_are_known_to_lack_is_left_out_by_name() -> None:
    # `edema`: three patients have it, three lack it; `mass`: two have it, in three images; `scar`: one lacks it.
    labels = [[1, 0, 1], [1, 1, 1], [1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0], [0, -1, -1]]
    test = of_people(labels, [0, 1, 1, 2, 3, 4, 5])
    test.labels[3, 0] = 1
    some = Estimate(0.8, 0.7, 0.9, 50)
    names = ["utility/real/auroc_{}", "adherence/student/auroc_{}", "privacy/student/reid_ratio_finding_{}"]
    told = {name.format(finding): some for name in names for finding in ("edema", "mass", "scar")}
    told |= {"utility/real/macro_auroc": some, "privacy/student/reid_ratio_finding_none": some}
    found = measures.without_small_cells(told, test, ["edema", "mass", "scar"], k=3)
    assert set(found) == {
        *(name.format("edema") for name in names),
        "utility/real/macro_auroc",
    }


def test_what_fewer_than_k_patients_show_none_of_is_left_out_too() -> None:
    # Twelve films without a finding, all of one patient.
    test = of_people([[1]] * 6 + [[0]] * 12, [*range(6), *[6] * 12])
    some = Estimate(0.8, 0.7, 0.9, 12)
    told = {"privacy/student/reid_ratio_finding_none": some, "privacy/control/reid_ratio_finding_none": some}
    assert measures.without_small_cells(told, test, ["edema"], k=3) == {}


def test_the_recall_of_the_auditor_knows_that_its_threshold_is_estimated() -> None:
    rng = np.random.default_rng(0)
    control = scored([0.1] * 40, rng.uniform(size=40).tolist())
    copies = rng.uniform(0.5, 1, 400)
    columns = {"kind": ["blur"] * 400, "factor": [1.0] * 400, "patient": list(range(400))}
    changed = pa.table(columns | {"filter_network": copies, "auditor": copies})
    given = scores(control=control, control_patients=np.arange(40), changed=changed)
    found = measures.privacy(given, filter_threshold=0.75)
    width = {name: found[f"privacy/{name}/recall_blur_x1"] for name in ("filter_network", "auditor")}
    assert width["auditor"].high - width["auditor"].low > 2 * (
        width["filter_network"].high - width["filter_network"].low
    )


def test_a_rare_finding_can_be_had_neither_from_a_mean_nor_from_those_who_show_none() -> None:
    labels = np.array([[1, 1], [1, 1], [0, 0], [0, 0], [1, 0], [0, 0]], np.int8)
    told = measures.without_rare(of_people(labels, list(range(6))), k=3)
    assert told.labels[:, 0].tolist() == labels[:, 0].tolist() and set(told.labels[:, 1].tolist()) == {-1}
    assert not none_shown(told.labels).any()


def test_a_figure_of_fewer_than_k_is_left_out_and_one_that_was_not_measured_stays() -> None:
    told = {f"privacy/a/{n}": Estimate(0.5, 0.4, 0.6, n) for n in (0, 4, 5)}
    assert set(measures.without_small_cells(told, of_people([[1]], [0]), ["x"], k=5)) == {
        "privacy/a/0",
        "privacy/a/5",
    }


@pytest.fixture(scope="module")
def films() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (120, 8, 8, 1), np.uint8)


def made(images: np.ndarray, labels: np.ndarray | None = None) -> Synthetic:
    labels = np.zeros((len(images), 1), np.int8) if labels is None else labels
    return Synthetic(pa.table({"prompt": [f"prompt {i % 40}" for i in range(len(images))]}), images, labels)


def test_likeness_is_told_as_a_share_of_what_as_many_other_real_images_reach(films: np.ndarray) -> None:
    test, control = (of_people([[0]] * 40, range(40), films[part]) for part in (slice(0, 40), slice(40, 80)))
    synthetic = {"student": made(films[80:]), "teacher": made(np.repeat(films[80:81], 40, 0))}

    def features(pixels: np.ndarray) -> np.ndarray:
        return pixels.reshape(len(pixels), -1)[:, :4].astype(np.float64)

    section = config.Evaluate(ssim_prompts=2, neighbours=3)
    found = measures.fidelity(features, test, control, synthetic, section, b"s" * 32)
    assert found["fidelity/control/coverage_relative"].value == pytest.approx(1)
    share = found["fidelity/student/coverage"].value / found["fidelity/control/coverage"].value
    assert found["fidelity/student/coverage_relative"].value == pytest.approx(share)
    assert found["fidelity/teacher/coverage_relative"].value < 0.3  # one image over and over
    assert {found[f"fidelity/{subject}/fid"].n for subject in ("control", "student", "teacher")} == {40}


def test_adherence_is_read_by_the_judge_that_is_given(films: np.ndarray) -> None:
    labels = (np.arange(120) % 2)[:, None].astype(np.int8)
    bright = np.where(labels[:, None, None] == 1, 160, 0).astype(np.uint8) + films.repeat(4, 1).repeat(4, 2) // 4
    settings = config.Classifier(steps=40, batch_size=32, width=4, lr=5e-3)
    judge, opposite = (classifier.fit(settings, bright, each, seed=0) for each in (labels, 1 - labels))
    section = config.Evaluate(bootstrap=50)
    found, turned = (
        measures.adherence(each, {"student": made(bright, labels)}, ["edema"], section, 0)
        for each in (judge, opposite)
    )
    assert found["adherence/student/auroc_edema"].value > 0.95
    assert turned["adherence/student/auroc_edema"].value < 0.05


def test_a_students_near_copies_are_judged_against_what_strangers_give() -> None:
    student = scored([0.1] * 5, [0.1] * 5, pixel_copy=[True, True, False, False, False])
    private = scored([0.1], [0.1], prompt_row_id=["a00"])
    found = measures.privacy(scores(student=student, student_private=private), filter_threshold=0.5)
    assert found["privacy/student/near_copies"].value == 2 / 6
    assert found["privacy/control/near_copies"].n == 9
    assert found["privacy/student/near_copies_excess"].value == 2 / 6
