import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from pipeline import config
from pipeline.images import to_uint8
from pipeline.privacy.augment import augmented, blurred, jpeg, moved, perturbed_copies, with_noise

STILL = {
    "shift_px": 0,
    "rotation_deg": 0,
    "blur_frac": 0,
    "noise_sd": 0,
    "gain": 0,
    "offset": 0,
    "jpeg_frac": 0,
    "round_trip_frac": 0,
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def films(n: int = 4, channels: int = 1, height: int = 24, width: int = 24) -> torch.Tensor:
    """Smooth images, as films are."""
    noise = torch.rand(n, channels, height, width, generator=generator(9)) * 2 - 1
    return blurred(blurred(noise))


def test_a_whole_pixel_shift_moves_right_and_down() -> None:
    images = films()
    shifted = moved(images, torch.tensor([[2.0, 1.0]]).expand(4, 2), torch.zeros(4))
    torch.testing.assert_close(shifted[:, :, 1:, 2:], images[:, :, :-1, :-2], rtol=0, atol=1e-5)


def test_borders_are_continued_outwards() -> None:
    images = films()
    shifted = moved(images, torch.tensor([[3.0, 0.0]]).expand(4, 2), torch.zeros(4))
    torch.testing.assert_close(shifted[..., 0], images[..., 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(24, 24), (24, 32)])
def test_a_rotation_and_shift_agree_with_scipy(height: int, width: int) -> None:
    image = films(1, 1, height, width)
    angle, right, down = np.deg2rad(7.0), 1.3, -0.6
    # Row, column; an output pixel comes from R (pixel - centre - shift) + centre.
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = np.array([(height - 1) / 2, (width - 1) / 2])
    offset = centre - matrix @ (centre + np.array([down, right]))
    expected = ndimage.affine_transform(image[0, 0].numpy(), matrix, offset, order=1, mode="nearest")
    got = moved(image, torch.tensor([[right, down]]), torch.tensor([7.0]))[0, 0].numpy()
    np.testing.assert_allclose(got[4:-4, 4:-4], expected[4:-4, 4:-4], atol=1e-4)


def test_a_blurred_point_becomes_the_binomial_kernel_and_a_flat_image_stays() -> None:
    point = torch.zeros(1, 1, 5, 5)
    point[0, 0, 2, 2] = 16.0
    assert blurred(point)[0, 0, 1:4, 1:4].tolist() == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]
    assert torch.equal(blurred(torch.full((1, 3, 5, 5), 0.5)), torch.full((1, 3, 5, 5), 0.5))


def test_noise_has_the_standard_deviation_asked_for_in_each_image() -> None:
    sd = torch.tensor([0.0, 0.05, 0.2])
    noise = with_noise(torch.zeros(3, 1, 64, 64), sd, generator())
    torch.testing.assert_close(noise.std((1, 2, 3)), sd, rtol=0.05, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_what_pillow_writes(channels: int) -> None:
    images = films(2, channels)
    got = to_uint8(jpeg(images, torch.tensor([30, 90])))
    for pixels, quality, copy in zip(to_uint8(images), (30, 90), got, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(buffer, "JPEG", quality=quality)
        assert np.array_equal(np.asarray(Image.open(buffer)).reshape(copy.shape), copy)


def test_no_augmentation_changes_nothing() -> None:
    images = films()
    same = augmented(images, config.Augment.model_validate(STILL), generator(), torch.zeros_like)
    torch.testing.assert_close(same, images, rtol=0, atol=1e-6)


def test_every_kind_of_augmentation_changes_images_and_gives_each_its_own() -> None:
    images = films(1).expand(8, 1, 24, 24)
    full = {"shift_px": 3, "rotation_deg": 9, "noise_sd": 0.2, "gain": 0.2, "offset": 0.2}
    for name, strength in full.items():
        changed = augmented(images, config.Augment.model_validate(STILL | {name: strength}), generator())
        assert len({image.sum().item() for image in changed}) == 8, name


@pytest.mark.parametrize("name", ["blur_frac", "jpeg_frac", "round_trip_frac"])
def test_a_chance_of_a_half_changes_about_half_of_the_images(name: str) -> None:
    images = films(200)
    augment = config.Augment.model_validate(STILL | {name: 0.5})
    out = augmented(images, augment, generator(), lambda some: some.flip(-1))
    touched = (out - images).abs().amax((1, 2, 3)) > 1e-4
    assert 70 <= touched.sum() <= 130
    if name == "round_trip_frac":
        torch.testing.assert_close(out[touched], images[touched].flip(-1), rtol=0, atol=1e-5)


def test_augmentation_is_a_function_of_the_generator() -> None:
    images, augment = films(16), config.Augment()
    first, again, other = (augmented(images, augment, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_perturbed_copies_are_named_and_are_all_different_from_the_film_but_close_to_it() -> None:
    images = films(6)
    copies = perturbed_copies(images, generator(), lambda some: 0.95 * some)
    assert list(copies) == ["noise", "blur", "shift", "rotation", "jpeg", "round_trip"]
    for name, copy in copies.items():
        distance = (copy - images).square().mean((1, 2, 3)).sqrt()
        assert (distance > 1e-3).all(), name
        assert (distance < images.std()).all(), name
    assert "round_trip" not in perturbed_copies(images, generator())
