from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA

from pipeline import config, images
from pipeline.generators import autoencoder


def smooth_images(n: int = 40, image_px: int = 16, channels: int = 1) -> np.ndarray:
    """Blurred noise, so that few components carry most of the variance."""
    noise = torch.randn(n, channels, image_px, image_px, generator=torch.Generator().manual_seed(0))
    return images.to_uint8(F.avg_pool2d(noise, 5, 1, 2) * 2)


def round_trip(model: autoencoder.Autoencoder, pixels: torch.Tensor) -> torch.Tensor:
    return autoencoder.decode(model, autoencoder.encode(model, pixels))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("patch_px", [2, 4, 8])
def test_all_components_of_a_patch_give_the_image_back(patch_px: int, channels: int) -> None:
    cfg = config.Autoencoder(patch_px=patch_px, latent_channels=channels * patch_px**2)
    data = smooth_images(channels=channels)
    model = autoencoder.fit_patch_pca(cfg, data)
    pixels = images.to_torch(data)
    assert autoencoder.encode(model, pixels).shape[1:] == (channels * patch_px**2, 16 // patch_px, 16 // patch_px)
    torch.testing.assert_close(round_trip(model, pixels), pixels, atol=1e-4, rtol=0)


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_fewer_components_reconstruct_like_scikit_learns_pca(whitening: float) -> None:
    cfg = config.Autoencoder(patch_px=4, latent_channels=5, whitening=whitening)
    data = smooth_images()
    pixels = images.to_torch(data)
    patches = F.unfold(pixels, 4, stride=4).mT.reshape(-1, 16)
    reference = PCA(5).fit(patches)
    rebuilt = torch.from_numpy(reference.inverse_transform(reference.transform(patches))).float()
    expected = F.fold(rebuilt.reshape(len(data), 16, 16).mT, (16, 16), 4, stride=4)
    model = autoencoder.fit_patch_pca(cfg, data)
    torch.testing.assert_close(round_trip(model, pixels), expected, atol=1e-4, rtol=0)


def test_whitening_moves_component_variances_from_the_eigenvalues_to_equal() -> None:
    data = smooth_images()
    patches = F.unfold(images.to_torch(data), 4, stride=4).mT.reshape(-1, 16)
    eigenvalues = PCA(5).fit(patches).explained_variance_
    for whitening in (0.0, 0.5, 1.0):
        cfg = config.Autoencoder(patch_px=4, latent_channels=5, whitening=whitening)
        latents = autoencoder.encode(autoencoder.fit_patch_pca(cfg, data), images.to_torch(data))
        variances = latents.movedim(1, 0).flatten(1).var(1).numpy()
        expected = eigenvalues ** (1 - whitening)
        np.testing.assert_allclose(variances / variances[0], expected / expected[0], rtol=1e-3)


@pytest.mark.parametrize("kind", ["patch_pca", "pixel", "kl"])
def test_scaled_latents_have_unit_variance_and_survive_saving(kind: str, tmp_path) -> None:
    cfg = config.Autoencoder(kind=kind, patch_px=4, latent_channels=4, width=8)
    data = smooth_images()
    model = autoencoder.fit_scale(autoencoder.build(cfg, data, seed=0), data)
    latents = autoencoder.encode(model, images.to_torch(data))
    latent_channels, latent_px = autoencoder.latent_shape(cfg, 1, 16)
    assert latents.shape[1:] == (latent_channels, latent_px, latent_px)
    assert latents.std().item() == pytest.approx(1.0, abs=1e-3)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, use_safetensors=True)
    torch.testing.assert_close(
        autoencoder.decode(loaded, latents), autoencoder.decode(model, latents), atol=0, rtol=0
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_the_pixel_autoencoder_keeps_every_grey_level(channels: int) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(channels, -1)
    model = autoencoder.build(config.Autoencoder(kind="pixel"), levels, seed=0)
    assert (images.to_uint8(round_trip(model, images.to_torch(levels))) == levels).all()


def test_a_patch_with_too_few_values_is_refused() -> None:
    with pytest.raises(ValueError, match="want at most 4, the values of a patch of 2 px, got 16"):
        autoencoder.build(config.Autoencoder(patch_px=2, latent_channels=16), smooth_images(), seed=0)


def test_the_seed_decides_the_weights_and_no_global_state_is_used() -> None:
    cfg = config.Autoencoder(kind="kl", patch_px=2, latent_channels=2, width=4)
    before = torch.random.get_rng_state()
    weights = [autoencoder.variational(cfg, 1, 16, seed).encoder.conv_in.weight for seed in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_objective_is_error_plus_divergence() -> None:
    cfg = config.Autoencoder(kind="kl", patch_px=2, latent_channels=2, width=4, kl_weight=0.5)
    model = autoencoder.variational(cfg, 1, 16, seed=0)
    pixels, noise = images.to_torch(smooth_images(3)), torch.zeros(3, 2, 8, 8)
    with torch.no_grad():
        posterior = model.encode(pixels).latent_dist
        error = model.decode(posterior.mean).sample - pixels
        divergence = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).sum() / pixels.numel()
        expected = error.square().mean() + 0.1 * error.abs().mean() + 0.5 * divergence
        torch.testing.assert_close(autoencoder.Objective(cfg, model)(pixels, noise), expected)
