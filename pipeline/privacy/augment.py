"""What may happen to a film without its becoming another patient's: training augmentation, and measured changes.

`augmented` is drawn anew for every image of every training batch. `changed_copies` are the named changes, at stated
strengths, on which recall is measured; the two are stated apart so that training cannot move the yardstick.
Images are float32 in [-1, 1]. Axis letters: n images, c channels, h height, w width.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from scipy.special import ive
from torch import Tensor

from pipeline import config
from pipeline.images import to_torch, to_uint8

RoundTrip = Callable[[Tensor], Tensor]
"""Images through an autoencoder and back, n c h w to n c h w."""
Change = Callable[[Tensor, float, torch.Generator], Tensor]
"""Images, a strength and a source of chance to changed images."""


def augmented(
    images: Float[Tensor, "n c h w"],
    augment: config.Augment,
    generator: torch.Generator,
    round_trip: RoundTrip | None = None,
) -> Float[Tensor, "n c h w"]:
    """Every image changed by its own random pose, softness, exposure, noise and compression.

    The order is that of a copy that somebody makes: pose, latent code, softness, exposure, noise, file format.
    """
    n, device = len(images), images.device

    def uniform(largest: float) -> Float[Tensor, " n"]:
        return ((2 * torch.rand(n, generator=generator) - 1) * largest).to(device)

    def chosen(frac: float) -> Tensor:
        return torch.nonzero(torch.rand(n, generator=generator) < frac)[:, 0].to(device)

    shift = torch.stack([uniform(augment.shift_frac), uniform(augment.shift_frac)], 1) * images.shape[-1]
    zoom = (uniform(1.0) * math.log(1 + augment.zoom)).exp()
    images = moved(images, shift, uniform(augment.rotation_deg), zoom)
    if round_trip is not None:
        images = _replaced(images, chosen(augment.round_trip_frac), round_trip)
    images = _replaced(images, chosen(augment.blur_frac), blurred)
    gain, offset = 1 + uniform(augment.gain), uniform(augment.offset)
    images = images * gain[:, None, None, None] + offset[:, None, None, None]
    images = with_noise(images, uniform(augment.noise_sd).abs(), generator).clamp(-1, 1)
    compressed = chosen(augment.jpeg_frac)
    quality = torch.randint(30, 91, (len(compressed),), generator=generator)
    return _replaced(images, compressed, lambda some: jpeg(some, quality))


def _shifted(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    angle = (2 * math.pi * torch.rand(len(images), generator=generator)).to(images.device)
    direction = torch.stack([angle.cos(), angle.sin()], 1)
    return moved(images, strength * images.shape[-1] * direction, torch.zeros_like(angle))


def _rotated(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    side = (2 * torch.randint(0, 2, (len(images),), generator=generator) - 1).to(images)
    return moved(images, images.new_zeros(len(images), 2), strength * side)


def _zoomed(images: Tensor, factor: float) -> Tensor:
    still = images.new_zeros(len(images), 2)
    return moved(images, still, still[:, 0], torch.full_like(still[:, 0], factor))


def _cropped(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """The side made shorter by this share, at a random place, and the rest enlarged to the whole."""
    n, factor = len(images), 1 / (1 - strength)
    centre = (torch.rand(n, 2, generator=generator) - 0.5).to(images.device) * strength * images.shape[-1]
    return moved(images, -factor * centre, centre.new_zeros(n), torch.full_like(centre[:, 0], factor))


def _noisy(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    return with_noise(images, images.new_full((len(images),), strength), generator)


def _compressed(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    return jpeg(images, torch.full((len(images),), max(1, round(100 - strength))))


CHANGES: Mapping[str, Change] = {
    "shift": _shifted,
    "rotation": _rotated,
    "zoom_in": lambda images, strength, _: _zoomed(images, 1 + strength),
    "zoom_out": lambda images, strength, _: _zoomed(images, 1 / (1 + strength)),
    "crop": _cropped,
    "gain_up": lambda images, strength, _: images * (1 + strength),
    "gain_down": lambda images, strength, _: images * (1 - strength),
    "blur": lambda images, strength, _: softened(images, strength * images.shape[-1]),
    "noise": _noisy,
    "jpeg": _compressed,
}
"""What an attacker does to a film. The unit of a strength: shift, crop and blur (standard deviation) in shares of the
side, rotation in degrees, zoom and gain in shares of the size and of the contrast, noise (standard deviation) on the
scale [-1, 1], jpeg in points of quality below 100."""


def changed_copies(
    images: Float[Tensor, "n c h w"], kind: str, strength: float, generator: torch.Generator
) -> Float[Tensor, "n c h w"]:
    """The images under one of `CHANGES`; values are clipped to [-1, 1], as files clip them."""
    return CHANGES[kind](images, strength, generator).clamp(-1, 1)


def moved(
    images: Float[Tensor, "n c h w"],
    shift_px: Float[Tensor, "n 2"],
    rotation_deg: Float[Tensor, " n"],
    zoom: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, "n c h w"]:
    """Images enlarged and rotated about their centre, then shifted right and down; borders are continued outwards."""
    height, width = images.shape[2:]
    cos, sin = rotation_deg.deg2rad().cos(), rotation_deg.deg2rad().sin()
    # affine_grid asks where each output pixel comes from, in units of half a side: the inverse of the motion.
    right, down = -2 * shift_px[:, 0] / width, -2 * shift_px[:, 1] / height
    aspect = height / width
    rows = [
        torch.stack([cos, sin * aspect, cos * right + sin * aspect * down], 1),
        torch.stack([-sin / aspect, cos, -sin / aspect * right + cos * down], 1),
    ]
    matrix = torch.stack(rows, 1)
    if zoom is not None:
        matrix = matrix / zoom[:, None, None]
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def blurred(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Images under a 3x3 binomial kernel."""
    line = torch.tensor([0.25, 0.5, 0.25], device=images.device)
    kernel = (line[:, None] * line).expand(images.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=images.shape[1])


def softened(images: Float[Tensor, "n c h w"], sd_px: float) -> Float[Tensor, "n c h w"]:
    """Images under the discrete Gaussian kernel of this standard deviation.

    Its variance is the one asked for at any width; a sampled Gaussian of under half a pixel blurs hardly at all.
    Source: Lindeberg, IEEE Trans. PAMI 12:234 (1990), Eq. 24.
    """
    radius = min(max(2, math.ceil(4 * sd_px)), images.shape[-1] - 1)
    weights = ive(np.abs(np.arange(-radius, radius + 1)), sd_px**2)
    line = torch.from_numpy(weights / weights.sum()).to(images).expand(images.shape[1], 1, 1, -1)
    padded = F.pad(images, (radius,) * 4, mode="replicate")
    rows = F.conv2d(padded, line, groups=images.shape[1])
    return F.conv2d(rows, line.mT, groups=images.shape[1])


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
