"""A measured number with its interval and the number of things it was measured on."""

from __future__ import annotations

from typing import NamedTuple


class Estimate(NamedTuple):
    """A value, its 95 % interval, and the n behind it."""

    value: float
    low: float
    high: float
    n: int
