"""Prompts: how a record becomes one, which may cross into the released set, and which are sampled.

Pure functions of lists and tables. Not here: text hygiene (`cohorts.text`), which runs before a record gets a prompt.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
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
NOTHING = "neither phrase nor finding"
WITHHELD = "withheld: fewer than k patients are left"


class Shared(NamedTuple):
    """What may cross into the released set of each record."""

    prompts: list[str | None]
    """None where nothing may: too few patients are left to share even the least that can be told."""
    labels: Int8[np.ndarray, "n f"]
    """Labels that go with them; a finding that was given up is absent, and so is the one that was unknown."""
    levels: dict[str, int]
    """How many records are told in how much detail; the most detailed level comes first."""
    level_patients: dict[str, int]
    """How many patients these records are of."""


class _Detail(NamedTuple):
    """How much is told at a level."""

    prompt: config.Prompt
    most_phrases: int
    most_findings: int
    unknown: bool
    """Whether a finding that is unknown stays so."""


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


def recompose(records: pa.Table, findings: Sequence[str], prompt: config.Prompt, k: int) -> Shared:
    """Each record's prompt and labels in a form that may cross into the released set.

    Reads `patient_id, prompt, labels, age, sex, view` of `tables.RECORDS`. Detail is given up step by step until k
    patients have the very same prompt *and* labels: phrases that fewer than k patients use, age, view, sex, phrase
    after phrase from the rarest on, then finding after finding from the rarest on. Who shares a pair already lets
    others join it. So what crosses is k-anonymous: it is the pair of at least k patients (Sweeney, Int. J. Uncertain.
    Fuzz. 10(5), 2002, definition 2). It says nothing about images: an image whose labels were made coarser must have
    been asked for with the coarser prompt.
    """
    rows = records.select(["patient_id", "prompt", "labels", "age", "sex", "view"]).to_pylist()
    phrases, order = _shared_phrases(rows, findings, k), _commonest_first(rows, len(findings))
    told: list[tuple[str, tuple[int, ...]] | None] = [None] * len(rows)
    sharing: dict[tuple[str, tuple[int, ...]], set[str]] = defaultdict(set)
    levels: dict[str, list[int]] = defaultdict(list)
    left = list(range(len(rows)))
    for level, detail in _levels(prompt, len(findings)):
        offered = {i: _told(detail, rows[i], phrases[i], findings, order) for i in left}
        patients: dict[tuple[str, tuple[int, ...]], set[str]] = defaultdict(set)
        for i in left:
            patients[offered[i]].add(rows[i]["patient_id"])
        done = [i for i in left if len(patients[offered[i]] | sharing[offered[i]]) >= k]
        for i in done:
            told[i] = offered[i]
            sharing[offered[i]].add(rows[i]["patient_id"])
        levels[level] += done
        left = [i for i in left if told[i] is None]
    levels[WITHHELD] = left
    labels = [pair[1] if pair else (0,) * len(findings) for pair in told]
    matrix = np.array(labels, np.int8).reshape(len(rows), len(findings))
    return Shared(
        [pair[0] if pair else None for pair in told],
        matrix,
        {level: len(some) for level, some in levels.items() if some},
        {level: len({rows[i]["patient_id"] for i in some}) for level, some in levels.items() if some},
    )


def _levels(prompt: config.Prompt, n_findings: int) -> Iterator[tuple[str, _Detail | None]]:
    """Names of the levels of detail and what is told at each; none is the prompt as it is. Names may repeat."""

    def of(*parts: str) -> config.Prompt:
        return config.Prompt.model_validate({**prompt.model_dump(), "parts": parts})

    text = ("text",) if "text" in prompt.parts else ()
    parts = [part for part in prompt.parts if part not in ("labels", "text")]
    all_told = _Detail(of(*parts, "labels", *text), prompt.max_phrases, n_findings, unknown=True)
    yield UNCHANGED, None
    yield "shared phrases only", all_told
    for given_up in ("age", "view", "sex"):
        if given_up in parts:
            parts.remove(given_up)
            yield f"no {given_up}", all_told._replace(prompt=of(*parts, "labels", *text))
    for n in range(prompt.max_phrases - 1, 0, -1):
        yield "fewer phrases", all_told._replace(prompt=of("labels", *text), most_phrases=n)
    alone = _Detail(of("labels"), 0, n_findings, unknown=True)
    yield FINDINGS_ALONE, alone
    yield "unknown findings told as absent", alone._replace(unknown=False)
    for n in range(n_findings - 1, 0, -1):
        yield "fewer findings", alone._replace(most_findings=n, unknown=False)
    yield NOTHING, alone._replace(most_findings=0, unknown=False)


def _told(
    detail: _Detail | None,
    row: Mapping[str, Any],
    phrases: Sequence[str],
    findings: Sequence[str],
    order: Sequence[int],
) -> tuple[str, tuple[int, ...]]:
    """A record's prompt and labels at a level of detail."""
    if detail is None:
        return row["prompt"], tuple(row["labels"])
    kept = [i for i in order if row["labels"][i] == 1][: detail.most_findings]
    labels = tuple(1 if i in kept else min(value, 0) * detail.unknown for i, value in enumerate(row["labels"]))
    known = {name: row[name] for name in ("age", "sex", "view")}
    names = [findings[i] for i in sorted(kept)]
    return compose(detail.prompt, **known, labels=names, phrases=phrases[: detail.most_phrases]), labels


def _commonest_first(rows: Sequence[Mapping[str, Any]], n_findings: int) -> list[int]:
    """Positions of the findings, that of most patients first."""
    patients = [{row["patient_id"] for row in rows if row["labels"][i] == 1} for i in range(n_findings)]
    return sorted(range(n_findings), key=lambda i: (-len(patients[i]), i))


def _shared_phrases(rows: Sequence[Mapping[str, Any]], findings: Sequence[str], k: int) -> list[list[str]]:
    """Per row, the phrases of its prompt's text that at least k patients' prompts have, the most shared first."""
    phrases = []
    for row in rows:
        present = [name for name, value in zip(findings, row["labels"], strict=True) if value == 1]
        known = _known(row["age"], row["sex"], row["view"], present)
        phrases.append(set(row["prompt"].split(SEPARATOR)).difference(*known.values(), [FALLBACK]))
    pairs = {(phrase, row["patient_id"]) for row, own in zip(rows, phrases, strict=True) for phrase in own}
    n_patients = Counter(phrase for phrase, _ in pairs)
    shared = [[phrase for phrase in own if n_patients[phrase] >= k] for own in phrases]
    return [sorted(own, key=lambda phrase: (-n_patients[phrase], phrase)) for own in shared]


def plan(
    records: pa.Table,
    n_images: int,
    round_index: int,
    origin: seeds.Origin,
    word: str = "sample",
    short: Mapping[int, int] | None = None,
) -> pa.Table:
    """The prompt plan of one round, schema `tables.PROMPT_PLAN`, sorted by `row_id`.

    Reads `row_id, prompt, labels`. Every record's prompt is repeated equally often, up to one, and a hash chooses
    who gets one more; so the plan does not depend on the order of the records. `short` (position of a finding ->
    kept images that are missing) turns half of the round to records with those findings. `word` is the step that
    samples; with the origin and the `row_id` it gives each row its own seed. Whoever knows the origin knows from an
    image's noise which row it is, so that it must be a secret where images are released.
    """
    records = records.select(["row_id", "prompt", "labels"]).sort_by("row_id")
    labels = np.array(records["labels"].to_pylist(), np.int8).reshape(len(records), -1)
    wanted = n_images * _shares(labels, short or {})
    n_repeats = np.floor(wanted).astype(np.int64)
    ties = np.array([seeds.row_seed(origin, "plan", round_index, row_id) for row_id in records["row_id"].to_pylist()])
    extra = np.lexsort((ties, n_repeats - wanted))[: n_images - n_repeats.sum()]
    n_repeats[extra] += 1
    repeated = records.take(np.repeat(np.arange(len(records)), n_repeats))
    row_ids = [f"s{round_index}-{position:07d}" for position in range(n_images)]
    columns = {
        "row_id": row_ids,
        "seed": [seeds.row_seed(origin, word, row_id) for row_id in row_ids],
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
