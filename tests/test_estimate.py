"""Numbers about few people: which may be released, and how the others are told."""

from __future__ import annotations

import pytest

from pipeline.estimate import fewer_than, is_small


@pytest.mark.parametrize(
    ("n", "small", "told"), [(0, False, "0"), (1, True, "fewer than 5"), (4, True, "fewer than 5"), (5, False, "5")]
)
def test_only_some_but_fewer_than_k_are_too_few_to_tell(n: int, small: bool, told: str) -> None:
    assert is_small(n, 5) is small
    assert fewer_than(n, 5) == told


def test_a_large_count_is_told_in_full() -> None:
    assert fewer_than(12_345, 5) == "12,345"
