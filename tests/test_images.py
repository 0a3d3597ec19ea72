"""Pixels: every kind of file that hospitals keep, what cannot be read, and borders that lose nothing."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from pipeline import images
from pipeline.image_files import ImageError

PX = 16
SIXTEEN_BIT = (0, 65535)
RAMP = np.arange(PX * PX, dtype=np.uint8).reshape(PX, PX)  # every grey once


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey(mode: str) -> Image.Image:
    """The ramp in another mode, opaque where the mode has an alpha."""
    return Image.fromarray(RAMP).convert("RGB").convert(mode)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_an_eight_bit_png_keeps_its_greys_whatever_its_mode(mode: str, channels: int) -> None:
    decoded = images.decode(encoded(grey(mode)), PX, channels)
    assert decoded.shape == (PX, PX, channels) and decoded.dtype == np.uint8
    assert (decoded == RAMP[..., None]).all()


def test_a_palette_is_looked_up() -> None:
    image = Image.fromarray(RAMP % 4).copy()
    image.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0, 255, 255, 255])
    colours = np.array([[0, 0, 0], [200, 0, 0], [0, 200, 0], [255, 255, 255]])
    assert (images.decode(encoded(image), PX, 3) == colours[RAMP % 4]).all()


def test_a_palette_with_transparency_is_read_without_a_warning() -> None:
    image = encoded(grey("P"), transparency=bytes([0, 128, 255]))
    assert images.decode(image, PX, 1).shape == (PX, PX, 1)


def test_colours_keep_their_order() -> None:
    pixels = np.stack([RAMP, RAMP[::-1], RAMP.T], axis=-1)
    assert (images.decode(encoded(Image.fromarray(pixels)), PX, 3) == pixels).all()


def test_a_black_and_white_image_has_two_greys() -> None:
    decoded = images.decode(encoded(Image.fromarray(RAMP > 127)), PX, 1)[..., 0]
    assert (decoded == np.where(RAMP > 127, 255, 0)).all()


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_is_read_to_within_its_loss(mode: str) -> None:
    smooth = Image.fromarray(np.tile(np.linspace(40, 200, PX).astype(np.uint8), (PX, 1)))
    decoded = images.decode(encoded(smooth.convert("RGB").convert(mode), "JPEG", quality=95), PX, 1)[..., 0]
    assert np.abs(decoded.astype(int) - np.asarray(smooth)).max() <= 4


def test_sixteen_bits_are_scaled_by_the_depth_and_not_by_the_image() -> None:
    values = np.zeros((PX, PX), np.uint16)
    values[0, :4] = 255, 256, 32_768, 65_535
    decoded = images.decode(encoded(Image.fromarray(values)), PX, 1, grey_range=SIXTEEN_BIT)
    assert decoded[0, :4, 0].tolist() == [1, 1, 128, 255]
    dark = np.full((PX, PX), 512, np.uint16)  # alone in its image, and still dark
    assert (images.decode(encoded(Image.fromarray(dark)), PX, 1, grey_range=SIXTEEN_BIT) == 2).all()


def test_the_same_picture_in_eight_and_sixteen_bits_is_the_same() -> None:
    deep = encoded(Image.fromarray(RAMP.astype(np.uint16) * 257))
    decoded = images.decode(deep, PX, 3, grey_range=SIXTEEN_BIT)
    assert (decoded == images.decode(encoded(Image.fromarray(RAMP)), PX, 3)).all()


def test_an_image_is_cropped_at_its_centre_and_not_squeezed() -> None:
    wide = np.zeros((PX, 3 * PX), np.uint8)
    wide[:, PX : 2 * PX] = RAMP
    for pixels, name in ((wide, "wide"), (wide.T, "tall")):
        decoded = images.decode(encoded(Image.fromarray(pixels)), PX, 1)[..., 0]
        assert (decoded == (RAMP if name == "wide" else RAMP.T)).all()


def test_a_file_is_read_like_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(grey("L")))
    assert (images.decode(path, PX, 1) == images.decode(path.read_bytes(), PX, 1)).all()


def test_a_small_image_is_refused_with_both_sizes() -> None:
    with pytest.raises(ImageError, match="want a side of 17 px, got 16x20"):
        images.decode(encoded(Image.fromarray(np.zeros((20, 16), np.uint8))), PX, 1, min_source_px=17)
    assert images.decode(encoded(grey("L")), 32, 1, min_source_px=16).shape == (32, 32, 1)


@pytest.mark.parametrize("source", [b"", b"not an image", Path("nowhere.png")])
def test_what_is_no_image_is_refused(source: Path | bytes) -> None:
    with pytest.raises(ImageError, match="unreadable image"):
        images.decode(source, PX, 1)


def test_an_error_of_the_reader_itself_is_a_refusal_too() -> None:
    broken = bytearray(encoded(Image.fromarray(RAMP.astype(np.uint8)), "DDS"))
    broken[80:84] = bytes(4)  # flags of the pixel format: Pillow raises NotImplementedError
    with pytest.raises(ImageError, match="unreadable image"):
        images.decode(bytes(broken), PX, 1)


@pytest.mark.parametrize("values", [np.full((PX, PX), -1, np.int32), np.full((PX, PX), 70_000, np.int32)])
def test_values_outside_sixteen_bits_are_refused(values: np.ndarray) -> None:
    with pytest.raises(ImageError, match="outside the grey range 0 to 65535"):
        images.decode(encoded(Image.fromarray(values), "TIFF"), PX, 1, grey_range=SIXTEEN_BIT)


def test_numbers_with_fractions_are_refused() -> None:
    with pytest.raises(ImageError, match="unsupported mode: F"):
        images.decode(encoded(Image.fromarray(RAMP.astype(np.float32)), "TIFF"), PX, 1)


NOISE = np.random.default_rng(0).integers(0, 256, (PX, PX), np.uint8)  # which cannot be compressed
FILES = {
    "png": encoded(Image.fromarray(NOISE)),
    "16 bit": encoded(Image.fromarray(NOISE.astype(np.uint16) * 257)),
    "jpeg": encoded(Image.fromarray(NOISE), "JPEG"),
}


@pytest.mark.parametrize("kind", FILES)
def test_an_image_cut_off_before_its_pixels_end_is_refused(kind: str) -> None:
    for length in range(len(FILES[kind]) * 3 // 4):
        with pytest.raises(ImageError):
            images.decode(FILES[kind][:length], PX, 1, grey_range=SIXTEEN_BIT)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(FILES)), st.lists(st.tuples(st.integers(8, 10_000), st.integers(0, 255)), min_size=1))
def test_a_damaged_image_is_read_or_refused_but_never_anything_else(kind: str, damage: list[tuple[int, int]]) -> None:
    damaged = bytearray(FILES[kind])
    for position, value in damage:
        damaged[8 + position % (len(damaged) - 8)] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow tells what is damaged; the reason is counted anyway
        try:
            decoded = images.decode(bytes(damaged), PX, 1, grey_range=SIXTEEN_BIT)
        except ImageError:
            return
    assert decoded.shape == (PX, PX, 1)


@given(arrays(np.uint8, (2, 4, 3, 1)) | arrays(np.uint8, (1, 2, 5, 3)))
def test_pixels_survive_the_way_to_torch_and_back(pixels: np.ndarray) -> None:
    tensor = images.to_torch(pixels)
    n, height, width, channels = pixels.shape
    assert tensor.shape == (n, channels, height, width)
    assert tensor.dtype == torch.float32 and tensor.min() >= -1 and tensor.max() <= 1
    assert (images.to_uint8(tensor) == pixels).all()


def test_each_of_the_256_values_survives_and_the_ends_are_minus_one_and_one() -> None:
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    assert (images.to_uint8(images.to_torch(every)) == every).all()
    assert images.to_torch(every).flatten()[[0, 255]].tolist() == [-1.0, 1.0]


def test_values_outside_the_range_are_clipped_and_the_others_rounded() -> None:
    values = torch.tensor([-7.0, 7.0, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1]).reshape(1, 1, 2, 2)
    assert images.to_uint8(values).flatten().tolist() == [0, 255, 0, 1]


def test_to_torch_does_not_write_into_its_source() -> None:
    pixels = RAMP.reshape(1, PX, PX, 1).copy()
    images.to_torch(pixels).zero_()
    assert (pixels[0, ..., 0] == RAMP).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_column_of_images_survives_a_parquet_file(tmp_path: Path, channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, PX, PX, channels), np.uint8)
    table = pa.table({"image": pa.chunked_array([images.column(pixels[:3]), images.column(pixels[3:])])})
    assert table.schema.field("image").type == images.image_type(PX, channels)
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    back = pq.read_table(tmp_path / "t.parquet")
    assert back.schema.field("image").type == images.image_type(PX, channels)
    assert (images.array(back["image"]) == pixels).all()
    assert (images.array(back["image"].take([5, 0])) == pixels[[5, 0]]).all()
    assert (images.array(back["image"].slice(2, 3)) == pixels[2:5]).all()
    assert images.array(back["image"].slice(0, 0)).shape == (0, PX, PX, channels)


def test_no_images_are_a_column_too() -> None:
    empty = images.column(np.zeros((0, PX, PX, 3), np.uint8))
    assert len(empty) == 0 and empty.type == images.image_type(PX, 3)


def test_a_single_image_is_a_column() -> None:
    image = RAMP[..., None]
    column = images.column(image[None])
    assert column.type == images.image_type(PX, 1) and (images.array(column)[0] == image).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("n", [1, 2])
def test_images_that_come_from_torch_are_a_column_of_the_same_type(n: int, channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (n, PX, PX, channels), np.uint8)
    column = images.column(images.to_uint8(images.to_torch(pixels)))
    assert column.type == images.image_type(PX, channels)
    assert images.array(column).shape == pixels.shape and (images.array(column) == pixels).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_holds_the_pixels_and_nothing_else(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (PX, PX, channels), np.uint8)
    made = images.png(pixels)
    assert (images.decode(made, PX, channels) == pixels).all()
    with Image.open(io.BytesIO(made)) as image:
        assert image.info == {}
