"""The explorer of a threshold study: one self-contained HTML page that says how strict the filter must be.

Pure functions of plain data: no Ray, no store, no network. The public edition cannot show a private image, as it is
an `Explorer` without its `Private` part; of scores it holds binned counts only. What answers to the reader while the
page is open is `explorer.js`, the words are in `explorer.html.j2`. Not here: which trials are run and which of them
is recommended. Axis letters: n images, f findings, b bins of scores, h height, w width, c channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from pipeline import explorer_plots, report_plots
from pipeline.config import Rule
from pipeline.estimate import Estimate
from pipeline.explorer_plots import Mark
from pipeline.page import inlined, security_policy, templates

View = Literal["validation", "test"]
RATIO_OF: Mapping[View, str] = {"validation": "judge_ratio", "test": "audit_ratio"}
"""By whom each view counts: the study's judge, by which settings were chosen, and the auditor, which was held out."""
NETWORK_OF: Mapping[View, str] = {"validation": "the study’s judge", "test": "the auditor"}
N_BINS = 512


class Binned(NamedTuple):
    """How many images score in each bin."""

    counts: Int[np.ndarray, " b"]
    """Bin i holds scores from edge i to before edge i + 1."""
    always: int = 0
    """Images in no bin, as every threshold drops them: without a score, or a pixel copy of a real image."""


class RuleAsSet(NamedTuple):
    """A rule of the filter, set as the recipe has it."""

    rule: Rule
    parameter: str
    threshold: float | None
    """Scores at or over it are dropped; none drops no scored image."""
    n_dropped: int
    """Pixel copies of real images included, which every rule but `none` drops."""


class Scored(NamedTuple):
    """A synthetic image with its score by the filter's network."""

    image: UInt8[np.ndarray, "h w c"]
    score: float


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Images that the teacher made with one setting, as far as counts can tell of them."""

    binned: Binned
    by_class: Mapping[str, Binned]
    """Finding asked for -> counts; an image may have several findings or none."""
    rules: Sequence[RuleAsSet] = ()
    """In the order in which the page lists them."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting of the filter and what it led to. A metric that is missing or not finite is `not measured`."""

    number: int
    rule: Rule
    parameter: str
    """In words, such as `percentile 70`."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Everything that the study varied beside the rule: dotted key of the recipe -> value."""
    samples: str
    """Whose scores were filtered: a key of `Explorer.samples`."""
    threshold: float | None = None
    n_sampled: int = 0
    n_kept: int = 0
    kept_by_class: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Finding -> images sampled, images kept."""
    rung: int = 0
    """How thoroughly it was measured: an index of `Explorer.rung_names`."""
    validation: Mapping[str, Estimate] = field(default_factory=dict)
    """Keys `judge_ratio`, `reid_ratio`, `macro_auroc`, `kept_frac`, `auroc_<finding>`."""
    test: Mapping[str, Estimate] = field(default_factory=dict)
    """What was held out: the same and `audit_ratio`, on other images of its students and on patients that no trial
    saw; empty unless it was measured again."""
    on_front: bool = False
    """No other trial is better in one objective and at least as good in all."""
    ablation: str = ""
    """What is left out, `no filter` or `no student`; empty for a trial of the study."""
    failed: str = ""
    """Why there is no result; empty if there is one."""


@dataclass(frozen=True, kw_only=True)
class Private:
    """What only the custodian may see."""

    images: Mapping[str, Sequence[Scored]] = field(default_factory=dict)
    """Raw samples, those at risk included, by key of `Explorer.samples`."""


@dataclass(frozen=True, kw_only=True)
class Explorer:
    """All that the page says."""

    name: str
    seed: int
    date: str
    answer: str
    """The recommendation in one sentence, or that no setting meets the constraint."""
    constraint: str
    """What a setting had to meet, as a sentence."""
    recommended: int | None
    """Number of a trial."""
    trials: Sequence[Trial]
    rung_names: Sequence[str]
    findings: Sequence[str]
    edges: Float[np.ndarray, " b"]
    """Lower ends of the bins, of which the first is 0; see `score_edges`."""
    samples: Mapping[str, Samples]
    """By setting of the sampler; one entry where the study did not vary it."""
    control: Int[np.ndarray, " b"]
    """Best-match scores of unseen patients' images, binned."""
    same_patient: Int[np.ndarray, " b"]
    """Scores of images whose patient is in the gallery, binned."""
    recall_confidence: float = 0.95
    """One-sided confidence of the rule `recall`."""
    control_ratio: Mapping[View, Estimate] = field(default_factory=dict)
    """Share of unseen patients' images that the view's network flags."""
    kept_images: UInt8[np.ndarray, "n h w c"] | None = None
    """Some images that the recommended setting keeps; they may leave the building."""
    caveats: Sequence[str] = ()
    private: Private | None = None
    """Present in the custodian's edition only."""


def score_edges(
    scores: Iterable[Float[np.ndarray, " _"]], thresholds: Iterable[float | None] = (), n_bins: int = N_BINS
) -> Float[np.ndarray, " b"]:
    """Lower ends of bins over all scores, even on the logit scale; every threshold is one, so its counts are exact.

    The first bin starts at 0 and the last has no end, so that no score falls outside.
    """
    limits = [float(t) for t in thresholds if t is not None and t > 0]
    axis = report_plots.score_axis([*(s[~np.isnan(s)] for s in scores), np.array(limits)], None)
    start, stop = (math.log(p / (1 - p)) for p in (axis.start, axis.stop))
    inner = 1 / (1 + np.exp(-np.linspace(start, stop, n_bins + 1)[1:-1]))
    # A bin beside a threshold would be too narrow to tell apart from it on the page.
    reach = (stop - start) / n_bins / 2 * inner * (1 - inner)
    clear = [not any(abs(edge - limit) < near for limit in limits) for edge, near in zip(inner, reach, strict=True)]
    return np.unique(np.concatenate([[0.0], inner[clear], limits]))


def binned(
    scores: Float[np.ndarray, " n"],
    edges: Float[np.ndarray, " b"],
    pixel_copy: Bool[np.ndarray, " n"] | None = None,
) -> Binned:
    """Counts of scores in each bin; what has no score or is a pixel copy is dropped at any threshold."""
    always = np.isnan(scores) if pixel_copy is None else np.isnan(scores) | pixel_copy
    place = np.searchsorted(edges, scores[~always].astype(np.float64), side="right") - 1
    return Binned(np.bincount(place, minlength=len(edges)), int(always.sum()))


def samples(
    scores: Float[np.ndarray, " n"],
    labels: Bool[np.ndarray, "n f"],
    findings: Sequence[str],
    edges: Float[np.ndarray, " b"],
    *,
    pixel_copy: Bool[np.ndarray, " n"] | None = None,
    rules: Sequence[RuleAsSet] = (),
) -> Samples:
    """The counts of one set of samples, in all and by finding."""
    copies = np.zeros(len(scores), bool) if pixel_copy is None else pixel_copy
    by_class = {
        name: binned(scores[has], edges, copies[has])
        for name, has in zip(findings, labels.T.astype(bool), strict=True)
    }
    return Samples(binned=binned(scores, edges, copies), by_class=by_class, rules=rules)


def render(explorer: Explorer) -> str:
    """The page as HTML text that needs nothing else: styles, script, plots and images are inside."""
    script = inlined("explorer.js")
    tried = [trial for trial in explorer.trials if not trial.failed]
    by_number = {trial.number: trial for trial in tried}
    views = {view: marks(tried, view, explorer.recommended) for view in get_args(View)}
    ratio_axis, auroc_axis = explorer_plots.axes(
        [mark for group in views.values() for mark in group], list(explorer.control_ratio.values())
    )
    return (
        templates()
        .get_template("explorer.html.j2")
        .render(
            explorer=explorer,
            css=inlined("report.css", "explorer.css"),
            script=script,
            policy=security_policy(script),
            live=live(explorer),
            views=views,
            labels={view: explorer_plots.labels(group, ratio_axis, auroc_axis) for view, group in views.items()},
            geometry=explorer_plots,
            by_number=by_number,
            tried=sorted(tried, key=lambda trial: (not trial.on_front, trial.number)),
            chosen=None if explorer.recommended is None else by_number[explorer.recommended],
            ablations=[trial for trial in tried if trial.ablation],
            metric=metric,
            ratio_of=RATIO_OF,
            network_of=NETWORK_OF,
            size=lambda found: int(found.counts.sum()) + found.always,
            n_steps=N_BINS,
            ratio_axis=ratio_axis,
            auroc_axis=auroc_axis,
            score_axis=_score_axis(explorer.edges),
            index=lambda threshold: index_of(threshold, explorer.edges),
            silhouette=lambda counts: silhouette(counts, explorer.edges),
            score=score_text,
        )
    )


def metric(trial: Trial, view: View, name: str) -> Estimate | None:
    """A metric of a trial, or none if it was not measured."""
    found = (trial.validation if view == "validation" else trial.test).get(name)
    return found if found is not None and np.isfinite(found[:3]).all() else None


def marks(trials: Sequence[Trial], view: View, recommended: int | None) -> list[Mark]:
    """What can be drawn: trials with both objectives, the front over the others and the recommended one on top."""
    found = [
        Mark(
            trial.number,
            ratio,
            auroc,
            trial.n_kept / trial.n_sampled if trial.n_sampled else 0.0,
            trial.on_front,
            _label(trial, recommended),
        )
        for trial in trials
        if (ratio := metric(trial, view, RATIO_OF[view])) and (auroc := metric(trial, view, "macro_auroc"))
    ]
    return sorted(found, key=lambda mark: (mark.number == recommended, bool(mark.label), mark.number))


def _label(trial: Trial, recommended: int | None) -> str:
    if trial.number == recommended:
        return f"{trial.number}, recommended"
    if trial.ablation:
        return f"{trial.number}, {trial.ablation}"
    return str(trial.number) if trial.on_front else ""


def index_of(threshold: float | None, edges: Float[np.ndarray, " b"]) -> int:
    """Number of the first bin that a threshold drops; one past the last bin if it drops nothing."""
    return len(edges) if threshold is None else int(np.searchsorted(edges, threshold, side="left"))


def silhouette(counts: Int[np.ndarray, " b"], edges: Float[np.ndarray, " b"], n_bars: int = 64) -> str:
    """The histogram of binned scores as an SVG path in a box of 100 by 100, highest bar full height."""
    bars = np.minimum(_score_axis(edges).places(edges) * n_bars / 100 + 1e-6, n_bars - 1).astype(int)
    heights = np.bincount(bars, weights=counts, minlength=n_bars)
    heights = 100 - 100 * heights / max(float(heights.max()), 1.0)
    return "M0 100" + "".join(f"V{height:.1f}h{100 / n_bars:.4f}" for height in heights) + "V100Z"


def score_text(score: float | None) -> str:
    """A score with as many decimals as it takes to tell it from 0 and 1."""
    if score is None:
        return "none"
    distance = min(score, 1 - score)
    decimals = 4 if distance <= 0 else max(4, min(2 - math.floor(math.log10(distance)), 9))
    return f"{score:.{decimals}f}"


def live(explorer: Explorer) -> dict[str, Any]:
    """What the script works on; without `private` it holds counts and no image."""
    edges = explorer.edges
    pictures = explorer.private.images if explorer.private else {}
    return {
        "texts": [score_text(float(edge)) for edge in edges],
        "places": [*np.round(_score_axis(edges).places(edges), 3).tolist(), 100.0],
        "control": explorer.control.tolist(),
        "same": explorer.same_patient.tolist(),
        "steps": N_BINS,
        "confidence": explorer.recall_confidence,
        "samples": {
            name: {
                "binned": [found.binned.counts.tolist(), found.binned.always],
                "classes": [
                    [c.counts.tolist(), c.always] for c in map(found.by_class.__getitem__, explorer.findings)
                ],
            }
            for name, found in explorer.samples.items()
        },
        "trials": {
            trial.number: {"samples": trial.samples, "index": index_of(trial.threshold, edges)}
            for trial in explorer.trials
            if not trial.failed
        },
        "recommended": explorer.recommended,
        "images": {
            name: [_picture(scored, edges) for scored in sorted(found, key=lambda scored: scored.score)]
            for name, found in pictures.items()
        },
    }


def _picture(scored: Scored, edges: Float[np.ndarray, " b"]) -> dict[str, Any]:
    """An image for the script; `bin` is its score's, so that it is dropped exactly when its bin is."""
    place = int(np.searchsorted(edges, scored.score, side="right")) - 1
    source, width = report_plots.data_uri(scored.image), report_plots.css_px(scored.image)
    return {"bin": place, "score": score_text(scored.score), "source": source, "width": width}


def _score_axis(edges: Float[np.ndarray, " b"]) -> report_plots.Axis:
    return report_plots.score_axis([edges[1:]], None)
