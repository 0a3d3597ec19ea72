"""Geometry of the report's plots: axes, histogram bars, and images as data URIs.

Positions are percentages of a plot's width, so that the page draws them as inline SVG at any width with text that
keeps its size and colours that follow the reader's light or dark setting. Not here: colours, labels, layout
(`report.html.j2`, `report.css`). Axis letters: n images, h height, w width, c channels.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from pipeline import images

# Scores closer to 0 or 1 than this share the outermost bar: float32 cannot tell them apart near 1.
SCORE_MARGIN = 1e-6
SCORE_TICKS = (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999)
MAX_TICKS = 9
IMAGE_CSS_PX = 112


class Tick(NamedTuple):
    """A labelled position on an axis, in percent of its width."""

    at: float
    label: str


class Bar(NamedTuple):
    """A histogram bar: left edge and width in percent of the axis, height in percent of the highest bar."""

    at: float
    width: float
    height: float
    flagged: bool


@dataclass(frozen=True)
class Axis:
    """An axis from `start` to `stop`, linear in the value, in its logit log(p / (1 - p)) or in its square root."""

    start: float
    stop: float
    values: tuple[float, ...]
    unit: str = ""
    scale: Literal["linear", "logit", "root"] = "linear"

    def places(self, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Where values stand, in percent of the width; values off the axis stand at its ends."""
        scaled, ends = values, np.array([self.start, self.stop])
        if self.scale != "linear":
            scale = _logit if self.scale == "logit" else np.sqrt
            scaled, ends = scale(values), scale(ends)
        return 100 * np.clip((scaled - ends[0]) / (ends[1] - ends[0]), 0.0, 1.0)

    def place(self, value: float) -> float:
        """Where one value stands, in percent of the width."""
        return round(float(self.places(np.array([value]))[0]), 2)

    @property
    def ticks(self) -> list[Tick]:
        """The labelled positions."""
        scale = 100 if self.unit == "%" else 1
        return [
            Tick(self.place(v), f"{np.format_float_positional(scale * v, 8, trim='-')}{self.unit}")
            for v in self.values
        ]


def linear_axis(low: float, high: float, unit: str = "") -> Axis:
    """An axis over [low, high] with ticks at multiples of 1, 2 or 5 times a power of ten; it ends at ticks."""
    step = _tick_step(max(high - low, 1e-6) / 5)
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    values = tuple(round(i * step, 10) for i in range(first, last + 1))
    return Axis(values[0], values[-1], values, unit)


def snug_axis(low: float, high: float) -> Axis:
    """A linear axis over [low, high] and a little more, with the ticks that fall into it."""
    span = max(high - low, 1e-3)
    start, stop = low - 0.05 * span, high + 0.05 * span
    step = _tick_step(span / 8)
    values = (round(i * step, 10) for i in range(math.ceil(start / step), math.floor(stop / step) + 1))
    return Axis(start, stop, tuple(values))


def root_axis(high: float, unit: str = "") -> Axis:
    """An axis from 0 to a round number at or over `high`, stretched near 0, where the shares that matter crowd."""
    power = 10.0 ** math.floor(math.log10(max(high, 1e-4)))
    stop = next(round(power * m, 10) for m in (1, 2, 4, 5, 10) if power * m >= high * 0.999)
    wanted = [stop * (i / 5) ** 2 for i in range(1, 5)]
    return Axis(0.0, stop, tuple(sorted({0.0, stop, *(_round_number(v) for v in wanted)})), unit, "root")


def score_axis(scores: Iterable[Float[np.ndarray, " _"]], threshold: float | None) -> Axis:
    """A logit axis over all scores and the threshold: scores crowd at 0 and 1, where a linear axis shows nothing."""
    seen = [s for s in scores if len(s)] + ([np.array([threshold])] if threshold is not None else [])
    low = min((float(np.min(s)) for s in seen), default=0.01)
    high = max((float(np.max(s)) for s in seen), default=0.99)
    start = max((t for t in SCORE_TICKS[:-1] if t <= low), default=SCORE_TICKS[0])
    stop = min((t for t in SCORE_TICKS if t > max(high, start)), default=SCORE_TICKS[-1])
    values = tuple(t for t in SCORE_TICKS if start <= t <= stop)
    return Axis(start, stop, values if len(values) <= MAX_TICKS else values[::2], scale="logit")


def histogram(scores: Float[np.ndarray, " n"], axis: Axis, threshold: float | None, n_bins: int = 48) -> list[Bar]:
    """Bars on the axis. The threshold is a bin edge, so no bar is half flagged; each side of it has a bin."""
    split = 100.0 if threshold is None else min(max(axis.place(threshold), 100 / n_bins), 100 - 100 / n_bins)
    n_below = max(round(n_bins * split / 100), 1)
    edges = np.unique([*np.linspace(0, split, n_below + 1), *np.linspace(split, 100, n_bins - n_below + 1)])
    places = axis.places(scores)
    if threshold is not None:  # rounding must not carry a score over the threshold
        below = np.minimum(places, np.nextafter(split, 0))
        places = np.where(scores >= threshold, np.maximum(places, split), below)
    counts, _ = np.histogram(places, edges)
    heights = np.round(100 * counts / max(counts.max(initial=0), 1), 2)
    flagged = edges[:-1] >= split if threshold is not None else np.zeros(len(counts), bool)
    return [
        Bar(round(float(left), 2), round(float(right - left), 2), float(height), bool(over))
        for left, right, height, over in zip(edges[:-1], edges[1:], heights, flagged, strict=True)
        if height
    ]


def data_uri(image: UInt8[np.ndarray, "h w c"]) -> str:
    """The image as a PNG that is part of the page."""
    return "data:image/png;base64," + base64.b64encode(images.png(image)).decode()


def css_px(image: UInt8[np.ndarray, "h w c"]) -> int:
    """Width on the page: small images are enlarged by a whole number, so that all their pixels are alike."""
    width = image.shape[1]
    return width * max(round(IMAGE_CSS_PX / width), 1) if width < IMAGE_CSS_PX else IMAGE_CSS_PX


def _tick_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= least * 0.999)


def _round_number(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return round(power * min((1, 2, 5, 10), key=lambda m: abs(power * m - value)), 10)


def _logit(p: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    p = np.clip(p, SCORE_MARGIN, 1 - SCORE_MARGIN)
    return np.log(p / (1 - p))
