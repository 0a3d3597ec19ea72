"""Report-like text for a phantom film: indication, findings, impression.

The impression is a list of short canonical phrases, which prompts are made of. As in real reports, now and then a
remark on technique or course follows, and a few patients' reports always carry one of their own that no other
patient's report has; it is recombined from ordinary remarks, so every word of it is common. Indications hold
de-identification traces and dates, to be scrubbed by whoever reads them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pipeline.cohorts.phantom_anatomy import Film, Finding

REMARK_FRAC = 0.15
"""Share of reports with an ordinary remark."""
REMARKS = (
    ("lines", "unchanged", "in position"),
    ("lungs", "expanded", "on inspiration"),
    ("film", "rotated", "at bedside"),
    ("markings", "prominent", "without change"),
    ("volumes", "low", "in expiration"),
    ("contours", "stable", "since previous"),
    ("bones", "intact", "as before"),
    ("vessels", "crowded", "when supine"),
    ("mediastinum", "unremarkable", "for age"),
    ("apices", "clear", "on comparison"),
    ("hila", "symmetric", "as expected"),
    ("exposure", "limited", "by habitus"),
)
"""Ordinary remarks: what, how, and in which respect."""
_SYMPTOMS = ("cough", "dyspnea", "chest pain", "fever", "shortness of breath", "hypoxia", "weight loss", "a fall")
_SENTENCES = {
    "cardiomegaly": "The cardiac silhouette is enlarged.",
    "effusion": "There is a {side} pleural effusion with a meniscus.",
    "consolidation": "There is a focal opacity in the {side} {zone} zone.",
    "pneumothorax": "A {side} pleural line is seen without markings beyond it.",
    "pacemaker": "A pacemaker with leads is in place.",
    "edema": "There is bilateral perihilar haze.",
}
_NEGATIVES = {
    "cardiomegaly": "The heart is not enlarged.",
    "effusion": "No pleural effusion.",
    "pneumothorax": "No pneumothorax.",
}


def phrase(name: str, finding: Finding) -> str:
    """The canonical phrase of the impression for one finding, at most three words."""
    side, zone = _side_and_zone(finding)
    return {
        "effusion": f"{side} effusion",
        "consolidation": f"{side} {zone} consolidation",
        "pneumothorax": f"{side} pneumothorax",
        "edema": "pulmonary edema",
    }.get(name, name)


def report(film: Film, own_remark: str | None, rng: np.random.Generator) -> str:
    """The report of a film; `own_remark` is the patient's idiosyncratic phrase, if there is one."""
    impression = [phrase(name, finding) for name, finding in film.findings.items()] or ["no acute findings"]
    if film.device != "none":
        impression.append(film.device)
    if rng.random() < REMARK_FRAC:
        impression.append(" ".join(REMARKS[rng.integers(len(REMARKS))]))
    if own_remark:
        impression.append(own_remark)
    return (
        f"INDICATION: {_indication(film.sex, rng)} FINDINGS: {film.view} view. "
        f"{_description(film.findings)} IMPRESSION: {', '.join(impression)}."
    )


def new_remark(rng: np.random.Generator, taken: set[str]) -> str:
    """A remark recombined from three different ordinary ones, none of those in `taken`."""
    while True:
        subject, state, respect = rng.choice(len(REMARKS), 3, replace=False)
        remark = " ".join((REMARKS[subject][0], REMARKS[state][1], REMARKS[respect][2]))
        if remark not in taken:
            return remark


def _indication(sex: str, rng: np.random.Generator) -> str:
    person = "woman" if sex == "F" else "man"
    text = f"___-year-old {person} with {_SYMPTOMS[rng.integers(len(_SYMPTOMS))]}"
    if rng.random() < 0.1:
        text += f" since {rng.integers(2100, 2200)}-{rng.integers(1, 13):02d}-{rng.integers(1, 29):02d}"
    if rng.random() < 0.1:
        text += ", referred by Dr. ___"
    return text + "."


def _description(findings: Mapping[str, Finding]) -> str:
    sentences = []
    for name, sentence in _SENTENCES.items():
        if name in findings:
            side, zone = _side_and_zone(findings[name])
            sentences.append(sentence.format(side=side, zone=zone))
        elif name in _NEGATIVES:
            sentences.append(_NEGATIVES[name])
    return " ".join(sentences)


def _side_and_zone(finding: Finding) -> tuple[str, str]:
    return "left" if finding.side > 0 else "right", "upper" if finding.place < 0.5 else "lower"
