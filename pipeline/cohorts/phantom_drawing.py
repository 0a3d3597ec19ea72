"""Pixels of the phantom chest X-ray: a film in, grey values out.

Not here: where things lie (`phantom_anatomy`, `phantom_findings`) and who has what (`phantom`). Every edge is a soft
step and every line a soft profile at least as wide as a pixel, so the drawing has no stair steps at any side. Images
are drawn one at a time: 48 x 48 floats stay in the processor's first cache, and a film's pixels cannot depend on its
neighbours in a batch. Axis letters: n images, h height, w width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, UInt8

from pipeline.cohorts import phantom_anatomy, phantom_findings
from pipeline.cohorts.phantom_anatomy import Anatomy, Film, Finding, Pair, Pose

Plane = Float32[np.ndarray, "h w"]

NOISE_SD = 0.022
"""Standard deviation of pixel noise, on grey values in [0, 1]."""
LUNG_CENTRE_Y = 0.30
"""Below this height the lateral edge of the lung is straight."""


def draw(sources: Sequence[str], image_px: int) -> UInt8[np.ndarray, "n h w 1"]:
    """The films that these sources describe, in order; about 1,000 a second on one core at 48 px."""
    films = [_film(Film.parse(source), image_px) for source in sources]
    return np.stack(films)[..., None] if films else np.zeros((0, image_px, image_px, 1), np.uint8)


def _film(film: Film, image_px: int) -> UInt8[np.ndarray, "h w"]:
    rng = phantom_anatomy.film_generator(film)
    pose = phantom_anatomy.pose(rng, film.view)
    grey = _Canvas(film, phantom_anatomy.chest(film, pose), pose, image_px).grey()
    grey = np.clip(grey, 0, 1) ** pose.gamma * pose.gain + pose.offset
    grey += NOISE_SD * rng.standard_normal(grey.shape, np.float32)
    return (np.clip(grey, 0, 1) * 255).round().astype(np.uint8)


class _Canvas:
    """One film's chest coordinates, and the layers of the drawing from skin to devices."""

    def __init__(self, film: Film, a: Anatomy, pose: Pose, image_px: int) -> None:
        self.a, self.findings, self.device = a, film.findings, film.device
        self.pixel = 2 / image_px
        self.x, self.y = _chest_coordinates(pose, image_px)
        self.lateral = np.abs(self.x)
        self.is_left = self.x > 0
        self.from_midline = self.x - a.scoliosis * np.sin(3 * self.y)
        self.from_outline, self.from_wall, self.above_diaphragm = self._lung_edges()
        self.body = self._soft(self._skin_depth(), 0.18)

    def grey(self) -> Plane:
        """Grey values, about 0 to 1, before exposure and noise."""
        lungs = self._soft(np.minimum(self.from_outline, self.above_diaphragm), 0.11)
        cage = self._ribs()
        grey = self._soft_tissue() + 0.35 * cage
        grey = _blend(grey, self._lung_field() + cage, lungs)
        grey = self._effusion(grey)
        grey = _blend(grey, 0.80, 0.95 * self._central_shadow())
        grey = self._airway_and_spine(grey)
        grey = self._clavicles(grey)
        grey = self._stomach(grey)
        return self._devices(grey)

    def _lung_edges(self) -> tuple[Plane, Plane, Plane]:
        """Distances of both lungs at once: inwards from the lung's outline, inwards from the chest wall alone, and
        upwards from the diaphragm.
        """
        a = self.a
        axis, apex = self._sided(a.lung_axis), self._sided(a.apex)
        lateral_radius = (self._sided(a.chest) - axis) * (1 + 0.12 * (self.y - LUNG_CENTRE_Y))
        medial_radius = axis - (0.6 * a.mediastinum)
        height = LUNG_CENTRE_Y - apex
        outward = self.lateral - axis
        radius = np.where(outward > 0, lateral_radius, medial_radius)
        u, v = np.abs(outward) / radius, np.maximum(LUNG_CENTRE_Y - self.y, 0) / height
        p = a.shoulder_curve
        level = np.maximum((u**p + v**p) ** (1 / p), 1e-3)
        slope = np.hypot((u / level) ** (p - 1) / radius, (v / level) ** (p - 1) / height)
        from_outline = (1 - level) / np.maximum(slope, 1.0)
        from_wall = np.where(outward > 0, from_outline, self.y - apex)
        fall = np.where(outward > 0, self._sided(a.dome_curve), 0.5) * outward**2
        return from_outline, from_wall, self._sided(a.dome) + fall - self.y

    def _flank(self) -> Plane:
        """Midline to skin: wider at the shoulders than at the waist."""
        wall = self.a.wall + self.a.flare * _step((0.05 - self.y) / 0.5)
        return self._sided(self.a.chest) + wall

    def _skin_depth(self) -> Plane:
        """Distance inwards from the skin of neck, shoulders and flanks."""
        a = self.a
        out = np.maximum(self.lateral - a.neck, 0)
        shoulder = -1.15 + (a.shoulder_y + 1.15) * (1 - np.exp(-out / 0.10)) + a.shoulder_slope * out
        return np.minimum(self.y - shoulder, self._flank() - self.lateral)

    def _soft_tissue(self) -> Plane:
        """The body without lungs: black air around it, denser towards the middle and in the abdomen."""
        thickness = 1 - np.clip(self.lateral / self._flank(), 0, 1) ** 4
        abdomen = self._soft(-self.above_diaphragm, 0.3)
        tissue = 0.42 + 0.20 * thickness + 0.13 * abdomen * thickness - 0.10 * _step((-0.35 - self.y) / 0.6)
        return (tissue + 0.4 * self._breasts()) * self.body + 0.02

    def _breasts(self) -> Plane:
        a = self.a
        if not a.breast:
            return np.zeros_like(self.x)
        r = np.hypot(self.lateral - 0.40, (self.y - a.breast_y) * 1.15)
        return a.breast_density * self._soft(a.breast - r, 0.08)

    def _lung_field(self) -> Plane:
        """Grey inside the lungs: air, vessels, breasts, and what fills or empties them."""
        a = self.a
        rim = 0.10 * np.exp(-np.maximum(self.from_outline, 0) / 0.07)
        markings = self._vessels()
        field = 0.25 - a.aeration + rim + 0.06 * (self.y + 0.2) + self._breasts()
        if f := self.findings.get("edema"):
            markings = markings * 1.3
            r = np.hypot((self.lateral - 0.24) / 0.30, (self.y - self._sided(a.hilum_y)) / 0.36)
            field = field + (0.19 + 0.08 * f.size) * np.exp(-(r**2))
        if f := self.findings.get("consolidation"):
            field = _blend(field, np.maximum(field, 0.76), self._consolidation(f))
        if f := self.findings.get("pneumothorax"):
            return self._pneumothorax(f, field, markings)
        return field + markings

    def _vessels(self) -> Plane:
        """Hila, and vessels that branch from them and fade towards the wall."""
        a = self.a
        dx, dy = self.lateral - 0.17, self.y - self._sided(a.hilum_y)
        r = np.hypot(dx, dy)
        ray = np.cos(6 * np.arctan2(dy, dx) + self._sided(a.vessel_phase) + 5 * r)
        hilum = a.hilum_density * np.exp(-((r / 0.12) ** 2))
        branches = np.maximum(ray, 0) ** 2 * np.exp(-r / 0.25) * _step(r / 0.2)
        return hilum + a.vessel_density * branches

    def _consolidation(self, f: Finding) -> Plane:
        """Opacity of a ragged patch."""
        x, y, radius = phantom_findings.consolidation(self.a, f)
        r = np.hypot(self.x - x, self.y - y) / radius
        ragged = r * (1 + 0.08 * np.cos(3 * np.arctan2(self.y - y, self.x - x) + 6 * f.size))
        return 0.9 * _step((1.15 - ragged) / 0.9)

    def _pneumothorax(self, f: Finding, field: Plane, markings: Plane) -> Plane:
        """Air beyond a curved pleural line parallel to the wall: darker, and no lung markings."""
        width, bottom = phantom_findings.collapse(self.a, f)
        width = width * _step((bottom - self.y) / 0.4) * (self.is_left == (f.side > 0))
        beyond = width - self.from_wall
        affected = _step(width / 0.04)
        air = self._soft(beyond, 0.03) * affected
        line = self._line(beyond, 0.03) * affected
        denser = 0.07 * affected * (1 - air)
        return field + denser + markings * (1 - air) - 0.09 * air + 0.22 * line

    def _ribs(self) -> Plane:
        """Posterior ribs, arched and falling outwards, and the fainter anterior ones that fall inwards."""
        a = self.a
        out = self.lateral / self._sided(a.chest)
        arch = a.rib_drop * (out**2 - 0.35 * out)
        posterior = np.cos((2 * math.pi / a.rib_spacing) * (self.y - arch) + a.rib_phase)
        slant = -(1.3 * a.rib_drop) * out
        anterior = np.cos((1.7 * math.pi / a.rib_spacing) * (self.y - slant) + (2 * a.rib_phase))
        shape = 0.5 + 0.5 * posterior + 0.15 * (1 + anterior) * _step((out - 0.3) * 3)
        cage = _step((0.75 - self.y) / 0.2) * self._soft(self.from_outline + 0.06, 0.08)
        return a.rib_contrast * (shape - 0.55) * cage

    def _effusion(self, grey: Plane) -> Plane:
        """Fluid that hides the lung below a surface that climbs towards the wall."""
        f = self.findings.get("effusion")
        if f is None:
            return grey
        level = phantom_findings.effusion_level(self.a, f)
        surface = level - phantom_findings.MENISCUS * (self.lateral / self._sided(self.a.chest)) ** 3
        fluid = self._soft(self.y - surface, 0.10) * self._soft(self.from_outline + 0.02, 0.05)
        return _blend(grey, np.maximum(grey, 0.66), 0.92 * fluid * (self.is_left == (f.side > 0)))

    def _central_shadow(self) -> Plane:
        """Mediastinum, aortic knob and heart."""
        a, x, y = self.a, self.from_midline, self.y
        column = a.mediastinum + 0.03 * _step((y + 0.15) / 0.4) - np.abs(x)
        knob = a.knob_radius - np.hypot(x - (0.7 * a.mediastinum), y - a.knob_y)
        cos, sin = math.cos(a.heart_tilt), math.sin(a.heart_tilt)
        dx, dy = x - a.heart_x, y - a.heart_y
        dy = np.minimum(dy, 0.75 * dy)  # the heart rests on the diaphragm: full below its middle
        long, short = (cos * dx + sin * dy) / a.heart_long, (cos * dy - sin * dx) / a.heart_short
        left_heart = (1 - np.hypot(long, short)) * a.heart_short
        right_heart = (1 - np.hypot(x / a.atrium, dy / (1.25 * a.atrium))) * a.atrium
        shadow = np.maximum(self._soft(column, 0.12), self._soft(knob, 0.09))
        heart = np.maximum(self._soft(left_heart, 0.12), self._soft(right_heart, 0.12))
        return np.maximum(shadow * _step((0.75 - y) / 0.3), heart) * _step((y + 1.15) / 0.7)

    def _airway_and_spine(self, grey: Plane) -> Plane:
        x, y = self.from_midline, self.y
        trachea = self._line(x - self.a.trachea_x, 0.06) * _step((-0.22 - y) / 0.15)
        carina = y + 0.20
        bronchi = self._line(carina - 0.8 * np.abs(x), 0.03) * _step((0.22 - np.abs(x)) / 0.15) * _step(carina / 0.04)
        spine = self._line(x, 0.10) * (0.05 + 0.02 * np.cos(y * 42))
        return grey + spine - 0.17 * trachea - 0.07 * bronchi

    def _clavicles(self, grey: Plane) -> Plane:
        a = self.a
        d = self.lateral - 0.10
        height = a.clavicle_y + 0.03 * np.sin(7 * d) - a.clavicle_slope * d
        along = _step(d / 0.08) * _step((0.80 - self.lateral) / 0.2) * self.body
        return grey + 0.13 * self._line(self.y - height, 0.045) * along

    def _stomach(self, grey: Plane) -> Plane:
        a = self.a
        top = a.dome.left + 0.07
        r = np.hypot((self.x - a.stomach_x) / 1.5, self.y - (top + a.stomach_size))
        return grey - 0.22 * self._soft(a.stomach_size - r, 0.07)

    def _devices(self, grey: Plane) -> Plane:
        a = self.a
        metal = np.zeros_like(grey)
        if "pacemaker" in self.findings:
            metal = self._pacemaker()
        if self.device == "sternal wires":
            rows = np.cos((2 * math.pi / (0.13 + 0.03 * a.device_place)) * self.y)
            loops = _step((rows - 0.55) / 0.4) * _step((0.075 - np.abs(self.from_midline)) / 0.03)
            metal = np.maximum(metal, 0.7 * loops * _step((0.36 - np.abs(self.y + 0.05)) / 0.05))
        if self.device == "port catheter":
            port = (-0.38 - 0.08 * a.device_place, -0.36)
            disc = self._soft(0.06 - np.hypot(self.x - port[0], self.y - port[1]), 0.03)
            metal = np.maximum(np.maximum(metal, 0.9 * disc), 0.55 * self._lead(port, (-0.09, 0.0)))
        if self.device == "spinal rods":
            rods = self._line(np.abs(self.from_midline) - 0.045 - 0.02 * a.device_place, 0.018)
            metal = np.maximum(metal, 0.8 * rods * _step((self.y + 0.25) / 0.05))
        return _blend(grey, 1.0, metal)

    def _pacemaker(self) -> Plane:
        a, start = self.a, phantom_findings.generator(self.a)
        cos, sin = math.cos(a.generator_tilt), math.sin(a.generator_tilt)
        dx, dy = self.x - start[0], self.y - start[1]
        half = phantom_findings.GENERATOR_HALF_SIDE
        beyond = np.hypot(
            np.maximum(np.abs(cos * dx + sin * dy) - half + 0.03, 0),
            np.maximum(np.abs(cos * dy - sin * dx) - 0.8 * half + 0.03, 0),
        )
        metal = 0.95 * self._soft(0.03 - beyond, 0.03)
        for tip in phantom_findings.lead_tips(a):
            metal = np.maximum(metal, 0.6 * self._lead(start, tip))
        return metal

    def _lead(self, start: tuple[float, float], tip: tuple[float, float]) -> Plane:
        """A wire from the collar bone's side through the great vein, then down in a curve to its tip."""
        t = np.clip((self.y - start[1]) / (tip[1] - start[1]), 0, 1)
        bend = (phantom_findings.LEAD_BEND_X - tip[0]) * np.sin(math.pi * t)
        path = start[0] + (tip[0] - start[0]) * t**0.35 + bend
        inside = _step((self.y - start[1]) / 0.02) * _step((tip[1] - self.y) / 0.02)
        slope = np.hypot(1, np.gradient(path, self.pixel, axis=0))
        return self._line((self.x - path) / slope, 0.02) * inside

    def _sided(self, pair: Pair) -> Plane:
        return np.where(self.is_left, np.float32(pair.left), np.float32(pair.right))

    def _soft(self, distance: Plane, width: float) -> Plane:
        """1 inside (distance > 0), 0 outside, over an edge at least a pixel wide."""
        return _step(distance / max(width, self.pixel) + 0.5)

    def _line(self, distance: Plane, half_width: float) -> Plane:
        """A soft line where the distance is 0; one thinner than a pixel is fainter instead."""
        drawn = max(half_width, 0.6 * self.pixel)
        return np.exp(-((distance / drawn) ** 2)) * (half_width / drawn)


def _chest_coordinates(pose: Pose, image_px: int) -> tuple[Plane, Plane]:
    centres = (np.arange(image_px, dtype=np.float32) * 2 + 1) / image_px - 1
    dx = (centres[None, :] - pose.shift_x) / pose.scale
    dy = (centres[:, None] - pose.shift_y) / pose.scale
    cos, sin = math.cos(pose.rotation), math.sin(pose.rotation)
    return cos * dx + sin * dy, cos * dy - sin * dx


def _step(t: Plane) -> Plane:
    """Smoothstep: 0 up to 0, 1 from 1."""
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


def _blend(below: Plane, above: Plane | float, opacity: Plane) -> Plane:
    return below + (above - below) * opacity
