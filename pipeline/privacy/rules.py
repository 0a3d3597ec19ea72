"""The five rules that say which synthetic images are dropped, and what each of them guarantees.

Pure functions of scores. Not here: how scores are made (matching), nor whether the result is good enough (gate).
All rules drop a score that is at or over one threshold, and what has no score. What a rule promises it promises by
patient: images of one patient resemble each other, so that one image of each, drawn by lot, calibrates it. Axis
letters: n synthetic images, c images of unseen patients (control), s images that are of patients of the gallery
(same patient), p patients, k findings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int8, Shaped
from scipy.stats import beta, binom

from pipeline.config import ConfigError, Filter
from pipeline.privacy.leaning import MOST_FILMS, balanced
from pipeline.privacy.risk import clustered
from pipeline.tables import FILTERED, SCORES, require

KEPT, OVER, UNSCORED, COPY = "kept", "over the threshold", "no score", "copy of a real image"
SURPLUS = "more than wanted of its findings"
DECOY = "like an unseen patient, a decoy"
LEANS = "nearer to training patients than to decoys"
REASONS = pa.array([KEPT, OVER, UNSCORED, COPY, SURPLUS, DECOY, LEANS])

DECOYS_TOLD = (
    "Images as close to one of the unseen patients are dropped too, so that a gap in the kept set tells less of who "
    "was trained on."
)
BALANCE_TOLD = (
    "What lies nearest to training patients is dropped as well, until the rest lies in the mean no nearer to them "
    f"than to the unseen ones, nor to those of them with few or with many images ({MOST_FILMS} of each at most)."
)


class Decision(NamedTuple):
    """What a rule came to on these scores."""

    threshold: float | None
    """Scores at or over it are dropped; none drops no scored image."""
    guarantee: str
    """What may be concluded from it, with numbers, and what may not."""
    n: int
    """Number of patients that the guarantee rests on."""


class Calibration(NamedTuple):
    """Scores with their patients, and one of each patient."""

    scores: Float[np.ndarray, " m"]
    patients: Shaped[np.ndarray, " m"]
    by_patient: Float[np.ndarray, " p"]
    """One score of each patient, drawn by lot; independent if the patients are."""


def filter_table(
    scores: pa.Table,
    rule: Filter,
    *,
    control: Float[np.ndarray, " c"],
    same_patient: Float[np.ndarray, " s"],
    shown: Int8[np.ndarray, "n k"],
    control_patients: Shaped[np.ndarray, " c"] | Sequence[str] | None = None,
    same_patients: Shaped[np.ndarray, " s"] | Sequence[str] | None = None,
    chooser: np.random.Generator | None = None,
    decoys: bool = False,
) -> tuple[pa.Table, Decision]:
    """Every row with `keep` and its reason (`tables.FILTERED`), in the order of the scores, and why.

    Beside the rule, every rule but `none` drops pixel copies of real images, which a network may overlook. With
    `decoys` images are dropped as well that score as much over unseen patients who stand beside the gallery, so that
    the gap around a training image looks like those around the decoys, and at the end, of what is left, those that
    lean most to training patients, until the rest leans in the mean to no band of them (`leaning.balanced`).
    `shown` holds the labels of each image (1 present, 0 absent, -1 unknown); it is read where the recipe caps the
    images of a finding.
    The calibration is that of `threshold`.
    Raises: SchemaError if the table is not one of scores, ConfigError if the calibration cannot carry the rule.
    """
    require(scores, SCORES, "filter input")
    values = scores["reid_score"].to_numpy().astype(np.float64)
    decision = threshold(
        rule,
        values[~np.isnan(values)],
        control=control,
        same_patient=same_patient,
        control_patients=control_patients,
        same_patients=same_patients,
        chooser=chooser,
    )
    limit = math.inf if decision.threshold is None else decision.threshold
    copies = scores["pixel_copy"].to_numpy(zero_copy_only=False) & (rule.rule != "none")
    like_decoy = ~(scores["decoy_score"].to_numpy() < limit) & decoys & (decision.threshold is not None)
    causes = [np.isnan(values), values >= limit, copies, like_decoy]
    reason = np.select(causes, [2, 1, 3, 5], 0).astype(np.int32)
    if rule.max_per_class is not None:
        kept = np.flatnonzero(reason == 0)
        reason[kept[~within_cap(values[kept], shown[kept], rule.max_per_class)]] = 4
    if decoys and decision.threshold is not None:
        decision = decision._replace(guarantee=f"{decision.guarantee} {DECOYS_TOLD}")
        leans = _leans(scores["lean"])
        if not np.isnan(leans[reason == 0]).any():  # else there are too few films to say what leans
            left = np.flatnonzero(reason == 0)
            reason[left[~balanced(leans[left])]] = 6
            decision = decision._replace(guarantee=f"{decision.guarantee} {BALANCE_TOLD}")
    columns = [
        scores["row_id"],
        pa.array(reason == 0),
        pa.DictionaryArray.from_arrays(pa.array(reason), REASONS),
    ]
    return pa.table(columns, schema=FILTERED), decision


def _leans(column: pa.ChunkedArray) -> Float[np.ndarray, "n b"]:
    """The column as a matrix; NaN for an image without scores."""
    scored = column.is_valid().to_numpy()
    if not scored.any():
        return np.full((len(column), 1), np.nan)
    values = column.drop_null().combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(scored.sum(), -1)
    leans = np.full((len(column), values.shape[1]), np.nan)
    leans[scored] = values
    return leans


def within_cap(scores: Float[np.ndarray, " n"], shown: Int8[np.ndarray, "n k"], most: int) -> Bool[np.ndarray, " n"]:
    """Which images stay if no finding may have more than `most`: from the lowest score up, an image stays while all
    of its findings have room. Images that show none are a class of their own, and those of which nothing is known
    for sure are in no class and stay; of equal scores the earlier row goes first.
    """
    classes = np.column_stack([shown == 1, none_shown(shown)])
    room = np.full(classes.shape[1], most)
    stays = np.zeros(len(scores), bool)
    for i in np.argsort(scores, kind="stable"):
        if (room[classes[i]] > 0).all():
            stays[i] = True
            room[classes[i]] -= 1
    return stays


def none_shown(labels: Int8[np.ndarray, "n k"]) -> Bool[np.ndarray, " n"]:
    """Which images are known to show no finding: all labels are 0. One unknown label (-1) leaves it open."""
    return (labels == 0).all(1) & (labels.shape[1] > 0)


def one_a_patient(
    scores: Float[np.ndarray, " m"], patients: Shaped[np.ndarray, " m"] | Sequence[str], chooser: np.random.Generator
) -> Float[np.ndarray, " p"]:
    """The score of one image of each patient, in the order of the patients' names, each image as likely as another.

    Depends on the generator's state and not on the order of rows.
    """
    ranked = np.lexsort([scores, np.asarray(patients)])
    _, starts, counts = np.unique(np.asarray(patients)[ranked], return_index=True, return_counts=True)
    return scores[ranked][starts + (chooser.random(len(counts)) * counts).astype(np.int64)]


def threshold(
    rule: Filter,
    scores: Float[np.ndarray, " n"],
    *,
    control: Float[np.ndarray, " c"],
    same_patient: Float[np.ndarray, " s"],
    control_patients: Shaped[np.ndarray, " c"] | Sequence[str] | None = None,
    same_patients: Shaped[np.ndarray, " s"] | Sequence[str] | None = None,
    chooser: np.random.Generator | None = None,
) -> Decision:
    """The threshold that the recipe's rule sets on these scores; only `fdr` looks at `scores` themselves.

    `control` holds the best-match scores of unseen patients' images, `same_patient` those of images whose patient
    is in the gallery, each image itself left out of it. Rules are calibrated on one image of each patient, which
    `chooser` draws; it is needed where a patient has several. Without patients each image is one of its own.
    Raises: ConfigError if a calibration score is missing, or if there are too few patients for the rule; ValueError
    if a patient has several images and there is no chooser.
    """
    control_of = _calibration("control", control, control_patients, chooser)
    same_of = _calibration("same-patient", same_patient, same_patients, chooser)
    if rule.rule == "fixed":
        decision = _fixed(rule.fixed.threshold)
    elif rule.rule == "percentile":
        decision = _percentile(rule.percentile.percentile, control_of.by_patient)
    elif rule.rule == "recall":
        decision = _recall(rule.recall.recall, rule.recall.confidence, same_of)
    elif rule.rule == "fdr":
        decision = _fdr(rule.fdr.q, scores.astype(np.float64), control_of.by_patient)
    else:
        decision = Decision(None, "Keeps every image that has a score; guarantees nothing.", 0)
    return decision._replace(guarantee=f"{decision.guarantee} {_measured(decision, control_of, same_of)}")


def _fixed(limit: float) -> Decision:
    guarantee = f"Drops scores from {limit:g}, a number that does not come from this cohort; guarantees nothing here."
    return Decision(limit, guarantee, 0)


def _percentile(percentile: float, control: Float[np.ndarray, " p"]) -> Decision:
    """A percentile of the control patients' scores, rounded up to a score that occurs (numpy's method 'higher').

    How often a new patient is then flagged is Beta(n + 1 - rank, rank), whatever the distribution of scores.
    Source: split conformal prediction given its calibration set, Vovk, arXiv 1209.2673.
    """
    n = len(control)
    if n == 0:
        raise ConfigError("filter.percentile: want scores of unseen patients, got none — enlarge split 'control'")
    limit = float(np.percentile(control, percentile, method="higher"))
    rank = int(np.searchsorted(np.sort(control), limit)) + 1
    low, high = beta.ppf([0.025, 0.975], n + 1 - rank, rank)
    guarantee = (
        f"Drops scores from {limit:.4g}, percentile {percentile:g} of one image each of {n:,} unseen patients: with "
        f"95 % confidence a new patient's image is dropped with a chance between {low:.1%} and {high:.1%}. "
        "Says nothing about misses."
    )
    return Decision(limit, guarantee, n)


def _recall(recall: float, confidence: float, same_patient: Calibration) -> Decision:
    """The largest order statistic of one score a patient that flags at least `recall` of them for sure enough.

    The number of scores that may fall below it is the largest k with P(Bin(p, 1 - recall) <= k) <= 1 - confidence,
    which is where the one-sided Clopper-Pearson bound of the observed recall still reaches `recall`. It is exact by
    patient, a patient's images counting equally, whatever the distribution. By image nothing can be promised of
    other patients: where 3 % of 260 patients have half of the images, eight patients decide. Of the probed images
    themselves `recall` is flagged, for which the threshold is lowered if need be.
    Simulated, with 260 patients resampled and heavy ones harder, as hard and easier to catch: by patient the promise
    failed in 0-4 % of cohorts, by image in 54, 13 and 0 % at recall .6 and in 54, 8 and 0 % at recall .95.
    Source: Wilks, Ann. Math. Stat. 12:91 (1941); Clopper & Pearson, Biometrika 26:404 (1934).
    """
    n = len(same_patient.by_patient)
    n_candidates = int(np.sum(binom.cdf(np.arange(n), n, 1 - recall) <= 1 - confidence))
    if n_candidates == 0:
        raise ConfigError(
            f"filter.recall: want {_patients_for(recall, confidence)} patients with same-patient scores for recall "
            f"{recall:g} at confidence {confidence:g}, got {n} — lower one of the two or probe more patients"
        )
    n_missed = math.floor(len(same_patient.scores) * (1 - recall) + 1e-9)
    of_images = float(np.sort(same_patient.scores)[n_missed])
    limit = min(float(np.sort(same_patient.by_patient)[n_candidates - 1]), of_images)
    guarantee = (
        f"Drops scores from {limit:.4g}: with {confidence:.0%} confidence a patient's image is caught with a chance "
        f"of at least {recall:.1%}, each patient counting once, if patients are like the {n:,} probed ones in the "
        f"gallery (one image of each); of all their probed images as many are caught. For images of other "
        "patients nothing is promised if a few have most of them. Copies that a generator makes may differ."
    )
    return Decision(limit, guarantee, n)


def _patients_for(recall: float, confidence: float) -> str:
    """How many patients the recall rule needs at least: recall^n <= 1 - confidence."""
    if recall == 1 or confidence == 1:
        return "infinitely many"
    return f"at least {math.ceil(math.log(1 - confidence) / math.log(recall)):,}"


def _fdr(q: float, scores: Float[np.ndarray, " n"], control: Float[np.ndarray, " p"]) -> Decision:
    """Conformal p-values against control patients, (1 + #{control >= score}) / (p + 1), and Benjamini-Hochberg at q.

    A discovery is an image that scores higher than unseen patients' images do; discoveries are dropped. As the
    p-value falls with the score, they are what scores at or over the lowest of them.
    Source: Bates et al., Testing for Outliers with Conformal p-values, arXiv 2104.08279 (the p-values are PRDS, so
    the step-up procedure holds its level on average over control sets); Benjamini & Hochberg, JRSS B 57:289 (1995).
    """
    n = len(control)
    if n == 0:
        raise ConfigError("filter.fdr: want scores of unseen patients, got none — enlarge split 'control'")
    ranked = np.sort(scores)[::-1]
    n_at_or_over = n - np.searchsorted(np.sort(control), ranked, side="left")
    p_values = (1 + n_at_or_over) / (n + 1)
    passed = np.flatnonzero(p_values <= q * np.arange(1, len(ranked) + 1) / max(1, len(ranked)))
    limit = float(ranked[passed[-1]]) if len(passed) else None
    dropped = f"Drops scores from {limit:.4g}" if limit is not None else "Drops nothing"
    guarantee = (
        f"{dropped}: of the dropped images at most {q:.1%} are expected to score like an image of an unseen "
        f"patient, of whom {n:,} were compared, one image each. Limits needless drops, on average over such control "
        "sets; says nothing about misses."
    )
    return Decision(limit, guarantee, n)


def _measured(decision: Decision, control: Calibration, same_patient: Calibration) -> str:
    """What the threshold flags of all images, with intervals over patients."""
    limit = math.inf if decision.threshold is None else decision.threshold
    shares = [
        f"{share.value:.1%} of the {name} images of {len(group.by_patient):,} patients (95 % interval "
        f"{share.low:.1%} to {share.high:.1%})"
        for name, group in (("control", control), ("same-patient", same_patient))
        if len(group.scores)
        for share in [clustered(group.scores >= limit, group.patients)]
    ]
    return f"Flags {' and '.join(shares)}." if shares else "Not measured on any other images."


def _calibration(
    name: str,
    scores: Float[np.ndarray, " m"],
    patients: Shaped[np.ndarray, " m"] | Sequence[str] | None,
    chooser: np.random.Generator | None,
) -> Calibration:
    scores = _scores(name, scores)
    named = np.arange(len(scores)) if patients is None else np.asarray(patients)
    if len(named) != len(scores):
        raise ValueError(f"filter: {name} patients: want one for each of {len(scores)} scores, got {len(named)}")
    if len(np.unique(named)) == len(named):
        return Calibration(scores, named, scores)
    if chooser is None:
        raise ValueError(f"filter: {name} patients: want a chooser where patients have several images, got none")
    return Calibration(scores, named, one_a_patient(scores, named, chooser))


def _scores(name: str, values: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    # NaN would compare false with everything and so keep every image.
    missing = int(np.isnan(values).sum())
    if missing:
        raise ConfigError(f"filter: {name} scores: want numbers, got {missing} NaN — leave out what has no score")
    return values.astype(np.float64)
