"""Records in memory: images, labels and patients of the same row stay together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline import images, records
from pipeline.artifact import Artifact, Key, Store
from pipeline.tables import PROMPT_PLAN, RECORDS

PX = 4
# row_id, patient, split, prompt, labels, and what of prompt and labels is shared; on disk in this order, which is not
# that of row_id
LISTED = [
    ("r3", "zoe", "train", "60s, woman, scar", [1, 0], "woman", [1, 0]),
    ("r1", "ann", "train", "60s, woman, effusion", [1, -1], "effusion", [1, 0]),
    ("r0", "zoe", "train", "60s, woman, effusion", [0, 0], None, None),
    ("r2", "bob", "test", None, [0, 1], None, None),
]


def flat(value: int) -> np.ndarray:
    return np.full((PX, PX, 1), value, np.uint8)


@pytest.fixture
def ingest(tmp_path: Path) -> Artifact:
    """Four records; the grey of an image is ten times the number of its row."""
    store = Store(tmp_path)
    draft = store.draft(Key("private", "ingest", "ab"))
    rows = [
        {
            "row_id": row_id,
            "patient_id": patient,
            "split": split,
            "prompt": prompt,
            "labels": labels,
            "shared_prompt": shared_prompt,
            "shared_labels": shared_labels,
        }
        for row_id, patient, split, prompt, labels, shared_prompt, shared_labels in LISTED
    ]
    draft.write_table(pa.Table.from_pylist(rows, RECORDS), "records")
    (draft.folder / "images").mkdir()
    for number in (2, 0, 3, 1):
        table = pa.table({"row_id": [f"r{number}"], "image": images.column(np.stack([flat(10 * number)]))})
        pq.write_table(table, draft.folder / "images" / f"{3 - number}.parquet")
    return store.commit(draft, {"findings": ["effusion", "scar"]})


def test_a_split_holds_its_rows_with_their_own_images_and_labels(ingest: Artifact) -> None:
    train = records.of_split(ingest, "train")
    assert train.row_ids == ["r0", "r1", "r3"]
    assert train.images[:, 0, 0, 0].tolist() == [0, 10, 30]
    assert train.labels.tolist() == [[0, 0], [1, -1], [1, 0]]
    assert train.patients.tolist() == [0, 1, 0]


def test_a_split_without_rows_is_empty(ingest: Artifact) -> None:
    audit = records.of_split(ingest, "audit")
    assert audit.row_ids == [] and audit.images.shape == (0, PX, PX, 1) and len(audit.patients) == 0


def test_patients_are_numbered_as_they_come_whatever_they_are_called(ingest: Artifact) -> None:
    table = records.of_split(ingest, "train").table
    column = table.column_names.index("patient_id")
    renamed = table.set_column(column, "patient_id", pa.array(["0", "x", "0"]))
    assert records.patient_codes(renamed).tolist() == records.patient_codes(table).tolist() == [0, 1, 0]


def test_chosen_records_keep_what_belongs_to_them(ingest: Artifact) -> None:
    chosen = records.take(records.of_split(ingest, "train"), [2, 0])
    assert chosen.row_ids == ["r3", "r0"]
    assert chosen.images[:, 0, 0, 0].tolist() == [30, 0]
    assert chosen.labels.tolist() == [[1, 0], [0, 0]]
    assert chosen.patients.tolist() == [0, 0]


def test_synthetic_images_keep_their_prompts_all_or_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    draft = store.draft(Key("private", "sample/0", "ab"))
    plan = [
        {"row_id": f"s{i}", "seed": i, "prompt": f"prompt {i}", "labels": [i % 2], "prompt_row_id": "r0"}
        for i in (2, 0, 1)
    ]
    draft.write_table(pa.Table.from_pylist(plan, PROMPT_PLAN), "plan")
    names, pixels = ["s1", "s2", "s0"], np.stack([flat(1), flat(2), flat(0)])
    draft.write_table(pa.table({"row_id": names, "image": images.column(pixels)}))
    sample = store.commit(draft, {})
    for wanted, numbers in ((None, [0, 1, 2]), (pa.chunked_array([["s2", "s1"]]), [1, 2])):
        made = records.synthetic(sample, sample, wanted)
        assert made.table["prompt"].to_pylist() == [f"prompt {i}" for i in numbers]
        assert made.images[:, 0, 0, 0].tolist() == numbers
        assert made.labels[:, 0].tolist() == [i % 2 for i in numbers]
    none = records.synthetic(sample, sample, pa.chunked_array([[]], pa.string()))
    assert len(none.table) == len(none.images) == len(none.labels) == 0


@given(arrays(np.int8, st.tuples(st.integers(1, 5), st.integers(1, 4)), elements=st.integers(-1, 1)))
def test_labels_survive_the_way_to_lists_and_back(matrix: np.ndarray) -> None:
    table = pa.table({"labels": records.label_lists(matrix)})
    assert table["labels"].to_pylist() == matrix.tolist()
    assert (records.label_matrix(table) == matrix).all()
    assert (records.label_matrix(table.slice(len(matrix) - 1)) == matrix[-1:]).all()


def test_only_training_records_cross_with_what_is_shared_of_them_and_none_that_is_withheld(ingest: Artifact) -> None:
    assert records.crossing(ingest).to_pylist() == [
        {"row_id": "r1", "patient_id": "ann", "prompt": "effusion", "labels": [1, 0]},
        {"row_id": "r3", "patient_id": "zoe", "prompt": "woman", "labels": [1, 0]},
    ]


def test_an_image_whose_labels_were_made_coarser_is_asked_for_with_the_coarser_prompt(ingest: Artifact) -> None:
    assert records.asked_for(ingest).to_pylist() == [
        {"row_id": "r1", "prompt": "effusion", "labels": [1, 0]},
        {"row_id": "r3", "prompt": "60s, woman, scar", "labels": [1, 0]},
    ]
