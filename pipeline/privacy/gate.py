"""The release gate: may the package leave? One verdict per condition of the recipe, from what was measured.

Pure functions of estimates. Not here: the measuring (risk, verification, leaks), nor what a verdict sets in motion
(release). A condition passes only if the whole 95 % interval meets it and fails only if the whole interval misses
it; an interval that holds the limit is *not enough evidence*, which does not clear a package: more images narrow it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from pipeline import config
from pipeline.estimate import Estimate
from pipeline.privacy.risk import difference

PASS, FAIL, UNSURE = "pass", "fail", "not enough evidence"
# A recipe may lower its floor so that a small cohort runs; what a weak network finds is not evidence for that.
AUC_FLOOR = 0.9


class Verdict(NamedTuple):
    """One condition: what was found, what was wanted, and what follows."""

    name: str
    """The condition, in the words of the report."""
    verdict: Literal["pass", "fail", "not enough evidence"]
    """`not enough evidence` does not clear a package."""
    measured: str
    """The value with its interval and n."""
    wanted: str
    """The limit, from the recipe."""
    why: str
    """What the condition is for, or what would settle it."""


class Evidence(NamedTuple):
    """What the gate judges."""

    student_ratio: Estimate
    """The student's re-identification ratio by the auditor."""
    kept_ratio: Estimate
    """The kept set's, by the auditor."""
    control_ratio: Estimate
    """That of unseen patients' images, by the auditor."""
    recall_perturbed: Estimate
    """Share of perturbed training images that the filter flags."""
    recall_near: Estimate
    """Share of the teacher's near-duplicates that the filter flags."""
    coverage: Estimate
    """Coverage of the real test set by the student."""
    filter_auc: Estimate
    """Verification AUC of the filter's network."""
    auditor_auc: Estimate
    """Verification AUC of the auditor."""
    n_control: int
    """Images of unseen patients that calibrated the threshold."""
    n_leaks: Mapping[str, int]
    """Findings of the leak scan by kind; empty if it found nothing."""


def judge(evidence: Evidence, conditions: config.Gate, *, auc_floor: float, min_control: int) -> tuple[Verdict, ...]:
    """The verdict on every condition, in the order of the report."""
    student = difference(evidence.student_ratio, evidence.control_ratio)
    kept = difference(evidence.kept_ratio, evidence.control_ratio)
    return (
        at_most("student over control", student, conditions.max_excess, "the auditor flags it as it flags strangers"),
        at_most("kept set over control", kept, conditions.max_excess, "the auditor flags it as it flags strangers"),
        at_least("recall on perturbed copies", evidence.recall_perturbed, conditions.min_recall, "copies are caught"),
        at_least("recall on near-duplicates", evidence.recall_near, conditions.min_recall_near, "copies are caught"),
        at_least("coverage", evidence.coverage, conditions.min_coverage, "a collapsed student only looks private"),
        network("filter network", evidence.filter_auc, auc_floor),
        network("auditor", evidence.auditor_auc, auc_floor),
        control_size(evidence.n_control, min_control),
        leak_scan(evidence.n_leaks),
    )


def cleared(verdicts: Iterable[Verdict]) -> bool:
    """Whether the package may leave: every condition passes."""
    return all(verdict.verdict == PASS for verdict in verdicts)


def at_most(name: str, estimate: Estimate, limit: float, why: str) -> Verdict:
    """Passes if the interval lies at or under the limit."""
    verdict = PASS if estimate.high <= limit else FAIL if estimate.low > limit else UNSURE
    return Verdict(name, verdict, _percent(estimate), f"at most {limit:.1%}", _reason(verdict, why))


def at_least(name: str, estimate: Estimate, limit: float, why: str) -> Verdict:
    """Passes if the interval lies at or over the limit."""
    verdict = PASS if estimate.low >= limit else FAIL if estimate.high < limit else UNSURE
    return Verdict(name, verdict, _percent(estimate), f"at least {limit:.1%}", _reason(verdict, why))


def network(name: str, auc: Estimate, floor: float) -> Verdict:
    """Passes if the AUC's lower bound reaches the recipe's floor and 0.9; else it is unsure, as are its answers."""
    limit = max(floor, AUC_FLOOR)
    verdict = PASS if auc.low >= limit else UNSURE
    measured = f"AUC {auc.value:.3f} [{auc.low:.3f}, {auc.high:.3f}], n {auc.n:,}"
    why = "the ratios rest on it" if verdict == PASS else "a network this weak can miss what it is asked for"
    return Verdict(name, verdict, measured, f"lower bound at least {limit:.3f}", why)


def control_size(n: int, minimum: int) -> Verdict:
    """Passes if there are enough images of unseen patients to speak of a percentile of their scores."""
    verdict = PASS if n >= minimum else UNSURE
    return Verdict("control size", verdict, f"{n:,} images", f"at least {minimum:,} images", "thresholds rest on it")


def leak_scan(n_leaks: Mapping[str, int]) -> Verdict:
    """Passes if nothing was found; says how much of what kind, never what."""
    found = ", ".join(f"{n:,} {kind}" for kind, n in sorted(n_leaks.items()) if n)
    verdict = FAIL if found else PASS
    why = "no real image, id, path or rare phrase may leave"
    return Verdict("leak scan", verdict, found or "nothing found", "nothing found", why)


def _percent(estimate: Estimate) -> str:
    if estimate.n == 0:
        return "not measured"
    return f"{estimate.value:.1%} [{estimate.low:.1%}, {estimate.high:.1%}], n {estimate.n:,}"


def _reason(verdict: str, why: str) -> str:
    return f"{why}; the interval holds the limit: measure on more images" if verdict == UNSURE else why
