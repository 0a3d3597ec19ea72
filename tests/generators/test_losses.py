"""Denoising losses: they tell who was trained on, and each is a function of its film alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from pipeline import config, images
from pipeline.generators import autoencoder, denoiser, folder, text, training
from pipeline.generators.losses import TIMESTEPS, denoising_losses

# diffusers calls numpy.array on a tensor in DPMSolverMultistepScheduler.set_timesteps.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SMOOTH = gaussian_filter(np.random.default_rng(0).normal(size=(24, 16, 16)), (0, 2, 2))
FILMS = np.round(127.5 + 110 * SMOOTH / np.abs(SMOOTH).max((1, 2), keepdims=True)).astype(np.uint8)[..., None]
MEMBERS = slice(0, 8)
PROMPTS = ["man", "woman"] * 12
SAMPLE = config.Sample(steps=2, batch_size=5)
SECRET = b"s" * 32


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator that was trained on the first eight films for long enough to know them."""
    cfg = config.Generator.model_validate(
        {
            "autoencoder": {"patch_px": 4, "latent_channels": 4},
            "text": {"width": 8, "heads": 2, "max_tokens": 4},
            "denoiser": {"width": 32, "layers": 2, "heads": 2, "patch": 2},
            "batch_size": 8,
            "n_images": 2400,
            "warmup_images": 80,
            "lr": 5e-3,
        }
    )
    tokenizer = text.train_tokenizer(PROMPTS, cfg.text.max_tokens)
    encoder = text.build_encoder(cfg.text, tokenizer, cfg.denoiser.kind, seed=0)
    vae = autoencoder.fit_scale(autoencoder.build(cfg.autoencoder, FILMS, seed=0), FILMS)
    latents = autoencoder.encode(vae, images.to_torch(FILMS[MEMBERS])).detach()
    network = denoiser.build(cfg.denoiser, latents.shape[1], latents.shape[2], text.width(encoder), seed=0)
    ids, mask = text.token_ids(tokenizer, PROMPTS[MEMBERS], 4)
    null = tuple(part[0] for part in text.token_ids(tokenizer, [""], 4))
    run = training.Training(cfg, network, encoder, null, seed=0)
    for _ in range(300):
        rows = run.rows(8)
        run.step(latents[rows], ids[rows], mask[rows])
    path = tmp_path_factory.mktemp("model")
    folder.save(path, vae, tokenizer, encoder.eval(), network.eval(), cfg)
    return path


def losses(model: Path, rows: slice | list[int], origin: bytes | int = SECRET) -> np.ndarray:
    asked = list(np.array(PROMPTS)[rows])
    return denoising_losses(model, FILMS[rows], asked, SAMPLE, origin=origin)


def test_a_film_that_was_trained_on_is_denoised_better_than_a_strangers(model: Path) -> None:
    found = losses(model, slice(None))
    assert found.shape == (24, len(TIMESTEPS)) and (found > 0).all()
    members, strangers = found[MEMBERS].mean(1), found[8:].mean(1)
    in_order = (members[:, None] < strangers).mean()
    assert in_order > 0.9


def test_a_loss_depends_neither_on_neighbours_nor_on_the_place_in_a_batch(model: Path) -> None:
    together = losses(model, slice(0, 12))
    assert (losses(model, slice(3, 4)) == together[3:4]).all()
    assert (losses(model, [11, 7, 2]) == together[[11, 7, 2]]).all()


def test_the_noise_is_the_same_for_every_film_and_comes_from_the_origin(model: Path) -> None:
    twice = denoising_losses(model, FILMS[[0, 1, 0]], ["man"] * 3, SAMPLE, origin=SECRET)
    assert (twice[0] == twice[2]).all()
    assert (losses(model, slice(0, 2)) != losses(model, slice(0, 2), origin=0)).all()
