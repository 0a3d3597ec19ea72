"""The network that removes noise from latents, as a diffusers class, and the noise schedule it is trained on.

Not here: training (see `training`) and the sampling loop (see `sampler`). Axis letters: n images, d latent
channels, y, x latent positions, t tokens, e embedding width.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from pipeline import config

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, PixArtTransformer2DModel, UNet2DConditionModel

    Denoiser = PixArtTransformer2DModel | UNet2DConditionModel

TIMESTEPS = 1000
# The cosine schedule of Nichol & Dhariwal, arXiv 2102.09672, eq. 17, under its diffusers name.
BETA_SCHEDULE = "squaredcos_cap_v2"


def build(cfg: config.Denoiser, latent_channels: int, latent_px: int, text_width: int, seed: int) -> Denoiser:
    """An untrained denoiser for latents of this shape; the seed decides its weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if cfg.kind == "pixart":
            return _pixart(cfg, latent_channels, latent_px, text_width)
        return _unet(cfg, latent_channels, latent_px, text_width)


def schedule(prediction: Literal["v_prediction", "epsilon"]) -> DDPMScheduler:
    """The noise schedule of training; sampling uses the same one with another solver."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(num_train_timesteps=TIMESTEPS, beta_schedule=BETA_SCHEDULE, prediction_type=prediction)


def predict(
    denoiser: nn.Module,
    noisy: Float[Tensor, "n d y x"],
    timesteps: Int64[Tensor, " n"],
    text: Float[Tensor, "n t e"],
    mask: Int64[Tensor, "n t"],
) -> Float[Tensor, "n d y x"]:
    """What the denoiser predicts (v or the noise); a U-Net attends to padding, as StableDiffusionPipeline does."""
    from diffusers import PixArtTransformer2DModel

    # DistributedDataParallel keeps the network under `module`; its own forward must be called.
    if isinstance(getattr(denoiser, "module", denoiser), PixArtTransformer2DModel):
        return denoiser(
            noisy,
            encoder_hidden_states=text,
            encoder_attention_mask=mask,
            timestep=timesteps,
            return_dict=False,
        )[0]
    return denoiser(noisy, timesteps, encoder_hidden_states=text, return_dict=False)[0]


def _pixart(cfg: config.Denoiser, latent_channels: int, latent_px: int, text_width: int) -> PixArtTransformer2DModel:
    from diffusers import PixArtTransformer2DModel

    spacing: Any = _interpolation_scale(latent_px // cfg.patch)  # annotated as an integer upstream
    model = PixArtTransformer2DModel(
        num_attention_heads=cfg.heads,
        attention_head_dim=cfg.width // cfg.heads,
        in_channels=latent_channels,
        out_channels=latent_channels,
        num_layers=cfg.layers,
        cross_attention_dim=text_width,
        sample_size=latent_px,
        patch_size=cfg.patch,
        use_additional_conditions=False,
        interpolation_scale=spacing,
    )
    _initialise(model)
    return model


def _interpolation_scale(n_tokens: int) -> float:
    """One over the distance of neighbouring tokens on the axis of the sine-cosine position embedding.

    The grid spans about 20 units, as in the 16 x 16 tokens that the embedding was made for; a distance of 1 on a
    grid of 2 x 2 leaves the four positions so alike that patches land in wrong places.
    """
    return min(1.0, n_tokens / 20)


def _initialise(model: PixArtTransformer2DModel) -> None:
    """Xavier weights, zero biases, every block the identity (adaLN-zero), text without effect at first.

    Source: Peebles & Xie, arXiv 2212.09748, section 3.2; Chen et al., arXiv 2310.00426, section 2.3.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.zeros_(model.scale_shift_table)
    nn.init.zeros_(model.adaln_single.linear.weight)
    nn.init.zeros_(model.proj_out.weight)
    blocks: Any = model.transformer_blocks
    for block in blocks:
        nn.init.zeros_(block.scale_shift_table)
        nn.init.zeros_(block.attn2.to_out[0].weight)


def _unet(cfg: config.Denoiser, latent_channels: int, latent_px: int, text_width: int) -> UNet2DConditionModel:
    from diffusers import UNet2DConditionModel

    attended = cfg.layers - 1
    return UNet2DConditionModel(
        sample_size=latent_px,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=tuple(cfg.width * min(level + 1, 4) for level in range(cfg.layers)),
        # The finest level has no attention, whose cost grows with the square of the positions.
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * attended,
        up_block_types=("CrossAttnUpBlock2D",) * attended + ("UpBlock2D",),
        layers_per_block=2,
        cross_attention_dim=text_width,
        # diffusers#2011: this argument is the number of heads, whatever its name says.
        attention_head_dim=cfg.heads,
        norm_num_groups=math.gcd(32, cfg.width),
    )
