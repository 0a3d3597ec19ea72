"""What may happen to a film without its becoming another patient's: training augmentation, and fixed perturbations.

`augmented` is drawn anew for every image of every training batch. `perturbed_copies` are the named copies, of one
fixed moderate strength each, on which recall is measured; the two are stated apart so that training cannot move the
yardstick.
Images are float32 in [-1, 1]. Axis letters: n images, c channels, h height, w width.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from pipeline import config
from pipeline.images import to_torch, to_uint8

RoundTrip = Callable[[Tensor], Tensor]
"""Images through an autoencoder and back, n c h w to n c h w."""

NOISE_SD, SHIFT_PX, ROTATION_DEG, JPEG_QUALITY = 0.06, 1.0, 2.0, 50
"""Strengths of the perturbed copies: noise on the scale [-1, 1], about twice a film's own."""


def augmented(
    images: Float[Tensor, "n c h w"],
    augment: config.Augment,
    generator: torch.Generator,
    round_trip: RoundTrip | None = None,
) -> Float[Tensor, "n c h w"]:
    """Every image changed by its own random pose, softness, exposure, noise and compression.

    The order is that of a copy that a generator makes: pose, latent code, softness, exposure, noise, file format.
    """
    n, device = len(images), images.device

    def uniform(largest: float) -> Float[Tensor, " n"]:
        return ((2 * torch.rand(n, generator=generator) - 1) * largest).to(device)

    def chosen(frac: float) -> Tensor:
        return torch.nonzero(torch.rand(n, generator=generator) < frac)[:, 0].to(device)

    shift = torch.stack([uniform(augment.shift_px), uniform(augment.shift_px)], 1)
    images = moved(images, shift, uniform(augment.rotation_deg))
    if round_trip is not None:
        images = _replaced(images, chosen(augment.round_trip_frac), round_trip)
    images = _replaced(images, chosen(augment.blur_frac), blurred)
    gain, offset = 1 + uniform(augment.gain), uniform(augment.offset)
    images = images * gain[:, None, None, None] + offset[:, None, None, None]
    images = with_noise(images, uniform(augment.noise_sd).abs(), generator)
    compressed = chosen(augment.jpeg_frac)
    quality = torch.randint(30, 91, (len(compressed),), generator=generator)
    return _replaced(images, compressed, lambda some: jpeg(some, quality))


def perturbed_copies(
    images: Float[Tensor, "n c h w"], generator: torch.Generator, round_trip: RoundTrip | None = None
) -> dict[str, Float[Tensor, "n c h w"]]:
    """The images under each perturbation, by name; `round_trip` only where an autoencoder is given.

    noise: Gaussian, sd 0.06 on [-1, 1]. blur: 3x3 binomial. shift: 1 px in a random direction. rotation: 2 degrees
    to a random side. jpeg: quality 50. round_trip: through the autoencoder.
    """
    n, device = len(images), images.device
    angle = (2 * math.pi * torch.rand(n, generator=generator)).to(device)
    side = (2 * torch.randint(0, 2, (n,), generator=generator) - 1).to(device)
    still = torch.zeros(n, 2, device=device)
    copies = {
        "noise": with_noise(images, torch.full((n,), NOISE_SD, device=device), generator),
        "blur": blurred(images),
        "shift": moved(images, SHIFT_PX * torch.stack([angle.cos(), angle.sin()], 1), still[:, 0]),
        "rotation": moved(images, still, ROTATION_DEG * side),
        "jpeg": jpeg(images, torch.full((n,), JPEG_QUALITY)),
    }
    return copies | ({"round_trip": round_trip(images)} if round_trip is not None else {})


def moved(
    images: Float[Tensor, "n c h w"], shift_px: Float[Tensor, "n 2"], rotation_deg: Float[Tensor, " n"]
) -> Float[Tensor, "n c h w"]:
    """Images rotated about their centre, then shifted right and down; borders are continued outwards."""
    height, width = images.shape[2:]
    cos, sin = rotation_deg.deg2rad().cos(), rotation_deg.deg2rad().sin()
    # affine_grid asks where each output pixel comes from, in units of half a side: the inverse of the motion.
    right, down = -2 * shift_px[:, 0] / width, -2 * shift_px[:, 1] / height
    aspect = height / width
    rows = [
        torch.stack([cos, sin * aspect, cos * right + sin * aspect * down], 1),
        torch.stack([-sin / aspect, cos, -sin / aspect * right + cos * down], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def blurred(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Images under a 3x3 binomial kernel."""
    line = torch.tensor([0.25, 0.5, 0.25], device=images.device)
    kernel = (line[:, None] * line).expand(images.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=images.shape[1])


def with_noise(
    images: Float[Tensor, "n c h w"], sd: Float[Tensor, " n"], generator: torch.Generator
) -> Float[Tensor, "n c h w"]:
    """Images with white Gaussian noise of a standard deviation each."""
    noise = torch.randn(images.shape, generator=generator).to(images.device)
    return images + sd[:, None, None, None] * noise


def jpeg(images: Float[Tensor, "n c h w"], quality: Int[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """Images written as JPEG of a quality each (1-95) and read again; values are clipped to [-1, 1]."""
    pixels = to_uint8(images)
    for i, level in enumerate(quality.tolist()):
        buffer = io.BytesIO()
        Image.fromarray(pixels[i].squeeze(-1) if pixels.shape[-1] == 1 else pixels[i]).save(
            buffer, "JPEG", quality=level
        )
        pixels[i] = np.asarray(Image.open(buffer)).reshape(pixels[i].shape)
    return to_torch(pixels).to(images.device)


def _replaced(images: Float[Tensor, "n c h w"], rows: Tensor, change: RoundTrip) -> Float[Tensor, "n c h w"]:
    """The images with some rows changed."""
    return images.index_copy(0, rows, change(images[rows])) if len(rows) else images
