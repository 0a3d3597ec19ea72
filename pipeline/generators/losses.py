"""How well a generator predicts the noise on a film: what an attacker who holds the model reads membership from.

A film that the model was trained on, or whose copies it was trained on, is denoised better than a stranger's. Not
here: what follows from the losses (`privacy.membership`). Axis letters: n images, h, w, c pixels, t timesteps,
d latent channels, y, x latent positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from pipeline import config, images, seeds
from pipeline.generators import autoencoder, denoiser, text
from pipeline.generators.sampler import Sampler

TIMESTEPS = (100, 250, 400, 600)
"""Of 1,000; where the loss of the phantom's models told most."""
DRAWS = 4
"""Draws of noise for each timestep, the same for every film, so that luck with the noise cancels."""


@torch.inference_mode()
def denoising_losses(
    model_folder: Path,
    films: UInt8[np.ndarray, "n h w c"],
    prompts: Sequence[str],
    sample: config.Sample,
    *,
    origin: seeds.Origin,
    device: str = "cpu",
) -> Float[np.ndarray, "n t"]:
    """Mean squared error of the denoiser's prediction for each film and each of `TIMESTEPS`, over `DRAWS` of noise.

    Cost: 16 forward passes of the denoiser for each film.
    Source: the loss attack of Carlini et al., arXiv 2301.13188, section 5.2, on latents; timesteps of our own.
    """
    model = Sampler(model_folder, sample, device)
    schedule: Any = denoiser.schedule(model.scheduler.config.prediction_type)
    is_velocity = model.scheduler.config.prediction_type == "v_prediction"
    ids, mask = text.token_ids(model.tokenizer, prompts, model.tokenizer.model_max_length)
    found = np.empty((len(films), len(TIMESTEPS)))
    for start in range(0, len(films), sample.batch_size):
        # The last row is repeated until the batch has its fixed shape, as in sampling.
        rows = np.arange(start, start + sample.batch_size).clip(max=len(films) - 1)
        clean = autoencoder.encode(model.autoencoder, images.to_torch(films[rows]).to(model.device))
        told = mask[rows].to(model.device)
        embedded = text.embed(model.text_encoder, ids[rows].to(model.device), told, model.kind)
        for column, timestep in enumerate(TIMESTEPS):
            errors = torch.zeros(len(rows), device=model.device)
            steps = torch.full((len(rows),), timestep, device=model.device)
            for draw in range(DRAWS):
                generator = seeds.torch_generator(origin, "membership noise", timestep, draw)
                noise = torch.randn(clean.shape[1:], generator=generator).to(clean).expand_as(clean)
                target = schedule.get_velocity(clean, noise, steps) if is_velocity else noise
                noisy = schedule.add_noise(clean, noise, steps)
                predicted = denoiser.predict(model.denoiser, noisy, steps, embedded, told)
                errors += (predicted - target).square().mean((1, 2, 3)) / DRAWS
            n = min(sample.batch_size, len(films) - start)
            found[start : start + n, column] = errors[:n].cpu().numpy()
    return found
