"""Pixels: the only place that knows their dtypes and ranges (what a file says of them: `image_files`).

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

from pipeline.image_files import GreyRange, shown


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


def decode(
    source: Path | bytes,
    image_px: int,
    channels: int,
    min_source_px: int = 1,
    grey_range: GreyRange | None = None,
    least_value: int = 0,
) -> UInt8[np.ndarray, "h w c"]:
    """One PNG, JPEG or TIFF as it is to be seen, centre-cropped and resized to a square.

    Values of more than 8 bits are scaled by the cohort's `grey_range` (black, white), never by the image's own: that
    would change with content. Raises: ImageError with the reason if it cannot be read, is too small, or has values
    outside the range.
    """
    image = shown(source, grey_range, min_source_px, least_value)
    coloured = image.convert("L" if channels == 1 else "RGB")
    square = ImageOps.fit(coloured, (image_px, image_px), Image.Resampling.LANCZOS)
    return np.asarray(square, np.uint8).reshape(image_px, image_px, channels)


def png(image: UInt8[np.ndarray, "h w c"]) -> bytes:
    """The image as PNG bytes, without metadata."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()
