"""How well a network recognises patients that it has never seen.

An attacker holds two films and asks whether they show one patient (verification), or holds one film and asks whose it
is (retrieval). Not here: the risk of a synthetic set (`risk`), and which changed copies are found (`measures`).
Axis letters: n images, c channels, h height, w width,
p same-patient pairs, q different-patient pairs, d embedding.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped, UInt8

from pipeline.estimate import Estimate
from pipeline.privacy.matching import Gallery, best_matches, different_pairs
from pipeline.privacy.networks import SiameseNetwork, embeddings
from pipeline.privacy.risk import clustered
from pipeline.seeds import Origin, numpy_generator, torch_generator


class Verification(NamedTuple):
    """What a network can do on patients that it was not trained on; intervals are 95 %, over patients."""

    auc: Estimate
    """Chance that a same-patient pair scores higher than a different-patient pair; n pairs of both kinds."""
    threshold: float
    """Score that a pair must reach at the operating point, 0-1."""
    recall: Estimate
    """Share of same-patient pairs that reach it."""
    false_positive_rate: Estimate
    """Share of different-patient pairs that reach it."""
    rank1: Estimate
    """Share of films whose closest other film shows the same patient, among films of patients with several."""
    n_patients: int
    """Patients behind all of these."""


def verification(
    model: SiameseNetwork,
    images: UInt8[np.ndarray, "n h w c"],
    patients: Int[np.ndarray, " n"],
    *,
    seed: Origin,
    operating_recall: float,
    batch_size: int,
    max_pairs: int = 20_000,
    n_resamples: int = 1_000,
) -> Verification:
    """Verification and retrieval over all same-patient pairs and as many random different-patient pairs.

    Of more than `max_pairs` same-patient pairs a random subset is used. The operating point is the highest threshold
    with at least `operating_recall`. Intervals are percentiles of a bootstrap over patients, as pairs of one patient
    are not independent: a patient drawn k times weighs k in pairs of its own, and a pair of two patients weighs the
    product of theirs.
    Source: Field & Welsh, J. R. Stat. Soc. B 69:369 (2007), cluster bootstrap, doi:10.1111/j.1467-9868.2007.00593.x.
    Raises: ValueError if no patient has two films, or there is one patient only.
    """
    codes = np.unique(patients, return_inverse=True)[1]
    vectors = embeddings(model, images, batch_size)
    positives = _same_pairs(codes, max_pairs, numpy_generator(seed, "verification", "same"))
    drawn = different_pairs(
        torch.from_numpy(codes), len(positives), torch_generator(seed, "verification", "different")
    )
    negatives = torch.stack(drawn, 1).numpy()
    same, different = (_scores(model, vectors, pairs) for pairs in (positives, negatives))
    needed = math.ceil(operating_recall * len(same) - 1e-9)
    threshold = float(np.sort(same)[::-1][needed - 1])
    found = _measures(same, different, threshold, np.ones(len(same)), np.ones(len(different)))
    generator = numpy_generator(seed, "verification", "bootstrap")
    resampled = []
    for _ in range(n_resamples):
        weight = generator.multinomial(codes.max() + 1, np.full(codes.max() + 1, 1 / (codes.max() + 1)))
        weights = weight[codes[positives[:, 0]]], weight[codes[negatives]].prod(1)
        resampled.append(_measures(same, different, threshold, *weights))
    low, high = np.nanpercentile(resampled, (2.5, 97.5), axis=0)
    counts = len(same) + len(different), len(same), len(different)
    auc, recall, false_positive_rate = map(Estimate, found, low.tolist(), high.tolist(), counts)
    rank1 = _rank1(model, vectors, codes)
    return Verification(auc, threshold, recall, false_positive_rate, rank1, int(codes.max()) + 1)


def weighted_auc(
    same: Float[np.ndarray, " p"],
    different: Float[np.ndarray, " q"],
    same_weight: Shaped[np.ndarray, " p"],
    different_weight: Shaped[np.ndarray, " q"],
) -> float:
    """Chance that a same-patient pair outscores a different-patient pair, a tie counting half; NaN without weight.

    Source: Mann & Whitney, Ann. Math. Stat. 18:50 (1947), doi:10.1214/aoms/1177730491, with case weights.
    """
    total = same_weight.sum() * different_weight.sum()
    if total == 0:
        return math.nan
    order = np.argsort(different)
    below = np.concatenate([[0], np.cumsum(different_weight[order])])
    ranks = [np.searchsorted(different[order], same, side) for side in ("left", "right")]
    return float(np.sum(same_weight * (below[ranks[0]] + below[ranks[1]]) / 2) / total)


def _measures(
    same: Float[np.ndarray, " p"],
    different: Float[np.ndarray, " q"],
    threshold: float,
    same_weight: Shaped[np.ndarray, " p"],
    different_weight: Shaped[np.ndarray, " q"],
) -> tuple[float, float, float]:
    """AUC, recall and false-positive rate of weighted pairs."""
    return (
        weighted_auc(same, different, same_weight, different_weight),
        _share(same >= threshold, same_weight),
        _share(different >= threshold, different_weight),
    )


def _share(flags: Shaped[np.ndarray, " n"], weight: Shaped[np.ndarray, " n"]) -> float:
    return float(np.average(flags, weights=weight)) if weight.sum() else math.nan


def _same_pairs(
    codes: Int[np.ndarray, " n"], max_pairs: int, generator: np.random.Generator
) -> Int[np.ndarray, "p 2"]:
    """Positions of all pairs of films of one patient, or `max_pairs` of them at random."""
    films = [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]
    pairs = np.concatenate([some[np.stack(np.triu_indices(len(some), 1), 1)] for some in films])
    if not len(pairs):
        raise ValueError("verification: want a patient with 2 images, got none — is the split too small?")
    return pairs if len(pairs) <= max_pairs else generator.choice(pairs, max_pairs, replace=False)


@torch.inference_mode()
def _scores(
    model: SiameseNetwork, vectors: Float[torch.Tensor, "n d"], pairs: Int[np.ndarray, "p 2"]
) -> Float[np.ndarray, " p"]:
    first, second = (vectors[column].to(model.head.weight.device) for column in pairs.T)
    return model.pair_logit(first, second).sigmoid().cpu().numpy()


def _rank1(model: SiameseNetwork, vectors: Float[torch.Tensor, "n d"], codes: Int[np.ndarray, " n"]) -> Estimate:
    """Share of films of patients with several whose closest other film is of the same patient."""
    names = [str(code) for code in codes]
    gallery = Gallery(vectors, names, names)
    own = np.flatnonzero(np.bincount(codes)[codes] > 1)
    found = best_matches(model, vectors[own], gallery, len(codes), exclude_row=torch.from_numpy(own))
    return clustered(codes[found.nearest.numpy()] == codes[own], codes[own])
