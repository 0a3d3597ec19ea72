"""The five filter rules: hand-worked thresholds, the promises they make, and what they refuse."""

from __future__ import annotations

import re
from collections.abc import Collection

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from pipeline import seeds
from pipeline.config import ConfigError, FdrRule, Filter, FixedRule, PercentileRule, RecallRule
from pipeline.privacy.rules import Decision, filter_table, none_shown, one_a_patient, threshold, within_cap
from pipeline.tables import FILTERED, SCORES, SchemaError

NONE = np.array([])
SAME = np.array([0.9])
CONTROL = np.arange(1, 21) / 20  # 0.05, 0.10 ... 1.00


def scores(*values: float | None, copies: Collection[int] = ()) -> pa.Table:
    """A table of scores; `copies` are the positions of pixel copies."""
    n = len(values)
    columns = {
        "row_id": [f"s{i}" for i in range(n)],
        "reid_score": values,
        "nearest_row_id": ["r"] * n,
        "margin": [0.0] * n,
        "decoy_score": [0.0] * n,
        "lean": [[0.0]] * n,
        "pixel_copy": [i in copies for i in range(n)],
    }
    return pa.table(columns, schema=SCORES)


def percentile(value: float) -> Filter:
    return Filter(rule="percentile", percentile=PercentileRule(percentile=value))


def recall(value: float, confidence: float = 0.95) -> Filter:
    return Filter(rule="recall", recall=RecallRule(recall=value, confidence=confidence))


def fdr(q: float) -> Filter:
    return Filter(rule="fdr", fdr=FdrRule(q=q))


def filtered_by(table: pa.Table, rule: Filter, **calibration: np.ndarray) -> tuple[pa.Table, Decision]:
    """The filtered table of images that show nothing."""
    return filter_table(table, rule, shown=np.zeros((len(table), 1), np.int8), **calibration)


def test_every_row_comes_back_in_order_with_its_reason() -> None:
    rule = Filter(rule="fixed", fixed=FixedRule(threshold=0.5))
    filtered, _ = filtered_by(scores(0.2, 0.5, None, float("nan"), 0.9), rule, control=CONTROL, same_patient=SAME)
    assert filtered.schema.equals(FILTERED)
    assert filtered["row_id"].to_pylist() == ["s0", "s1", "s2", "s3", "s4"]
    assert filtered["keep"].to_pylist() == [True, False, False, False, False]
    over = "over the threshold"
    assert filtered["reason"].to_pylist() == ["kept", over, "no score", "no score", over]


@pytest.mark.parametrize("rule", [Filter(rule="fixed"), percentile(80), recall(0.9), fdr(0.1)], ids=lambda r: r.rule)
def test_a_pixel_copy_is_dropped_by_every_rule_however_low_it_scores(rule: Filter) -> None:
    table = scores(0.0, 0.0, 1.0, None, copies=(1, 2, 3))
    filtered, _ = filtered_by(table, rule, control=CONTROL / 2, same_patient=np.full(99, 0.9))
    over = "over the threshold"
    assert filtered["reason"].to_pylist()[:2] == ["kept", "copy of a real image"]
    assert filtered["reason"].to_pylist()[2] in (over, "copy of a real image")
    assert filtered["keep"].to_pylist() == [True, False, False, False]


def test_with_decoys_what_leans_most_to_training_patients_is_dropped_until_the_rest_leans_to_nobody() -> None:
    leans = [[0.3], [-0.2], [0.1], [-0.1], [0.25]]
    table = scores(*[0.0] * 4, 1.0)
    table = table.set_column(table.schema.get_field_index("lean"), "lean", pa.array(leans, pa.list_(pa.float32())))
    filtered, decision = filtered_by(table, percentile(80), control=CONTROL, same_patient=SAME, decoys=True)
    reasons = ["nearer to training patients than to decoys", "kept", "kept", "kept", "over the threshold"]
    assert filtered["reason"].to_pylist() == reasons
    assert "in the mean no nearer to them than to the unseen ones" in decision.guarantee
    without, _ = filtered_by(table, percentile(80), control=CONTROL, same_patient=SAME)
    assert without["keep"].to_pylist() == [True] * 4 + [False]


def test_the_balance_holds_for_what_is_left_by_a_cap() -> None:
    table = scores(0.0, 0.1, 0.2, 0.3)
    leans = pa.array([[0.3], [0.2], [-0.3], [-0.3]], pa.list_(pa.float32()))
    table = table.set_column(table.schema.get_field_index("lean"), "lean", leans)
    rule = Filter(rule="fixed", fixed=FixedRule(threshold=0.5), max_per_class=3)
    told = {"control": NONE, "same_patient": NONE, "shown": np.ones((4, 1), np.int8), "decoys": True}
    filtered, _ = filter_table(table, rule, **told)
    kept = filtered["keep"].to_numpy(zero_copy_only=False)
    assert kept.tolist() == [False, True, True, False]


def test_what_leans_to_patients_with_many_films_alone_is_dropped_too_and_an_image_without_scores_stays_out() -> None:
    table = scores(*[0.0] * 4, np.nan)
    leans = pa.array([[-0.1, 0.4], [0.0, -0.1], [0.1, -0.1], [-0.1, 0.1], None], pa.list_(pa.float32()))
    table = table.set_column(table.schema.get_field_index("lean"), "lean", leans)
    filtered, _ = filtered_by(table, percentile(80), control=CONTROL, same_patient=SAME, decoys=True)
    assert filtered["keep"].to_pylist() == [False, True, True, True, False]


def test_without_measured_leans_nothing_is_dropped_or_promised_for_them() -> None:
    table = scores(0.0, 0.1)
    table = table.set_column(
        table.schema.get_field_index("lean"), "lean", pa.array([[np.nan]] * 2, pa.list_(pa.float32()))
    )
    filtered, decision = filtered_by(table, percentile(80), control=CONTROL, same_patient=SAME, decoys=True)
    assert filtered["keep"].to_pylist() == [True, True] and "in the mean" not in decision.guarantee


def test_a_pixel_copy_is_kept_without_a_rule() -> None:
    filtered, _ = filtered_by(scores(0.0, copies=(0,)), Filter(rule="none"), control=NONE, same_patient=NONE)
    assert filtered["reason"].to_pylist() == ["kept"]


def test_a_pixel_copy_does_not_move_the_threshold() -> None:
    values = [0.1, 0.5, 0.9, 0.95]
    for rule in (percentile(80), fdr(0.2)):
        plain, copied = (
            filtered_by(scores(*values, copies=copies), rule, control=CONTROL, same_patient=SAME)[1]
            for copies in ((), (0, 3))
        )
        assert plain == copied


def test_an_empty_set_is_filtered_to_an_empty_set() -> None:
    for rule in (percentile(80), fdr(0.1), Filter(rule="none")):
        filtered, _ = filtered_by(scores(), rule, control=CONTROL, same_patient=SAME)
        assert filtered.num_rows == 0 and filtered.schema.equals(FILTERED)


def test_the_rule_none_drops_only_what_has_no_score() -> None:
    filtered, decision = filtered_by(scores(1.0, None), Filter(rule="none"), control=NONE, same_patient=NONE)
    assert filtered["keep"].to_pylist() == [True, False]
    assert decision.threshold is None and "guarantees nothing" in decision.guarantee


def test_a_table_without_scores_is_refused() -> None:
    with pytest.raises(SchemaError, match="reid_score"):
        filtered_by(scores(0.1).drop(["reid_score"]), percentile(80), control=CONTROL, same_patient=SAME)


# Rank of the percentile p among 20 scores, 'higher': ceil(p / 100 x 19) + 1.
@pytest.mark.parametrize(("p", "limit"), [(0, 0.05), (50, 0.55), (80, 0.85), (95, 1.0), (100, 1.0)])
def test_a_percentile_is_rounded_up_to_a_control_score(p: float, limit: float) -> None:
    decision = threshold(percentile(p), NONE, control=CONTROL, same_patient=SAME)
    assert decision.threshold == pytest.approx(limit)
    assert decision.n == 20


def test_the_percentile_rule_states_how_often_strangers_are_dropped() -> None:
    random = seeds.numpy_generator(0, "strangers")
    held = 0
    for _ in range(300):
        decision = threshold(percentile(80), NONE, control=random.random(200), same_patient=NONE)
        # Control scores are uniform here, so that the chance of being dropped is 1 - threshold.
        low, high = (float(share) / 100 for share in re.findall(r"between (\S+)% and (\S+)%", decision.guarantee)[0])
        assert decision.threshold is not None
        held += low <= 1 - decision.threshold <= high
    assert 0.92 <= held / 300 <= 0.98


# Fewest misses allowed: the largest k with P(Bin(n, 1 - r) <= k) <= 5 %; 59 and 93 are Wilks' sample sizes for 95/95.
@pytest.mark.parametrize(("n", "rank"), [(59, 1), (92, 1), (93, 2), (124, 3), (153, 4), (181, 5)])
def test_the_recall_rule_takes_wilks_order_statistic(n: int, rank: int) -> None:
    same_patient = seeds.numpy_generator(0, "same", n).permutation(np.arange(1, n + 1)) / n
    decision = threshold(recall(0.95), NONE, control=CONTROL, same_patient=same_patient)
    assert decision.threshold == pytest.approx(rank / n)
    assert decision.n == n


def test_the_recall_rule_keeps_its_word() -> None:
    random = seeds.numpy_generator(0, "recall")
    kept_word = 0
    for _ in range(400):
        decision = threshold(recall(0.9), NONE, control=NONE, same_patient=random.random(100))
        assert decision.threshold is not None
        kept_word += 1 - decision.threshold >= 0.9  # uniform scores: recall is 1 - threshold
    assert kept_word / 400 >= 0.93


def test_too_few_same_patient_scores_say_how_many_are_needed() -> None:
    with pytest.raises(ConfigError, match=r"at least 59 patients with same-patient scores .* got 58"):
        threshold(recall(0.95), NONE, control=CONTROL, same_patient=np.ones(58))


@pytest.mark.parametrize("rule", [recall(1.0), recall(0.9, 1.0)])
def test_certainty_is_refused(rule: Filter) -> None:
    with pytest.raises(ConfigError, match="infinitely many"):
        threshold(rule, NONE, control=CONTROL, same_patient=np.ones(1000))


def test_benjamini_hochberg_worked_by_hand() -> None:
    control = np.arange(1, 100) / 100  # 0.01 ... 0.99, so p = (1 + #{control >= s}) / 100
    # s:       0.995  0.985  0.965  0.905  0.5
    # p:       0.01   0.02   0.04   0.10   0.51      limits q k/5 at q = 0.1: 0.02 0.04 0.06 0.08 0.10
    values = np.array([0.5, 0.985, 0.905, 0.995, 0.965])
    assert threshold(fdr(0.1), values, control=control, same_patient=SAME).threshold == 0.965
    # A step-up procedure: at q = 0.04 the first alone fails its 0.008, the third fails 0.024, so none is dropped.
    assert threshold(fdr(0.04), values, control=control, same_patient=SAME).threshold is None


@settings(max_examples=50)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.lists(st.integers(0, 30), min_size=1, max_size=60))
def test_the_fdr_rule_agrees_with_scipy(synthetic: list[int], control: list[int]) -> None:
    values, unseen = np.array(synthetic) / 30, np.array(control) / 30
    decision = threshold(fdr(0.2), values, control=unseen, same_patient=NONE)
    p_values = [(1 + sum(unseen >= value)) / (1 + len(unseen)) for value in values]
    discovered = false_discovery_control(p_values) <= 0.2 + 1e-12
    dropped = values >= decision.threshold if decision.threshold is not None else np.zeros(len(values), bool)
    assert dropped.tolist() == discovered.tolist()


def test_few_of_the_images_dropped_by_fdr_score_like_strangers() -> None:
    random = seeds.numpy_generator(0, "fdr")
    shares = []
    for _ in range(200):
        strangers, copies = random.normal(0, 1, 180), random.normal(4, 1, 20)
        decision = threshold(
            fdr(0.2), np.concatenate([strangers, copies]), control=random.normal(0, 1, 1000), same_patient=NONE
        )
        limit = np.inf if decision.threshold is None else decision.threshold
        n_wrong, n_right = int((strangers >= limit).sum()), int((copies >= limit).sum())
        shares.append(n_wrong / max(1, n_wrong + n_right))
    # BH holds q times the share of strangers, 0.2 x 0.9.
    assert np.mean(shares) == pytest.approx(0.18, abs=0.025)


@given(
    st.lists(st.floats(0, 1, width=32), min_size=60, max_size=120),
    st.sampled_from([percentile(80), recall(0.95), fdr(0.05)]),
)
def test_a_riskier_image_is_never_kept_where_a_safer_one_is_dropped(values: list[float], rule: Filter) -> None:
    calibration = np.array(values)
    filtered, _ = filtered_by(scores(*values), rule, control=calibration, same_patient=calibration)
    keep = np.array(filtered["keep"])
    if keep.any() and not keep.all():
        assert calibration[keep].max() < calibration[~keep].min()


@pytest.mark.parametrize("rule", [percentile(80), fdr(0.1)])
def test_rules_that_compare_with_strangers_need_some(rule: Filter) -> None:
    with pytest.raises(ConfigError, match="enlarge split 'control'"):
        threshold(rule, SAME, control=NONE, same_patient=SAME)


@pytest.mark.parametrize("name", ["control", "same_patient"])
def test_a_missing_calibration_score_is_refused_and_keeps_nothing(name: str) -> None:
    calibration = {"control": CONTROL, "same_patient": SAME} | {name: np.array([0.1, np.nan])}
    with pytest.raises(ConfigError, match="got 1 NaN"):
        threshold(percentile(80), NONE, **calibration)


def test_every_guarantee_tells_what_it_flags_on_both_groups() -> None:
    decision = threshold(percentile(80), NONE, control=CONTROL, same_patient=np.array([0.9, 0.2]))
    assert "Flags 20.0% of the control images of 20 patients" in decision.guarantee
    assert "50.0% of the same-patient images" in decision.guarantee
    assert "misses" in decision.guarantee


def test_a_finding_keeps_no_more_images_than_its_cap_and_the_safest_of_them() -> None:
    rule = Filter(rule="fixed", fixed=FixedRule(threshold=0.5), max_per_class=1)
    shown = np.array([[1, 0], [1, 0], [0, 1], [1, 1], [0, 0], [0, 0], [1, 0], [0, -1]], np.int8)
    table = scores(0.3, 0.1, 0.4, 0.2, 0.2, 0.1, 0.9, 0.45)
    filtered, _ = filter_table(table, rule, control=CONTROL, same_patient=SAME, shown=shown)
    # 0.2 shows a finding that is full, so it goes and leaves the other one's room to 0.4; 0.45 is in no class.
    surplus, over = "more than wanted of its findings", "over the threshold"
    assert filtered["reason"].to_pylist() == [surplus, "kept", "kept", surplus, surplus, "kept", over, "kept"]


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(-1, 1), st.integers(-1, 1)), max_size=30), st.integers(1, 5))
def test_a_cap_is_never_exceeded_and_drops_only_what_has_a_full_finding(
    rows: list[tuple[float, int, int]], most: int
) -> None:
    values = np.array([row[0] for row in rows])
    shown = np.array([row[1:] for row in rows], np.int8).reshape(-1, 2)
    stays = within_cap(values, shown, most)
    classes = np.column_stack([shown == 1, none_shown(shown)])
    assert (classes[stays].sum(0) <= most).all()
    full = classes[stays].sum(0) == most
    assert (classes[~stays] & full).any(1).all()


def test_only_labels_that_are_all_absent_show_none() -> None:
    labels = np.array([[0, 0], [0, -1], [-1, -1], [0, 1], [-1, 1]], np.int8)
    assert none_shown(labels).tolist() == [True, False, False, False, False]
    assert none_shown(np.zeros((3, 0), np.int8)).tolist() == [False] * 3


def test_one_image_a_patient_is_drawn_evenly_whatever_the_order_of_rows() -> None:
    values, patients = np.array([0.1, 0.2, 0.3, 0.9]), np.array(["b", "b", "b", "a"])
    drawn = np.array([one_a_patient(values, patients, seeds.numpy_generator(i, "lot")) for i in range(900)])
    assert (drawn[:, 0] == 0.9).all()
    # 300 expected of each, standard error 14
    assert np.unique(drawn[:, 1], return_counts=True)[1] == pytest.approx([300] * 3, abs=45)
    order = [2, 3, 0, 1]
    turned = one_a_patient(values[order], patients[order], seeds.numpy_generator(5, "lot"))
    assert turned.tolist() == drawn[5].tolist()


def test_a_patient_counts_once_however_many_images_it_has() -> None:
    # 60 patients: 59 with one image at .5, one with 941 images at .9; at recall .95 one of 60 may not be missed.
    values = np.concatenate([np.full(59, 0.5), np.full(941, 0.9)])
    patients = np.concatenate([np.arange(59), np.full(941, 59)])
    chooser = seeds.numpy_generator(0, "lot")
    decision = threshold(
        recall(0.95), NONE, control=NONE, same_patient=values, same_patients=patients, chooser=chooser
    )
    assert (decision.threshold, decision.n) == (0.5, 60)
    assert threshold(recall(0.9), NONE, control=NONE, same_patient=values).threshold == 0.9
    assert "60 probed ones" in decision.guarantee and "the same-patient images of 60 patients" in decision.guarantee


def test_as_many_of_the_probed_images_are_caught_even_if_they_are_one_patients() -> None:
    values = np.concatenate([np.full(99, 0.9), np.full(101, 0.1)])
    patients = np.concatenate([np.arange(99), np.full(101, 99)])
    chooser = seeds.numpy_generator(0, "lot")
    decision = threshold(
        recall(0.9), NONE, control=NONE, same_patient=values, same_patients=patients, chooser=chooser
    )
    assert decision.threshold == 0.1


def test_several_images_of_a_patient_need_a_chooser() -> None:
    with pytest.raises(ValueError, match="want a chooser"):
        threshold(percentile(80), NONE, control=CONTROL, same_patient=SAME, control_patients=np.arange(20) // 2)


def test_too_few_patients_are_refused_however_many_images_they_have() -> None:
    same, patients = np.ones(580), np.repeat(np.arange(58), 10)
    with pytest.raises(ConfigError, match=r"at least 59 patients .* got 58"):
        threshold(
            recall(0.95),
            NONE,
            control=NONE,
            same_patient=same,
            same_patients=patients,
            chooser=seeds.numpy_generator(0, "lot"),
        )


def heavy_tailed(random: np.random.Generator, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Patient and score of each image of 260 patients: 3 % have half of the images and `shift` higher scores."""
    kind = random.choice(3, 260, p=[0.888, 0.08, 0.032])
    sizes = random.integers(np.array([1, 4, 30])[kind], np.array([4, 13, 101])[kind])
    level = random.normal(0, 0.7, 260) + np.where(kind == 2, shift, 0)
    patients = np.repeat(np.arange(260), sizes)
    return patients, level[patients] + random.normal(0, 0.7, len(patients))


@pytest.mark.parametrize("shift", [-1.5, 0, 1.5])
@pytest.mark.parametrize("wanted", [0.6, 0.9, 0.95])
def test_the_recall_rule_keeps_its_word_by_patient_where_a_few_have_most_images(shift: float, wanted: float) -> None:
    random = seeds.numpy_generator(0, "heavy", shift)
    failed = failed_by_image = 0
    patients, values = heavy_tailed(random, shift)
    of_patient = np.split(values, np.flatnonzero(np.diff(patients)) + 1)
    for _ in range(300):
        drawn = random.integers(0, 260, 260)  # a cohort like this one
        same = np.concatenate([of_patient[i] for i in drawn])
        names = np.repeat(np.arange(260), [len(of_patient[i]) for i in drawn])
        calibration = {"control": NONE, "same_patient": same}
        by_patient = threshold(recall(wanted), NONE, **calibration, same_patients=names, chooser=random).threshold
        by_image = threshold(recall(wanted), NONE, **calibration).threshold
        assert by_patient is not None and by_image is not None
        failed += np.mean([np.mean(images >= by_patient) for images in of_patient]) < wanted
        failed_by_image += np.mean(values >= by_image) < wanted
    assert failed / 300 <= 0.05 + 0.025  # two standard errors of the simulation
    assert failed_by_image / 300 > 0.075


def test_strangers_with_several_images_count_once() -> None:
    random = seeds.numpy_generator(0, "several")
    held = held_by_image = 0
    patients = np.repeat(np.arange(100), 4)
    for _ in range(400):
        control = np.repeat(random.random(100), 4)  # the images of a patient score alike
        for grouping in ({"control_patients": patients, "chooser": random}, {}):
            decision = threshold(percentile(80), NONE, control=control, same_patient=NONE, **grouping)
            found = re.findall(r"between (\S+)% and (\S+)%", decision.guarantee)[0]
            assert decision.threshold is not None
            holds = float(found[0]) / 100 <= 1 - decision.threshold <= float(found[1]) / 100
            held, held_by_image = (held + holds, held_by_image) if grouping else (held, held_by_image + holds)
    assert held / 400 >= 0.92
    assert held_by_image / 400 < 0.8
