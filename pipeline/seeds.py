"""Where every random number comes from: a seed per row, a generator per row, nothing global.

The image of a row is a function of (model, prompt, seed), never of batch, actor or order (design section 6). All is
derived from one origin: an integer, which may be published, or 32 bytes that nobody outside may know (`secret`).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

Origin = int | bytes
"""The recipe's seed, or a secret key: with one, nobody without it can recompute or verify what was drawn."""


def row_seed(origin: Origin, *identity: object) -> int:
    """A non-negative 63-bit seed from the origin and what identifies the row (BLAKE2b, RFC 7693)."""
    return int.from_bytes(_digest(origin, identity, 8), "big") >> 1


def numpy_generator(origin: Origin, *identity: object) -> np.random.Generator:
    """A NumPy generator of its own for whatever `identity` names; from a secret, 256 bits of it count."""
    if isinstance(origin, bytes):
        return np.random.default_rng(int.from_bytes(_digest(origin, identity, 32), "big"))
    return np.random.default_rng(row_seed(origin, *identity))


def torch_generator(origin: Origin, *identity: object) -> torch.Generator:
    """A torch CPU generator of its own for whatever `identity` names. It knows 32 bits of its seed, no more."""
    import torch

    return torch.Generator().manual_seed(row_seed(origin, *identity))


def subkey(secret: bytes, *domain: object) -> bytes:
    """32 bytes for one use of a secret, from which neither the secret nor another use's bytes can be told."""
    return _digest(secret, domain, 32)


def _digest(origin: Origin, identity: tuple[object, ...], n_bytes: int) -> bytes:
    if isinstance(origin, bytes):
        key, parts = origin, identity
    else:
        key, parts = b"", (origin, *identity)
    text = "\x1f".join(str(part) for part in parts)
    return hashlib.blake2b(text.encode(), key=key, digest_size=n_bytes).digest()
