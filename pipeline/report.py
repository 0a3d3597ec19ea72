"""The report: one self-contained HTML page that says what a run reached and how sure that is.

Pure functions of plain data: no Ray, no store, no network. The public edition cannot show a real image or a
record, as it is a `Report` without its `Private` part; the custodian's edition has one. Plots are inline SVG
(`report_plots.py`), the words are in `report.html.j2`. Axis letters: h height, w width,
c channels; _ is any number of images.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from pipeline import report_plots
from pipeline.estimate import Estimate
from pipeline.page import inlined, is_wide, security_policy, templates
from pipeline.privacy.gate import Verdict
from pipeline.privacy.risk import two_proportion_p

# One-sided level of "more often than unseen patients".
LEVEL = 0.05
# Metric of a re-identification ratio -> the network behind it.
RATIOS = {"reid_ratio": "filter’s network", "audit_ratio": "auditor"}
JUDGES = ("filter_network", "auditor")
Subject = str  # real, control, baseline, teacher, filtered, student, ... (design section 8)


class StepRow(NamedTuple):
    """What one step of the run did; `part` tells teacher from student where a word runs twice."""

    word: str
    part: str
    rows: int | None
    """None where the public edition does not tell."""
    seconds: float
    reused: bool
    artifact: str


class Drop(NamedTuple):
    """Things set aside at a stage for one reason; `of` is how many the stage read, if that is known."""

    stage: str
    reason: str
    n: int
    of: int | None = None


class Pair(NamedTuple):
    """A synthetic image and the real training image closest to it."""

    synthetic: UInt8[np.ndarray, "h w c"]
    real: UInt8[np.ndarray, "h w c"]
    score: float


class LedgerRow(NamedTuple):
    """The kept image that is closest to a training patient, by the filter's network."""

    patient: str
    n_images: int
    closest: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Private:
    """What only the custodian may see."""

    grids: Mapping[str, UInt8[np.ndarray, "_ h w c"]] = field(default_factory=dict)
    """Real images by title."""
    pairs: Mapping[str, Sequence[Pair]] = field(default_factory=dict)
    """Synthetic beside real by title, worst first."""
    ledger: Sequence[LedgerRow] = ()
    """One row for each training patient."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that the page says. Metrics have keys `group/subject/name` (design section 8); any may be missing."""

    name: str
    seed: int
    date: str
    recipe: str
    """YAML; for the public edition without paths."""
    cleared: bool
    verdicts: Sequence[Verdict]
    metrics: Mapping[str, Estimate]
    guarantee: str
    """What the filter's rule promises, in one sentence."""
    threshold: float | None
    """Score from which the filter's network flags an image; none if the rule has no fixed one."""
    decoys: bool = False
    """Whether unseen patients stood beside the gallery."""
    strengths: Mapping[str, float] = field(default_factory=dict)
    """By kind of change, the strength at which recall is demanded."""
    scores: Mapping[Subject, Float[np.ndarray, " _"]] = field(default_factory=dict)
    """`reid_score` by the filter's network, drawn as histograms."""
    grids: Mapping[str, UInt8[np.ndarray, "_ h w c"]] = field(default_factory=dict)
    """Synthetic images by title."""
    n_train_images: int
    n_train_patients: int
    n_sampled: int
    n_kept: int
    min_control: int = 1_000
    """Fewer control or student images than this is not enough evidence."""
    dropped: Sequence[Drop] = ()
    kept_by_class: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Finding -> images sampled, images kept."""
    steps: Sequence[StepRow] = ()
    caveats: Sequence[str] = ()
    private: Private | None = None
    """Present in the custodian's edition only."""


class Answer(NamedTuple):
    """A question of the first screen, answered in one sentence."""

    verdict: Literal["yes", "no", "unsure"]
    text: str


class Contrast(NamedTuple):
    """Student against teacher and against control, by one network."""

    network: str
    teacher: Estimate
    student: Estimate
    control: Estimate | None
    reduction: Estimate | None
    p_above_control: float | None


def render(report: Report) -> str:
    """The page as HTML text that needs nothing else: styles, plots and images are inside.

    A metric that is missing or not finite is shown as `not measured`.
    """
    metrics = {key: e for key, e in report.metrics.items() if np.isfinite(e[:3]).all()}
    contrasts = [c for ratio in RATIOS if (c := contrast(metrics, ratio)) is not None]
    return (
        templates()
        .get_template("report.html.j2")
        .render(
            report=report,
            css=inlined("report.css"),
            policy=security_policy(),
            metric=metrics.get,
            contrasts=contrasts,
            safer=safer_than_teacher(contrasts),
            control_answer=above_control(contrasts, report.min_control),
            level=LEVEL,
            ratio_axis=_ratio_axis(metrics),
            auroc_axis=_auroc_axis(metrics),
            score_axis=report_plots.score_axis(report.scores.values(), report.threshold),
            auroc_rows=auroc_rows(metrics),
            recall_rows=recall_rows(metrics, report.strengths),
            by_images=by_group(metrics, "images"),
            by_finding=by_group(metrics, "finding"),
            stages={drop.stage: [d for d in report.dropped if d.stage == drop.stage] for drop in report.dropped},
        )
    )


def contrast(metrics: Mapping[str, Estimate], ratio: str) -> Contrast | None:
    """Student against teacher and control by the network behind `ratio`; none if either arm is not measured."""
    teacher, student = metrics.get(f"privacy/teacher/{ratio}"), metrics.get(f"privacy/student/{ratio}")
    if teacher is None or student is None:
        return None
    control = metrics.get(f"privacy/control/{ratio}")
    p = None
    if control is not None:
        p = two_proportion_p(_flagged(student), student.n, _flagged(control), control.n)
    return Contrast(RATIOS[ratio], teacher, student, control, relative_reduction(teacher, student), p)


def safer_than_teacher(contrasts: Sequence[Contrast]) -> Answer:
    """Whether the student is flagged less often than the teacher, by every network and beyond the intervals."""
    if not contrasts:
        return Answer("unsure", "Teacher and student were not both measured.")
    if all(c.student.high < c.teacher.low for c in contrasts):
        return Answer("yes", "The student is safer than the teacher.")
    if all(c.student.value < c.teacher.value for c in contrasts):
        return Answer("unsure", "The student may be safer than the teacher: their intervals overlap.")
    return Answer("no", "The student is not safer than the teacher.")


def above_control(contrasts: Sequence[Contrast], min_control: int) -> Answer:
    """Whether the student is flagged no more often than images of unseen patients, by every network."""
    if not contrasts or any(c.p_above_control is None for c in contrasts):
        return Answer("unsure", "There is no control to compare it with.")
    if any(c.p_above_control is not None and c.p_above_control <= LEVEL for c in contrasts):
        return Answer("no", "Its images still match training patients more often than images of unseen patients do.")
    ratios = [ratio for c in contrasts for ratio in (c.student, c.control) if ratio is not None]
    if any(ratio.n < min_control or is_wide(ratio) for ratio in ratios):
        return Answer(
            "unsure", "There is not enough evidence that its images are as safe as unseen patients’ images."
        )
    return Answer("yes", "Its images match training patients no more often than images of unseen patients do.")


def relative_reduction(teacher: Estimate, student: Estimate) -> Estimate | None:
    """1 - student / teacher with its interval, from the intervals of both; none if the teacher may be at zero.

    Source: MOVER-R, Donner & Zou, Stat. Methods Med. Res. 21:347 (2012), doi:10.1177/0962280210383082.
    """
    if teacher.low <= 0:
        return None
    product = teacher.value * student.value
    own, other = student.low * (2 * student.value - student.low), teacher.high * (2 * teacher.value - teacher.high)
    low = own / (product + math.sqrt(max(product**2 - own * other, 0.0))) if product else 0.0
    own, other = student.high * (2 * student.value - student.high), teacher.low * (2 * teacher.value - teacher.low)
    high = (product + math.sqrt(max(product**2 - own * other, 0.0))) / other
    return Estimate(1 - student.value / teacher.value, 1 - high, 1 - low, min(teacher.n, student.n))


def recall_rows(
    metrics: Mapping[str, Estimate], strengths: Mapping[str, float]
) -> dict[str, dict[float, tuple[str, Estimate | None, Estimate | None]]]:
    """Kind of change -> factor of the demanded strength -> strength, recall by filter's network and auditor."""
    found: dict[str, dict[float, tuple[str, Estimate | None, Estimate | None]]] = {}
    for key in metrics:
        named = re.fullmatch(r"privacy/\w+/recall_(\w+)_x([\d.]+)", key)
        if named:
            kind, factor = named[1], float(named[2])
            by_filter, by_auditor = (metrics.get(f"privacy/{name}/recall_{kind}_x{factor:g}") for name in JUDGES)
            strength = f"{factor * strengths[kind]:.3g}" if kind in strengths else "–"
            found.setdefault(kind.replace("_", " "), {})[factor] = (strength, by_filter, by_auditor)
    return {kind: dict(sorted(series.items())) for kind, series in found.items()}


def auroc_rows(metrics: Mapping[str, Estimate]) -> dict[str, str]:
    """Metric name -> label of each row of the AUROC plot: the averages, then the findings as measured."""
    names = (key.rsplit("/", 1)[1] for key in metrics if key.startswith("utility/"))
    findings = {name: name.removeprefix("auroc_").replace("_", " ") for name in names if name.startswith("auroc_")}
    return {"macro_auroc": "All findings, macro", "micro_auroc": "All findings, micro", **findings}


def by_group(
    metrics: Mapping[str, Estimate], kind: Literal["images", "finding"]
) -> dict[str, dict[Subject, Estimate]]:
    """Ratio by group -> subject: by number of real images of the patient behind the prompt, or by finding."""
    groups: dict[str, dict[Subject, Estimate]] = {}
    for key, estimate in metrics.items():
        head, found, group = key.partition(f"/reid_ratio_{kind}_")
        if found:
            groups.setdefault(group, {})[head.removeprefix("privacy/")] = estimate
    return groups


def _flagged(ratio: Estimate) -> int:
    return round(ratio.value * ratio.n)


def _ratio_axis(metrics: Mapping[str, Estimate]) -> report_plots.Axis:
    highs = [e.high for key, e in metrics.items() if key.rsplit("/", 1)[1] in RATIOS]
    return report_plots.linear_axis(0.0, max(highs, default=0.01), unit="%")


def _auroc_axis(metrics: Mapping[str, Estimate]) -> report_plots.Axis:
    lows = [e.low for key, e in metrics.items() if key.startswith("utility/") and "auroc" in key]
    return report_plots.linear_axis(min(lows, default=0.5), 1.0)
