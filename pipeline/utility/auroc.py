"""How well scores separate images with a finding from images without it, with intervals over patients.

Serves the downstream task (a classifier tested on real images) and prompt adherence (a classifier trained on real
images, tested on synthetic ones against the labels that their prompts ask for; the clusters are then the prompts).
Not here: the classifier. Labels are 1 present, 0 absent, -1 unknown; an unknown label leaves that image out for that
finding. Axis letters: n images, k findings, m images with a known label, c clusters, r resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Int8
from numpy.typing import ArrayLike

from pipeline.estimate import Estimate
from pipeline.seeds import Origin, numpy_generator

# With fewer clusters on either side a resample too often has none of them, and its interval means nothing.
MIN_CLUSTERS = 5
CHANCE = 0.5  # AUROC of guessing
BLOCK_VALUES = 2_000_000  # weights expanded at once (16 MB), however long the flattened micro ranking is


class Ranking(NamedTuple):
    """Images with a known label in ascending order of their scores."""

    clusters: Int[np.ndarray, " m"]
    positive: Bool[np.ndarray, " m"]
    tie_starts: Int[np.ndarray, " t"]
    """Where each run of equal scores begins."""


def auroc(labels: Int8[np.ndarray, "n k"], scores: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " k"]:
    """Area under the ROC curve of each finding, 0-1, tied scores counting half; NaN where a class is absent.

    Raises: ValueError if shapes differ or a score is not finite.
    Source: the Mann-Whitney form, Hanley & McNeil, Radiology 143:29 (1982), doi:10.1148/radiology.143.1.7063747.
    """
    _require_scores(labels, scores)
    one_cluster = np.zeros(len(labels), np.int64)
    rankings = [_ranking(*column, one_cluster) for column in zip(labels.T, scores.T, strict=True)]
    return np.array([_areas(ranking, np.ones((1, 1)))[0] for ranking in rankings])


def macro_auroc(labels: Int8[np.ndarray, "n k"], scores: Float[np.ndarray, "n k"]) -> float:
    """Mean AUROC of the findings that have both classes; NaN if none has."""
    areas = auroc(labels, scores)
    known = areas[~np.isnan(areas)]
    return float(known.mean()) if len(known) else float("nan")


def micro_auroc(labels: Int8[np.ndarray, "n k"], scores: Float[np.ndarray, "n k"]) -> float:
    """AUROC over all n x k scores at once; it also rewards knowing which findings are frequent."""
    return float(auroc(labels.reshape(-1, 1), scores.reshape(-1, 1))[0])


def bootstrap_auroc(
    labels: Int8[np.ndarray, "n k"],
    scores: Float[np.ndarray, "n k"],
    clusters: ArrayLike,
    findings: Sequence[str],
    *,
    n_resamples: int,
    seed: Origin,
) -> dict[str, Estimate]:
    """AUROC of each finding, `macro` and `micro` with 95 % percentile intervals over resampled clusters.

    `clusters` names the patient (or prompt) of each image; its images are drawn together, as they are no independent
    evidence. What fewer than `MIN_CLUSTERS` clusters have, or lack, cannot be estimated: it has no key and does not
    enter the macro mean. A resample without a positive or a negative is left out. `n` counts images.
    Raises: ValueError if shapes differ or a score is not finite.
    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), section 13.3; clusters drawn whole: Field &
    Welsh, J. R. Stat. Soc. B 69:369 (2007), doi:10.1111/j.1467-9868.2007.00593.x.
    """
    _require_scores(labels, scores)
    members, multiplicities = _resamples(clusters, n_resamples, seed)
    rankings = _estimable(labels, scores, members, findings)
    areas = {name: _areas(ranking, multiplicities) for name, ranking in rankings.items()}
    estimates = {name: _estimate(areas[name], len(rankings[name].clusters)) for name in rankings}
    if areas:
        estimates["macro"] = _estimate(np.mean([*areas.values()], axis=0), len(labels))
    flat_members = members.repeat(labels.shape[1])
    for name, ranking in _estimable(labels.reshape(-1, 1), scores.reshape(-1, 1), flat_members, ["micro"]).items():
        estimates[name] = _estimate(_areas(ranking, multiplicities), len(labels))
    return estimates


def retention(
    labels: Int8[np.ndarray, "n k"],
    scores: Float[np.ndarray, "n k"],
    reference_scores: Float[np.ndarray, "n k"],
    clusters: ArrayLike,
    *,
    n_resamples: int,
    seed: Origin,
    above_chance: bool = False,
) -> Estimate | None:
    """Macro AUROC of `scores` over that of `reference_scores` on the same images; none if no finding is estimable.

    Both are taken on the same resamples, so that what makes the test images easy or hard for both cancels out. As
    guessing has an AUROC of .5, a classifier that learned nothing retains half or more of it; `above_chance` takes
    .5 from both, so that it retains 0. Without 95 % confidence that the reference is over .5 the ratio has no bounds:
    it is then NaN with n = 0, not measured. The few resamples with a reference at .5 or under are left out.
    Raises: ValueError if shapes differ or a score is not finite.
    """
    _require_scores(labels, scores)
    _require_scores(labels, reference_scores)
    members, multiplicities = _resamples(clusters, n_resamples, seed)
    findings = [str(column) for column in range(labels.shape[1])]
    rankings = _estimable(labels, scores, members, findings)
    reference_rankings = _estimable(labels, reference_scores, members, findings)
    if not rankings:
        return None
    chance = CHANCE if above_chance else 0.0
    areas = _macro_areas(rankings, multiplicities) - chance
    reference_areas = _macro_areas(reference_rankings, multiplicities) - chance
    if _estimate(reference_areas, len(labels)).low <= 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    nan = np.full(len(areas), np.nan)
    return _estimate(np.divide(areas, reference_areas, out=nan, where=reference_areas > 0), len(labels))


def _require_scores(labels: Int8[np.ndarray, ...], scores: Float[np.ndarray, ...]) -> None:
    if labels.shape != scores.shape:
        raise ValueError(f"auroc: want one score per label {labels.shape}, got {scores.shape}")
    if not np.isfinite(scores).all():
        n_bad = int((~np.isfinite(scores)).sum())
        raise ValueError(f"auroc: want finite scores, got {n_bad} that are not — did training diverge?")


def _estimable(
    labels: Int8[np.ndarray, "n k"],
    scores: Float[np.ndarray, "n k"],
    clusters: Int[np.ndarray, " n"],
    findings: Sequence[str],
) -> dict[str, Ranking]:
    """The ranking of each column that enough clusters have and enough lack."""
    rankings = {}
    for finding, label, score in zip(findings, labels.T, scores.T, strict=True):
        ranking = _ranking(label, score, clusters)
        sides = ranking.clusters[ranking.positive], ranking.clusters[~ranking.positive]
        if min(len(np.unique(side)) for side in sides) >= MIN_CLUSTERS:
            rankings[finding] = ranking
    return rankings


def _ranking(
    labels: Int8[np.ndarray, " n"], scores: Float[np.ndarray, " n"], clusters: Int[np.ndarray, " n"]
) -> Ranking:
    known = np.flatnonzero(labels >= 0)
    rows = known[np.argsort(scores[known], kind="stable")]
    tie_starts = np.flatnonzero(np.diff(scores[rows], prepend=-np.inf))
    return Ranking(clusters[rows], labels[rows] == 1, tie_starts)


def _resamples(
    clusters: ArrayLike, n_resamples: int, seed: Origin
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, "r c"]]:
    """The cluster of each image by number, and how often each resample drew it; the first is the sample itself."""
    names, members = np.unique(np.asarray(clusters), return_inverse=True)
    drawn = numpy_generator(seed, "auroc").multinomial(len(names), np.full(len(names), 1 / len(names)), n_resamples)
    return members, np.vstack([np.ones(len(names)), drawn])


def _areas(ranking: Ranking, multiplicities: Float[np.ndarray, "r c"]) -> Float[np.ndarray, " r"]:
    """AUROC in each resample: the images are ranked once, a resample only changes their weights."""
    n_blocks = 1 + multiplicities.shape[0] * len(ranking.clusters) // BLOCK_VALUES
    blocks = np.array_split(multiplicities, n_blocks)
    return np.concatenate([_weighted_area(ranking, block[:, ranking.clusters]) for block in blocks])


def _weighted_area(ranking: Ranking, weights: Float[np.ndarray, "r m"]) -> Float[np.ndarray, " r"]:
    """Weight of the pairs that are ranked correctly, ties half, over that of all (positive, negative) pairs."""
    positives = np.add.reduceat(weights * ranking.positive, ranking.tie_starts, axis=1)
    negatives = np.add.reduceat(weights * ~ranking.positive, ranking.tie_starts, axis=1)
    negatives_below = negatives.cumsum(axis=1) - negatives / 2
    n_pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    correct = (positives * negatives_below).sum(axis=1)
    return np.divide(correct, n_pairs, out=np.full(len(n_pairs), np.nan), where=n_pairs > 0)


def _macro_areas(
    rankings: Mapping[str, Ranking], multiplicities: Float[np.ndarray, "r c"]
) -> Float[np.ndarray, " r"]:
    return np.mean([_areas(ranking, multiplicities) for ranking in rankings.values()], axis=0)


def _estimate(values: Float[np.ndarray, " r"], n: int) -> Estimate:
    """The first value with the 2.5th and 97.5th percentile of the others."""
    low, high = np.nanquantile(values[1:], [0.025, 0.975])
    return Estimate(float(values[0]), float(low), float(high), n)
