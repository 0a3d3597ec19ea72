"""The five rules that say which synthetic images are dropped, and what each of them guarantees.

Pure functions of scores. Not here: how scores are made (matching), nor whether the result is good enough (gate).
All rules drop a score that is at or over one threshold, and what has no score. Axis letters: n synthetic images,
c images of unseen patients (control), s images that are of patients of the gallery (same patient).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float
from scipy.stats import beta, binom

from pipeline.config import ConfigError, Filter
from pipeline.privacy.risk import wilson
from pipeline.tables import FILTERED, SCORES, require

KEPT, OVER, UNSCORED, COPY = "kept", "over the threshold", "no score", "copy of a real image"
SURPLUS = "more than wanted of its findings"
REASONS = pa.array([KEPT, OVER, UNSCORED, COPY, SURPLUS])


class Decision(NamedTuple):
    """What a rule came to on these scores."""

    threshold: float | None
    """Scores at or over it are dropped; none drops no scored image."""
    guarantee: str
    """What may be concluded from it, with numbers, and what may not."""
    n: int
    """Number of scores that the guarantee rests on."""


def filter_table(
    scores: pa.Table,
    rule: Filter,
    *,
    control: Float[np.ndarray, " c"],
    same_patient: Float[np.ndarray, " s"],
    shown: Bool[np.ndarray, "n k"],
) -> tuple[pa.Table, Decision]:
    """Every row with `keep` and its reason (`tables.FILTERED`), in the order of the scores, and why.

    Beside the rule, every rule but `none` drops pixel copies of real images, which a network may overlook. `shown`
    says which findings each image shows; it is read where the recipe caps the images of a finding.
    Raises: SchemaError if the table is not one of scores, ConfigError if the calibration cannot carry the rule.
    """
    require(scores, SCORES, "filter input")
    values = scores["reid_score"].to_numpy().astype(np.float64)
    decision = threshold(rule, values[~np.isnan(values)], control=control, same_patient=same_patient)
    limit = math.inf if decision.threshold is None else decision.threshold
    copies = scores["pixel_copy"].to_numpy(zero_copy_only=False) & (rule.rule != "none")
    reason = np.select([np.isnan(values), values >= limit, copies], [2, 1, 3], 0).astype(np.int32)
    if rule.max_per_class is not None:
        kept = np.flatnonzero(reason == 0)
        reason[kept[~within_cap(values[kept], shown[kept], rule.max_per_class)]] = 4
    columns = [
        scores["row_id"],
        pa.array(reason == 0),
        pa.DictionaryArray.from_arrays(pa.array(reason), REASONS),
    ]
    return pa.table(columns, schema=FILTERED), decision


def within_cap(scores: Float[np.ndarray, " n"], shown: Bool[np.ndarray, "n k"], most: int) -> Bool[np.ndarray, " n"]:
    """Which images stay if no finding needs more than `most`: from the lowest score up, an image stays while one of
    its findings has room. Images that show none are a class of their own; of equal scores the earlier row goes first.
    """
    classes = np.column_stack([shown, ~shown.any(1)])
    room = np.full(classes.shape[1], most)
    stays = np.zeros(len(scores), bool)
    for i in np.argsort(scores, kind="stable"):
        if (room[classes[i]] > 0).any():
            stays[i] = True
            room[classes[i]] -= 1
    return stays


def threshold(
    rule: Filter,
    scores: Float[np.ndarray, " n"],
    *,
    control: Float[np.ndarray, " c"],
    same_patient: Float[np.ndarray, " s"],
) -> Decision:
    """The threshold that the recipe's rule sets on these scores; only `fdr` looks at `scores` themselves.

    `control` holds the best-match scores of unseen patients' images, `same_patient` those of images whose patient
    is in the gallery, each image itself left out of it. Images are counted as independent: give few per patient.
    Raises: ConfigError if a calibration score is missing, or if there are too few of them for the rule.
    """
    control, same_patient = _scores("control", control), _scores("same-patient", same_patient)
    if rule.rule == "fixed":
        decision = _fixed(rule.fixed.threshold)
    elif rule.rule == "percentile":
        decision = _percentile(rule.percentile.percentile, control)
    elif rule.rule == "recall":
        decision = _recall(rule.recall.recall, rule.recall.confidence, same_patient)
    elif rule.rule == "fdr":
        decision = _fdr(rule.fdr.q, scores.astype(np.float64), control)
    else:
        decision = Decision(None, "Keeps every image that has a score; guarantees nothing.", 0)
    return decision._replace(guarantee=f"{decision.guarantee} {_measured(decision, control, same_patient)}")


def _fixed(limit: float) -> Decision:
    guarantee = f"Drops scores from {limit:g}, a number that does not come from this cohort; guarantees nothing here."
    return Decision(limit, guarantee, 0)


def _percentile(percentile: float, control: Float[np.ndarray, " c"]) -> Decision:
    """A percentile of the control scores, rounded up to a score that occurs (numpy's method 'higher').

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
        f"Drops scores from {limit:.4g}, percentile {percentile:g} of {n:,} images of unseen patients: with 95 % "
        f"confidence a new patient's image is dropped with a chance between {low:.1%} and {high:.1%}. "
        "Says nothing about misses."
    )
    return Decision(limit, guarantee, n)


def _recall(recall: float, confidence: float, same_patient: Float[np.ndarray, " s"]) -> Decision:
    """The largest order statistic of the same-patient scores that flags at least `recall` of them for sure enough.

    The number of scores that may fall below it is the largest k with P(Bin(n, 1 - recall) <= k) <= 1 - confidence,
    which is where the one-sided Clopper-Pearson bound of the observed recall still reaches `recall`.
    Source: Wilks, Ann. Math. Stat. 12:91 (1941); Clopper & Pearson, Biometrika 26:404 (1934).
    """
    n = len(same_patient)
    n_candidates = int(np.sum(binom.cdf(np.arange(n), n, 1 - recall) <= 1 - confidence))
    if n_candidates == 0:
        raise ConfigError(
            f"filter.recall: want {_images_for(recall, confidence)} same-patient scores for recall {recall:g} at "
            f"confidence {confidence:g}, got {n} — lower one of the two or probe more images"
        )
    limit = float(np.sort(same_patient)[n_candidates - 1])
    guarantee = (
        f"Drops scores from {limit:.4g}: with {confidence:.0%} confidence at least {recall:.1%} of images like the "
        f"{n:,} probed ones of patients in the gallery are caught. Copies that a generator makes may differ."
    )
    return Decision(limit, guarantee, n)


def _images_for(recall: float, confidence: float) -> str:
    """How many same-patient scores the recall rule needs at least: recall^n <= 1 - confidence."""
    if recall == 1 or confidence == 1:
        return "infinitely many"
    return f"at least {math.ceil(math.log(1 - confidence) / math.log(recall)):,}"


def _fdr(q: float, scores: Float[np.ndarray, " n"], control: Float[np.ndarray, " c"]) -> Decision:
    """Conformal p-values against control, p = (1 + #{control >= score}) / (c + 1), and Benjamini-Hochberg at q.

    A discovery is an image that scores higher than unseen patients' images do; discoveries are dropped. As p falls
    with the score, they are what scores at or over the lowest of them.
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
        f"{dropped}: of the dropped images at most {q:.1%} are expected to score like the {n:,} images of unseen "
        "patients. Limits needless drops, on average over such control sets; says nothing about misses."
    )
    return Decision(limit, guarantee, n)


def _measured(decision: Decision, control: Float[np.ndarray, " c"], same_patient: Float[np.ndarray, " s"]) -> str:
    limit = math.inf if decision.threshold is None else decision.threshold
    shares = [
        f"{share.value:.1%} of {share.n:,} {name} images (95 % interval {share.low:.1%} to {share.high:.1%})"
        for name, values in (("control", control), ("same-patient", same_patient))
        if len(values)
        for share in [wilson(int(np.sum(values >= limit)), len(values))]
    ]
    return f"Flags {' and '.join(shares)}." if shares else "Not measured on any other images."


def _scores(name: str, values: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    # NaN would compare false with everything and so keep every image.
    missing = int(np.isnan(values).sum())
    if missing:
        raise ConfigError(f"filter: {name} scores: want numbers, got {missing} NaN — leave out what has no score")
    return values.astype(np.float64)
