"""Images to latents and back, as diffusers classes that a released pipeline loads without this project.

Three kinds: a patch PCA written into an `AutoencoderDC` (computed, not trained), a trained `AutoencoderKL`, and
the identity in an `AutoencoderTiny` (diffusion on pixels). Not here: the loop that trains (see `training`).
Axis letters: n images, c image channels, h, w pixels, d latent channels, y, x latent positions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from pipeline import config, images

if TYPE_CHECKING:
    from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny

    Autoencoder = AutoencoderDC | AutoencoderKL | AutoencoderTiny

CLASSES = ("AutoencoderDC", "AutoencoderKL", "AutoencoderTiny")
# The decoder of AutoencoderDC ends in an RMSNorm. Constant channels of this size dominate the root mean square, so
# that for pixels in [-1, 1] the norm is a constant factor up to a relative error of 1 / K^2 = 1e-6.
NORM_CONSTANT = 1e3
# Shift that keeps pixels positive through the ReLU after that norm.
RELU_SHIFT = 2.0
# AutoencoderTiny bends its latents by 3 tanh(z / 3); at this size of pixel the relative error is under 4e-6.
TINY_GAIN = 1e-2


def latent_shape(cfg: config.Autoencoder, channels: int, image_px: int) -> tuple[int, int]:
    """Channels and side of the latents of square images."""
    if cfg.kind == "pixel":
        return channels, image_px
    return cfg.latent_channels, image_px // cfg.patch_px


def build(cfg: config.Autoencoder, images_uint8: UInt8[np.ndarray, "n h w c"], seed: int) -> Autoencoder:
    """The autoencoder before training; `patch_pca` and `pixel` are computed from the images and need none.

    Raises: ValueError if a patch has fewer values than a latent has channels.
    """
    match cfg.kind:
        case "patch_pca":
            return fit_patch_pca(cfg, images_uint8)
        case "pixel":
            return fit_scale(identity(images_uint8.shape[-1]), images_uint8)
        case "kl":
            return variational(cfg, images_uint8.shape[-1], images_uint8.shape[1], seed)


def fit_patch_pca(cfg: config.Autoencoder, images_uint8: UInt8[np.ndarray, "n h w c"]) -> AutoencoderDC:
    """An `AutoencoderDC` that projects each patch on its leading principal components, partly whitened.

    With eigenvalues s_i of the patch covariance, component i is scaled by k_i = s_i^(-a/2) mean(s)^(-(1-a)/2), with
    a = `whitening`: its variance becomes (s_i / mean(s))^(1-a). Seconds for thousands of small images.

    Raises: ValueError if a patch has fewer values than a latent has channels.
    Source: PCA whitening as in Kessy et al., arXiv 1512.00809, eq. 9; network of Chen et al., arXiv 2410.10733.
    """
    channels = images_uint8.shape[-1]
    n_values = channels * cfg.patch_px**2
    if cfg.latent_channels > n_values:
        raise ValueError(
            f"autoencoder.latent_channels: want at most {n_values}, the values of a patch of {cfg.patch_px} px, "
            f"got {cfg.latent_channels} — lower it or raise autoencoder.patch_px"
        )
    mean, covariance = _patch_moments(images_uint8, cfg.patch_px)
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
    variances = eigenvalues.flip(0)[: cfg.latent_channels].clamp_min(1e-12)
    components = eigenvectors.flip(1)[:, : cfg.latent_channels]
    # An eigenvector's sign is arbitrary; fixing it makes latents comparable between machines.
    largest = components.abs().argmax(0)
    components = components * components.gather(0, largest[None]).sign()
    scale = variances ** (-cfg.whitening / 2) * variances.mean() ** (-(1 - cfg.whitening) / 2)
    model = _space_to_depth_autoencoder(cfg, channels)
    _write_projection(model, mean, analysis=(components * scale).T, synthesis=components / scale)
    model.register_to_config(scaling_factor=float((variances * scale**2).mean().rsqrt()))
    return model.eval()


def variational(cfg: config.Autoencoder, channels: int, image_px: int, seed: int) -> AutoencoderKL:
    """An untrained `AutoencoderKL` of `width`, 2 x `width`, ... channels, one level per halving of the side."""
    from diffusers import AutoencoderKL

    n_levels = cfg.patch_px.bit_length()
    shape: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * n_levels,
        "up_block_types": ("UpDecoderBlock2D",) * n_levels,
        "block_out_channels": tuple(cfg.width * min(2**level, 4) for level in range(n_levels)),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoencoderKL(
            in_channels=channels,
            out_channels=channels,
            layers_per_block=1,
            latent_channels=cfg.latent_channels,
            norm_num_groups=math.gcd(32, cfg.width),
            sample_size=image_px,
            mid_block_add_attention=False,
            **shape,
        ).eval()


def identity(channels: int) -> AutoencoderTiny:
    """An `AutoencoderTiny` that changes pixels in [-1, 1] by less than 1e-4: diffusion on pixels."""
    from diffusers import AutoencoderTiny

    model = AutoencoderTiny(
        in_channels=channels,
        out_channels=channels,
        latent_channels=channels,
        encoder_block_out_channels=(channels,),
        decoder_block_out_channels=(channels,),
        num_encoder_blocks=(0,),
        num_decoder_blocks=(0,),
    )
    # The class maps pixels to [0, 1] before its first and back after its last layer, and has a ReLU in the decoder.
    encoder: Any = model.encoder.layers
    decoder: Any = model.decoder.layers
    unchanged, ones = torch.eye(channels), torch.ones(channels)
    _set_conv(encoder[0], unchanged)
    _set_conv(encoder[1], unchanged * 2 * TINY_GAIN, ones * -TINY_GAIN)
    _set_conv(decoder[0], unchanged / (2 * TINY_GAIN), ones * 0.5)
    _set_conv(decoder[2], unchanged)
    return model.eval()


def fit_scale(model: Autoencoder, images_uint8: UInt8[np.ndarray, "n h w c"]) -> Autoencoder:
    """Set `scaling_factor` to one over the standard deviation of these images' latents, as pipelines expect.

    Source: Rombach et al., arXiv 2112.10752, section G.
    """
    model.register_to_config(scaling_factor=1.0)
    count, total, square = 0, 0.0, 0.0
    for batch in _batches(images_uint8):
        latents = encode(model, batch).double()
        count += latents.numel()
        total += latents.sum().item()
        square += latents.square().sum().item()
    std = max(square / count - (total / count) ** 2, 1e-12) ** 0.5
    model.register_to_config(scaling_factor=1.0 / std)
    return model


def load(folder: Path) -> Autoencoder:
    """The autoencoder that `save_pretrained` wrote, of whichever of the three classes it is."""
    import diffusers

    name = json.loads((folder / "config.json").read_text(encoding="utf-8"))["_class_name"]
    if name not in CLASSES:
        raise ValueError(f"{folder}: want one of {', '.join(CLASSES)}, got {name!r}")
    return getattr(diffusers, name).from_pretrained(folder, use_safetensors=True).eval()


@torch.no_grad()
def encode(model: Autoencoder, pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d y x"]:
    """Scaled latents of images in [-1, 1]; the mean of the posterior, no sampling."""
    encoded: Any = model.encode(pixels, return_dict=False)[0]
    latents = encoded if isinstance(encoded, Tensor) else encoded.mode()
    return latents * model.config["scaling_factor"]


@torch.no_grad()
def decode(model: Autoencoder, latents: Float[Tensor, "n d y x"]) -> Float[Tensor, "n c h w"]:
    """Images in about [-1, 1] from scaled latents."""
    return model.decode(latents / model.config["scaling_factor"], return_dict=False)[0]


class Objective(nn.Module):
    """The loss of an `AutoencoderKL` as a module, so that DistributedDataParallel can wrap it.

    Source: Kingma & Welling, arXiv 1312.6114, eq. 10, with a squared and an absolute error in place of the
    log-likelihood.
    """

    def __init__(self, cfg: config.Autoencoder, model: AutoencoderKL) -> None:
        super().__init__()
        self.kl_weight = cfg.kl_weight
        self.model = model

    def forward(self, pixels: Float[Tensor, "n c h w"], noise: Float[Tensor, "n d y x"]) -> Float[Tensor, ""]:
        """MSE + 0.1 L1 + kl_weight x KL per pixel; `noise` is standard normal."""
        posterior: Any = self.model.encode(pixels, return_dict=False)[0]
        rebuilt = self.model.decode(posterior.mean + posterior.std * noise, return_dict=False)[0]
        divergence = posterior.kl().mean() / pixels[0].numel()
        return F.mse_loss(rebuilt, pixels) + 0.1 * F.l1_loss(rebuilt, pixels) + self.kl_weight * divergence


def _batches(images_uint8: UInt8[np.ndarray, "n h w c"], n_rows: int = 256) -> Iterator[Float[Tensor, "n c h w"]]:
    for start in range(0, len(images_uint8), n_rows):
        yield images.to_torch(images_uint8[start : start + n_rows])


def _patch_moments(images_uint8: UInt8[np.ndarray, "n h w c"], patch_px: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance of patches, their values in the order of nested `pixel_unshuffle(2)`."""
    n_values = images_uint8.shape[-1] * patch_px**2
    count, total, square = 0, torch.zeros(n_values).double(), torch.zeros(n_values, n_values).double()
    for batch in _batches(images_uint8):
        for _ in range(patch_px.bit_length() - 1):
            batch = F.pixel_unshuffle(batch, 2)
        patches = batch.movedim(1, -1).reshape(-1, n_values).double()
        count += len(patches)
        total += patches.sum(0)
        square += patches.T @ patches
    mean = total / count
    return mean, square / count - mean.outer(mean)


def _space_to_depth_autoencoder(cfg: config.Autoencoder, channels: int) -> AutoencoderDC:
    """An `AutoencoderDC` whose every learned part is zero: only its pixel-unshuffle shortcuts carry anything."""
    from diffusers import AutoencoderDC

    n_halvings = cfg.patch_px.bit_length() - 1
    widths = (4 * channels, *(channels * 4**level for level in range(1, n_halvings + 1)))
    layers = (0,) + (1,) * n_halvings
    model = AutoencoderDC(
        in_channels=channels,
        latent_channels=cfg.latent_channels,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=tuple(2 * width for width in widths),
        encoder_layers_per_block=layers,
        decoder_layers_per_block=layers,
        encoder_qkv_multiscales=((),) * len(widths),
        decoder_qkv_multiscales=((),) * len(widths),
        encoder_out_shortcut=False,
        decoder_in_shortcut=False,
    )
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    # Pipelines take the factor between pixels and latents from the length of `block_out_channels`.
    model.register_to_config(block_out_channels=[2 * width for width in widths])
    return model


@torch.no_grad()
def _write_projection(
    model: AutoencoderDC,
    mean: Float[Tensor, " values"],
    analysis: Float[Tensor, "d values"],
    synthesis: Float[Tensor, "values d"],
) -> None:
    channels, n_values = model.config["in_channels"], len(mean)
    encoder: Any = model.encoder
    _set_conv(encoder.conv_in.conv, torch.eye(channels))
    _set_conv(encoder.conv_out, analysis, -analysis @ mean)
    constants = torch.full((n_values,), NORM_CONSTANT)
    _set_conv(
        model.decoder.conv_in,
        torch.cat([synthesis, torch.zeros_like(synthesis)]),
        torch.cat([mean.float(), constants]),
    )
    # Half of the channels are constants, so the root mean square is NORM_CONSTANT / sqrt(2).
    decoder: Any = model.decoder
    decoder.norm_out.weight[: 4 * channels] = NORM_CONSTANT * 0.5**0.5
    decoder.norm_out.bias[: 4 * channels] = RELU_SHIFT
    data_channels = torch.eye(4 * channels, 8 * channels)
    _set_conv(decoder.conv_out.conv, data_channels, torch.full((4 * channels,), -RELU_SHIFT))


@torch.no_grad()
def _set_conv(conv: Any, matrix: Float[Tensor, "outputs inputs"], bias: Tensor | None = None) -> None:
    """Make a 3x3 `nn.Conv2d` a linear map of the centre position."""
    conv.weight.zero_()
    conv.weight[:, :, 1, 1] = matrix.float()
    conv.bias.copy_(torch.zeros(len(matrix)) if bias is None else bias.float())
