"""What a file says of its own pixels is heeded; what it does not say comes from the cohort; the rest is refused."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from image_writing import png_16_bit, tiff
from PIL import Image

from pipeline import images
from pipeline.image_files import ImageError, extremes, header

PX = 16
RAMP = np.arange(PX * PX, dtype=np.int64).reshape(PX, PX, 1)  # every grey once
TWELVE_BIT = (0, 4095)
DEEP = RAMP * 16 + RAMP // 16  # the same in 12 bits, from 0 to 4095


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(file: bytes, grey_range: tuple[int, int] | None, channels: int = 1) -> np.ndarray:
    return images.decode(file, PX, channels, grey_range=grey_range).astype(int)


def beside(values: np.ndarray, *others: np.ndarray) -> np.ndarray:
    return np.concatenate([values, *others], axis=-1)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_a_picture_is_the_same_in_eight_bits_and_in_more_of_sixteen(bits: int) -> None:
    white = 2**bits - 1
    deep = encoded(Image.fromarray(np.rint(RAMP[..., 0] / 255 * white).astype(np.uint16)))
    assert (decoded(deep, (0, white)) == RAMP).all()


def test_an_inverted_range_makes_the_lowest_value_white() -> None:
    assert (decoded(png_16_bit(4095 - DEEP), (4095, 0)) == RAMP).all()


def test_values_with_a_sign_and_an_offset_are_scaled_by_their_range() -> None:
    for kind in ("<i2", ">i2", "<i4", ">i4"):
        assert (decoded(tiff((DEEP - 1024).astype(kind)), (-1024, 3071)) == RAMP).all()


def test_an_image_without_a_range_is_refused_and_not_guessed_at() -> None:
    with pytest.raises(ImageError, match="more than 8 bits, and the grey range is not known"):
        decoded(png_16_bit(DEEP), None)


@pytest.mark.parametrize(("value", "grey_range"), [(4096, (0, 4095)), (5, (10, 4095)), (4096, (4095, 0))])
def test_a_value_out_of_range_is_refused_and_neither_clipped_nor_wrapped(
    value: int, grey_range: tuple[int, int]
) -> None:
    values = np.full((PX, PX, 1), 100)
    values[3, 4] = value
    with pytest.raises(ImageError, match=f"outside the grey range {min(grey_range)} to 4095"):
        decoded(png_16_bit(values), grey_range)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", ["u2", "i2", "i4"])
def test_the_order_of_bytes_does_not_matter(order: str, kind: str) -> None:
    assert (decoded(tiff(DEEP.astype(order + kind)), TWELVE_BIT) == RAMP).all()


def test_thirty_two_bits_without_a_sign_have_none() -> None:
    high = tiff((DEEP + 3_000_000_000).astype("<u4"))
    assert extremes(high) == (3_000_000_000, 3_000_004_095)
    assert (decoded(high, (3_000_000_000, 3_000_004_095)) == RAMP).all()


def test_twelve_packed_bits_are_read() -> None:
    assert (decoded(tiff(DEEP.astype("<u2"), bits=12), TWELVE_BIT) == RAMP).all()


def test_a_tiff_whose_lowest_value_is_white_is_inverted_at_every_depth_and_never_twice() -> None:
    shallow = tiff((255 - RAMP).astype(np.uint8), photometric=0)
    deep = tiff((4095 - DEEP).astype("<u2"), photometric=0)
    assert (decoded(shallow, None) == RAMP).all()
    assert (decoded(deep, TWELVE_BIT) == RAMP).all()
    assert (decoded(deep, (4095, 0)) == RAMP).all()
    assert header(deep).min_is_white and not header(tiff(DEEP.astype("<u2"))).min_is_white


COLOUR = {
    "a PNG": png_16_bit(beside(DEEP, 4095 - DEEP, DEEP)),
    "a PNG with alpha": png_16_bit(beside(DEEP, 4095 - DEEP, DEEP, np.full_like(DEEP, 65535))),
    "a TIFF": tiff(beside(DEEP, 4095 - DEEP, DEEP).astype("<u2"), photometric=2),
    "a TIFF of the other order": tiff(beside(DEEP, 4095 - DEEP, DEEP).astype(">u2"), photometric=2),
}


@pytest.mark.parametrize("file", COLOUR.values(), ids=COLOUR)
def test_twelve_bits_of_colour_keep_all_their_levels(file: bytes) -> None:
    assert header(file).is_deep and extremes(file) == (0, 4095)
    assert (decoded(file, TWELVE_BIT, channels=3) == beside(RAMP, 255 - RAMP, RAMP)).all()


@pytest.mark.parametrize("order", "<>")
def test_a_compressed_tiff_is_read_like_a_plain_one(order: str) -> None:
    grey, colour = DEEP.astype(order + "u2"), beside(DEEP, DEEP, DEEP).astype(order + "u2")
    for values, photometric in ((grey, 1), (colour, 2)):
        assert (decoded(tiff(values, photometric=photometric, deflated=True), TWELVE_BIT) == RAMP).all()


def test_grey_of_sixteen_bits_with_alpha_keeps_its_levels() -> None:
    opaque = png_16_bit(beside(DEEP, np.full_like(DEEP, 65535)))
    assert extremes(opaque) == (0, 4095)
    assert (decoded(opaque, TWELVE_BIT) == RAMP).all()


def test_colours_kept_apart_of_which_pillow_reads_garbage_are_refused() -> None:
    apart = tiff(beside(DEEP, DEEP, DEEP).astype("<u2"), photometric=2, planes=True)
    with pytest.raises(ImageError, match="unsupported mode: RGB of 16 bit"):
        decoded(apart, TWELVE_BIT)


def test_eight_bits_with_a_sign_are_refused() -> None:
    with pytest.raises(ImageError, match="8 bit with a sign"):
        decoded(tiff((RAMP - 128).astype(np.int8)), None)


def half_seen(opacity: int) -> np.ndarray:
    """The upper half is opaque, the lower half transparent."""
    return np.where(np.arange(PX)[:, None, None] < PX // 2, opacity, np.zeros((PX, PX, 1), np.int64))


HIDDEN = np.where(half_seen(1) > 0, RAMP, 200)  # what no one sees is bright
SEEN = np.where(half_seen(1) > 0, RAMP, 0)
BRIGHT = np.where(half_seen(1) > 0, DEEP, 60_000)  # and out of range
TRANSPARENT = {
    "LA": encoded(Image.fromarray(beside(HIDDEN, half_seen(255)).astype(np.uint8))),
    "RGBA": encoded(Image.fromarray(beside(HIDDEN, HIDDEN, HIDDEN, half_seen(255)).astype(np.uint8))),
    "a grey that stands for it": encoded(Image.fromarray(HIDDEN[..., 0].astype(np.uint8)), transparency=200),
    "a palette": encoded(
        Image.fromarray(HIDDEN[..., 0].astype(np.uint8)).convert("P"),
        transparency=bytes([255] * 200 + [0] + [255] * 55),
    ),
    "LA, 16 bit": png_16_bit(beside(BRIGHT, half_seen(65535))),
    "RGBA, 16 bit": png_16_bit(beside(BRIGHT, BRIGHT, BRIGHT, half_seen(65535))),
    "a grey that stands for it, 16 bit": png_16_bit(BRIGHT, transparent=60_000),
    "a colour that stands for it, 16 bit": png_16_bit(beside(BRIGHT, BRIGHT, BRIGHT), transparent=60_000),
}


@pytest.mark.parametrize("file", TRANSPARENT.values(), ids=TRANSPARENT)
def test_what_is_transparent_is_black_whatever_hides_there(file: bytes) -> None:
    assert (decoded(file, TWELVE_BIT) == SEEN).all()
    assert (decoded(file, TWELVE_BIT, channels=3) == SEEN).all()


def test_what_is_transparent_is_black_in_an_inverted_range_too() -> None:
    file = png_16_bit(beside(4095 - DEEP, half_seen(65535)))
    assert (decoded(file, (4095, 0)) == SEEN).all()


def test_what_is_half_transparent_is_half_as_bright() -> None:
    for file in (
        encoded(Image.fromarray(beside(RAMP, np.full_like(RAMP, 128)).astype(np.uint8))),
        png_16_bit(beside(DEEP, np.full_like(DEEP, 32768))),
    ):
        assert np.abs(decoded(file, TWELVE_BIT) - RAMP / 2).max() <= 1


def test_an_image_of_which_nothing_can_be_seen_is_refused() -> None:
    for file in (
        encoded(Image.fromarray(beside(RAMP, 0 * RAMP).astype(np.uint8))),
        png_16_bit(beside(DEEP, 0 * DEEP)),
    ):
        with pytest.raises(ImageError, match="wholly transparent"):
            decoded(file, TWELVE_BIT)


TURNED = {1: 0, 3: 2, 6: -1, 8: 1}  # EXIF orientation -> quarter turns counter-clockwise that show it upright


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "PNG, 16 bit", "TIFF", "TIFF, 16 bit"])
def test_an_image_is_shown_the_way_up_that_it_says(kind: str, orientation: int) -> None:
    smooth = (np.add.outer(np.arange(PX) * 9, np.arange(PX) * 3) + 20).astype(np.uint8)
    stored = smooth.astype(np.uint16) * 16 if "16" in kind else smooth
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"tiffinfo": {0x0112: orientation}} if "TIFF" in kind else {"exif": exif.tobytes()}
    if kind == "JPEG":
        options |= {"quality": 98}
    file = encoded(Image.fromarray(stored), kind.split(",")[0], **options)
    assert np.abs(decoded(file, (0, 255 * 16))[..., 0] - np.rot90(smooth, TURNED[orientation])).max() <= 4


def test_sixteen_bit_colour_is_turned_too() -> None:
    plain = Image.open(io.BytesIO(COLOUR["a TIFF"]))
    assert plain.size == (PX, PX)
    turned = bytearray(COLOUR["a TIFF"])
    at = turned.index(b"\x1c\x01\x03\x00")  # the planar configuration, which is 1 anyway, gives its place away
    turned[at : at + 12] = b"\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00\x00\x00"
    assert (decoded(bytes(turned), TWELVE_BIT, 3) == np.rot90(beside(RAMP, 255 - RAMP, RAMP), -1)).all()
