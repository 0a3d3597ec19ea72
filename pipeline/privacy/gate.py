"""The release gate: may the package leave? One verdict per condition of the recipe, from what was measured.

Pure functions of estimates. Not here: the measuring (risk, verification, leaks), nor what a verdict sets in motion
(release). A condition passes only if the whole 95 % interval meets it and fails only if the whole interval misses
it; an interval that holds the limit is *not enough evidence*, which does not clear a package: more images narrow it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from pipeline import config
from pipeline.estimate import Estimate

PASS, FAIL, UNSURE = "pass", "fail", "not enough evidence"
# A recipe may lower its floor so that a small cohort runs; what a weak network finds is not evidence for that.
AUC_FLOOR = 0.9
CHANCE = 0.5
NULL_SLACK = 0.03
"""An AUC of strangers against strangers whose interval lies so far over chance is no chance any more."""
NOTHING = Estimate(math.nan, 0.0, 1.0, 0)


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

    excess: Mapping[str, Estimate]
    """By what is judged (the student, the kept set ...), how much more often the auditor flags it than strangers."""
    strict: Mapping[str, Estimate]
    """The same at a percentile of control that one in a hundred strangers' images reaches."""
    near_copies: Estimate
    """How much more often than a stranger's film an image of the student nearly equals a real one, pixel by pixel."""
    recalls: Mapping[str, Mapping[str, Estimate]]
    """By network and kind of change, the share of changed training images that it flags at the demanded strength."""
    planted_exact: Mapping[str, Estimate]
    """By network, the share of exact copies that it flags among the judged images."""
    planted_near: Mapping[str, Estimate]
    """Of near copies."""
    membership: Mapping[str, Estimate]
    """By attack, the AUC with which members are told from strangers."""
    membership_many: Mapping[str, Estimate]
    """The same of people with many films, where there are any among the members."""
    membership_null: Mapping[str, Estimate]
    """By attack, where it was measured, the AUC with which strangers are told from other strangers."""
    membership_teacher: Estimate
    """The AUC by the teacher's loss: what the attack finds where there is something to be found."""
    coverage: Estimate
    """Coverage of the real test set by the student, as a share of what as many other real images cover."""
    network_auc: Mapping[str, Estimate]
    """Verification AUC by network."""
    n_unseen: Mapping[str, int]
    """Images of unseen patients: those that calibrate the threshold, and those that ratios are compared with."""
    n_below_k: int
    """Released rows whose prompt and labels fewer than k training patients share."""
    n_leaks: Mapping[str, int]
    """Findings of the leak scan by kind; empty if it found nothing."""


def judge(evidence: Evidence, conditions: config.Gate, *, auc_floor: float, min_unseen: int) -> tuple[Verdict, ...]:
    """The verdict on every condition, in the order of the report."""
    limit = conditions.max_excess
    return (
        *(at_most(f"{name} over control", e, limit, _as_strangers(e)) for name, e in evidence.excess.items()),
        *(
            at_most(f"{name}, surest matches", e, conditions.max_excess_strict, _as_strangers(e))
            for name, e in evidence.strict.items()
        ),
        at_most(
            "student's near copies",
            evidence.near_copies,
            conditions.max_near_copies,
            _as_strangers(evidence.near_copies),
        ),
        *(recall(network, kinds, conditions.min_recall) for network, kinds in evidence.recalls.items()),
        *(
            planted(network, exact, evidence.planted_near[network], conditions.min_recall)
            for network, exact in evidence.planted_exact.items()
        ),
        *(
            member(attack, auc, evidence.membership_null.get(attack), conditions.max_membership)
            for attack, auc in evidence.membership.items()
        ),
        *(
            member(f"{attack}, people with many films", auc, None, conditions.max_membership_many)
            for attack, auc in evidence.membership_many.items()
        ),
        found_members(evidence.membership_teacher, conditions.max_membership),
        at_least("coverage", evidence.coverage, conditions.min_coverage, "a collapsed student only looks private"),
        *(network(name, auc, auc_floor) for name, auc in evidence.network_auc.items()),
        *(size(name, n, min_unseen) for name, n in evidence.n_unseen.items()),
        shared_by_k(evidence.n_below_k),
        leak_scan(evidence.n_leaks),
    )


def cleared(verdicts: Iterable[Verdict]) -> bool:
    """Whether the package may leave: every condition passes, and there are some."""
    found = [verdict.verdict for verdict in verdicts]
    return bool(found) and set(found) == {PASS}


def at_most(name: str, estimate: Estimate, limit: float, why: str) -> Verdict:
    """Passes if the interval lies at or under the limit."""
    verdict = PASS if estimate.high <= limit else FAIL if estimate.low > limit else UNSURE
    return Verdict(name, verdict, _percent(estimate), f"at most {limit:.1%}", _reason(verdict, why))


def at_least(name: str, estimate: Estimate, limit: float, why: str) -> Verdict:
    """Passes if the interval lies at or over the limit."""
    verdict = PASS if estimate.low >= limit else FAIL if estimate.high < limit else UNSURE
    return Verdict(name, verdict, _percent(estimate), f"at least {limit:.1%}", _reason(verdict, why))


def recall(network: str, kinds: Mapping[str, Estimate], limit: float) -> Verdict:
    """Passes if every kind of change leaves the whole interval at or over the limit; told is the worst kind."""
    if not kinds:
        return at_least(f"changed copies found by the {network}", NOTHING, limit, "no copy was tried")
    worst = min(kinds, key=lambda kind: (kinds[kind].low, kinds[kind].value))
    why = f"worst of {len(kinds)} kinds of change: {worst.replace('_', ' ')}"
    return at_least(f"changed copies found by the {network}", kinds[worst], limit, why)


def planted(network: str, exact: Estimate, near: Estimate, limit: float) -> Verdict:
    """Passes if every exact copy that was planted among the judged images was flagged, and near ones as demanded."""
    name, why = f"planted copies found by the {network}", "a judge that overlooks these clears anything"
    verdict = at_least(name, near, limit, why)
    if exact.n and not exact.value >= 1:  # what is no number is no proof
        verdict = verdict._replace(verdict=FAIL, why=why)
    elif exact.n == 0 and verdict.verdict == PASS:
        verdict = verdict._replace(verdict=UNSURE, why="no exact copy was judged")
    told = f"exact {_percent(exact)}; near {_percent(near)}"
    return verdict._replace(measured=told, wanted=f"exact 100%, near at least {limit:.0%}")


def member(attack: str, auc: Estimate, null: Estimate | None, limit: float) -> Verdict:
    """Passes if the AUC's whole interval lies at or under the limit, and strangers are not told from strangers."""
    verdict = PASS if auc.high <= limit else FAIL if auc.low > limit else UNSURE
    why = _reason(verdict, "nobody may be told to have been in the training data")
    measured = f"AUC {_decimal(auc)}"
    if null is not None:
        measured += f"; strangers among themselves {_decimal(null)}"
        if null.n == 0:
            verdict, why = UNSURE, "whether strangers are told from strangers as well was not measured"
        elif null.low > CHANCE + NULL_SLACK:
            verdict, why = UNSURE, "strangers are told from strangers as well, so that it says nothing of members"
    return Verdict(f"membership by {attack}", verdict, measured, f"upper bound at most {limit:.2f}", why)


def found_members(teacher: Estimate, limit: float) -> Verdict:
    """Passes if the attack finds members where there must be some to be found: by the teacher's loss.

    The AUC is read as the attack reads it, a smaller loss being a member's: under 0.5 it finds strangers.
    """
    verdict = PASS if teacher.n and teacher.low > CHANCE else UNSURE
    why = "the attack works" if verdict == PASS else "an attack that finds nothing by the teacher proves nothing"
    if verdict == PASS and teacher.high <= limit:
        why += f", but seldom: the teacher too is under the {limit:.2f} that is asked of the student"
    return Verdict("membership attack, on the teacher", verdict, f"AUC {_decimal(teacher)}", "over 0.50", why)


def network(name: str, auc: Estimate, floor: float) -> Verdict:
    """Passes if the AUC's lower bound reaches the recipe's floor and 0.9; else it is unsure, as are its answers."""
    limit = max(floor, AUC_FLOOR)
    verdict = PASS if auc.low >= limit else UNSURE
    measured = f"AUC {auc.value:.3f} [{auc.low:.3f}, {auc.high:.3f}], n {auc.n:,}"
    why = "the ratios rest on it" if verdict == PASS else "a network this weak can miss what it is asked for"
    return Verdict(name, verdict, measured, f"lower bound at least {limit:.3f}", why)


def size(name: str, n: int, minimum: int) -> Verdict:
    """Passes if there are enough images of unseen patients for a percentile of their scores and of a rate."""
    verdict = PASS if n >= minimum else UNSURE
    return Verdict(name, verdict, f"{n:,} images", f"at least {minimum:,} images", "thresholds and ratios rest on it")


def shared_by_k(n_below: int) -> Verdict:
    """Passes if every released row tells what at least k training patients share."""
    verdict = FAIL if n_below else PASS
    why = "what a row tells must not point to one record"
    return Verdict("prompt and labels shared by k patients", verdict, f"{n_below:,} rows below k", "0 rows", why)


def leak_scan(n_leaks: Mapping[str, int]) -> Verdict:
    """Passes if nothing was found; says how much of what kind, never what."""
    found = ", ".join(f"{n:,} {kind}" for kind, n in sorted(n_leaks.items()) if n)
    verdict = FAIL if found else PASS
    why = "no real image, id, path or rare phrase may leave"
    return Verdict("leak scan", verdict, found or "nothing found", "nothing found", why)


def _as_strangers(excess: Estimate) -> str:
    """What the excess over strangers says, in words that match its numbers."""
    if excess.n == 0:
        return "not measured"
    if excess.low > 0:
        return f"flagged more often than strangers' images, by {excess.low:.1%} or more"
    return "not shown to be flagged more often than strangers' images"


def _percent(estimate: Estimate) -> str:
    if estimate.n == 0:
        return "not measured"
    return f"{estimate.value:.1%} [{estimate.low:.1%}, {estimate.high:.1%}], n {estimate.n:,}"


def _decimal(estimate: Estimate) -> str:
    if estimate.n == 0:
        return "not measured"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}], n {estimate.n:,}"


def _reason(verdict: str, why: str) -> str:
    return f"{why}; the interval holds the limit: measure on more images" if verdict == UNSURE else why
