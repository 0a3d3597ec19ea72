"""What must not leave: who and what is a secret in a cohort made by hand, and that it is found in a folder."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import config, scan
from pipeline.artifact import Artifact, Key, Store
from pipeline.config import Recipe
from pipeline.steps.ingest import IDENTITIES
from pipeline.tables import KEPT, RECORDS

TABLE = config.changed(Recipe(), {"ingest.kind": "table", "ingest.root": "/cohort", "ingest.k_anonymity": 2})
PHANTOM = config.changed(Recipe(), {"ingest.k_anonymity": 2})
SHARED, RARE, UNSEEN = "small left effusion", "ribbon shaped pleural scar", "horseshoe shaped lung"
# patient, pseudonym, split, text
PATIENTS = [
    ("MRN-00012345", "a3f09c5e7d12b846", "train", f"Impression: {SHARED}."),
    ("MRN-00067890", "b1b2b3b4b5b6b7b8", "train", f"{SHARED}; {RARE}"),
    ("MRN-00067890", "b1b2b3b4b5b6b7b8", "train", f"{RARE}; {SHARED}"),
    ("MRN-00055555", "c0c1c2c3c4c5c6c7", "train", None),
    ("MRN-00099999", "d0d1d2d3d4d5d6d7", "control", UNSEEN),
]


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Artifact]:
    store = Store(tmp_path / "store")
    records, identities = [], []
    for i, (patient, pseudonym, split, text) in enumerate(PATIENTS):
        records.append(
            {"row_id": f"row-{i:06d}", "patient_id": pseudonym, "split": split, "text": text, "labels": [1]}
        )
        identities.append({"row_id": f"row-{i:06d}", "patient": patient, "source": f"films/{patient}_{i}.png"})
    ingest = store.draft(Key("private", "ingest", "ab"))
    ingest.write_table(pa.Table.from_pylist(records, RECORDS), "records")
    ingest.write_table(pa.Table.from_pylist(identities, IDENTITIES), "identities")
    kept = store.draft(Key("releasable", "filter", "ab"))
    prompts = [{"row_id": "synthetic-000000", "prompt": f"60s, woman, {SHARED}", "labels": [1]}]
    kept.write_table(pa.Table.from_pylist(prompts, KEPT), "kept")
    return {"ingest": store.commit(ingest, {}), "filter": store.commit(kept, {})}


def test_patients_are_secret_by_name_and_by_pseudonym_in_every_split(inputs: dict[str, Artifact]) -> None:
    found = scan.secrets(TABLE, inputs["ingest"])
    assert set(found["patient id"]) == {name for row in PATIENTS for name in row[:2]}
    assert set(found["row id"]) == {f"row-{i:06d}" for i in range(5)}
    assert set(found["path"]) == {f"films/{patient}_{i}.png" for i, (patient, *_) in enumerate(PATIENTS)}


def test_drawn_patients_have_no_path(inputs: dict[str, Artifact]) -> None:
    assert set(scan.secrets(PHANTOM, inputs["ingest"])["path"]) == set()


def test_a_phrase_is_secret_if_fewer_than_k_training_patients_use_it_however_often(
    inputs: dict[str, Artifact],
) -> None:
    assert set(scan.secrets(TABLE, inputs["ingest"])["phrase"]) == {RARE}
    three = config.changed(TABLE, {"ingest.k_anonymity": 3})
    assert set(scan.secrets(three, inputs["ingest"])["phrase"]) == {RARE, SHARED}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("trained on a3f09c5e7d12b846", {"patient id": 1}),
        ("films/MRN-00012345_0.png", {"patient id": 1, "path": 1}),
        ("see row-000003", {"row id": 1}),
        (f"a {RARE.title()} is seen", {"phrase": 1}),
        (f"60s, woman, {SHARED}", {}),
        ("nothing to see", {}),
    ],
)
def test_a_secret_in_a_folder_is_counted_by_kind(
    inputs: dict[str, Artifact], tmp_path: Path, text: str, found: dict[str, int]
) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "README.md").write_text(text)
    assert scan.scan_text(TABLE, inputs, tmp_path / "package") == found


def test_what_is_found_is_counted_and_never_quoted(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    for i, (patient, *_) in enumerate(PATIENTS):
        (tmp_path / "package" / f"{i}.txt").write_text(patient)
    assert scan.scan_text(TABLE, inputs, tmp_path / "package") == {"patient id": len(PATIENTS)}


def test_a_shared_prompt_is_no_secret_even_if_k_was_raised_since(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "card.md").write_text(SHARED)
    three = config.changed(TABLE, {"ingest.k_anonymity": 3})
    assert scan.scan_text(three, inputs, tmp_path / "package") == {}
