"""How close synthetic images are to real ones as distributions of features, each measure with its interval.

The features come from an encoder trained on patients whom no generator saw (`classifier.features`); values of two
encoders cannot be compared, so a report names the encoder. The control of every measure is the same call with unseen
real images in the place of synthetic ones, at the same n, as FID falls with n. torchmetrics has FID and KID but no
interval, and draws from the global generator; the tests compare with it. Not here: the encoder, and similarity of
images to each other (`similarity`). Axis letters: n real images, m synthetic images, d features, r resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial.distance import cdist
from scipy.stats import binomtest

from pipeline.config import ConfigError
from pipeline.estimate import Estimate
from pipeline.seeds import Origin, numpy_generator

N_RESAMPLES = 100  # enough for a standard deviation, which is all the interval takes from them
BLOCK_ROWS = 512  # rows of a distance or kernel matrix held at once


class Manifold(NamedTuple):
    """Shares of images inside the other set's neighbourhoods, 0-1, and density, which can exceed 1."""

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def fid(real: Float[np.ndarray, "n d"], synthetic: Float[np.ndarray, "m d"], *, seed: Origin) -> Estimate:
    """Fréchet distance between Gaussians fitted to the features; 0 is best, and small n adds to it.

    The interval is the value ± 1.96 standard deviations over resampled images: percentiles would lie too high, as a
    resample holds fewer distinct images and so adds the same bias again.
    Cost: 202 eigenvalue decompositions of d x d; .2 s for 1,000 images and d = 96.
    Source: Heusel et al., arXiv 1706.08500, eq. 6; interval: Efron & Tibshirani (1993), section 13.2.
    """
    real, synthetic = _float64(real, synthetic)
    weights = _resamples(len(real), seed, "fid real"), _resamples(len(synthetic), seed, "fid synthetic")
    distances = [_frechet(*_moments(real, a), *_moments(synthetic, b)) for a, b in zip(*weights, strict=True)]
    estimate = _normal_interval(np.array(distances), len(synthetic))
    return estimate._replace(low=max(estimate.low, 0.0))


def kid(real: Float[np.ndarray, "n d"], synthetic: Float[np.ndarray, "m d"], *, seed: Origin) -> Estimate:
    """Squared maximum mean discrepancy with the kernel (x·y / d + 1)³; 0 is best, and small n adds nothing to it.

    Taken over all pairs at once, which is what the usual mean over random subsets estimates, with less noise. The
    interval is the value ± 1.96 standard deviations over resampled images, pairs of an image with itself left out.
    Source: Bińkowski et al., arXiv 1801.01401, section 4 and eq. 4.
    """
    real, synthetic = _float64(real, synthetic)
    a, b = _resamples(len(real), seed, "kid real"), _resamples(len(synthetic), seed, "kid synthetic")
    between = _kernel_sum(real, synthetic, a, b) / (len(real) * len(synthetic))
    return _normal_interval(_kernel_mean(real, a) + _kernel_mean(synthetic, b) - 2 * between, len(synthetic))


def manifold(real: Float[np.ndarray, "n d"], synthetic: Float[np.ndarray, "m d"], *, neighbours: int) -> Manifold:
    """Precision and density (are synthetic images realistic?), recall and coverage (is the real variety there?).

    A neighbourhood is a ball around an image that reaches to its `neighbours`-th nearest of the same set. The
    intervals (Wilson; normal for density) are those of the images counted and take the balls as given.
    Raises: ConfigError if a set has no more than `neighbours` images.
    Source: precision, recall: Kynkäänniemi et al., arXiv 1904.06991, eq. 1-3; density, coverage: Naeem et al.,
    arXiv 2002.09797, eq. 3-4.
    """
    real, synthetic = _float64(real, synthetic)
    real_radii, synthetic_radii = _radii(real, neighbours), _radii(synthetic, neighbours)
    balls_around = np.zeros(len(synthetic))  # real balls that hold each synthetic image
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for rows in _blocks(len(real)):
        distances = cdist(real[rows], synthetic)
        inside = distances <= real_radii[rows, None]
        balls_around += inside.sum(axis=0)
        covered[rows] = inside.any(axis=1)
        recalled[rows] = (distances <= synthetic_radii).any(axis=1)
    return Manifold(
        precision=_share(balls_around > 0),
        recall=_share(recalled),
        density=_density(balls_around / neighbours),
        coverage=_share(covered),
    )


def relative_coverage(
    synthetic_coverage: Estimate, control_coverage: Estimate, n_images: int | None = None
) -> Estimate:
    """Coverage by synthetic images over that by as many other real images; 1 if they are as varied, can exceed 1.

    Coverage grows with the number of images and so needs a limit of its own at each; this does not: by 60, 300 and
    1,000 images of the distribution of 500 real ones coverage is .43, .91 and 1.00, relative coverage 1.00 each time.
    Both must be of the same real images, each by `n_images` (none: as many as real ones). Few images decide over many
    real ones at once, so that with fewer than the real ones both shares count as shares of `n_images`; of 60 images
    for 500 real ones the interval then holds 1 in 100 of 100, otherwise in 73-86. NaN with n = 0 where control may
    cover nothing.
    Raises: ValueError if the two are not of equally many real images.
    Source: MOVER-R, Donner & Zou, Stat. Methods Med. Res. 21:347 (2012), eq. 8, doi:10.1177/0962280210383082.
    """
    if synthetic_coverage.n != control_coverage.n:
        raise ValueError(
            f"relative_coverage: want equally many real images, got {synthetic_coverage.n} and {control_coverage.n}"
        )
    if not _as_of(n_images or control_coverage.n, control_coverage).low > 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    (share, low, high, n), (control, control_low, control_high, _) = (
        _as_of(n_images or coverage.n, coverage) for coverage in (synthetic_coverage, control_coverage)
    )
    product = share * control
    own, other = low * (2 * share - low), control_high * (2 * control - control_high)
    # At no coverage both ends of the fraction are 0.
    low_end = own / (product + math.sqrt(max(product**2 - own * other, 0.0))) if product else 0.0
    own, other = high * (2 * share - high), control_low * (2 * control - control_low)
    high_end = (product + math.sqrt(max(product**2 - own * other, 0.0))) / other
    return Estimate(share / control, low_end, high_end, n)


def _as_of(n: int, share: Estimate) -> Estimate:
    """A share with the wider interval of n units, if they are fewer."""
    wider = math.sqrt(max(1.0, share.n / n))
    low, high = share.value - wider * (share.value - share.low), share.value + wider * (share.high - share.value)
    return Estimate(share.value, max(0.0, low), min(1.0, high), min(n, share.n))


def _float64(
    real: Float[np.ndarray, "n d"], synthetic: Float[np.ndarray, "m d"]
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "m d"]]:
    if min(len(real), len(synthetic)) < 2:
        raise ValueError(f"fidelity: want two images or more on each side, got {len(real)} and {len(synthetic)}")
    return real.astype(np.float64), synthetic.astype(np.float64)


def _resamples(n: int, seed: Origin, name: str) -> Float[np.ndarray, "r n"]:
    """How often each resample drew each image; the first is the sample itself."""
    drawn = numpy_generator(seed, name).multinomial(n, np.full(n, 1 / n), N_RESAMPLES)
    return np.vstack([np.ones(n), drawn])


def _normal_interval(values: Float[np.ndarray, " r"], n: int) -> Estimate:
    half_width = 1.96 * values[1:].std(ddof=1)
    return Estimate(float(values[0]), float(values[0] - half_width), float(values[0] + half_width), n)


def _moments(
    features: Float[np.ndarray, "n d"], weights: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
    mean = weights @ features / weights.sum()
    centred = (features - mean) * np.sqrt(weights)[:, None]
    return mean, centred.T @ centred / (weights.sum() - 1)


def _frechet(
    mean: Float[np.ndarray, " d"],
    covariance: Float[np.ndarray, "d d"],
    other_mean: Float[np.ndarray, " d"],
    other_covariance: Float[np.ndarray, "d d"],
) -> float:
    # Tr (AB)^½ through R with RRᵀ = A: RᵀBR is symmetric and has the eigenvalues of AB, so no complex root is needed.
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(values.clip(0))
    cross = np.sqrt(np.linalg.eigvalsh(root.T @ other_covariance @ root).clip(0)).sum()
    spread = np.trace(covariance) + np.trace(other_covariance) - 2 * cross
    return float(max(np.square(mean - other_mean).sum() + spread, 0.0))


def _kernel_sum(
    first: Float[np.ndarray, "n d"],
    second: Float[np.ndarray, "m d"],
    first_weights: Float[np.ndarray, "r n"],
    second_weights: Float[np.ndarray, "r m"],
) -> Float[np.ndarray, " r"]:
    total = np.zeros(len(first_weights))
    for rows in _blocks(len(first)):
        kernel = (first[rows] @ second.T / first.shape[1] + 1) ** 3
        total += ((first_weights[:, rows] @ kernel) * second_weights).sum(axis=1)
    return total


def _kernel_mean(features: Float[np.ndarray, "n d"], weights: Float[np.ndarray, "r n"]) -> Float[np.ndarray, " r"]:
    """Mean kernel over pairs of different images."""
    itself = (np.square(features).sum(axis=1) / features.shape[1] + 1) ** 3
    n_pairs = weights.sum(axis=1) ** 2 - np.square(weights).sum(axis=1)
    return (_kernel_sum(features, features, weights, weights) - np.square(weights) @ itself) / n_pairs


def _radii(features: Float[np.ndarray, "n d"], neighbours: int) -> Float[np.ndarray, " n"]:
    """Distance to the `neighbours`-th nearest other image."""
    if len(features) <= neighbours:
        raise ConfigError(
            f"manifold: want more than neighbours = {neighbours} images, got {len(features)} "
            "— lower evaluate.neighbours"
        )
    # An image is its own 0th neighbour, at distance 0.
    blocks = [np.partition(cdist(features[rows], features), neighbours) for rows in _blocks(len(features))]
    return np.concatenate([block[:, neighbours] for block in blocks])


def _share(hits: Bool[np.ndarray, " n"]) -> Estimate:
    interval = binomtest(int(hits.sum()), len(hits)).proportion_ci(0.95, method="wilson")
    return Estimate(float(hits.mean()), float(interval.low), float(interval.high), len(hits))


def _density(densities: Float[np.ndarray, " m"]) -> Estimate:
    mean, n = float(densities.mean()), len(densities)
    half_width = float(1.96 * densities.std(ddof=1) / np.sqrt(n))
    return Estimate(mean, max(mean - half_width, 0.0), mean + half_width, n)


def _blocks(n: int) -> Iterator[slice]:
    return (slice(start, start + BLOCK_ROWS) for start in range(0, n, BLOCK_ROWS))
