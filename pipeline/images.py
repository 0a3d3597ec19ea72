"""Pixels: the only place that knows their dtypes and ranges.

In Arrow an image is uint8, height x width x channels, in a fixed-shape tensor column; in torch it is float32,
channels x height x width, in [-1, 1]. Axis letters: n images, c channels, h height, w width.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

# Pillow would also read what only other programs can draw: for PostScript it runs Ghostscript on the file.
FORMATS = ("PNG", "JPEG", "TIFF")


class ImageError(ValueError):
    """An image that cannot be used; the message is the reason that is counted."""


def image_type(image_px: int, channels: int) -> pa.FixedShapeTensorType:
    """The Arrow type of a column of square images."""
    return pa.fixed_shape_tensor(pa.uint8(), (image_px, image_px, channels))


def column(images: UInt8[np.ndarray, "n h w c"]) -> pa.ExtensionArray:
    """An Arrow column of these images."""
    # Not from_numpy_ndarray: it reads a permutation out of the strides, which images from torch have.
    height, width, channels = images.shape[1:]
    values = pa.array(np.ascontiguousarray(images).reshape(-1))
    storage = pa.FixedSizeListArray.from_arrays(values, height * width * channels)
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.uint8(), (height, width, channels)), storage)


def array(images: pa.ChunkedArray | pa.Array) -> UInt8[np.ndarray, "n h w c"]:
    """The images of an Arrow column as one array (a view where Arrow allows it)."""
    if isinstance(images, pa.ChunkedArray):
        if not len(images):
            return np.zeros((0, *images.type.shape), np.uint8)
        images = images.combine_chunks()
        if isinstance(images, pa.ChunkedArray):
            images = images.chunk(0)
    return images.to_numpy_ndarray()


def to_torch(images: UInt8[np.ndarray, "n h w c"]) -> Float[Tensor, "n c h w"]:
    """uint8 to float32 in [-1, 1]."""
    return torch.from_numpy(np.array(images, copy=True)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def to_uint8(images: Float[Tensor, "n c h w"]) -> UInt8[np.ndarray, "n h w c"]:
    """float in [-1, 1] to uint8, rounded to nearest; values outside are clipped."""
    scaled = images.detach().add(1.0).mul(127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def decode(source: Path | bytes, image_px: int, channels: int, min_source_px: int = 1) -> UInt8[np.ndarray, "h w c"]:
    """One PNG or JPEG, 8 or 16 bit, grey or RGB(A), centre-cropped and resized to a square.

    16-bit values are scaled by the bit depth, never by the image's own maximum: that would change with content.
    Raises: ImageError with the reason if it cannot be read or is too small.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            image.load()
            if min(image.size) < min_source_px:
                raise ImageError(f"too small: want a side of {min_source_px} px, got {image.size[0]}x{image.size[1]}")
            image.info.pop("transparency", None)  # else Pillow warns at every palette image that has some
            image = _eight_bit(image).convert("L" if channels == 1 else "RGB")
    except ImageError:
        raise
    except Exception as error:  # Pillow's readers raise whatever broken bytes lead them to
        raise ImageError(f"unreadable image: {type(error).__name__}") from error
    square = ImageOps.fit(image, (image_px, image_px), Image.Resampling.LANCZOS)
    return np.asarray(square, np.uint8).reshape(image_px, image_px, channels)


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError(f"unsupported mode: {image.mode} with values outside 16 bit")
        return Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode in ("L", "RGB", "P", "1", "LA", "RGBA", "CMYK", "YCbCr"):
        return image
    raise ImageError(f"unsupported mode: {image.mode}")


def png(image: UInt8[np.ndarray, "h w c"]) -> bytes:
    """The image as PNG bytes, without metadata."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()
