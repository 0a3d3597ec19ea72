"""What must never leave, and the search for it in a folder that is about to.

Reads `private/`: runs as the custodian. What it finds is counted by kind, never quoted.
"""

# pyarrow.compute makes its functions at import, out of pyright's sight.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, UInt8

from pipeline import package, records
from pipeline.artifact import Artifact
from pipeline.cohorts import text
from pipeline.config import Recipe, TextEncoder
from pipeline.folders import Folder
from pipeline.generators.text import load_tokenizer
from pipeline.privacy import leaks, matching, networks
from pipeline.workers import NETWORKS

PAIR = ("prompt", "labels", "patient_id")
ROUNDING = 1e-5
"""By how much a score of the same image may differ between two kinds of hardware."""


def scan_package(recipe: Recipe, inputs: Mapping[str, Artifact], folder: Path) -> dict[str, int]:
    """Findings by kind in a release package: its images against every training image, its files against secrets."""
    released = package.read_images(folder / "dataset")
    found = Counter(leak.why for leak in leaks.scan_images(released, _originals(inputs["ingest"])))
    found["over the filter's threshold"] = int(_over_threshold(recipe, inputs, released).sum())
    return {kind: n for kind, n in found.items() if n} | scan_text(recipe, inputs, folder)


def rows_below_k(recipe: Recipe, inputs: Mapping[str, Artifact], folder: Path) -> int:
    """Released rows whose prompt and labels are not those that at least k training patients share."""
    patients: dict[tuple[str, ...], set[str]] = defaultdict(set)
    crossing = records.crossing(inputs["ingest"])
    for prompt, labels, patient in zip(*(crossing[name].to_pylist() for name in PAIR), strict=True):
        patients[(prompt, *map(str, labels))].add(patient)
    told = package.read_rows(folder / "dataset").drop_columns(["id", "image"]).to_pylist()
    pairs = [tuple(map(str, row.values())) for row in told]
    return sum(len(patients[pair]) < recipe.ingest.k_anonymity for pair in pairs)


def _originals(ingest: Artifact) -> leaks.Originals:
    return leaks.Originals.of(records.of_split(ingest, "train").images)


def _over_threshold(
    recipe: Recipe, inputs: Mapping[str, Artifact], released: UInt8[np.ndarray, "n h w c"]
) -> Bool[np.ndarray, " n"]:
    """Released images that the rule would have dropped: the filter was not applied to them."""
    threshold = inputs["filter"].facts["threshold"]
    if threshold is None or not len(released):
        return np.zeros(len(released), bool)
    folder = inputs["score/gallery"].local()
    model = networks.load(folder / NETWORKS[0])
    gallery = matching.Gallery.load(folder / f"{NETWORKS[0]}_embeddings.parquet")
    queries = networks.embeddings(model, released, recipe.score.batch_size)
    scores = matching.best_matches(model, queries, gallery, recipe.score.gallery_block).reid_score.numpy()
    return scores.astype(np.float64) >= threshold + ROUNDING


def scan_text(recipe: Recipe, inputs: Mapping[str, Artifact], folder: Path) -> dict[str, int]:
    """Findings by kind in the files of a folder."""
    prompts = inputs["filter"].table("kept", ["prompt"])["prompt"].to_pylist()
    allowed = [*sorted(set(prompts)), *package.templates(), *_pretrained_vocabulary(recipe.distill.text)]
    return dict(Counter(leak.kind for leak in leaks.scan_files(folder, secrets(recipe, inputs["ingest"]), allowed)))


def scan_page(
    recipe: Recipe,
    inputs: Mapping[str, Artifact],
    folder: Folder,
    shown: Sequence[UInt8[np.ndarray, "n h w c"]],
) -> dict[str, int]:
    """Findings by kind in a page, which may have been written on another machine, and among the images it shows."""
    originals = _originals(inputs["ingest"])
    images = Counter(leak.why for some in shown for leak in leaks.scan_images(some, originals))
    return dict(images) | scan_text(recipe, inputs, folder.local())


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
