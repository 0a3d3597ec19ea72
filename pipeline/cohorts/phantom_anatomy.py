"""A phantom patient's anatomy and a film's pose: all lengths, angles and densities that the drawing needs.

Not here: where findings lie in it (`phantom_findings`), pixels (`phantom_drawing`), and who has which finding when
(`phantom`). Lengths are in units of half the
image's side. Chest coordinates: origin in the middle of an unposed film, x to the right of the image (the
patient's left), y downwards, both in [-1, 1]. Side -1 is the patient's right (left half of the image), +1 the
left, 0 both.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from pipeline import seeds

AP_MAGNIFICATION = 1.07
"""How much wider the heart looks when the rays come from the front (view AP)."""


class Finding(NamedTuple):
    """One finding on one film."""

    side: int
    """-1 the patient's right, +1 left, 0 both or midline."""
    size: float
    """0 the smallest that is reported, 1 the largest."""
    place: float
    """0-1 along the finding's own range of places; for a consolidation from apex to base."""


@dataclass(frozen=True)
class Film:
    """All that one image is drawn from; its JSON is the `source` of a listing."""

    seed: int
    """The run's seed."""
    patient: int
    """Index of the patient; with the seed it gives the anatomy."""
    image: int
    """Index among the patient's images; with the two above it gives pose, exposure and noise."""
    sex: str
    view: str
    device: str
    """A rare device that belongs to the patient, or "none"."""
    findings: Mapping[str, Finding]

    @classmethod
    def parse(cls, source: str) -> Film:
        """The film that `source` describes."""
        fields = json.loads(source)
        return cls(**fields | {"findings": {name: Finding(*f) for name, f in fields["findings"].items()}})

    def source(self) -> str:
        """The film as compact JSON."""
        return json.dumps(vars(self), separators=(",", ":"))


class Pair(NamedTuple):
    """A length on the patient's right and left."""

    right: float
    left: float

    def on(self, side: int) -> float:
        """The length on one side."""
        return self.left if side > 0 else self.right


@dataclass(frozen=True)
class Anatomy:
    """What stays with a patient from film to film."""

    chest: Pair  # midline to the lateral edge of the lung
    lung_axis: Pair  # midline to the highest point of the lung
    apex: Pair  # y of that point
    shoulder_curve: float  # exponent of the upper lateral edge of the lung
    dome: Pair  # y of the top of the diaphragm
    dome_curve: Pair  # how steeply it falls to the costophrenic angle
    wall: float  # thickness of the soft tissue beside the lungs
    flare: float  # how much wider the body is at the shoulders
    shoulder_y: float
    shoulder_slope: float
    neck: float  # half-width
    heart_x: float
    heart_y: float
    heart_long: float  # semi-axes of the left heart
    heart_short: float
    heart_tilt: float  # radians
    atrium: float  # midline to the right heart border
    mediastinum: float  # half-width
    knob_y: float  # aortic knob
    knob_radius: float
    scoliosis: float  # amplitude of the midline's curve
    trachea_x: float
    rib_spacing: float
    rib_phase: float  # radians
    rib_drop: float  # how far ribs fall from the spine to the lateral edge
    rib_contrast: float
    clavicle_y: float
    clavicle_slope: float
    hilum_y: Pair
    hilum_density: float
    vessel_phase: Pair  # radians
    vessel_density: float
    breast: float  # radius, 0 for men
    breast_y: float
    breast_density: float
    stomach_x: float
    stomach_size: float
    aeration: float  # darkness of the lungs
    generator_x: float  # pacemaker, if there is one
    generator_y: float
    generator_tilt: float  # radians
    generator_side: int
    second_lead: bool
    device_place: float  # 0-1


class Pose(NamedTuple):
    """How one film was taken."""

    rotation: float
    """Radians."""
    scale: float
    shift_x: float
    shift_y: float
    inspiration: float
    """Added to the y of the diaphragm; > 0 is a deep breath."""
    gamma: float
    gain: float
    offset: float


@functools.lru_cache(maxsize=256)
def anatomy(seed: int, patient: int, sex: str) -> Anatomy:
    """The anatomy of a patient; every length is normal, cut at 2.2 standard deviations."""
    rng = seeds.numpy_generator(seed, "phantom anatomy", patient)
    deviations = iter(np.clip(rng.standard_normal(64), -2.2, 2.2).tolist())
    women = sex == "F"

    def normal(mean: float, sd: float) -> float:
        return mean + sd * next(deviations)

    def pair(mean: float, sd_both: float, sd_each: float) -> Pair:
        both = normal(mean, sd_both)
        return Pair(normal(both, sd_each), normal(both, sd_each))

    return Anatomy(
        chest=pair(0.60 if women else 0.635, 0.035, 0.02),
        lung_axis=pair(0.29, 0.015, 0.015),
        apex=pair(-0.70, 0.05, 0.025),
        shoulder_curve=normal(2.3, 0.25),
        dome=Pair(normal(0.40, 0.06), normal(0.45, 0.06)),
        dome_curve=pair(1.6, 0.4, 0.3),
        wall=normal(0.15, 0.03),
        flare=normal(0.42, 0.10),
        shoulder_y=normal(-0.80, 0.05),
        shoulder_slope=normal(0.14, 0.08),
        neck=normal(0.21 if women else 0.24, 0.025),
        heart_x=normal(0.13, 0.02),
        heart_y=normal(0.21, 0.03),
        heart_long=normal(0.30, 0.02),
        heart_short=normal(0.195, 0.014),
        heart_tilt=normal(0.7, 0.13),
        atrium=normal(0.175, 0.018),
        mediastinum=normal(0.115, 0.014),
        knob_y=normal(-0.27, 0.035),
        knob_radius=normal(0.085, 0.018),
        scoliosis=normal(0.0, 0.022),
        trachea_x=normal(-0.01, 0.014),
        rib_spacing=normal(0.185, 0.014),
        rib_phase=rng.uniform(0, 2 * math.pi),
        rib_drop=normal(0.26, 0.06),
        rib_contrast=normal(0.08, 0.018),
        clavicle_y=normal(-0.56, 0.04),
        clavicle_slope=normal(0.24, 0.07),
        hilum_y=Pair(normal(-0.02, 0.035), normal(-0.07, 0.035)),
        hilum_density=normal(0.17, 0.03),
        vessel_phase=Pair(*rng.uniform(0, 2 * math.pi, 2).tolist()),
        vessel_density=normal(0.16, 0.035),
        breast=normal(0.31, 0.03) if women else 0.0,
        breast_y=normal(0.30, 0.06),
        breast_density=normal(0.085, 0.025),
        stomach_x=normal(0.36, 0.05),
        stomach_size=normal(0.09, 0.022),
        aeration=normal(0.0, 0.035),
        generator_x=normal(0.42, 0.04),
        generator_y=normal(-0.42, 0.05),
        generator_tilt=normal(0.0, 0.3),
        generator_side=-1 if rng.random() < 0.15 else 1,
        second_lead=rng.random() < 0.4,
        device_place=rng.random(),
    )


def pose(rng: np.random.Generator, view: str) -> Pose:
    """A random pose and exposure; portable films (AP) are less well inspired and darker in contrast."""
    z = np.clip(rng.standard_normal(8), -2.5, 2.5).tolist()
    bedside = view == "AP"
    return Pose(
        rotation=math.radians(1.4) * z[0],
        scale=1 + 0.018 * z[1],
        shift_x=0.02 * z[2],
        shift_y=0.025 * z[3],
        inspiration=0.02 * z[4] - (0.03 if bedside else 0.0),
        gamma=math.exp(0.10 * z[5]),
        gain=1 + 0.03 * z[6] - (0.04 if bedside else 0.0),
        offset=0.015 * z[7] + (0.03 if bedside else 0.0),
    )


def film_generator(film: Film) -> np.random.Generator:
    """The generator that gives the film's pose first and its noise after that."""
    return seeds.numpy_generator(film.seed, "phantom film", film.patient, film.image)


def chest(film: Film, pose: Pose) -> Anatomy:
    """The patient's anatomy as this film shows it: breath, view and an enlarged heart included."""
    a = anatomy(film.seed, film.patient, film.sex)
    heart = AP_MAGNIFICATION if film.view == "AP" else 1.0
    if enlarged := film.findings.get("cardiomegaly"):
        heart *= 1.26 + 0.16 * enlarged.size
    return replace(
        a,
        dome=Pair(a.dome.right + pose.inspiration, a.dome.left + pose.inspiration),
        heart_x=a.heart_x + 0.10 * (heart - 1),
        heart_y=a.heart_y - 0.04 * (heart - 1) + 0.5 * pose.inspiration,
        heart_long=a.heart_long * heart,
        heart_short=a.heart_short * heart,
        atrium=a.atrium * (1 + 0.6 * (heart - 1)),
    )
