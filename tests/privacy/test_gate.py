"""Every condition of the release gate on both sides of its limit, and across it."""

from __future__ import annotations

import pytest

from pipeline import config
from pipeline.estimate import Estimate
from pipeline.privacy.gate import Evidence, at_least, at_most, cleared, control_size, judge, leak_scan, network
from pipeline.privacy.risk import wilson

UNSURE = "not enough evidence"
GOOD = Evidence(
    student_ratio=wilson(75, 1500),
    kept_ratio=wilson(80, 1500),
    control_ratio=wilson(60, 1200),
    recall_perturbed=wilson(1980, 2000),
    recall_near=wilson(390, 400),
    coverage=Estimate(0.6, 0.55, 0.65, 1000),
    filter_auc=Estimate(0.99, 0.985, 0.995, 900),
    auditor_auc=Estimate(0.99, 0.985, 0.995, 900),
    n_control=1200,
    n_leaks={},
)
CONDITIONS = config.Gate(max_excess=0.05, min_recall=0.95, min_recall_near=0.9, min_coverage=0.3)


def verdicts(evidence: Evidence) -> dict[str, str]:
    return {v.name: v.verdict for v in judge(evidence, CONDITIONS, auc_floor=0.9, min_control=1000)}


def test_a_package_that_meets_every_condition_is_cleared() -> None:
    found = judge(GOOD, CONDITIONS, auc_floor=0.9, min_control=1000)
    assert {v.verdict for v in found} == {"pass"}
    assert cleared(found)


@pytest.mark.parametrize(
    ("change", "condition", "verdict"),
    [
        # The teacher's leak: 45 % against a control of 5 %.
        ({"student_ratio": wilson(675, 1500)}, "student over control", "fail"),
        ({"kept_ratio": wilson(675, 1500)}, "kept set over control", "fail"),
        # 8.5 % against 5 %: the excess of 3.5 % has its upper bound over 5 %.
        ({"student_ratio": wilson(128, 1500)}, "student over control", UNSURE),
        # No student image is flagged, but with 20 of them that means little.
        ({"student_ratio": wilson(0, 20)}, "student over control", UNSURE),
        ({"kept_ratio": wilson(0, 0)}, "kept set over control", UNSURE),
        # 96 % of 400: over the limit of 95 %, but not for sure.
        ({"recall_perturbed": wilson(384, 400)}, "recall on perturbed copies", UNSURE),
        ({"recall_perturbed": wilson(1600, 2000)}, "recall on perturbed copies", "fail"),
        ({"recall_near": wilson(200, 400)}, "recall on near-duplicates", "fail"),
        ({"recall_near": wilson(0, 0)}, "recall on near-duplicates", UNSURE),
        ({"coverage": Estimate(0.1, 0.05, 0.15, 1000)}, "coverage", "fail"),
        ({"filter_auc": Estimate(0.92, 0.88, 0.95, 80)}, "filter network", UNSURE),
        ({"auditor_auc": Estimate(0.5, 0.45, 0.55, 80)}, "auditor", UNSURE),
        ({"n_control": 55}, "control size", UNSURE),
        ({"n_leaks": {"same pixels": 1}}, "leak scan", "fail"),
    ],
)
def test_one_bad_condition_withholds_the_package(change: dict, condition: str, verdict: str) -> None:
    evidence = GOOD._replace(**change)
    found = verdicts(evidence)
    assert found[condition] == verdict
    assert [name for name, each in found.items() if each != "pass"] == [condition]
    assert not cleared(judge(evidence, CONDITIONS, auc_floor=0.9, min_control=1000))


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


def test_exactly_enough_control_images_are_enough() -> None:
    assert control_size(1000, 1000).verdict == "pass"


def test_a_leak_is_counted_by_kind_and_never_quoted() -> None:
    verdict = leak_scan({"phrase": 2, "patient id": 1, "path": 0})
    assert verdict.measured == "1 patient id, 2 phrase"
    assert verdict.verdict == "fail"
