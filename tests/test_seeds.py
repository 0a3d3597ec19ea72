"""Random numbers: the same for a row on every machine, and its own for every row."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.seeds import Origin, numpy_generator, row_seed, subkey, torch_generator

SECRET = b"s" * 32


def test_the_seed_of_a_row_is_the_same_on_every_machine() -> None:
    digest = hashlib.blake2b(b"7\x1fsample\x1fs0-0000001", digest_size=8).hexdigest()
    assert row_seed(7, "sample", "s0-0000001") == int(digest, 16) // 2
    assert row_seed(0) == 4_761_921_975_702_974_394
    assert numpy_generator(0, "a").integers(0, 1000, 4).tolist() == [749, 165, 100, 31]
    assert torch_generator(0, "a").initial_seed() == 1_481_238_324_449_861_677


def test_a_secret_keys_the_digest_instead_of_standing_in_it() -> None:
    digest = hashlib.blake2b(b"sample\x1fs0-0000001", key=SECRET, digest_size=8).hexdigest()
    assert row_seed(SECRET, "sample", "s0-0000001") == int(digest, 16) // 2
    assert torch_generator(SECRET, "a").initial_seed() == row_seed(SECRET, "a")
    whole = int.from_bytes(hashlib.blake2b(b"a", key=SECRET, digest_size=32).digest(), "big")
    expected = np.random.default_rng(whole).integers(0, 1000, 8)
    assert (numpy_generator(SECRET, "a").integers(0, 1000, 8) == expected).all()
    assert subkey(SECRET, "run", 7) == hashlib.blake2b(b"run\x1f7", key=SECRET, digest_size=32).digest()


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_another_secret_gives_other_numbers_and_another_domain_another_key(first: bytes, second: bytes) -> None:
    assert (row_seed(first, "a") == row_seed(second, "a")) == (first == second)
    keys = {subkey(first, "run", 0), subkey(first, "run", 1), subkey(first, "patient"), first}
    assert len(keys) == 4 and {len(key) for key in keys} == {32}


@given(st.integers() | st.binary(min_size=32, max_size=32), st.lists(st.text() | st.integers(), max_size=3))
def test_a_seed_fits_what_takes_seeds(origin: Origin, identity: list[object]) -> None:
    seed = row_seed(origin, *identity)
    assert 0 <= seed < 2**63
    torch.Generator().manual_seed(seed)


def test_rows_steps_and_runs_have_seeds_of_their_own() -> None:
    seeds = {row_seed(run, step, row) for run in range(5) for step in ("sample", "teach") for row in range(200)}
    assert len(seeds) == 2000


def test_parts_of_an_identity_do_not_run_together() -> None:
    assert row_seed(0, "ab", "c") != row_seed(0, "a", "bc")
    assert row_seed(1, 2) != row_seed(12)


def test_a_generator_gives_the_same_numbers_whatever_was_drawn_before() -> None:
    first = numpy_generator(0, "a").random(3), torch.rand(3, generator=torch_generator(0, "a"))
    numpy_generator(0, "b").random(100)
    torch.rand(100)
    second = numpy_generator(0, "a").random(3), torch.rand(3, generator=torch_generator(0, "a"))
    assert (first[0] == second[0]).all() and (first[1] == second[1]).all()
    assert (numpy_generator(0, "b").random(3) != first[0]).all()
