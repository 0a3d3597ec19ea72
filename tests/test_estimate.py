"""Numbers about few people: which may be released, and how the others are told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.estimate import fewer_than, is_small, rounded, too_small


@pytest.mark.parametrize(
    ("n", "small", "told"), [(0, False, "0"), (1, True, "fewer than 5"), (4, True, "fewer than 5"), (5, False, "5")]
)
def test_only_some_but_fewer_than_k_are_too_few_to_tell(n: int, small: bool, told: str) -> None:
    assert is_small(n, 5) is small
    assert fewer_than(n, 5) == told


def test_a_large_count_is_told_in_full() -> None:
    assert fewer_than(12_345, 5) == "12,345"


@given(st.dictionaries(st.text(min_size=1, max_size=5), st.integers(0, 30), max_size=8), st.integers(2, 9))
def test_what_is_left_of_a_total_is_never_about_some_but_fewer_than_k(n_people: dict[str, int], k: int) -> None:
    hidden = too_small(n_people, k)
    left = sum(n_people[name] for name in hidden)
    assert not is_small(left, k) or len(hidden) == sum(n > 0 for n in n_people.values())
    assert not any(is_small(n, k) for name, n in n_people.items() if name not in hidden)
    if not any(is_small(n, k) for n in n_people.values()):
        assert hidden == set()


@pytest.mark.parametrize(
    ("n", "told"), [(0, 0), (7, 10), (23, 20), (96, 100), (20_958, 21_000), (1_058, 1_100), (994, 990)]
)
def test_a_rounded_count_keeps_two_digits(n: int, told: int) -> None:
    assert rounded(n) == told
