"""Records and synthetic images in memory: the arrays that fits and metrics work on.

Axis letters: n images, h height, w width, c channels, k findings. Not for a whole large set at once: ask for a
split or for named rows.
"""

# pyarrow.compute makes its functions at import, out of pyright's sight.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int8, Int64, UInt8

from pipeline import images
from pipeline.artifact import Artifact


class Records(NamedTuple):
    """Real images of one split in the order of `row_id`."""

    table: pa.Table
    """Columns of `tables.RECORDS`."""
    images: UInt8[np.ndarray, "n h w c"]
    labels: Int8[np.ndarray, "n k"]
    patients: Int64[np.ndarray, " n"]
    """Patients as numbers by first appearance, so that nothing depends on the value of the keyed hash."""

    @property
    def row_ids(self) -> list[str]:
        """Names of the rows."""
        return self.table["row_id"].to_pylist()


class Synthetic(NamedTuple):
    """Synthetic images with the prompts that asked for them."""

    table: pa.Table
    """Columns of `tables.KEPT` or `tables.PROMPT_PLAN`."""
    images: UInt8[np.ndarray, "n h w c"]
    labels: Int8[np.ndarray, "n k"]


def of_split(ingest: Artifact, split: str) -> Records:
    """The real images of one split."""
    table = ingest.table("records", where=pc.field("split") == split)
    return Records(table, images_of(ingest, table["row_id"]), label_matrix(table), patient_codes(table))


def synthetic(plan: Artifact, samples: Artifact, row_ids: pa.ChunkedArray | None = None) -> Synthetic:
    """The sampled images of a plan, all or only the named ones."""
    table = plan.table("plan", where=None if row_ids is None else pc.field("row_id").isin(row_ids.combine_chunks()))
    return Synthetic(table, images_of(samples, table["row_id"], "rows"), label_matrix(table))


def images_of(artifact: Artifact, row_ids: pa.ChunkedArray, name: str = "images") -> UInt8[np.ndarray, "n h w c"]:
    """Images of the named rows in the order of `row_id`."""
    rows = artifact.table(name, ["image"], where=pc.field("row_id").isin(row_ids.combine_chunks()))
    return images.array(rows["image"])


def among(table: pa.Table, row_ids: pa.ChunkedArray) -> pa.Table:
    """The rows that are named."""
    return table.filter(pc.is_in(table["row_id"], row_ids.combine_chunks()))


def label_matrix(table: pa.Table) -> Int8[np.ndarray, "n k"]:
    """The list column `labels` as a matrix."""
    lists = table["labels"].combine_chunks()
    n = len(table)
    values = lists.flatten().to_numpy(zero_copy_only=False).astype(np.int8)
    return values.reshape(n, -1) if n else np.zeros((0, 0), np.int8)


def label_lists(matrix: Int8[np.ndarray, "n k"]) -> pa.ListArray:
    """The matrix as a list column."""
    n, k = matrix.shape
    offsets = np.arange(0, n * k + 1, max(k, 1), dtype=np.int32) if k else np.zeros(n + 1, np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(matrix.reshape(-1), pa.int8()))


def patient_codes(table: pa.Table) -> Int64[np.ndarray, " n"]:
    """`patient_id` as numbers in the order of first appearance."""
    return table["patient_id"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)


def take(records: Records, positions: Sequence[int] | np.ndarray) -> Records:
    """Some of the records."""
    chosen = np.asarray(positions)
    return Records(
        records.table.take(chosen), records.images[chosen], records.labels[chosen], records.patients[chosen]
    )


def image_column(pixels: UInt8[np.ndarray, "n h w c"]) -> pa.ChunkedArray:
    """Images as a column to append to a table."""
    return pa.chunked_array([images.column(pixels)])


def asked_for(ingest: Artifact) -> pa.Table:
    """What to sample the teacher with: `row_id, prompt, labels` of every training record of which anything may cross.

    A record whose labels cross as they are is asked for with its own prompt; where they were made coarser, with the
    coarser prompt, so that image and label agree.
    """
    train = ingest.table("records", where=pc.field("split") == "train")
    train = train.filter(pc.is_valid(train["shared_prompt"]))
    same = pc.equal(_joined(train["labels"]), _joined(train["shared_labels"]))
    asked = pc.if_else(same, train["prompt"], train["shared_prompt"])
    return pa.table({"row_id": train["row_id"], "prompt": asked, "labels": train["shared_labels"]})


def crossing(ingest: Artifact) -> pa.Table:
    """What of each training record may cross: `row_id, patient_id, prompt, labels`, shared by k patients."""
    train = ingest.table(
        "records", ["row_id", "patient_id", "shared_prompt", "shared_labels"], pc.field("split") == "train"
    )
    train = train.filter(pc.is_valid(train["shared_prompt"]))
    return train.rename_columns(["row_id", "patient_id", "prompt", "labels"])


def _joined(labels: pa.ChunkedArray) -> pa.ChunkedArray:
    """Lists as text, which can be compared."""
    return pa.chunked_array([[",".join(map(str, row)) for row in labels.to_pylist()]], pa.string())
