"""Image files that Pillow cannot write: 16-bit colour, and TIFFs of every sign, depth and order of bytes."""

from __future__ import annotations

import struct
import zlib

import numpy as np

PNG_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
SHORT, LONG = 3, 4


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_16_bit(values: np.ndarray, *, transparent: int | None = None) -> bytes:
    """Grey, grey and alpha, RGB or RGBA, by the number of channels; every second row is stored as differences."""
    height, width, channels = values.shape
    rows = values.astype(">u2").reshape(height, -1).view(np.uint8).astype(int)
    lines = []
    for number, row in enumerate(rows):
        left = np.concatenate([np.zeros(2 * channels, int), row[: -2 * channels]])
        lines.append(bytes([number % 2]) + ((row - left * (number % 2)) % 256).astype(np.uint8).tobytes())
    head = struct.pack(">IIBBBBB", width, height, 16, PNG_COLOUR_TYPES[channels], 0, 0, 0)
    key = (
        b"" if transparent is None else _chunk(b"tRNS", struct.pack(">H", transparent) * (1 if channels == 1 else 3))
    )
    body = _chunk(b"IDAT", zlib.compress(b"".join(lines)))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + key + body + _chunk(b"IEND", b"")


def packed_12_bit(values: np.ndarray) -> bytes:
    """Two values in three bytes."""
    first, second = values.reshape(-1, 2).astype(int).T
    return np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8).tobytes()


def tiff(
    values: np.ndarray, *, photometric: int = 1, bits: int | None = None, planes: bool = False, deflated: bool = False
) -> bytes:
    """Values in their own type and order of bytes; `photometric` 0 is MinIsWhite, 1 BlackIsZero, 2 RGB."""
    order = "<" if values.dtype.newbyteorder("=") == values.dtype else ">"
    height, width, channels = values.shape
    body = packed_12_bit(values) if bits == 12 else (np.moveaxis(values, -1, 0) if planes else values).tobytes()
    body = zlib.compress(body) if deflated else body
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    n_parts = channels if planes else 1
    tags = {
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, [bits or values.dtype.itemsize * 8] * channels),
        259: (SHORT, [8 if deflated else 1]),
        262: (SHORT, [photometric]),
        273: (LONG, [0] * n_parts),
        277: (SHORT, [channels]),
        278: (LONG, [height]),
        279: (LONG, [len(body) // n_parts] * n_parts),
        284: (SHORT, [2 if planes else 1]),
        339: (SHORT, [kind] * channels),
    }
    behind = 8 + 2 + 12 * len(tags) + 4
    start = behind + sum(_size(kind, of) for kind, of in tags.values() if _size(kind, of) > 4)
    tags[273] = (LONG, [start + part * (len(body) // n_parts) for part in range(n_parts)])
    entries, extra = b"", b""
    for tag, (kind, of) in tags.items():
        packed = struct.pack(f"{order}{len(of)}{'H' if kind == SHORT else 'I'}", *of)
        entries += struct.pack(f"{order}HHI", tag, kind, len(of))
        if len(packed) > 4:
            entries += struct.pack(f"{order}I", behind + len(extra))
            extra += packed
        else:
            entries += packed.ljust(4, b"\0")
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(f"{order}IH", 8, len(tags)) + entries + struct.pack(f"{order}I", 0) + extra + body


def _size(kind: int, of: list[int]) -> int:
    return len(of) * (2 if kind == SHORT else 4)
