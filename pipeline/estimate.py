"""A measured number with its interval and its n: the only form in which a metric travels.

Not here: how intervals are computed; that is the business of whoever measures (`privacy.risk`, `utility`).
"""

from __future__ import annotations

import math
import re
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


def too_small(n_people: Mapping[str, int], k: int) -> set[str]:
    """The groups that must not be told beside the total of all: those of fewer than k people, and with them the next
    smallest, as what the others leave of the total would tell them.
    """
    ranked = sorted((name for name, n in n_people.items() if n), key=lambda name: (n_people[name], name))
    n_small = sum(is_small(n_people[name], k) for name in ranked)
    return set(ranked[: n_small + 1]) if n_small else set()


def fewer_than(n: int, k: int) -> str:
    """The count as it may be released: `fewer than 5` instead of 1 to 4 for k = 5, otherwise the number."""
    return f"fewer than {k:,}" if is_small(n, k) else f"{n:,}"


def rounded(n: int) -> int:
    """The count to its two leading digits, or to tens: who knows all of a table but one row seldom can tell by it
    whether that one is in it.
    """
    return round(n, -1) if n < 100 else int(float(f"{n:.1e}"))


def recall_name(kind: str, factor: float) -> str:
    """The metric's name of the recall on one kind of change, at a factor of the strength that is demanded."""
    return f"recall_{kind}_x{factor:g}"


def recalls(metrics: Mapping[str, Estimate], network: str) -> dict[str, dict[float, Estimate]]:
    """Recall of a network by kind of change and factor of the demanded strength."""
    found: dict[str, dict[float, Estimate]] = {}
    for key, estimate in metrics.items():
        named = re.fullmatch(rf"privacy/{network}/recall_(\w+)_x([\d.]+)", key)
        if named:
            found.setdefault(named[1], {})[float(named[2])] = estimate
    return found


def _number(saved: float | None) -> float:
    return math.nan if saved is None else float(saved)
