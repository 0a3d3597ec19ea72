"""What must never leave, and the search for it in a folder that is about to.

Reads `private/`: runs as the custodian. What it finds is counted by kind, never quoted.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, UInt8

from pipeline import measures, package, records
from pipeline.artifact import Artifact
from pipeline.cohorts import text
from pipeline.config import Recipe, TextEncoder
from pipeline.folders import Folder
from pipeline.generators.text import load_tokenizer
from pipeline.privacy import leaks
from pipeline.workers import ScoreImages


def scan_package(recipe: Recipe, inputs: Mapping[str, Artifact], folder: Path) -> dict[str, int]:
    """Findings by kind in a release package: its images against every training image, its files against secrets."""
    released = package.read_images(folder / "dataset")
    originals = leaks.Originals.of(records.of_split(inputs["ingest"], "train").images)
    flags = [_flags(recipe, inputs, released, network) for network in measures.RATIOS]
    found = Counter(leak.why for leak in leaks.scan_images(released, originals, *flags))
    return dict(found) | scan_text(recipe, inputs, folder)


def scan_text(recipe: Recipe, inputs: Mapping[str, Artifact], folder: Path) -> dict[str, int]:
    """Findings by kind in the files of a folder."""
    prompts = inputs["filter"].table("kept", ["prompt"])["prompt"].to_pylist()
    allowed = [*sorted(set(prompts)), *package.templates(), *_pretrained_vocabulary(recipe.distill.text)]
    return dict(Counter(leak.kind for leak in leaks.scan_files(folder, secrets(recipe, inputs["ingest"]), allowed)))


def scan_page(recipe: Recipe, inputs: Mapping[str, Artifact], folder: Folder) -> dict[str, int]:
    """The same for what was written on another machine."""
    return scan_text(recipe, inputs, folder.local())


def secrets(recipe: Recipe, ingest: Artifact) -> dict[leaks.Kind, Iterable[str]]:
    """Patients by name and by pseudonym, rows, source paths, and phrases of the texts that under k patients share."""
    identities, train = ingest.table("identities"), ingest.table("records", where=pc.field("split") == "train")
    paths = identities["source"].to_pylist() if recipe.ingest.kind == "table" else []
    pseudonyms = ingest.table("records", ["patient_id"])["patient_id"].to_pylist()
    return {
        "patient id": {*identities["patient"].to_pylist(), *pseudonyms},
        "row id": set(identities["row_id"].to_pylist()),
        "path": set(paths),
        "phrase": _rare_phrases(train, recipe.ingest.k_anonymity),
    }


def _pretrained_vocabulary(section: TextEncoder) -> list[str]:
    """The words of a text encoder from outside: it knew them before it met this cohort."""
    return [] if section.folder is None else sorted(load_tokenizer(section.folder, section.max_tokens).get_vocab())


def _rare_phrases(train: pa.Table, k: int) -> set[str]:
    patients = train["patient_id"].to_pylist()
    phrases = text.scrub(train["text"].to_pylist(), patients, 1).phrases
    owners: dict[str, set[str]] = defaultdict(set)
    for patient, own in zip(patients, phrases, strict=True):
        for phrase in own:
            owners[phrase].add(patient)
    return {phrase for phrase, by in owners.items() if len(by) < k}


def _flags(
    recipe: Recipe, inputs: Mapping[str, Artifact], released: UInt8[np.ndarray, "n h w c"], network: str
) -> Bool[np.ndarray, " n"]:
    """Whether this network puts each released image over its control threshold."""
    column = measures.RATIOS[network][0]
    control = inputs["ingest"].table("records", ["row_id"], pc.field("split") == "control")["row_id"]
    scores = inputs["score/unseen"].table(columns=[column], where=pc.field("row_id").isin(control.combine_chunks()))
    threshold = measures.control_threshold(scores[column].to_numpy(), recipe.evaluate.control_percentile)
    ingest = recipe.ingest
    scorer = ScoreImages(inputs["score/gallery"], recipe.score, ingest.image_px, ingest.channels)
    batch = pa.table({"row_id": [str(i) for i in range(len(released))], "image": records.image_column(released)})
    return scorer(batch)[column].to_numpy() >= threshold
