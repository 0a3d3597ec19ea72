"""ingest: a cohort becomes records with pixels, prompts, hashed patients and splits; rejects keep their reasons.

Rows in = rows out + rows rejected. Real identities stay in `identities`, which only the leak scan reads.
"""

# pyarrow.compute makes its functions at import, out of pyright's sight.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import images, rows, secret
from pipeline.artifact import Store, read_table, require_space
from pipeline.cohorts import greys, phantom, splits, table, text
from pipeline.config import SPLITS, ConfigError, Ingest, Recipe
from pipeline.generators import prompts
from pipeline.image_files import NO_RANGE, OUTSIDE, TOO_DARK, GreyRange
from pipeline.records import label_matrix
from pipeline.seeds import Origin, subkey
from pipeline.tables import LABELS, RECORDS, REJECTS, with_images
from pipeline.task import Made, Task, Work

VERSION = 4
NO_LABELS = "no labels: utility and adherence to prompts are not measured"
IDENTITIES = pa.schema([("row_id", pa.string()), ("patient", pa.string()), ("source", pa.string())])


def tasks(recipe: Recipe) -> list[Task]:
    """One artifact: tables `records`, `images`, `rejects`, `identities`."""
    config: dict[str, Any] = {
        "ingest": recipe.ingest.model_dump(mode="json", exclude=secret.ELSEWHERE),
        "seed": recipe.seed,
    }
    return [Task("ingest", make, config, version=VERSION, from_cohort=True, slots=2, resumable=True, about="records")]


def make(work: Work) -> Made:
    """List the cohort, split it, cap it, read its pixels, clean its texts, hash its patients."""
    ingest = work.recipe.ingest
    listing, listed, over_cap = checked(work.recipe, work.draft.store, work.origin)
    found = grey_values(ingest, listed)
    unusable = _read_pixels(work, listed, found)
    rejects = pa.concat_tables([listing.rejects, over_cap, unusable]).sort_by("row_id")
    kept = listed.filter(pc.invert(pc.is_in(listed["row_id"], unusable["row_id"].combine_chunks())))
    patients = _patients_by_split(kept)
    _require_patients(patients, ingest, rejects)
    _require_pairs(kept)
    kept, removed = _with_prompts(kept, ingest, listing.findings)
    hashed = _with_pseudonyms(kept, work.recipe, work.draft.store)
    records, shared = _with_shared(_with_films(hashed, listing.rows), ingest, listing.findings)
    records = records.select(RECORDS.names).cast(RECORDS)
    work.draft.write_table(records, "records")
    work.draft.write_table(rejects, "rejects")
    work.draft.write_table(kept.select(IDENTITIES.names), "identities")
    seen, remarks = _grey_summary(work, kept, found)
    images_by_split = Counter(kept["split"].to_pylist())
    facts = {
        "findings": list(listing.findings),
        "rows_in": len(listing.rows) + len(listing.rejects),
        "rejected": dict(Counter(rejects["reason"].to_pylist())),
        "grey": {**found.facts, **seen},
        "remarks": [*remarks, *_outside(rejects), *([] if listing.findings else [NO_LABELS])],
        "removed_text": removed,
        "prompt_levels": shared.levels,
        "prompt_level_patients": shared.level_patients,
        "images_by_split": {name: images_by_split[name] for name in SPLITS},
        "patients_by_split": {name: len(patients[name]) for name in SPLITS},
    }
    return Made(facts, len(records))


def checked(recipe: Recipe, store: Store, origin: Origin | None = None) -> tuple[table.Listing, pa.Table, pa.Table]:
    """The listed cohort, its rows that are used, with their split, and those over the cap. Opens no image.

    Without an origin the splits are only for counting: a store that is new has no secret yet.
    Raises: CohortError, SplitError, ConfigError or ArtifactError, each before anything is written.
    """
    ingest = recipe.ingest
    listing = _listing(ingest, recipe.seed)
    _require_findings(recipe, listing.findings)
    secret.require_key_file(ingest)
    listed, over_cap = _split(listing.rows, ingest, origin or secret.origin_if_known(recipe, store))
    _require_pairs(listed)
    require_space(store, 2 * len(listed) * ingest.image_px**2 * ingest.channels)
    return listing, listed, over_cap


def grey_values(ingest: Ingest, listed: pa.Table) -> greys.Greys:
    """What is black and white in the listed images. Opens some hundred of them.

    Raises: CohortError if that cannot be told from the images, and the recipe does not say it.
    """
    if ingest.kind == "phantom":
        return greys.Greys(None, {}, {}, None)
    assert ingest.root is not None  # the recipe was validated
    return greys.greys(ingest.root, tuple(listed["source"].to_pylist()), ingest.grey_range)


class ReadPixels:
    """Row worker: the pixels of a listed image, drawn or decoded, or the reason why not."""

    reads = pa.schema([("row_id", pa.string()), ("source", pa.string())])

    def __init__(self, ingest: Ingest, grey_range: GreyRange | None = None, least_value: int = 0):
        self._ingest, self._grey_range, self._least_value = ingest, grey_range, least_value
        outcome = pa.schema([("reject", pa.string()), ("digest", pa.string())])
        self.adds = with_images(outcome, ingest.image_px, ingest.channels)

    def __call__(self, batch: pa.Table) -> pa.Table:
        sources = batch["source"].to_pylist()
        if self._ingest.kind == "phantom":
            pixels = phantom.draw(sources, self._ingest.image_px)
            pixels = np.repeat(pixels, self._ingest.channels, axis=-1)
            reasons = [None] * len(sources)
            digests = [hashlib.sha256(image.tobytes()).hexdigest() for image in pixels]
        else:
            assert self._ingest.root is not None  # the recipe was validated
            pixels, reasons, digests = table.read_images(
                self._ingest.root,
                sources,
                self._ingest.image_px,
                self._ingest.channels,
                self._ingest.min_source_px,
                self._grey_range,
                self._least_value,
            )
        return pa.table(
            {
                "reject": pa.array(reasons, pa.string()),
                "digest": pa.array(digests, pa.string()),
                "image": images.column(pixels),
            }
        )


def _listing(ingest: Ingest, seed: int) -> table.Listing:
    if ingest.kind == "phantom":
        return table.Listing(phantom.listing(ingest.phantom, seed), REJECTS.empty_table(), phantom.FINDINGS)
    assert ingest.root is not None  # the recipe was validated
    return table.listing(ingest.table, ingest.root, ingest.k_anonymity)


def _require_findings(recipe: Recipe, findings: tuple[str, ...]) -> None:
    for name in recipe.sample.class_quota:
        if name not in findings:
            raise ConfigError(
                f"key 'sample.class_quota.{name}': want a finding of this cohort, got another "
                f"— known: {', '.join(findings)}"
            )


def _split(listed: pa.Table, ingest: Ingest, origin: Origin) -> tuple[pa.Table, pa.Table]:
    patients = listed["patient"].to_pylist()
    split_of = splits.assign(patients, ingest.splits, origin, ingest.min_patients)
    listed = listed.append_column("split", pa.array([split_of[patient] for patient in patients], pa.string()))
    within = splits.within_cap(
        listed["row_id"].to_pylist(), patients, split_of, ingest.max_images_per_patient, origin
    )
    over = listed.filter(~within)
    reasons = [f"over the cap of images per patient in split {name}" for name in over["split"].to_pylist()]
    return listed.filter(within), pa.table([over["row_id"], pa.array(reasons, pa.string())], schema=REJECTS)


def _read_pixels(work: Work, listed: pa.Table, found: greys.Greys) -> pa.Table:
    """Write table `images`; the rows whose pixels cannot be used, with the reason."""
    ingest, draft = work.recipe.ingest, work.draft
    written = rows.append_columns(
        draft.write_source(listed.select(["row_id", "source"])),
        ReadPixels,
        {"ingest": ingest, "grey_range": found.grey_range, "least_value": found.least_value},
        draft.uri_of("images"),
        work_uri=draft.work_uri,
        leftovers=draft.leftover_uris("images"),
        pool=rows.Pool(ingest.actors, ingest.batch_rows, 8 * ingest.batch_rows),
        bar=work.bar,
    )
    outcome = read_table(draft.store.fs, f"{draft.path}/images", ["row_id", "reject", "digest"])
    patient_of = dict(zip(listed["row_id"].to_pylist(), listed["patient"].to_pylist(), strict=True))
    reasons = _pixel_reasons(outcome.to_pylist(), patient_of)
    names = [*outcome["row_id"].to_pylist(), *written.set_aside]
    table = pa.table([pa.array(names), pa.array([*reasons, *written.set_aside.values()])], schema=REJECTS)
    return table.filter(pc.is_valid(table["reason"]))


def _grey_summary(work: Work, kept: pa.Table, found: greys.Greys) -> tuple[dict[str, Any], list[str]]:
    """Greys of an even sample of the images as they were written, and what is odd about them."""
    sources = list(found.is_deep) or greys.evenly(kept["source"].to_pylist(), greys.MOST_IMAGES)
    kept = kept.filter(pc.is_in(kept["source"], pa.array(sources, pa.string())))
    draft, source_of = work.draft, dict(zip(kept["row_id"].to_pylist(), kept["source"].to_pylist(), strict=True))
    within = pc.field("row_id").isin(kept["row_id"].combine_chunks())
    written = read_table(draft.store.fs, f"{draft.path}/images", ["row_id", "image"], within)
    deep = [found.is_deep.get(source_of[row_id], False) for row_id in written["row_id"].to_pylist()]
    return greys.summary(images.array(written["image"]), np.array(deep, bool))


def _outside(rejects: pa.Table) -> list[str]:
    """What to do about images that the grey range does not fit."""
    n = sum(reason.startswith((OUTSIDE, NO_RANGE, TOO_DARK)) for reason in rejects["reason"].to_pylist())
    how = "images do not fit the grey range and are rejected: if they are sound, set ingest.grey_range to hold them"
    return [f"{n} {how}"] if n else []


def _pixel_reasons(outcome: list[dict[str, Any]], patient_of: dict[str, str]) -> list[str | None]:
    """Unreadable, or the same pixels as another row: of one patient the first stays, of two patients none."""
    patients: dict[str, set[str]] = defaultdict(set)
    first: dict[str, str] = {}
    for row in outcome:
        if row["digest"]:
            patients[row["digest"]].add(patient_of[row["row_id"]])
            first.setdefault(row["digest"], row["row_id"])

    def reason(row: dict[str, Any]) -> str | None:
        if row["reject"]:
            return row["reject"]
        if len(patients[row["digest"]]) > 1:
            return "one image under two patients"
        return None if first[row["digest"]] == row["row_id"] else "duplicate image"

    return [reason(row) for row in outcome]


def _patients_by_split(listed: pa.Table) -> dict[str, set[str]]:
    members: dict[str, set[str]] = {name: set() for name in SPLITS}
    for name, patient in zip(listed["split"].to_pylist(), listed["patient"].to_pylist(), strict=True):
        members[name].add(patient)
    return members


def _require_patients(patients: dict[str, set[str]], ingest: Ingest, rejects: pa.Table) -> None:
    reasons = Counter(rejects["reason"].to_pylist()).most_common(3)
    why = ", ".join(f"{n} x {reason}" for reason, n in reasons) or "none"
    for name, least in ingest.min_patients.items():
        if len(patients[name]) < least:
            raise splits.SplitError(
                f"split {name}: want {least} patients with a usable image, got {len(patients[name])} "
                f"— lower ingest.min_patients.{name}, raise its share, or mend the rejected images ({why})"
            )


def _require_pairs(listed: pa.Table) -> None:
    """A network learns to recognise patients from those with several images, and is verified on such."""
    for name in ("identify", "audit"):
        n_images = Counter(listed.filter(pc.equal(listed["split"], name))["patient"].to_pylist())
        several = sum(n > 1 for n in n_images.values())
        if several < 2:
            raise splits.SplitError(
                f"split {name}: want 2 patients with 2 images or more, got {several} of {len(n_images)} — give more "
                f"patients with several images, or raise ingest.splits.{name} or ingest.max_images_per_patient.{name}"
            )


def _with_prompts(listed: pa.Table, ingest: Ingest, findings: tuple[str, ...]) -> tuple[pa.Table, dict[str, int]]:
    """Add `prompt`, for training rows only; how many words and phrases were removed from them, by reason."""
    train = listed.filter(pc.equal(listed["split"], "train"))
    scrubbed = text.scrub(train["text"].to_pylist(), train["patient"].to_pylist(), ingest.k_anonymity)
    labels = label_matrix(train)
    composed = {
        row["row_id"]: prompts.compose(
            ingest.prompt,
            age=row["age"],
            sex=row["sex"],
            view=row["view"],
            labels=[name for name, value in zip(findings, present, strict=True) if value == 1],
            phrases=phrases,
        )
        for row, present, phrases in zip(train.to_pylist(), labels, scrubbed.phrases, strict=True)
    }
    column = pa.array([composed.get(row_id) for row_id in listed["row_id"].to_pylist()], pa.string())
    emptied = {"text left empty": scrubbed.n_emptied} if scrubbed.n_emptied else {}
    return listed.append_column("prompt", column), scrubbed.removed | emptied


def _with_pseudonyms(listed: pa.Table, recipe: Recipe, store: Store) -> pa.Table:
    """Add `patient_id`, the patient's name under the store's secret."""
    key = subkey(secret.of(recipe, store), "patient")

    def pseudonym(patient: str) -> str:
        return hashlib.blake2b(patient.encode(), key=key, digest_size=8).hexdigest()

    return listed.append_column("patient_id", pa.array([pseudonym(p) for p in listed["patient"].to_pylist()]))


def _with_films(listed: pa.Table, rows: pa.Table) -> pa.Table:
    """Add `patient_images`, how many rows of the cohort's table each patient has, caps and rejects included."""
    n_images = Counter(rows["patient"].to_pylist())
    return listed.append_column(
        "patient_images", pa.array([n_images[patient] for patient in listed["patient"].to_pylist()], pa.int32())
    )


def _with_shared(hashed: pa.Table, ingest: Ingest, findings: tuple[str, ...]) -> tuple[pa.Table, prompts.Shared]:
    """Add what may cross of each training row: `shared_prompt` and `shared_labels`."""
    train = hashed.filter(pc.equal(hashed["split"], "train"))
    shared = prompts.recompose(train, findings, ingest.prompt, ingest.k_anonymity)
    told = dict(
        zip(train["row_id"].to_pylist(), zip(shared.prompts, shared.labels.tolist(), strict=True), strict=True)
    )
    pairs = [told.get(row_id, (None, None)) for row_id in hashed["row_id"].to_pylist()]
    hashed = hashed.append_column("shared_prompt", pa.array([prompt for prompt, _ in pairs], pa.string()))
    labels = [None if prompt is None else labels for prompt, labels in pairs]
    return hashed.append_column("shared_labels", pa.array(labels, LABELS)), shared
