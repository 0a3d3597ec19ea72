"""How alike synthetic images are to each other: the check for a generator that has collapsed.

MS-SSIM near 1 within a prompt means that the generator draws one image per prompt. Its scale depends on the images'
size and content, so that only figures of one image size are compared, next to those of real images. Not here:
likeness to real patients, which is the matter of `privacy`. Axis letters: n images, p pairs, c channels, h w pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from scipy.stats import t
from torch import Tensor

from pipeline.estimate import Estimate
from pipeline.images import to_torch
from pipeline.seeds import Origin, numpy_generator

# Wang et al., Asilomar 2003, doi:10.1109/ACSSC.2003.1292216: weights of the scales, finest first.
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
KERNEL_PX = 11
BLOCK_PIXELS = 1_000_000  # pixels compared at once


class Diversity(NamedTuple):
    """Mean MS-SSIM of pairs of images, 0-1, 1 = identical."""

    within: Estimate | None
    """Pairs that share a prompt; none if fewer than two prompts have two images."""
    between: Estimate | None
    """Pairs of different prompts; none with fewer than four prompts."""


def scale_weights(image_px: int) -> tuple[float, ...]:
    """The published weights of as many scales as fit the image, renormalised to sum to 1.

    The Gaussian kernel of 11 px must fit into the image at the coarsest scale, so that five scales need 176 px; 48
    and 64 px images have three, 32 px images two.
    Raises: ValueError if not even one scale fits.
    """
    # torchmetrics wants side // (scales - 1)² to hold the kernel too, which is stricter for four scales.
    fitting = [n for n in range(1, 6) if image_px // max(2 ** (n - 1), (n - 1) ** 2) >= KERNEL_PX]
    if not fitting:
        raise ValueError(f"MS-SSIM: want images of {KERNEL_PX} px or more, got {image_px}")
    weights = SCALE_WEIGHTS[: fitting[-1]]
    return tuple(weight / sum(weights) for weight in weights)


def ms_ssim(first: Float[Tensor, "p c h w"], second: Float[Tensor, "p c h w"]) -> Float[Tensor, " p"]:
    """Multi-scale structural similarity of each pair of images in [-1, 1].

    Source: Wang, Simoncelli & Bovik, Asilomar 2003, eq. 7, kernel 11 px, σ 1.5, on the scales of `scale_weights`.
    """
    # It brings in all of transformers, 1.5 s for each of the many processes that only pass by here.
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    betas = scale_weights(min(first.shape[-2:]))
    block = max(BLOCK_PIXELS // first[0].numel(), 1)
    return torch.cat(
        [
            multiscale_structural_similarity_index_measure(
                a, b, data_range=2.0, betas=betas, kernel_size=KERNEL_PX, reduction="none"
            ).reshape(-1)
            for a, b in zip(first.split(block), second.split(block), strict=True)
        ]
    )


def diversity(images: UInt8[np.ndarray, "n h w c"], prompts: Sequence[str], *, seed: Origin) -> Diversity:
    """MS-SSIM of all pairs within each prompt, and of all pairs between prompts that were coupled at random.

    A prompt is in one couple only, so that couples are independent and the 95 % t interval over prompts (couples)
    means what it says. Cost: per prompt of four images 6 pairs within and 8 between. `n` counts pairs.
    """
    groups: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(row)
    shuffled = numpy_generator(seed, "diversity").permutation(sorted(groups))
    couples = zip(shuffled[::2], shuffled[1::2], strict=False)
    return Diversity(
        within=_mean_similarity(images, [[*combinations(rows, 2)] for rows in groups.values()]),
        between=_mean_similarity(images, [[*product(groups[a], groups[b])] for a, b in couples]),
    )


def _mean_similarity(
    images: UInt8[np.ndarray, "n h w c"], groups: Sequence[Sequence[tuple[int, int]]]
) -> Estimate | None:
    """Mean over groups of their mean over pairs; none with fewer than two groups."""
    groups = [pairs for pairs in groups if pairs]
    if len(groups) < 2:
        return None
    first, second = np.array([pair for pairs in groups for pair in pairs]).T
    pixels = to_torch(images)
    values = ms_ssim(pixels[first], pixels[second]).double().numpy()
    ends = np.cumsum([len(pairs) for pairs in groups])
    means = np.array([part.mean() for part in np.split(values, ends[:-1])])
    mean = float(means.mean())
    half_width = float(t.ppf(0.975, len(means) - 1) * means.std(ddof=1) / np.sqrt(len(means)))
    return Estimate(mean, mean - half_width, mean + half_width, len(values))
