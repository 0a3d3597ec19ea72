"""Schemas: what is missing is named with what there is."""

from __future__ import annotations

import pyarrow as pa
import pytest

from pipeline.images import image_type
from pipeline.tables import PROMPT_PLAN, SCORES, SchemaError, require, with_images


def test_a_table_may_have_more_columns_in_another_order() -> None:
    more = pa.schema([("extra", pa.int8()), *reversed(list(SCORES))])
    require(more, SCORES, "filter input")
    require(more.empty_table(), SCORES, "filter input")


def test_a_missing_column_is_named_with_those_that_are_there() -> None:
    without = SCORES.remove(SCORES.get_field_index("margin")).empty_table()
    with pytest.raises(
        SchemaError, match=r"filter input: column margin: want float, got nothing \(columns: row_id, "
    ):
        require(without, SCORES, "filter input")


def test_a_table_without_columns_says_so() -> None:
    with pytest.raises(SchemaError, match="columns: no columns"):
        require(pa.table({}), PROMPT_PLAN, "sample input")


def test_a_column_of_another_type_is_named_with_both_types() -> None:
    wrong = SCORES.set(1, pa.field("reid_score", pa.float64()))
    with pytest.raises(SchemaError, match=r"column reid_score: want float, got double .* run with this recipe"):
        require(wrong, SCORES, "filter input")


def test_images_of_another_size_are_of_another_type() -> None:
    with pytest.raises(SchemaError, match=r"column image: want .*32,32,1.*got .*48,48,1"):
        require(with_images(SCORES, 48, 1), with_images(SCORES, 32, 1), "score input")
    assert with_images(SCORES, 32, 3, "film").field("film").type == image_type(32, 3)
