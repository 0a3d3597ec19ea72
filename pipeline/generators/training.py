"""Training that can be stopped, resumed and split over workers without another result.

Progress is counted in images. The order of the data, the noise, the timesteps and the dropped prompts of a batch
are functions of (seed, images seen) for the *global* batch, of which every worker takes its slice; so a resumed
run is bit for bit the undisturbed one, and two workers see the noise that one would. Not here: Ray, files, and the
loop that feeds batches. Axis letters: b images of this worker's batch, d latent channels, y, x latent positions,
c, h, w image, t tokens.
"""

from __future__ import annotations

import copy
import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from pipeline import config, seeds
from pipeline.generators import denoiser, text

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

# The weight average is updated every fourth step by decay^4: the same average, at a quarter of the memory traffic.
AVERAGE_EVERY = 4


class Fit:
    """AdamW with warm-up, cosine decay, clipping and a weight average, whose whole state is flat tensors."""

    def __init__(
        self,
        cfg: config.Generator,
        modules: dict[str, nn.Module],
        *,
        lr: float,
        n_images: int,
        seed: int,
        rank: int = 0,
        of: int = 1,
    ) -> None:
        """`modules` may be wrapped in DistributedDataParallel; parameters that need no gradient stay as they are.

        This is worker `rank` of as many as `of`.
        """
        self.cfg, self.lr, self.n_images, self.seed, self.rank, self.of = cfg, lr, n_images, seed, rank, of
        self.images_seen = 0
        self.modules = {name: unwrapped(module) for name, module in modules.items()}
        self.parameters = {
            f"{name}.{key}": parameter
            for name, module in self.modules.items()
            for key, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        self.averages = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.adamw = torch.optim.AdamW(
            self.parameters.values(), lr=lr, betas=(0.9, 0.99), weight_decay=cfg.weight_decay, fused=True
        )
        for parameter in self.parameters.values():
            self.adamw.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    @property
    def done(self) -> bool:
        """Whether all images have been seen."""
        return self.images_seen >= self.n_images

    def rows(self, n_rows: int) -> Int64[np.ndarray, " b"]:
        """This worker's rows of the next batch, out of `n_rows`."""
        return batch_rows(self.seed, self.images_seen, self.cfg.batch_size, n_rows)[self.shard]

    @property
    def shard(self) -> slice:
        """This worker's part of a global batch."""
        n_local = self.cfg.batch_size // self.of
        return slice(self.rank * n_local, (self.rank + 1) * n_local)

    def update(self, loss: Float[Tensor, ""]) -> None:
        """One optimiser step on this loss; counts the global batch as seen.

        Raises: RuntimeError if the gradient is not finite.
        """
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters.values(), self.cfg.grad_clip, error_if_nonfinite=True)
        self.adamw.param_groups[0]["lr"] = self.lr * learning_rate_factor(
            self.images_seen + self.cfg.batch_size, self.n_images, self.cfg.warmup_images
        )
        self.adamw.step()
        self.adamw.zero_grad()
        self.images_seen += self.cfg.batch_size
        steps = self.images_seen // self.cfg.batch_size
        if steps % AVERAGE_EVERY == 0:
            decay = average_decay(steps, self.cfg.ema_decay) ** AVERAGE_EVERY
            with torch.no_grad():
                torch._foreach_lerp_(list(self.averages.values()), list(self.parameters.values()), 1 - decay)

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs, as flat tensors for safetensors."""
        state = {"images_seen": torch.tensor(self.images_seen)}
        for name, parameter in self.parameters.items():
            moments = self.adamw.state[parameter]
            state[f"weight/{name}"] = parameter.detach()
            state[f"average/{name}"] = self.averages[name]
            state[f"exp_avg/{name}"] = moments["exp_avg"]
            state[f"exp_avg_sq/{name}"] = moments["exp_avg_sq"]
        return {key: value.cpu().contiguous().clone() for key, value in state.items()}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from `state()` of a run with the same recipe."""
        self.images_seen = int(state["images_seen"])
        for name, parameter in self.parameters.items():
            moments = self.adamw.state[parameter]
            moments["step"].fill_(self.images_seen // self.cfg.batch_size)
            parameter.copy_(state[f"weight/{name}"])
            self.averages[name].copy_(state[f"average/{name}"])
            moments["exp_avg"].copy_(state[f"exp_avg/{name}"])
            moments["exp_avg_sq"].copy_(state[f"exp_avg_sq/{name}"])

    @torch.no_grad()
    def averaged(self) -> dict[str, nn.Module]:
        """Copies of the modules with averaged weights, which are what is saved."""
        copies = {name: copy.deepcopy(module) for name, module in self.modules.items()}
        for name, module in copies.items():
            for key, parameter in module.named_parameters():
                if f"{name}.{key}" in self.averages:
                    parameter.copy_(self.averages[f"{name}.{key}"])
        return copies


class Training(Fit):
    """Training of a denoiser, with its text encoder if that one is to be trained."""

    def __init__(
        self,
        cfg: config.Generator,
        denoiser_network: nn.Module,
        text_encoder: nn.Module | None,
        null_prompt: tuple[Tensor, Int64[Tensor, " t"]],
        seed: int,
        rank: int = 0,
        of: int = 1,
    ) -> None:
        """`null_prompt`: the empty prompt's ids, or embeddings where there is no text encoder, and its mask."""
        modules = {"denoiser": denoiser_network} | ({"text": text_encoder} if text_encoder is not None else {})
        super().__init__(cfg, modules, lr=cfg.lr, n_images=cfg.n_images, seed=seed, rank=rank, of=of)
        self.denoiser, self.text_encoder = denoiser_network.train(), text_encoder
        self.null_text, self.null_mask = null_prompt
        self.schedule: Any = denoiser.schedule(cfg.prediction)
        self.weights = min_snr_weights(cfg)

    def step(
        self, latents: Float[Tensor, "b d y x"], prompts: Tensor, mask: Int64[Tensor, "b t"]
    ) -> Float[Tensor, ""]:
        """Train on the batch of `rows`; the loss before the step."""
        loss = self.loss(latents, prompts, mask, self.images_seen)
        self.update(loss)
        return loss.detach()

    def loss(
        self,
        latents: Float[Tensor, "b d y x"],
        prompts: Tensor,
        mask: Int64[Tensor, "b t"],
        images_seen: int,
    ) -> Float[Tensor, ""]:
        """Weighted squared error of the prediction; `prompts` are ids (b t) or embeddings (b t e).

        Source: v-prediction, Salimans & Ho, arXiv 2202.00512, appendix D; min-SNR weights, arXiv 2303.09556, eq. 9.
        """
        noise, timesteps, dropped = self._draws(latents, images_seen)
        noisy = self.schedule.add_noise(latents, noise, timesteps)
        if self.cfg.prediction == "v_prediction":
            target = self.schedule.get_velocity(latents, noise, timesteps)
        else:
            target = noise
        prompts, mask = self._with_null_prompts(prompts, mask, dropped)
        embeddings = self._embeddings(prompts, mask)
        predicted = denoiser.predict(self.denoiser, noisy, timesteps, embeddings, mask)
        errors = (predicted - target).square().mean((1, 2, 3))
        return (errors * self.weights.to(errors.device)[timesteps]).mean()

    def _draws(
        self, latents: Float[Tensor, "b d y x"], images_seen: int
    ) -> tuple[Float[Tensor, "b d y x"], Int64[Tensor, " b"], Bool[Tensor, " b"]]:
        """Noise, timesteps (one from each of as many strata as images) and which prompts to drop."""
        n, generator = self.cfg.batch_size, seeds.torch_generator(self.seed, "noise", images_seen)
        noise = torch.randn((n, *latents.shape[1:]), generator=generator)
        strata = torch.randperm(n, generator=generator) + torch.rand(n, generator=generator)
        timesteps = (strata * (denoiser.TIMESTEPS / n)).long().clamp_max(denoiser.TIMESTEPS - 1)
        dropped = torch.rand(n, generator=generator) < self.cfg.prompt_drop
        mine, device = self.shard, latents.device
        return noise[mine].to(device), timesteps[mine].to(device), dropped[mine].to(device)

    def _with_null_prompts(
        self, prompts: Tensor, mask: Int64[Tensor, "b t"], dropped: Bool[Tensor, " b"]
    ) -> tuple[Tensor, Int64[Tensor, "b t"]]:
        mask = torch.where(dropped[:, None], self.null_mask.to(mask.device), mask)
        columns = dropped.view(-1, *(1,) * (prompts.ndim - 1))
        prompts = torch.where(columns, self.null_text.to(prompts.device), prompts)
        if self.cfg.denoiser.kind == "unet":
            return prompts, mask
        # PixArt masks the padding, so what is padding in every row need not be computed.
        longest = int(mask.sum(1).max())
        return prompts[:, :longest], mask[:, :longest]

    def _embeddings(self, prompts: Tensor, mask: Int64[Tensor, "b t"]) -> Float[Tensor, "b t e"]:
        if self.text_encoder is None:
            return prompts
        return text.embed(self.text_encoder, prompts, mask, self.cfg.denoiser.kind)


class AutoencoderTraining(Fit):
    """Training of an `AutoencoderKL`; the module `autoencoder` of `averaged()` is its objective."""

    def __init__(
        self, cfg: config.Generator, objective: nn.Module, latent_px: int, seed: int, rank: int = 0, of: int = 1
    ) -> None:
        super().__init__(
            cfg,
            {"autoencoder": objective},
            lr=cfg.autoencoder.lr,
            n_images=cfg.autoencoder.n_images,
            seed=seed,
            rank=rank,
            of=of,
        )
        self.objective = objective.train()
        self.noise_shape = (cfg.batch_size, cfg.autoencoder.latent_channels, latent_px, latent_px)

    def step(self, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
        """Train on the batch of `rows`, images in [-1, 1]; the loss before the step."""
        generator = seeds.torch_generator(self.seed, "posterior", self.images_seen)
        noise = torch.randn(self.noise_shape, generator=generator)[self.shard].to(pixels.device)
        loss = self.objective(pixels, noise)
        self.update(loss)
        return loss.detach()

    def trained(self) -> AutoencoderKL:
        """The autoencoder with averaged weights; its scaling factor is still to be set."""
        objective: Any = self.averaged()["autoencoder"]
        return objective.model.eval()


def unwrapped(module: nn.Module) -> nn.Module:
    """The network inside DistributedDataParallel, or the module itself."""
    return module.module if isinstance(module, nn.parallel.DistributedDataParallel) else module


def batch_rows(seed: int, images_seen: int, batch_size: int, n_rows: int) -> Int64[np.ndarray, " batch"]:
    """Rows of the global batch after `images_seen` images: epochs are permutations, a batch may straddle two."""
    positions = np.arange(images_seen, images_seen + batch_size)
    epochs, offsets = np.divmod(positions, n_rows)
    rows = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        rows[chosen] = _epoch_order(seed, int(epoch), n_rows)[offsets[chosen]]
    return rows


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, n_rows: int) -> Int64[np.ndarray, " rows"]:
    return seeds.numpy_generator(seed, "epoch", epoch).permutation(n_rows)


def learning_rate_factor(images_seen: int, n_images: int, warmup_images: int) -> float:
    """Share of the peak learning rate, 0-1: linear warm-up, then half a cosine (arXiv 1608.03983, eq. 5)."""
    if images_seen < warmup_images:
        return images_seen / warmup_images
    progress = (images_seen - warmup_images) / max(1, n_images - warmup_images)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def average_decay(steps: int, decay: float) -> float:
    """Decay of the weight average; smaller at first, so that the initial weights are soon forgotten.

    Source: Tan & Le's TensorFlow average, `min(decay, (1 + steps) / (10 + steps))`; also in diffusers' EMAModel.
    """
    return min(decay, (1 + steps) / (10 + steps))


def min_snr_weights(cfg: config.Generator) -> Float[Tensor, " timesteps"]:
    """Weight of each timestep's squared error.

    Source: Hang et al., arXiv 2303.09556, section 3.4: min(SNR, gamma) / SNR for the noise, and / (SNR + 1) for v.
    """
    from diffusers.training_utils import compute_snr

    timesteps = torch.arange(denoiser.TIMESTEPS)
    if cfg.snr_gamma is None:
        return torch.ones(denoiser.TIMESTEPS)
    snr = compute_snr(denoiser.schedule(cfg.prediction), timesteps)
    return snr.clamp_max(cfg.snr_gamma) / (snr + 1 if cfg.prediction == "v_prediction" else snr)
