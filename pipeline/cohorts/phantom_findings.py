"""Where findings lie in a phantom chest, and the boxes around them.

The drawing and the boxes both ask here, so they cannot disagree. Coordinates and sides as in `phantom_anatomy`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from pipeline.cohorts.phantom_anatomy import Anatomy, Finding, Pose

MENISCUS = 0.22
"""How much higher an effusion stands at the chest wall than at the midline."""
GENERATOR_HALF_SIDE = 0.085
"""Of a pacemaker's generator."""
LEAD_BEND_X = -0.10
"""x of the great vein that the leads pass."""


class Box(NamedTuple):
    """An upright box in chest coordinates, or in fractions of the side after `on_film`."""

    left: float
    top: float
    right: float
    bottom: float


def lung_base(a: Anatomy, side: int) -> float:
    """y of the costophrenic angle, the lowest point of the lung."""
    return a.dome.on(side) + a.dome_curve.on(side) * (a.chest.on(side) - a.lung_axis.on(side)) ** 2


def consolidation(a: Anatomy, f: Finding) -> tuple[float, float, float]:
    """Centre x, centre y and radius of a consolidation."""
    top, bottom = a.apex.on(f.side) + 0.24, a.dome.on(f.side) - 0.10
    return f.side * (a.lung_axis.on(f.side) + 0.09), top + f.place * (bottom - top), 0.17 + 0.05 * f.size


def effusion_level(a: Anatomy, f: Finding) -> float:
    """y of the fluid's surface at the midline; it climbs `MENISCUS` towards the chest wall."""
    return a.dome.on(f.side) + 0.01 - 0.25 * f.size


def collapse(a: Anatomy, f: Finding) -> tuple[float, float]:
    """Width of the air beside the collapsed lung of a pneumothorax, and the y where it ends."""
    return 0.15 + 0.08 * f.size, a.apex.on(f.side) + 0.65 + 0.3 * f.size


def generator(a: Anatomy) -> tuple[float, float]:
    """Centre of a pacemaker's generator."""
    return a.generator_side * a.generator_x, a.generator_y


def lead_tips(a: Anatomy) -> list[tuple[float, float]]:
    """Where the pacemaker's leads end: the right ventricle and, with a second lead, the right atrium."""
    ventricle = (a.heart_x + 0.10, a.heart_y + 0.14)
    return [ventricle, (-0.5 * a.atrium, a.heart_y)] if a.second_lead else [ventricle]


def finding_box(name: str, f: Finding, a: Anatomy) -> Box:
    """The upright box around a finding in chest coordinates."""
    if name == "cardiomegaly":
        half_width = math.hypot(a.heart_long * math.cos(a.heart_tilt), a.heart_short * math.sin(a.heart_tilt))
        half_height = math.hypot(a.heart_long * math.sin(a.heart_tilt), a.heart_short * math.cos(a.heart_tilt))
        return Box(-a.atrium, a.heart_y - half_height, a.heart_x + half_width, a.heart_y + half_height)
    if name == "consolidation":
        x, y, radius = consolidation(a, f)
        return Box(x - radius, y - radius, x + radius, y + radius)
    if name == "edema":
        x = 0.85 * max(a.chest)
        return Box(-x, min(a.hilum_y) - 0.30, x, max(a.hilum_y) + 0.34)
    if name == "effusion":
        return _beside(f.side, 0.12, effusion_level(a, f) - MENISCUS, a.chest.on(f.side), lung_base(a, f.side))
    if name == "pneumothorax":
        _, bottom = collapse(a, f)
        return _beside(f.side, a.mediastinum, a.apex.on(f.side), a.chest.on(f.side), bottom)
    if name == "pacemaker":
        x, y = generator(a)
        xs, ys = zip(*lead_tips(a), strict=True)
        half = 1.25 * GENERATOR_HALF_SIDE
        return Box(min(x - half, LEAD_BEND_X, *xs), y - half, max(x + half, *xs), max(ys))
    raise ValueError(f"phantom: want a finding that has a box, got {name!r}")


def on_film(box: Box, pose: Pose) -> Box:
    """The upright box, in fractions of the side in [0, 1], around a box of chest coordinates after the pose."""
    cos, sin = pose.scale * math.cos(pose.rotation), pose.scale * math.sin(pose.rotation)
    corners = [(x, y) for x in (box.left, box.right) for y in (box.top, box.bottom)]
    xs = [_to_fraction(pose.shift_x + cos * x - sin * y) for x, y in corners]
    ys = [_to_fraction(pose.shift_y + sin * x + cos * y) for x, y in corners]
    return Box(min(xs), min(ys), max(xs), max(ys))


def _beside(side: int, medial: float, top: float, lateral: float, bottom: float) -> Box:
    return Box(medial, top, lateral, bottom) if side > 0 else Box(-lateral, top, -medial, bottom)


def _to_fraction(coordinate: float) -> float:
    return min(max((coordinate + 1) / 2, 0.0), 1.0)
