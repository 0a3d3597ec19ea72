"""Pareto fronts of measured settings: little risk, much use, many images kept.

Pure functions. Not here: how a setting is measured (steps.trial) nor which ones are tried (tune).
Axis letters: n settings, k objectives, all of them losses (smaller is better).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import norm, t

from pipeline.estimate import Estimate

Z95 = float(norm.ppf(0.975))


class Point(NamedTuple):
    """What a setting came to."""

    ratio: Estimate
    """Re-identification ratio by the study's judge; less is better."""
    auroc: Estimate
    """Macro AUROC of the downstream task on real images; more is better."""
    kept_frac: float
    """Share of the sampled images that is kept, exact; more is better."""


def losses(points: Sequence[Point]) -> Float[np.ndarray, "n 3"]:
    """The points as losses: ratio, 1 - AUROC, share dropped."""
    rows = [(point.ratio.value, 1 - point.auroc.value, 1 - point.kept_frac) for point in points]
    return np.array(rows, np.float64).reshape(len(points), 3)


def non_dominated(losses: Float[np.ndarray, "n k"]) -> Bool[np.ndarray, " n"]:
    """Which settings no other one is at least as good as in everything and better in something."""
    return ~np.any(_dominates(losses, losses), axis=0)


def may_be_on_front(points: Sequence[Point]) -> Bool[np.ndarray, " n"]:
    """Which settings no other one surely dominates: at its worst at least as good as they are at their best.

    Best and worst are the ends of the 95 % intervals, so that a setting is given up only for what was measured well
    enough to tell. Source: the discarding rule of ε-PAL with ε = 0, Zuluaga, Krause & Püschel, JMLR 17:104 (2016).
    """
    best = np.array([(p.ratio.low, 1 - p.auroc.high, 1 - p.kept_frac) for p in points]).reshape(-1, 3)
    worst = np.array([(p.ratio.high, 1 - p.auroc.low, 1 - p.kept_frac) for p in points]).reshape(-1, 3)
    return ~np.any(_dominates(worst, best), axis=0)


def most_promising(losses: Float[np.ndarray, "n k"]) -> list[int]:
    """Positions, the most promising first: front after front, and within one those in the emptiest places first.

    Source: non-dominated sorting and crowding distance, Deb et al., IEEE Trans. Evol. Comput. 6:182 (2002).
    """
    order: list[int] = []
    left = np.arange(len(losses))
    while len(left):
        front = left[non_dominated(losses[left])]
        order += front[np.argsort(-_crowding_distance(losses[front]), kind="stable")].tolist()
        left = np.setdiff1d(left, front)
    return order


def recommended(points: Sequence[Point], max_ratio: float) -> int | None:
    """The most useful setting whose ratio is at most `max_ratio` with 95 % confidence; none if none is.

    Of equally useful ones the one that keeps more. A one-sided 95 % statement would allow a little more; the upper
    end of the two-sided interval is used, as it is the one that is shown.
    """
    met = [i for i, point in enumerate(points) if point.ratio.high <= max_ratio]
    return max(met, key=lambda i: (points[i].auroc.value, points[i].kept_frac), default=None)


def over_seeds(
    groups: Sequence[Sequence[Estimate]], whole: Sequence[Sequence[Estimate]] | None = None
) -> list[Estimate]:
    """For each group of runs that differ in their seed alone, the mean, and the 95 % interval of one more such run.

    A prediction interval, mean ± t s √(1 + 1/k), clamped to [0, 1]. The spread s between seeds is pooled over groups,
    as two or three runs of one say little about it; groups that leak less vary less, so that theirs errs on the wide
    side. It is at least what a single run's own interval says. Where no group has two runs, each run is returned.

    `whole` are the same runs where all share an error, such as that of one threshold from which all are counted: with
    intervals that hold it, while those of `groups` do not. No spread between seeds shows it and no mean takes it
    away, so what it adds to a run's interval, on each side and on average over the group, is added once to the
    half-width, as a root of squares. The interval is then about the figure that one more run would have with the
    shared error gone (a ratio counted from the percentile of all unseen patients, not of those drawn). Simulated with
    four settings, two students of 1,500 images each and 400 control images, it covers that in 98 of 100, without
    `whole` in 91; with 1,300 control images in 97-99, without in 95-96.
    Source: Hahn & Meeker, Statistical Intervals (1991), section 4.8; pooled as in a one-way analysis of variance;
    the shared error by MOVER, Zou & Donner, Stat. Med. 27:1693 (2008), doi:10.1002/sim.3095.
    """
    whole = groups if whole is None else whole
    values = [np.array([one.value for one in group]) for group in groups]
    freedom = sum(len(group) - 1 for group in values)
    if not freedom:
        return [group[0] for group in whole]
    pooled = math.sqrt(sum(float(((group - group.mean()) ** 2).sum()) for group in values) / freedom)
    found = []
    for group, runs, with_shared in zip(values, groups, whole, strict=True):
        own = float(np.mean([(one.high - one.low) / (2 * Z95) for one in runs]))
        half = float(t.ppf(0.975, freedom)) * max(pooled, own) * math.sqrt(1 + 1 / len(group))
        pairs = list(zip(runs, with_shared, strict=True))
        down = float(np.mean([_added(one.value - one.low, both.value - both.low) for one, both in pairs]))
        up = float(np.mean([_added(one.high - one.value, both.high - both.value) for one, both in pairs]))
        mean = float(group.mean())
        low, high = mean - math.hypot(half, down), mean + math.hypot(half, up)
        found.append(Estimate(mean, max(0.0, low), min(1.0, high), sum(one.n for one in runs)))
    return found


def _added(without: float, both: float) -> float:
    """The distance that, as a root of squares with `without`, makes `both`."""
    return math.sqrt(max(0.0, both**2 - without**2))


def hypervolume(losses: Float[np.ndarray, "n k"], reference: Float[np.ndarray, " k"]) -> float:
    """Volume that the settings dominate, up to the reference; what is worse than it anywhere adds nothing.

    Slices along the last objective; fine for tens of settings and three objectives.
    Source: Zitzler & Thiele, IEEE Trans. Evol. Comput. 3:257 (1999); slicing as in While et al., ibid. 10:29 (2006).
    """
    inside = losses[(losses < reference).all(1)]
    if not len(inside):
        return 0.0
    if losses.shape[1] == 1:
        return float(reference[0] - inside.min())
    inside = inside[np.argsort(inside[:, -1], kind="stable")]
    depths = np.diff([*inside[:, -1], reference[-1]])
    return sum(
        float(depth) * hypervolume(inside[: i + 1, :-1], reference[:-1])
        for i, depth in enumerate(depths)
        if depth > 0
    )


def _dominates(first: Float[np.ndarray, "n k"], second: Float[np.ndarray, "m k"]) -> Bool[np.ndarray, "n m"]:
    """Whether each of the first is at least as good as each of the second in everything, and better in something."""
    one, other = first[:, None], second[None]
    return np.all(one <= other, axis=2) & np.any(one < other, axis=2)


def _crowding_distance(losses: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " n"]:
    """How far apart each setting's neighbours on the front are, summed over objectives; infinite at the ends."""
    distance = np.zeros(len(losses))
    for column in losses.T:
        order = np.argsort(column, kind="stable")
        distance[order[[0, -1]]] = np.inf
        span = column[order[-1]] - column[order[0]]
        if span > 0:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return distance
