"""Geometry of the trade-off plot: axes, the line through the front, sizes of marks and where their labels go.

Positions are percentages of the plot, as in `report_plots.py`. Not here: colours and shapes (`explorer.css`,
`explorer_macros.html.j2`), nor which trials are on the front.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from pipeline.estimate import Estimate
from pipeline.report_plots import Axis, root_axis, snug_axis

# Largest radius of a mark, that of a trial which keeps every image; areas are in proportion.
LARGEST_PX, SMALLEST_PX = 11.0, 3.5
# The plot on a wide page, and its letters; labels are placed for these.
WIDTH_PX, HEIGHT_PX, LETTER_PX, LINE_PX = 520, 430, 7.0, 14.0


class Mark(NamedTuple):
    """A trial on the plot: its number, both objectives, and what its label says (empty for none)."""

    number: int
    ratio: Estimate
    auroc: Estimate
    kept_frac: float
    on_front: bool
    label: str

    @property
    def radius_px(self) -> float:
        """Radius on the page."""
        return radius_px(self.kept_frac)


class Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """Area that two rectangles share."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(wide, 0.0) * max(high, 0.0)


class Label(NamedTuple):
    """Where a label stands, relative to its mark."""

    dx: float
    dy: float
    anchor: str


def axes(marks: Sequence[Mark], control: Sequence[Estimate]) -> tuple[Axis, Axis]:
    """The axes of re-identification ratio and AUROC over all intervals."""
    ratios = [*(mark.ratio for mark in marks), *control]
    low = min((mark.auroc.low for mark in marks), default=0.5)
    high = max((mark.auroc.high for mark in marks), default=1.0)
    return root_axis(max((e.high for e in ratios), default=0.01), unit="%"), snug_axis(low, high)


def radius_px(kept_frac: float) -> float:
    """Radius of a mark whose area is in proportion to the share of images kept."""
    return round(max(LARGEST_PX * math.sqrt(kept_frac), SMALLEST_PX), 1)


def front_line(marks: Sequence[Mark]) -> list[tuple[Mark, Mark]]:
    """Neighbours on the line through the marks of the front that no other beats in ratio and AUROC alone."""
    leading: list[Mark] = []
    for mark in sorted((m for m in marks if m.on_front), key=lambda m: (m.ratio.value, -m.auroc.value)):
        if not leading or mark.auroc.value > leading[-1].auroc.value:
            leading.append(mark)
    return list(pairwise(leading))


def labels(marks: Sequence[Mark], ratio_axis: Axis, auroc_axis: Axis) -> Mapping[int, Label]:
    """Number of a trial -> where its label covers least of other marks and of labels placed before it."""
    centres = {
        m.number: (
            ratio_axis.place(m.ratio.value) * WIDTH_PX / 100,
            (100 - auroc_axis.place(m.auroc.value)) * HEIGHT_PX / 100,
        )
        for m in marks
    }
    walls = [Box(WIDTH_PX, 0, 2 * WIDTH_PX, HEIGHT_PX), Box(-WIDTH_PX, 0, 0, HEIGHT_PX)]
    taken = [*walls, *(_around(*centres[m.number], m.radius_px) for m in marks)]
    placed: dict[int, Label] = {}
    for mark in (m for m in marks if m.label):
        options = [(label, _box(label, centres[mark.number], mark.label)) for label in _spots(mark.radius_px)]
        label, box = min(options, key=lambda option: sum(option[1].overlap(other) for other in taken))
        placed[mark.number] = label
        taken.append(box)
    return placed


def _spots(radius: float) -> list[Label]:
    near, far = radius + 3, radius + 2
    corners = [Label(dx, dy, "start" if dx > 0 else "end") for dx in (near, -near) for dy in (-far / 2, far / 2 + 9)]
    return [*corners, Label(0, -far - 4, "middle"), Label(0, far + 13, "middle")]


def _box(label: Label, centre: tuple[float, float], text: str) -> Box:
    width = LETTER_PX * len(text)
    left = centre[0] + label.dx - {"start": 0.0, "middle": width / 2, "end": width}[label.anchor]
    bottom = centre[1] + label.dy + 2
    return Box(left, bottom - LINE_PX, left + width, bottom)


def _around(x: float, y: float, radius: float) -> Box:
    return Box(x - radius, y - radius, x + radius, y + radius)
