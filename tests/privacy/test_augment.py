import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from pipeline import config
from pipeline.images import to_uint8
from pipeline.privacy.augment import CHANGES, augmented, blurred, changed_copies, jpeg, moved, softened, with_noise

STILL = {
    "shift_frac": 0,
    "rotation_deg": 0,
    "zoom": 0,
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


@pytest.mark.parametrize("zoom", [0.8, 1.25])
def test_a_zoom_about_the_centre_and_then_a_shift_agree_with_scipy(zoom: float) -> None:
    image, right, down = films(1, 1, 24, 32), 1.3, -0.6
    centre = np.array([11.5, 15.5])
    matrix = np.eye(2) / zoom
    offset = centre - matrix @ (centre + np.array([down, right]))
    expected = ndimage.affine_transform(image[0, 0].numpy(), matrix, offset, order=1, mode="nearest")
    got = moved(image, torch.tensor([[right, down]]), torch.zeros(1), torch.tensor([zoom]))[0, 0].numpy()
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("sd_px", [0.2, 0.36, 0.72, 2.5])
def test_a_softened_point_has_the_spread_asked_for_and_a_flat_image_stays(sd_px: float) -> None:
    point = torch.zeros(1, 1, 41, 41)
    point[0, 0, 20, 20] = 1.0
    soft = softened(point, sd_px)[0, 0]
    places = torch.arange(41) - 20.0
    assert soft.sum().item() == pytest.approx(1)
    assert (soft.sum(0) * places**2).sum().item() == pytest.approx(sd_px**2, rel=0.02)
    assert torch.equal(soft, soft.T)
    torch.testing.assert_close(softened(torch.full((1, 3, 9, 9), 0.5), 1.5), torch.full((1, 3, 9, 9), 0.5))


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
    full = {"shift_frac": 0.12, "rotation_deg": 9, "zoom": 0.2, "noise_sd": 0.2, "gain": 0.2, "offset": 0.2}
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


def test_what_training_sees_stays_within_the_range_of_files() -> None:
    wild = STILL | {"gain": 1.0, "offset": 0.5, "noise_sd": 0.5}
    out = augmented(films(16), config.Augment.model_validate(wild), generator())
    assert out.abs().max() == 1.0


@pytest.mark.parametrize("side", [24, 48])
def test_a_shift_is_a_share_of_the_side_whatever_the_size_of_the_film(side: int) -> None:
    augment = config.Augment.model_validate(STILL | {"shift_frac": 0.1})
    displaced = augmented(places(200, side), augment, generator()) - places(200, side)
    right = displaced[:, 0, side // 2, side // 2].abs()
    assert 0.09 < right.max() <= 0.1001 and right.min() < 0.02


STRENGTHS = config.Strengths().model_dump()


def places(n: int, side: int = 24) -> torch.Tensor:
    """Images of two channels that tell where a pixel lies: right and down from the centre, in shares of the side."""
    line = (torch.arange(side) + 0.5) / side - 0.5
    return torch.stack([line.expand(side, side), line[:, None].expand(side, side)]).expand(n, 2, side, side).clone()


def changed(images: torch.Tensor, kind: str, strength: float, seed: int = 0) -> torch.Tensor:
    return changed_copies(images, kind, strength, generator(seed))


def test_every_change_has_a_strength_that_must_be_survived_and_no_other_has() -> None:
    assert STRENGTHS.keys() == CHANGES.keys()


@pytest.mark.parametrize("kind", CHANGES)
def test_a_changed_copy_differs_from_the_film_the_more_the_stronger_and_stays_in_range(kind: str) -> None:
    images = films(6, 1, 48, 48)
    weak, demanded, strong = (changed(images, kind, factor * STRENGTHS[kind]) for factor in (0.5, 1.0, 1.5))
    distances = [(copy - images).square().mean().sqrt() for copy in (weak, demanded, strong)]
    assert 1e-4 < distances[0] < distances[1] < distances[2]
    assert strong.abs().max() <= 1


@pytest.mark.parametrize("kind", CHANGES)
def test_changed_copies_are_a_function_of_the_generator(kind: str) -> None:
    images = films(6)
    first, again = (changed(images, kind, STRENGTHS[kind]) for _ in range(2))
    assert torch.equal(first, again)
    by_chance = {"shift", "rotation", "crop", "noise"}
    assert torch.equal(first, changed(images, kind, STRENGTHS[kind], seed=1)) == (kind not in by_chance)


@pytest.mark.parametrize("kind", sorted(CHANGES.keys() - {"jpeg"}))
def test_a_change_of_no_strength_changes_nothing(kind: str) -> None:
    images = films(4)
    torch.testing.assert_close(changed(images, kind, 0.0), images, rtol=0, atol=1e-5)


def test_a_shifted_copy_is_shifted_by_all_of_the_strength_in_a_direction_of_its_own() -> None:
    right, down = (changed(places(40), "shift", 0.1) - places(40))[:, :, 12, 12].unbind(1)
    torch.testing.assert_close((right**2 + down**2).sqrt(), torch.full((40,), 0.1), rtol=0, atol=1e-4)
    assert min(right.min(), down.min()) < -0.05 and max(right.max(), down.max()) > 0.05


def test_a_rotated_copy_is_turned_by_all_of_the_strength_to_either_side() -> None:
    along = changed(places(40), "rotation", 5.0)[:, :, 12, 16] - changed(places(40), "rotation", 5.0)[:, :, 12, 8]
    degrees = torch.atan2(along[:, 1], along[:, 0]).rad2deg()
    torch.testing.assert_close(degrees.abs(), torch.full((40,), 5.0), rtol=0, atol=1e-2)
    assert degrees.min() < 0 < degrees.max()


@pytest.mark.parametrize(("kind", "enlarged"), [("zoom_in", 1.25), ("zoom_out", 0.8), ("crop", 4 / 3)])
def test_a_zoomed_or_cropped_copy_is_enlarged_as_its_strength_says(kind: str, enlarged: float) -> None:
    copies = changed(places(40), kind, 0.25)[:, 0, 12]
    torch.testing.assert_close(copies[:, 16] - copies[:, 8], torch.full((40,), 8 / 24 / enlarged), rtol=0, atol=1e-4)


def test_a_crop_leaves_a_part_of_the_film_at_a_random_place_and_invents_no_border() -> None:
    copies = changed(places(200), "crop", 0.25)
    spans = copies[:, :, -2, -2] - copies[:, :, 1, 1]
    torch.testing.assert_close(spans, torch.full((200, 2), 0.75 * 21 / 24), rtol=0, atol=1e-4)
    starts = copies[:, 0, 0, 0]
    assert starts.min() < -0.46 and starts.max() > -0.27


def test_gain_noise_blur_and_jpeg_are_what_their_units_say() -> None:
    images = 0.5 * films(3, 1, 64, 64)
    torch.testing.assert_close(changed(images, "gain_up", 0.3), 1.3 * images)
    torch.testing.assert_close(changed(images, "gain_down", 0.3), 0.7 * images)
    assert (changed(images, "noise", 0.06) - images).std().item() == pytest.approx(0.06, rel=0.05)
    assert torch.equal(changed(images, "blur", 0.05), softened(images, 0.05 * 64))
    assert torch.equal(changed(images, "jpeg", 50.0), jpeg(images, torch.full((3,), 50)))
