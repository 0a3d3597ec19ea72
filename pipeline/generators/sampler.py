"""Images from a saved generator: the image of a row is a function of (folder, prompt, seed) and nothing else.

Every call runs at one fixed batch shape, so that a row comes out bit for bit the same whatever its neighbours and
position; the image is what the folder's own pipeline makes of that prompt and `torch.Generator` seed. Not here:
which prompts and seeds to sample. Axis letters: n images, h, w, c pixels, b rows of the fixed batch, d latent
channels, y, x latent positions, t tokens, e embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from pipeline import config, images
from pipeline.generators import autoencoder, denoiser, folder, text


class Sampler:
    """A generator from a folder, with the number of steps, the guidance and the batch shape of the recipe."""

    def __init__(self, model_folder: Path, cfg: config.Sample, device: str = "cpu") -> None:
        """Raises: UnsafeFolderError if the folder is not a plain diffusers pipeline."""
        self.cfg, self.device = cfg, torch.device(device)
        pipeline = folder.load(model_folder, device)
        self.kind: text.DenoiserKind = "pixart" if hasattr(pipeline, "transformer") else "unet"
        self.denoiser = pipeline.transformer if self.kind == "pixart" else pipeline.unet
        self.autoencoder, self.scheduler = pipeline.vae, pipeline.scheduler
        self.text_encoder, self.tokenizer = pipeline.text_encoder, pipeline.tokenizer
        self.latent_shape = (self.denoiser.config.in_channels, *(self.denoiser.config.sample_size,) * 2)

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> UInt8[np.ndarray, "n h w c"]:
        """One image per prompt and seed.

        Raises: ValueError if a prompt is too long.
        """
        return self._in_batches(prompts, seeds, None, start_frac=1.0)

    def partial_denoise(
        self,
        images_uint8: UInt8[np.ndarray, "n h w c"],
        prompts: Sequence[str],
        seeds: Sequence[int],
        start_frac: float,
    ) -> UInt8[np.ndarray, "n h w c"]:
        """Images noised up to `start_frac` (0-1) of the timesteps and denoised again: near-duplicates.

        Raises: ValueError if a prompt is too long.
        Source: SDEdit, Meng et al., arXiv 2108.01073, algorithm 1, with this solver in place of theirs.
        """
        return self._in_batches(prompts, seeds, images_uint8, start_frac)

    @torch.no_grad()
    def _in_batches(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        images_uint8: UInt8[np.ndarray, "n h w c"] | None,
        start_frac: float,
    ) -> UInt8[np.ndarray, "n h w c"]:
        ids, mask = self._tokens(prompts)
        made = []
        for start in range(0, len(prompts), self.cfg.batch_size):
            # The last row is repeated until the batch has its fixed shape.
            rows = np.arange(start, start + self.cfg.batch_size).clip(max=len(prompts) - 1)
            noise = self._noise([seeds[row] for row in rows])
            timesteps = self._timesteps(start_frac)
            if images_uint8 is None:
                latents = noise * self.scheduler.init_noise_sigma
            else:
                clean = autoencoder.encode(self.autoencoder, images.to_torch(images_uint8[rows]).to(self.device))
                latents = self.scheduler.add_noise(clean, noise, timesteps[:1].expand(len(rows)))
            latents = self._denoise(latents, timesteps, ids[rows], mask[rows])
            made.append(images.to_uint8(autoencoder.decode(self.autoencoder, latents)))
        return np.concatenate(made)[: len(prompts)]

    def _denoise(
        self,
        latents: Float[Tensor, "b d y x"],
        timesteps: Int64[Tensor, " steps"],
        ids: Int64[Tensor, "b t"],
        mask: Int64[Tensor, "b t"],
    ) -> Float[Tensor, "b d y x"]:
        """The solver's steps, with classifier-free guidance (arXiv 2207.12598, eq. 6) if the recipe asks for it."""
        scale = self.cfg.guidance_scale
        if scale > 1:
            null_ids, null_mask = self._tokens([""] * len(ids))
            ids, mask = torch.cat([null_ids, ids]), torch.cat([null_mask, mask])
        embeddings = text.embed(self.text_encoder, ids, mask, self.kind)
        for timestep in timesteps:
            noisy = torch.cat([latents, latents]) if scale > 1 else latents
            predicted = denoiser.predict(self.denoiser, noisy, timestep.expand(len(noisy)), embeddings, mask)
            if scale > 1:
                unconditional, conditional = predicted.chunk(2)
                predicted = unconditional + scale * (conditional - unconditional)
            latents = self.scheduler.step(predicted, timestep, latents, return_dict=False)[0]
        return latents

    def _timesteps(self, start_frac: float) -> Int64[Tensor, " steps"]:
        """The last `start_frac` of the recipe's timesteps, descending; at least one."""
        self.scheduler.set_timesteps(self.cfg.steps, device=self.device)
        n_all = len(self.scheduler.timesteps)
        first = n_all - max(1, round(start_frac * n_all))
        self.scheduler.set_begin_index(first)
        return self.scheduler.timesteps[first:]

    def _noise(self, seeds: Sequence[int]) -> Float[Tensor, "b d y x"]:
        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        return torch.stack([torch.randn(self.latent_shape, generator=g) for g in generators]).to(self.device)

    def _tokens(self, prompts: Sequence[str]) -> tuple[Int64[Tensor, "n t"], Int64[Tensor, "n t"]]:
        ids, mask = text.token_ids(self.tokenizer, prompts, self.tokenizer.model_max_length)
        return ids.to(self.device), mask.to(self.device)
