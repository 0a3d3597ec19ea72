"""Every table on disk as a schema, and the check that a table has the columns that are wanted.

Labels are lists of int8 in the order of the artifact's `findings`: 1 present, 0 absent, -1 unknown. A column has
one name all its life. Images are added by `with_images`, as their shape comes from the recipe.
"""

from __future__ import annotations

import pyarrow as pa

from pipeline.images import image_type

LABELS = pa.list_(pa.int8())
BOXES = pa.list_(
    pa.struct(
        [
            ("finding", pa.string()),
            ("x", pa.float32()),
            ("y", pa.float32()),
            ("w", pa.float32()),
            ("h", pa.float32()),
        ]
    )
)

# What a cohort gives, before pixels are read: one row per image, patient identities still real. Never stored.
LISTING = pa.schema(
    [
        ("row_id", pa.string()),  # unique, made from the position in the source
        ("patient", pa.string()),
        ("source", pa.string()),  # what the cohort's reader needs to make the pixels
        ("order", pa.int64()),  # position among the patient's images in time
        ("text", pa.string()),
        ("labels", LABELS),
        ("age", pa.float32()),  # years; null if unknown
        ("sex", pa.string()),  # "M", "F" or null
        ("view", pa.string()),
        ("boxes", BOXES),  # finding boxes, fractions of the side
    ]
)
REJECTS = pa.schema([("row_id", pa.string()), ("reason", pa.string())])
# The same with identities replaced by a keyed hash, split, and with pixels.
RECORDS = pa.schema(
    [
        ("row_id", pa.string()),
        ("patient_id", pa.string()),  # keyed hash
        ("split", pa.string()),
        ("text", pa.string()),
        ("prompt", pa.string()),  # what the teacher reads
        ("labels", LABELS),
        ("shared_prompt", pa.string()),  # what may cross, with the labels below; null where nothing may
        ("shared_labels", LABELS),
        ("age", pa.float32()),
        ("sex", pa.string()),
        ("view", pa.string()),
        ("patient_images", pa.int32()),  # of this patient in the cohort's table
        ("boxes", BOXES),
    ]
)
PROMPT_PLAN = pa.schema(
    [
        ("row_id", pa.string()),
        ("seed", pa.int64()),
        ("prompt", pa.string()),
        ("labels", LABELS),
        ("prompt_row_id", pa.string()),  # the record that the prompt comes from
    ]
)
SCORES = pa.schema(
    [
        ("row_id", pa.string()),
        ("reid_score", pa.float32()),  # 0-1, higher = more re-identifiable
        ("nearest_row_id", pa.string()),
        ("margin", pa.float32()),  # logit of the best match minus the best of all other patients
        ("decoy_score", pa.float32()),  # the same score over the decoys, unseen patients who stand beside the gallery
        ("lean", pa.list_(pa.float32())),  # by band, mean cosine with training patients' films less with decoys'
        ("pixel_copy", pa.bool_()),  # equals or nearly equals a real image pixel by pixel
    ]
)
# The auditor's column: for reports only, never read by a filter.
AUDIT_SCORES = pa.schema([("row_id", pa.string()), ("audit_score", pa.float32())])
FILTERED = pa.schema(
    [
        ("row_id", pa.string()),
        ("keep", pa.bool_()),
        ("reason", pa.dictionary(pa.int32(), pa.string())),
    ]
)
# What crosses into releasable/: new names, shared prompts, no scores.
KEPT = pa.schema([("row_id", pa.string()), ("prompt", pa.string()), ("labels", LABELS)])


class SchemaError(ValueError):
    """A table lacks a column or has one of another type."""


def with_images(schema: pa.Schema, image_px: int, channels: int, name: str = "image") -> pa.Schema:
    """The schema with a column of square images."""
    return schema.append(pa.field(name, image_type(image_px, channels)))


def require(table: pa.Table | pa.Schema, wanted: pa.Schema, where: str) -> None:
    """Check that every wanted column is there with its type; further columns are allowed.

    Raises: SchemaError naming the first column that is missing or of another type.
    """
    schema = table.schema if isinstance(table, pa.Table) else table
    for field in wanted:
        if field.name not in schema.names:
            got = ", ".join(schema.names) or "no columns"
            raise SchemaError(f"{where}: column {field.name}: want {field.type}, got nothing (columns: {got})")
        if schema.field(field.name).type != field.type:
            raise SchemaError(
                f"{where}: column {field.name}: want {field.type}, got {schema.field(field.name).type} "
                "— was the step before run with this recipe?"
            )
