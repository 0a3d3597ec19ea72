"""The built-in cohort: drawn chest X-rays of made-up patients, from a seed, with no download.

It leaks for the reasons that real cohorts leak: a few patients have very many images, follow-up films repeat the
state before, some devices are rare, and some phrases stand in one patient's reports only. Nothing in it is planted
for a network to find. Here: who the patients are and what their films show over time. Geometry is in
`phantom_anatomy` and `phantom_findings`, pixels in `phantom_drawing`, text in `phantom_reports`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline import config, seeds, tables
from pipeline.cohorts import phantom_anatomy, phantom_findings, phantom_reports
from pipeline.cohorts.phantom_anatomy import Film, Finding
from pipeline.cohorts.phantom_drawing import draw

__all__ = ["FINDINGS", "draw", "listing"]

FINDINGS: tuple[str, ...] = ("cardiomegaly", "effusion", "consolidation", "pneumothorax", "pacemaker", "edema")

HEAVY_IMAGES = (30, 100)
"""Fewest and most images of an intensive-care patient (log-uniform)."""
FOLLOWED_FRAC = 0.08
"""Share of patients with 4-12 images; all others that are not heavy have 1-3."""
OWN_REMARK_FRAC = {True: 0.6, False: 0.004}
"""Heavy or not -> share of patients whose every report carries a phrase of their own."""
DEVICES = ("sternal wires", "port catheter", "spinal rods")
DEVICE_FRAC = 0.03
"""Share of patients with one of the rare devices."""


class _Patient(NamedTuple):
    index: int
    sex: str
    age: float  # years at the first film
    n_images: int
    at_bedside: bool
    rates: dict[str, float]  # finding -> chance that a new state shows it
    sides: dict[str, int]  # finding -> the side where it mostly is
    heart_size: float  # 0-1, how enlarged the heart is when it is
    device: str


def listing(cohort: config.Phantom, seed: int) -> pa.Table:
    """One row per image, without pixels (`tables.LISTING`), in order of patient and time.

    Labels are in the order of `FINDINGS`; boxes include the pose of the film.
    """
    rows: list[dict[str, Any]] = []
    remarks: set[str] = set()
    for index in range(cohort.n_patients):
        rng = seeds.numpy_generator(seed, "phantom patient", index)
        patient = _patient(index, cohort.heavy_patient_frac, rng)
        own_remark = None
        if rng.random() < OWN_REMARK_FRAC[patient.n_images >= HEAVY_IMAGES[0]]:
            own_remark = phantom_reports.new_remark(rng, remarks)
            remarks.add(own_remark)
        age = patient.age
        for film in _films(patient, cohort.repeat_frac, seed, rng):
            rows.append(_row(len(rows), film, age, phantom_reports.report(film, own_remark, rng)))
            age += rng.exponential(2 if patient.at_bedside else 240) / 365.25
    return pa.Table.from_pylist(rows, tables.LISTING)


def _patient(index: int, heavy_frac: float, rng: np.random.Generator) -> _Patient:
    n_images = _n_images(heavy_frac, rng)
    rates = dict(zip(FINDINGS, rng.beta(0.9, 2.0, len(FINDINGS)).tolist(), strict=True))
    # Chronic: an enlarged heart is missed or called by mistake in 8 % of states, a pacemaker never goes.
    rates |= {"cardiomegaly": 0.92 if rng.random() < 0.28 else 0.08, "pacemaker": float(rng.random() < 0.22)}
    return _Patient(
        index=index,
        sex="F" if rng.random() < 0.5 else "M",
        age=min(max(rng.normal(58, 16), 18.0), 92.0),
        n_images=n_images,
        at_bedside=n_images >= HEAVY_IMAGES[0] or rng.random() < 0.12,
        rates=rates,
        sides=dict(zip(FINDINGS, rng.choice((-1, 1), len(FINDINGS)).tolist(), strict=True)),
        heart_size=rng.random(),
        device=DEVICES[rng.integers(len(DEVICES))] if rng.random() < DEVICE_FRAC else "none",
    )


def _n_images(heavy_frac: float, rng: np.random.Generator) -> int:
    fewest, most = HEAVY_IMAGES
    kind = rng.random()
    if kind < heavy_frac:
        return int(math.exp(rng.uniform(math.log(fewest), math.log(most + 1))))
    return int(rng.integers(4, 13) if kind < heavy_frac + FOLLOWED_FRAC else rng.integers(1, 4))


def _films(patient: _Patient, repeat_frac: float, seed: int, rng: np.random.Generator) -> Iterator[Film]:
    findings = _state(patient, rng)
    for image in range(patient.n_images):
        if image and rng.random() >= repeat_frac:
            findings = _state(patient, rng)
        view = "AP" if patient.at_bedside and rng.random() < 0.9 else "PA"
        yield Film(seed, patient.index, image, patient.sex, view, patient.device, findings)


def _state(patient: _Patient, rng: np.random.Generator) -> dict[str, Finding]:
    """What a new film of the patient shows, in the order of `FINDINGS`."""
    findings = {}
    for name in FINDINGS:
        present = rng.random() < patient.rates[name]
        side = patient.sides[name] * (1 if rng.random() < 0.75 else -1)
        finding = Finding(side, round(rng.random(), 3), round(rng.random(), 3))
        if present:
            findings[name] = finding
    if "cardiomegaly" in findings:
        findings["cardiomegaly"] = Finding(0, round(patient.heart_size, 3), 0.0)
    return _without_overlap(findings)


def _without_overlap(findings: dict[str, Finding]) -> dict[str, Finding]:
    """A consolidation is moved to where neither air nor fluid hides it."""
    patch, air, fluid = (findings.get(name) for name in ("consolidation", "pneumothorax", "effusion"))
    if patch and air:
        patch = patch._replace(side=-air.side)
    if patch and fluid and patch.side == fluid.side:
        patch = patch._replace(place=patch.place / 2)
    return findings | {"consolidation": patch} if patch else findings


def _row(position: int, film: Film, age: float, text: str) -> dict[str, Any]:
    return {
        "row_id": f"phantom-{position:06d}",
        "patient": f"P{film.patient:05d}",
        "source": film.source(),
        "order": film.image,
        "text": text,
        "labels": [int(name in film.findings) for name in FINDINGS],
        "age": age,
        "sex": film.sex,
        "view": film.view,
        "boxes": _boxes(film),
    }


def _boxes(film: Film) -> list[dict[str, Any]]:
    if not film.findings:
        return []
    pose = phantom_anatomy.pose(phantom_anatomy.film_generator(film), film.view)
    chest = phantom_anatomy.chest(film, pose)
    boxes = []
    for name, finding in film.findings.items():
        box = phantom_findings.on_film(phantom_findings.finding_box(name, finding, chest), pose)
        width, height = box.right - box.left, box.bottom - box.top
        boxes.append({"finding": name, "x": box.left, "y": box.top, "w": width, "h": height})
    return boxes
