"""Views of training images: the first is the image, the others are moved, and all follow from a seed."""

from __future__ import annotations

import torch

from pipeline import config
from pipeline.generators.views import views

PIXELS = torch.rand(3, 1, 12, 12, generator=torch.Generator().manual_seed(0)) * 1.8 - 0.9


def seen(seeds: list[int], **changes: float) -> torch.Tensor:
    return torch.stack(list(views(PIXELS[: len(seeds)], config.Views.model_validate(changes), seeds)), 1)


def test_the_first_view_is_the_image_and_the_others_are_moved_by_whole_pixels() -> None:
    found = seen([1, 2, 3], n=20, shift_px=2, gain=0.0)
    assert found.shape == (3, 20, 1, 12, 12) and torch.equal(found[:, 0], PIXELS)
    inner = PIXELS[:, :, 4:8, 4:8]
    for row, image in zip(found, inner, strict=True):
        places = []
        for view in row:
            here = [
                (y, x) for y in range(2, 7) for x in range(2, 7) if torch.equal(view[:, y : y + 4, x : x + 4], image)
            ]
            assert len(here) == 1
            places += here
        assert len(set(places)) > 5
        assert {abs(y - 4) for y, _ in places} == {abs(x - 4) for _, x in places} == {0, 1, 2}


def test_contrast_changes_by_at_most_the_gain_and_the_range_stays() -> None:
    found = seen([1, 2, 3], n=20, shift_px=0, gain=0.5)
    ratios = (found / PIXELS[:, None])[found.abs() < 1]
    assert 0.5 <= ratios.min() < 0.6 and 1.4 < ratios.max() <= 1.5 + 1e-6
    assert found.abs().max() <= 1


def test_a_view_depends_on_its_image_and_seed_alone() -> None:
    assert torch.equal(seen([1, 2, 3], n=4)[:2], seen([1, 2], n=4))
    assert not torch.equal(seen([1], n=4)[:, 1:], seen([2], n=4)[:, 1:])
    assert torch.equal(seen([1, 2], n=1)[:, 0], PIXELS[:2])
