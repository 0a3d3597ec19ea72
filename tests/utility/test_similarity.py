"""MS-SSIM on small images, and diversity within and between prompts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.image import MultiScaleStructuralSimilarityIndexMeasure

from pipeline.images import to_torch
from pipeline.utility.similarity import SCALE_WEIGHTS, diversity, ms_ssim, scale_weights


def blobs(n: int, seed: int, image_px: int = 48, channels: int = 1) -> np.ndarray:
    """Smooth random images."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(0, 255, (n, channels, 6, 6)))
    fine = torch.nn.functional.interpolate(coarse, size=image_px, mode="bilinear")
    return fine.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


@pytest.mark.parametrize("image_px", [16, 21, 22, 32, 43, 44, 48, 64, 88, 98, 99, 128, 175, 176, 256])
def test_every_image_size_has_scales_that_torchmetrics_accepts_and_identical_images_score_one(image_px):
    image = to_torch(blobs(1, 0, image_px))
    assert ms_ssim(image, image).tolist() == pytest.approx([1.0], abs=1e-5)
    assert sum(scale_weights(image_px)) == pytest.approx(1.0)


def test_large_images_have_the_five_published_scales():
    assert scale_weights(256) == pytest.approx(SCALE_WEIGHTS, abs=1e-4)
    first, second = to_torch(blobs(2, 0, 192)), to_torch(blobs(2, 1, 192))
    published = MultiScaleStructuralSimilarityIndexMeasure(data_range=2.0, reduction="none")(first, second)
    assert ms_ssim(first, second).tolist() == pytest.approx(published.tolist(), abs=1e-4)


def test_images_smaller_than_the_kernel_are_refused():
    with pytest.raises(ValueError, match="want images of 11 px or more, got 10"):
        scale_weights(10)


def test_pairs_are_scored_alike_in_any_block(monkeypatch):
    first, second = to_torch(blobs(7, 0, channels=3)), to_torch(blobs(7, 1, channels=3))
    at_once = ms_ssim(first, second)
    monkeypatch.setattr("pipeline.utility.similarity.BLOCK_PIXELS", 1)
    assert ms_ssim(first, second).tolist() == pytest.approx(at_once.tolist(), abs=1e-6)


def test_a_generator_that_draws_one_image_per_prompt_is_seen_within_and_not_between():
    prompts = [f"prompt {i // 4}" for i in range(40)]
    collapsed = blobs(10, 0).repeat(4, axis=0)
    within, between = diversity(collapsed, prompts, seed=0)
    assert within.value == pytest.approx(1.0, abs=1e-5)
    assert between.high < 0.9
    assert (within.n, between.n) == (10 * 6, 5 * 16)


def test_prompts_that_change_nothing_are_as_diverse_within_as_between():
    within, between = diversity(blobs(80, 0), [f"prompt {i % 20}" for i in range(80)], seed=0)
    assert within.low < between.value < within.high


def test_one_prompt_and_single_images_are_no_evidence():
    assert diversity(blobs(4, 0), ["same"] * 4, seed=0) == (None, None)
    within, between = diversity(blobs(4, 0), list("abcd"), seed=0)
    assert within is None
    assert between.n == 2
