from __future__ import annotations

import pytest
import torch

from pipeline import config
from pipeline.generators import denoiser


def small(kind: str, seed: int = 0) -> denoiser.Denoiser:
    cfg = config.Denoiser(kind=kind, width=32, layers=2, heads=2, patch=2)
    return denoiser.build(cfg, latent_channels=4, latent_px=4, text_width=16, seed=seed)


def inputs(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "noisy": torch.randn(3, 4, 4, 4, generator=generator),
        "timesteps": torch.tensor([0, 500, 999]),
        "text": torch.randn(3, 5, 16, generator=generator),
        "mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]),
    }


@pytest.mark.parametrize("kind", ["pixart", "unet"])
def test_the_seed_decides_the_weights_and_no_global_state_is_used(kind: str) -> None:
    before = torch.random.get_rng_state()
    first, again, other = (dict(small(kind, seed).named_parameters()) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("kind", ["pixart", "unet"])
def test_the_prediction_has_the_shape_of_the_latents(kind: str) -> None:
    assert denoiser.predict(small(kind), **inputs()).shape == (3, 4, 4, 4)


def test_an_untrained_transformer_predicts_the_mean() -> None:
    assert not denoiser.predict(small("pixart"), **inputs()).any()


def test_the_transformer_ignores_what_is_masked_and_reads_what_is_not() -> None:
    network, given = small("pixart"), inputs()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        expected = denoiser.predict(network, **given)
        padding_changed = given["text"] + 7 * (1 - given["mask"])[..., None]
        assert torch.equal(denoiser.predict(network, **given | {"text": padding_changed}), expected)
        words_changed = given["text"] + 7 * given["mask"][..., None]
        assert not torch.allclose(denoiser.predict(network, **given | {"text": words_changed}), expected)


@pytest.mark.parametrize("grid", [2, 3, 4, 8, 16])
def test_no_two_tokens_have_nearly_the_same_position(grid: int) -> None:
    cfg = config.Denoiser(width=64, layers=1, heads=2, patch=1)
    positions = denoiser.build(cfg, 1, grid, 16, seed=0).pos_embed.pos_embed[0]
    # Position embeddings have length sqrt(width / 2); two tokens keep at least a quarter of it apart.
    assert torch.pdist(positions).min() > 0.25 * (cfg.width / 2) ** 0.5


def test_the_schedule_ends_in_pure_noise() -> None:
    kept = denoiser.schedule("v_prediction").alphas_cumprod
    assert kept[0] > 0.9999
    assert kept[-1] < 1e-8
