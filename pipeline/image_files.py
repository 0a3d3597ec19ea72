"""What an image file says of its own pixels: how deep, which end is white, which way up, what is transparent.

Pillow heeds some of it, and not the rest: of 16-bit colour it keeps the high byte, of 16-bit TIFFs it does not invert
those whose lowest value is white. Not here: which values are black and white in a cohort (see `cohorts.greys`).
A PNG's sBIT is no help with that: by the standard such values are scaled up to the depth of the file.

Axis letters: h height, w width, c channels.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin

GreyRange = tuple[int, int]
"""The values of black and of white."""

# Pillow would also read what only other programs can draw: for PostScript it runs Ghostscript on the file.
FORMATS = ("PNG", "JPEG", "TIFF")
EIGHT_BIT = ("L", "RGB", "P", "1", "LA", "RGBA", "CMYK", "YCbCr")
DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I")
# How Pillow unpacks 16-bit colour to its high bytes -> how it unpacks the same to its low bytes.
NATIVE_LOW = "B" if sys.byteorder == "little" else "L"
LOW_BYTES = {
    f"{bands};16{order}": f"{bands};16{low}"
    for bands in ("RGB", "RGBA", "RGBX")
    for order, low in (("B", "L"), ("L", "B"), ("N", NATIVE_LOW))
}
GREY_AND_ALPHA = "LA;16B"
UNSIGNED_32 = "I;32N"
SIGNED = 2
OUTSIDE = "values outside the grey range"
TOO_DARK = "of fewer bits than the cohort's other images, or nearly black"
NO_RANGE = "more than 8 bits, and the grey range is not known"
TRANSPARENT = "wholly transparent image"


class ImageError(ValueError):
    """An image that cannot be used; the message is the reason that is counted."""


class Header(NamedTuple):
    """What is known of an image before its pixels are read."""

    is_deep: bool
    """Whether it has more than 8 bits per channel, so that its values alone do not say what is black and white."""
    min_is_white: bool
    """Whether a deep file says that its lowest value is white."""
    n_pixels: int


class Deep(NamedTuple):
    """The pixels of an image of more than 8 bits, upright."""

    values: Int64[np.ndarray, "h w c"]
    """As they stand in the file; where it is wholly transparent, the lowest that can be seen."""
    opacity: Float[np.ndarray, "h w 1"] | None
    """0 to 1; none if the file has no transparency."""


def header(source: Path | bytes) -> Header:
    """What the file says without its pixels. Raises: ImageError if it cannot be read."""
    with _opened(source) as image:
        return _header(image)


def extremes(source: Path | bytes) -> tuple[int, int]:
    """The smallest and the largest visible value of a deep image. Raises: ImageError if it cannot be read."""
    with _opened(source) as image:
        values = _deep(image, source).values
        return int(values.min()), int(values.max())


def shown(
    source: Path | bytes, grey_range: GreyRange | None, min_source_px: int, least_value: int = 0
) -> Image.Image:
    """The image as it is to be seen, in 8 bits, upright, on black where it is transparent.

    `grey_range` says what is black and white in deep images; the file's own word that its lowest value is white
    comes on top. A deep image that is not black all over has a value over `least_value`, or another depth.
    Raises: ImageError with the reason if it cannot be read, is too small or has values out of range.
    """
    with _opened(source) as image:
        if min(image.size) < min_source_px:
            raise ImageError(f"too small: want a side of {min_source_px} px, got {image.size[0]}x{image.size[1]}")
        found = _header(image)
        if not found.is_deep:
            return _on_black(ImageOps.exif_transpose(image))
        if grey_range is None:
            raise ImageError(NO_RANGE)
        is_inverted = found.min_is_white or grey_range[0] > grey_range[1]
        black, white = sorted(grey_range, reverse=is_inverted)
        deep = _deep(image, source)
        if 0 < deep.values.max() <= least_value:
            raise ImageError(TOO_DARK)
        return _scaled(deep, black, white)


@contextmanager
def _opened(source: Path | bytes) -> Iterator[Image.Image]:
    try:
        with _file(source) as image:
            yield image
    except ImageError:
        raise
    except Exception as error:  # Pillow's readers raise whatever broken bytes lead them to
        raise ImageError(f"unreadable image: {type(error).__name__}") from error


def _header(image: Image.Image) -> Header:
    """Raises: ImageError if its kind is not one that can be used."""
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    bits = 16 if ";16" in _raw_mode(image) else max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (8,)))
    if image.mode in DEEP_GREY:
        return Header(True, tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0, _n_pixels(image))
    if image.mode not in EIGHT_BIT:
        raise ImageError(f"unsupported mode: {image.mode}")
    # Pillow reads the numbers of the first as if they had no sign, and of the second whatever bytes come.
    if bits <= 8 and SIGNED in tags.get(TiffImagePlugin.SAMPLEFORMAT, ()):
        raise ImageError("unsupported mode: 8 bit with a sign")
    if bits > 8 and _raw_mode(image) not in (*LOW_BYTES, GREY_AND_ALPHA):
        raise ImageError(f"unsupported mode: {image.mode} of {bits} bit, premultiplied or with its channels apart")
    return Header(bits > 8, False, _n_pixels(image))


def _n_pixels(image: Image.Image) -> int:
    return image.size[0] * image.size[1]


def _raw_mode(image: Image.Image) -> str:
    """How Pillow is going to unpack the pixels; known until they are loaded."""
    arguments = image.tile[0].args if isinstance(image, ImageFile.ImageFile) and image.tile else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _deep(image: Image.Image, source: Path | bytes) -> Deep:
    raw, key = _raw_mode(image), image.info.get("transparency")
    if image.mode in DEEP_GREY:
        values = np.asarray(ImageOps.exif_transpose(image)).astype(np.int64)[..., None]
        if raw == UNSIGNED_32:
            values &= 0xFFFF_FFFF  # Pillow's 32 bits have a sign
    elif raw == GREY_AND_ALPHA:
        both = _unpacked(source, "RGBA")  # four bytes a pixel: grey high and low, alpha high and low
        values = both[..., 0::2] * 256 + both[..., 1::2]
    else:
        values = _unpacked(source, raw) * 256 + _unpacked(source, LOW_BYTES[raw])
    n_colours = 1 if values.shape[-1] < 3 else 3
    if values.shape[-1] > n_colours:
        return _seen(values[..., :n_colours], values[..., n_colours:] / 65535)
    if key is not None:
        return _seen(values, (values != np.asarray(key)).any(-1, keepdims=True).astype(float))
    return Deep(values, None)


def _unpacked(source: Path | bytes, raw_mode: str) -> Int64[np.ndarray, "h w c"]:
    """The pixels with their bytes taken for those of another raw mode of the same length."""
    with _file(source) as image:
        image.tile = [
            tile._replace(args=(raw_mode, *tile.args[1:]) if isinstance(tile.args, tuple) else raw_mode)
            for tile in image.tile
        ]
        return np.asarray(ImageOps.exif_transpose(image)).astype(np.int64)


def _seen(values: Int64[np.ndarray, "h w c"], opacity: Float[np.ndarray, "h w 1"]) -> Deep:
    """What hides behind wholly transparent pixels is no value of the picture."""
    visible = opacity[..., 0] > 0
    if not visible.any():
        raise ImageError(TRANSPARENT)
    return Deep(np.where(visible[..., None], values, values[visible].min()), opacity)


def _scaled(deep: Deep, black: int, white: int) -> Image.Image:
    low, high = sorted((black, white))
    if deep.values.min() < low or deep.values.max() > high:
        raise ImageError(f"{OUTSIDE} {low} to {high}")
    greys = (deep.values - black) * (255 / (white - black))
    if deep.opacity is not None:
        greys *= deep.opacity
    pixels = np.rint(greys).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _on_black(image: Image.Image) -> Image.Image:
    """On black, as what a film does not show is black; unlike the hidden colours, which any program may have left."""
    if not image.has_transparency_data:
        return image
    layer = image.convert("RGBA")
    if not layer.getchannel("A").getextrema()[1]:
        raise ImageError(TRANSPARENT)
    return Image.alpha_composite(Image.new("RGBA", layer.size, "black"), layer).convert("RGB")


def _file(source: Path | bytes) -> ImageFile.ImageFile:
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
