"""Where every random number comes from: a seed per row, a generator per row, nothing global.

The image of a row is a function of (model, prompt, seed), never of batch, actor or order (design section 6).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def row_seed(run_seed: int, *identity: object) -> int:
    """A non-negative 63-bit seed from the run's seed and what identifies the row (BLAKE2b, RFC 7693)."""
    text = "\x1f".join(str(part) for part in (run_seed, *identity))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def numpy_generator(run_seed: int, *identity: object) -> np.random.Generator:
    """A NumPy generator of its own for whatever `identity` names."""
    return np.random.default_rng(row_seed(run_seed, *identity))


def torch_generator(run_seed: int, *identity: object) -> torch.Generator:
    """A torch CPU generator of its own for whatever `identity` names."""
    import torch

    return torch.Generator().manual_seed(row_seed(run_seed, *identity))
