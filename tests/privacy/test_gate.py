"""Every condition of the release gate on both sides of its limit, and across it."""

from __future__ import annotations

import math

import pytest

from pipeline import config
from pipeline.estimate import Estimate
from pipeline.privacy.gate import (
    NOTHING,
    Evidence,
    Verdict,
    at_least,
    at_most,
    cleared,
    found_members,
    judge,
    leak_scan,
    member,
    network,
    planted,
    recall,
    shared_by_k,
    size,
)
from pipeline.privacy.risk import wilson

UNSURE = "not enough evidence"
NETWORKS = ("filter's network", "auditor")
EXCESS = Estimate(0.01, -0.01, 0.03, 1500)
LEAKS = Estimate(0.4, 0.37, 0.43, 1500)
GUESSING, TOLD = Estimate(0.52, 0.48, 0.56, 900), Estimate(0.8, 0.77, 0.83, 900)
MANY = "membership by nearness, people with many films"
FEW_PEOPLE = Estimate(0.6, 0.5, 0.7, 80)
GOOD = Evidence(
    excess={"student": EXCESS, "student, private prompts": EXCESS, "kept set": EXCESS},
    strict={name: Estimate(0.0, -0.01, 0.01, 1500) for name in ("student", "kept set")},
    near_copies=Estimate(0.0, -0.001, 0.002, 3000),
    recalls={name: {"shift": wilson(388, 400), "near_duplicate": wilson(390, 400)} for name in NETWORKS},
    planted_exact={name: wilson(100, 100) for name in NETWORKS},
    planted_near={name: wilson(100, 100) for name in NETWORKS},
    membership={"the student's loss": GUESSING, "gaps in the kept set": GUESSING},
    membership_null={"the student's loss": Estimate(0.51, 0.47, 0.55, 900)},
    membership_many={"nearness": Estimate(0.6, 0.5, 0.74, 60)},
    membership_teacher=TOLD,
    coverage=Estimate(0.6, 0.55, 0.65, 1000),
    network_auc={name: Estimate(0.99, 0.985, 0.995, 900) for name in NETWORKS},
    n_unseen={"control size": 1200, "test size": 1200},
    n_below_k=0,
    n_leaks={},
)
CONDITIONS = config.Gate(
    max_excess=0.05, max_excess_strict=0.02, min_recall=0.9, min_coverage=0.3, max_membership=0.65
)


def judged(evidence: Evidence) -> dict[str, Verdict]:
    return {v.name: v for v in judge(evidence, CONDITIONS, auc_floor=0.9, min_unseen=1000)}


def test_a_package_that_meets_every_condition_is_cleared() -> None:
    found = judged(GOOD)
    assert {name for name, v in found.items() if v.verdict != "pass"} == set()
    assert len(found) == 3 + 2 + 1 + 2 + 2 + 2 + 1 + 1 + 1 + 2 + 2 + 1 + 1
    assert cleared(found.values())


@pytest.mark.parametrize(
    ("field", "of", "measured", "condition", "verdict"),
    [
        # The teacher's leak: 40 points over control.
        ("excess", "student", LEAKS, "student over control", "fail"),
        ("excess", "student, private prompts", LEAKS, "student, private prompts over control", "fail"),
        ("excess", "kept set", LEAKS, "kept set over control", "fail"),
        # The upper bound is over 5 %, whatever the estimate; with few images it always is.
        ("excess", "student", Estimate(0.035, 0.02, 0.055, 1500), "student over control", UNSURE),
        ("excess", "student", Estimate(0.0, -0.1, 0.1, 20), "student over control", UNSURE),
        ("excess", "kept set", NOTHING, "kept set over control", UNSURE),
        # Few near copies: no excess at percentile 95, but at 99.
        ("strict", "student", Estimate(0.04, 0.03, 0.05, 1500), "student, surest matches", "fail"),
        ("strict", "kept set", Estimate(0.01, 0.0, 0.03, 1500), "kept set, surest matches", UNSURE),
        # 92 % of 400: over the limit of 90 %, but not for sure.
        ("recalls", "auditor", {"shift": wilson(368, 400)}, "changed copies found by the auditor", UNSURE),
        ("recalls", "auditor", {"shift": wilson(320, 400)}, "changed copies found by the auditor", "fail"),
        ("recalls", "auditor", {"shift": NOTHING}, "changed copies found by the auditor", UNSURE),
        ("recalls", "auditor", {}, "changed copies found by the auditor", UNSURE),
        ("planted_exact", "auditor", wilson(99, 100), "planted copies found by the auditor", "fail"),
        ("planted_exact", "auditor", NOTHING, "planted copies found by the auditor", UNSURE),
        ("planted_near", "auditor", wilson(93, 100), "planted copies found by the auditor", UNSURE),
        ("planted_near", "auditor", wilson(70, 100), "planted copies found by the auditor", "fail"),
        ("membership", "the student's loss", TOLD, "membership by the student's loss", "fail"),
        ("membership", "the student's loss", NOTHING, "membership by the student's loss", UNSURE),
        ("membership", "gaps in the kept set", TOLD, "membership by gaps in the kept set", "fail"),
        ("membership", "gaps in the kept set", FEW_PEOPLE, "membership by gaps in the kept set", UNSURE),
        ("membership_many", "nearness", TOLD, MANY, UNSURE),
        ("membership_many", "nearness", Estimate(0.9, 0.82, 0.95, 60), MANY, "fail"),
        ("membership_many", "nearness", NOTHING, MANY, UNSURE),
        # The attack tells strangers from strangers: its answer about members is worth nothing.
        ("membership_null", "the student's loss", TOLD, "membership by the student's loss", UNSURE),
        ("membership_null", "the student's loss", NOTHING, "membership by the student's loss", UNSURE),
        ("network_auc", "filter's network", Estimate(0.92, 0.88, 0.95, 80), "filter's network", UNSURE),
        ("network_auc", "auditor", Estimate(0.5, 0.45, 0.55, 80), "auditor", UNSURE),
        ("n_unseen", "control size", 55, "control size", UNSURE),
        ("n_unseen", "test size", 999, "test size", UNSURE),
        ("n_leaks", "same pixels", 1, "leak scan", "fail"),
        ("membership_teacher", None, GUESSING, "membership attack, on the teacher", UNSURE),
        ("membership_teacher", None, NOTHING, "membership attack, on the teacher", UNSURE),
        ("coverage", None, Estimate(0.1, 0.05, 0.15, 1000), "coverage", "fail"),
        ("n_below_k", None, 1, "prompt and labels shared by k patients", "fail"),
    ],
)  # fmt: skip
def test_one_bad_condition_withholds_the_package(
    field: str, of: str | None, measured: object, condition: str, verdict: str
) -> None:
    value = measured if of is None else {**getattr(GOOD, field), of: measured}
    found = judged(GOOD._replace(**{field: value}))
    assert found[condition].verdict == verdict
    assert [name for name, each in found.items() if each.verdict != "pass"] == [condition]
    assert not cleared(found.values())


@pytest.mark.parametrize(
    ("low", "high", "most", "least"),
    [
        (0.1, 0.2, "pass", "fail"),
        (0.1, 0.3, "pass", UNSURE),  # touching the limit from below
        (0.2, 0.4, UNSURE, UNSURE),
        (0.3, 0.4, UNSURE, "pass"),  # touching it from above
        (0.4, 0.5, "fail", "pass"),
    ],
)
def test_an_interval_is_judged_as_a_whole(low: float, high: float, most: str, least: str) -> None:
    estimate = Estimate((low + high) / 2, low, high, 100)
    assert at_most("x", estimate, 0.3, "").verdict == most
    assert at_least("x", estimate, 0.3, "").verdict == least


def test_recall_is_that_of_the_kind_of_change_that_is_found_worst_and_says_which() -> None:
    kinds = {"blur": wilson(400, 400), "zoom_in": wilson(300, 400), "shift": wilson(390, 400)}
    verdict = recall("auditor", kinds, 0.9)
    assert verdict.verdict == "fail"
    assert verdict.measured.startswith("75.0%") and verdict.measured.endswith("n 400")
    assert verdict.why == "worst of 3 kinds of change: zoom in"


def test_a_kind_of_change_that_was_not_tried_is_the_worst_one() -> None:
    verdict = recall("auditor", {"blur": wilson(400, 400), "crop": wilson(0, 0)}, 0.9)
    assert (verdict.verdict, verdict.measured) == (UNSURE, "not measured")


def test_nothing_judged_clears_nothing_and_what_is_no_number_is_no_proof() -> None:
    assert not cleared(())
    exact = Estimate(math.nan, 0, 1, 100)
    assert planted("auditor", exact, Estimate(1, 0.97, 1, 100), 0.9).verdict == "fail"


def test_a_judge_that_overlooks_one_exact_copy_fails_however_many_near_ones_it_finds() -> None:
    verdict = planted("auditor", wilson(99, 100), wilson(100, 100), 0.9)
    assert verdict.verdict == "fail"
    assert "exact 99.0%" in verdict.measured and "near 100.0%" in verdict.measured


def test_members_that_are_found_fail_unless_strangers_are_found_too() -> None:
    null = Estimate(0.56, 0.54, 0.58, 900)
    assert member("loss", TOLD, None, 0.65).verdict == "fail"
    assert member("loss", TOLD, GUESSING, 0.65).verdict == "fail"
    assert member("loss", TOLD, null, 0.65).verdict == member("loss", GUESSING, null, 0.65).verdict == UNSURE


def test_an_attack_must_find_members_where_there_are_some_to_be_found() -> None:
    assert found_members(TOLD, 0.65).verdict == "pass"
    assert found_members(Estimate(0.53, 0.5, 0.56, 900), 0.65).verdict == UNSURE
    assert found_members(Estimate(0.4, 0.35, 0.45, 900), 0.65).verdict == UNSURE  # members seem strangers
    assert "the teacher too is under" in found_members(Estimate(0.58, 0.54, 0.62, 900), 0.65).why
    assert "the teacher too" not in found_members(TOLD, 0.65).why


def test_a_floor_lowered_by_the_recipe_does_not_make_a_weak_network_evidence() -> None:
    weak = Estimate(0.85, 0.8, 0.9, 500)
    assert network("auditor", weak, floor=0.7).verdict == UNSURE


def test_a_floor_raised_by_the_recipe_holds() -> None:
    good = Estimate(0.97, 0.95, 0.98, 500)
    assert network("auditor", good, floor=0.9).verdict == "pass"
    assert network("auditor", good, floor=0.98).verdict == UNSURE


def test_a_verdict_quotes_value_interval_n_and_limit() -> None:
    verdict = at_most("student over control", Estimate(0.012, -0.004, 0.028, 1200), 0.05, "why")
    assert verdict.measured == "1.2% [-0.4%, 2.8%], n 1,200"
    assert verdict.wanted == "at most 5.0%"
    assert at_least("coverage", wilson(0, 0), 0.3, "why").measured == "not measured"
    attack = member("loss", Estimate(0.58, 0.55, 0.61, 1200), GUESSING, 0.65)
    assert attack.measured == ("AUC 0.58 [0.55, 0.61], n 1,200; strangers among themselves 0.52 [0.48, 0.56], n 900")
    assert attack.wanted == "upper bound at most 0.65"


@pytest.mark.parametrize(
    ("excess", "verdict", "words"),
    [
        # Within the limit and yet more than strangers: the words may not say that they are alike.
        (Estimate(0.03, 0.02, 0.04, 1500), "pass", "flagged more often than strangers' images, by 2.0% or more"),
        (EXCESS, "pass", "not shown to be flagged more often than strangers' images"),
        (LEAKS, "fail", "flagged more often than strangers' images, by 37.0% or more"),
        (NOTHING, UNSURE, "not measured"),
    ],
)
def test_what_is_said_of_an_excess_matches_its_interval(excess: Estimate, verdict: str, words: str) -> None:
    found = judged(GOOD._replace(excess={"student": excess}))["student over control"]
    assert (found.verdict, found.why.split(";")[0]) == (verdict, words)


@pytest.mark.parametrize(
    "verdict",
    [
        member("loss", TOLD, TOLD, 0.65),
        member("loss", GUESSING, NOTHING, 0.65),
        planted("auditor", NOTHING, wilson(100, 100), 0.9),
        planted("auditor", wilson(99, 100), wilson(93, 100), 0.9),
    ],
)
def test_more_images_are_asked_for_only_where_they_would_settle_it(verdict: Verdict) -> None:
    assert "measure on more images" not in verdict.why
    assert "measure on more images" in member("loss", Estimate(0.6, 0.5, 0.7, 80), None, 0.65).why


def test_exactly_enough_unseen_images_are_enough() -> None:
    assert size("test size", 1000, 1000).verdict == "pass"


def test_a_leak_is_counted_by_kind_and_never_quoted() -> None:
    verdict = leak_scan({"phrase": 2, "patient id": 1, "path": 0})
    assert verdict.measured == "1 patient id, 2 phrase"
    assert verdict.verdict == "fail"


def test_one_row_that_fewer_than_k_patients_share_fails_and_is_counted() -> None:
    assert shared_by_k(0).verdict == "pass"
    assert (shared_by_k(1).verdict, shared_by_k(1).measured) == ("fail", "1 rows below k")
