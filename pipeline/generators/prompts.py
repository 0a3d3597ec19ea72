"""Prompts: how a record becomes one, which may cross into the released set, and which are sampled.

Pure functions of lists and tables. Not here: text hygiene (`cohorts.text`), which runs before a record gets a prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int64

from pipeline import config, seeds, tables

FALLBACK = "chest x-ray"
"""The prompt of a record of which nothing is known."""
SEPARATOR = ", "


class Recomposed(NamedTuple):
    """Prompts that may cross into the released set, one per record."""

    prompts: list[str]
    levels: dict[str, int]
    """How many records are told in how much detail; the most detailed level comes first."""


def compose(
    prompt: config.Prompt,
    *,
    age: float | None,
    sex: str | None,
    view: str | None,
    labels: Iterable[str],
    phrases: Iterable[str],
) -> str:
    """A record's prompt, such as `60s, woman, pa view, effusion, small left effusion`.

    `labels` are the names of the findings that are present, `phrases` come from the scrubbed text. Lower-case, no
    phrase twice, cut before the first phrase that would make it longer than `max_words`; never empty.
    """
    known = _known(age, sex, view, labels)
    told = {phrase for part in prompt.parts for phrase in known.get(part, [])}
    known["text"] = [phrase for phrase in dict.fromkeys(phrases) if phrase not in told][: prompt.max_phrases]
    return _cut([phrase for part in prompt.parts for phrase in known[part]], prompt.max_words) or FALLBACK


def _known(age: float | None, sex: str | None, view: str | None, labels: Iterable[str]) -> dict[str, list[str]]:
    return {
        "age": [] if age is None else [_decade(age)],
        "sex": [] if sex is None else [{"F": "woman", "M": "man"}[sex]],
        "view": [] if view is None else [f"{view.lower()} view"],
        "labels": [label.replace("_", " ").lower() for label in labels],
    }


def _decade(age: float) -> str:
    if age < 10:
        return "under 10"
    return "90 and over" if age >= 90 else f"{int(age // 10) * 10}s"


def _cut(phrases: Sequence[str], max_words: int) -> str:
    """The first phrases that have `max_words` words together; of a first phrase that is too long, its first words."""
    n_words = np.cumsum([len(phrase.split()) for phrase in phrases])
    whole = phrases[: int(np.searchsorted(n_words, max_words, side="right"))]
    return SEPARATOR.join(whole or [" ".join(phrase.split()[:max_words]) for phrase in phrases[:1]])


def recompose(records: pa.Table, findings: Sequence[str], prompt: config.Prompt, k: int) -> Recomposed:
    """Each record's prompt, made less detailed until at least `k` patients of these records have the very same one.

    Reads `patient_id, prompt, labels, age, sex, view` of `tables.RECORDS`. A prompt that k patients share stays. Any
    other is composed anew from age decade, sex and view (where the recipe uses them), labels, and the phrases of its
    text that k patients share, the rarest given up first; then without age, then without sex and view. Labels alone
    are allowed always, as they are released beside the image anyway.

    So whatever a prompt tells beyond labels, it is the prompt of at least k patients: k-anonymity (Sweeney,
    Int. J. Uncertain. Fuzz. 10(5), 2002, definition 2) of the output. It says nothing about images.
    """
    rows = records.select(["patient_id", "prompt", "labels", "age", "sex", "view"]).to_pylist()
    for row in rows:
        row["labels"] = [name for name, value in zip(findings, row["labels"], strict=True) if value == 1]
    phrases = _shared_phrases(rows, k)
    prompts = [""] * len(rows)
    sharing: defaultdict[str, set[str]] = defaultdict(set)
    levels: dict[str, int] = {}
    left = range(len(rows))
    for level, told in _levels(prompt):
        candidates = {i: rows[i]["prompt"] if told is None else _tell(told, rows[i], phrases[i]) for i in left}
        hopeful: defaultdict[str, set[str]] = defaultdict(set)
        for i, candidate in candidates.items():
            hopeful[candidate].add(rows[i]["patient_id"])
        for candidate, patients in hopeful.items():
            if level == LABELS_ALONE or len(patients | sharing[candidate]) >= k:
                sharing[candidate] |= patients
        ...
    return Recomposed(prompts, levels)
