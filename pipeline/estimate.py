"""A measured number with its interval and its n: the only form in which a metric travels.

Not here: how intervals are computed; that is the business of whoever measures (`privacy.risk`, `utility`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, Self


class Estimate(NamedTuple):
    """A value, its confidence interval (95 % unless said otherwise) and the number of units behind it."""

    value: float
    """Point estimate; NaN if nothing was measured."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    n: int
    """Images, patients or pairs; 0 if nothing was measured."""

    def as_dict(self) -> dict[str, float | int | None]:
        """What stands in JSON; a NaN becomes null, as JSON has no NaN."""
        return {name: None if math.isnan(number) else number for name, number in self._asdict().items()}

    @classmethod
    def from_dict(cls, saved: Mapping[str, float | int | None]) -> Self:
        """The estimate that `as_dict` wrote."""
        return cls(_number(saved["value"]), _number(saved["low"]), _number(saved["high"]), int(saved["n"] or 0))


def is_small(n: int, k: int) -> bool:
    """Whether a number is about so few units (patients) that it must not be released: some, but fewer than k."""
    return 0 < n < k


def fewer_than(n: int, k: int) -> str:
    """The count as it may be released: `fewer than 5` instead of 1 to 4 for k = 5, otherwise the number."""
    return f"fewer than {k:,}" if is_small(n, k) else f"{n:,}"


def _number(saved: float | None) -> float:
    return math.nan if saved is None else float(saved)
