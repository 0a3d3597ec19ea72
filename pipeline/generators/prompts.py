"""Prompts: how a record becomes one, which may cross into the released set, and which are sampled.

Pure functions of lists and tables. Not here: text hygiene (`cohorts.text`), which runs before a record gets a prompt.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int8

from pipeline import config, seeds, tables

FALLBACK = "chest x-ray"
"""The prompt of a record of which nothing is known."""
SEPARATOR = ", "
UNCHANGED = "unchanged"
FINDINGS_ALONE = "findings alone"


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
    n_words = list(accumulate(len(phrase.split()) for phrase in phrases))
    whole = phrases[: bisect_right(n_words, max_words)]
    return SEPARATOR.join(whole or [" ".join(phrase.split()[:max_words]) for phrase in phrases[:1]])


def recompose(records: pa.Table, findings: Sequence[str], prompt: config.Prompt, k: int) -> Recomposed:
    """Each record's prompt in a form that may cross into the released set.

    Reads `patient_id, prompt, labels, age, sex, view` of `tables.RECORDS`. A prompt that k patients share stays. Any
    other is composed anew from labels, age decade, sex and view (where the recipe uses them), and the phrases of its
    text that k patients share, the most shared first; age, view and sex are given up in this order until k patients
    have the very same prompt. Labels with shared phrases are allowed always: labels are released beside the image
    anyway, and a student that is not told on which side an effusion is learns neither side.

    So a prompt that tells age, sex or view is the prompt of at least k patients: k-anonymity (Sweeney,
    Int. J. Uncertain. Fuzz. 10(5), 2002, definition 2) in these; and every phrase is one of k patients. Unique may be
    how findings and their phrases come together. It says nothing about images.
    """
    rows = records.select(["patient_id", "prompt", "labels", "age", "sex", "view"]).to_pylist()
    for row in rows:
        row["labels"] = [name for name, value in zip(findings, row["labels"], strict=True) if value == 1]
    phrases = _shared_phrases(rows, k)
    prompts = [""] * len(rows)
    released: set[str] = set()
    levels: dict[str, int] = {}
    left = list(range(len(rows)))
    for level, told in _levels(prompt):
        candidates = {i: rows[i]["prompt"] if told is None else _tell(told, rows[i], phrases[i]) for i in left}
        n_patients = Counter(text for text, _ in {(candidates[i], rows[i]["patient_id"]) for i in left})
        released |= {text for text, n in n_patients.items() if n >= k or level == FINDINGS_ALONE}
        done = [i for i in left if candidates[i] in released]
        for i in done:
            prompts[i] = candidates[i]
        levels[level] = len(done)
        left = [i for i in left if candidates[i] not in released]
    return Recomposed(prompts, levels)


def _levels(prompt: config.Prompt) -> Iterator[tuple[str, config.Prompt | None]]:
    """Names of the levels of detail and what is told at each; none is the prompt as it is."""

    def told(parts: Sequence[str]) -> config.Prompt:
        return config.Prompt.model_validate({**prompt.model_dump(), "parts": parts})

    text = ["text"] if "text" in prompt.parts else []
    parts = [part for part in prompt.parts if part not in ("labels", "text")]
    yield UNCHANGED, None
    yield "shared phrases only", told([*parts, "labels", *text])
    for given_up in ("age", "view"):
        if given_up in parts:
            parts.remove(given_up)
            yield f"no {given_up}", told([*parts, "labels", *text])
    yield FINDINGS_ALONE, told(["labels", *text])


def _tell(told: config.Prompt, row: Mapping[str, Any], phrases: Sequence[str]) -> str:
    known = {name: row[name] for name in ("age", "sex", "view", "labels")}
    return compose(told, **known, phrases=phrases)


def _shared_phrases(rows: Sequence[Mapping[str, Any]], k: int) -> list[list[str]]:
    """Per row, the phrases of its prompt's text that at least k patients' prompts have, the most shared first."""
    phrases = []
    for row in rows:
        known = _known(row["age"], row["sex"], row["view"], row["labels"])
        phrases.append(set(row["prompt"].split(SEPARATOR)).difference(*known.values(), [FALLBACK]))
    pairs = {(phrase, row["patient_id"]) for row, own in zip(rows, phrases, strict=True) for phrase in own}
    n_patients = Counter(phrase for phrase, _ in pairs)
    shared = [[phrase for phrase in own if n_patients[phrase] >= k] for own in phrases]
    return [sorted(own, key=lambda phrase: (-n_patients[phrase], phrase)) for own in shared]


def plan(
    records: pa.Table,
    n_images: int,
    round_index: int,
    seed: int,
    word: str = "sample",
    short: Mapping[int, int] | None = None,
) -> pa.Table:
    """The prompt plan of one round, schema `tables.PROMPT_PLAN`, sorted by `row_id`.

    Reads `row_id, prompt, labels`. Every record's prompt is repeated equally often, up to one, and a hash chooses
    who gets one more; so the plan does not depend on the order of the records. `short` (position of a finding ->
    kept images that are missing) turns half of the round to records with those findings. `word` is the step that
    samples; with the seed and the `row_id` it gives each row its own seed.
    """
    records = records.select(["row_id", "prompt", "labels"]).sort_by("row_id")
    labels = np.array(records["labels"].to_pylist(), np.int8).reshape(len(records), -1)
    wanted = n_images * _shares(labels, short or {})
    n_repeats = np.floor(wanted).astype(np.int64)
    ties = np.array([seeds.row_seed(seed, "plan", round_index, row_id) for row_id in records["row_id"].to_pylist()])
    extra = np.lexsort((ties, n_repeats - wanted))[: n_images - n_repeats.sum()]
    n_repeats[extra] += 1
    repeated = records.take(np.repeat(np.arange(len(records)), n_repeats))
    row_ids = [f"s{round_index}-{position:07d}" for position in range(n_images)]
    columns = {
        "row_id": row_ids,
        "seed": [seeds.row_seed(seed, word, row_id) for row_id in row_ids],
        "prompt": repeated["prompt"],
        "labels": repeated["labels"],
        "prompt_row_id": repeated["row_id"],
    }
    return pa.table(columns, schema=tables.PROMPT_PLAN)


def _shares(labels: Int8[np.ndarray, "n f"], short: Mapping[int, int]) -> Float[np.ndarray, " n"]:
    """Share of the round for each record: equal, or half equal and half by what is missing; sums to 1."""
    equal = np.full(len(labels), 1 / len(labels))
    present = labels == 1
    missing = {finding: n for finding, n in short.items() if n > 0 and present[:, finding].any()}
    if not missing:
        return equal
    needy = sum(n * present[:, f] / present[:, f].sum() for f, n in missing.items()) / sum(missing.values())
    return 0.5 * equal + 0.5 * needy
