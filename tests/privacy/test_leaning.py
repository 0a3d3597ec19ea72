"""What leans to training patients: films that a generator stayed near to, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline import config
from pipeline.cohorts import phantom
from pipeline.privacy.leaning import NEAREST, Leaning, balanced

PX = 32


@pytest.fixture(scope="module")
def films() -> np.ndarray:
    """One film of each of 600 drawn patients."""
    listed = phantom.listing(config.Phantom(n_patients=600, heavy_patient_frac=0, repeat_frac=0), 3)
    sources = dict(zip(listed["patient"].to_pylist(), listed["source"].to_pylist(), strict=True))
    return phantom.draw(list(sources.values()), PX)


@pytest.fixture(scope="module")
def leaning(films: np.ndarray) -> Leaning:
    return Leaning.of(films[:300], films[300:360], films[360:490])


def blends(films: np.ndarray, n: int) -> np.ndarray:
    """Pictures of nobody, each between a film and two others."""
    generator = np.random.default_rng(0)
    drawn = films[generator.integers(0, len(films), (n, 3))].astype(float)
    return (0.6 * drawn[:, 0] + 0.2 * drawn[:, 1] + 0.2 * drawn[:, 2]).astype(np.uint8)


def test_what_was_made_of_members_leans_to_them_of_decoys_to_those_and_of_strangers_to_nobody(
    leaning: Leaning, films: np.ndarray
) -> None:
    of_members, of_decoys, of_strangers = (
        leaning(blends(some, 200)) for some in (films[300:360], films[360:490], films[490:])
    )
    assert of_members.mean() > 0.05 and of_decoys.mean() < -0.02
    assert abs(of_strangers.mean()) < 4 * of_strangers.std() / np.sqrt(len(films[490:]))


def test_a_lean_does_not_depend_on_neighbours_nor_on_being_saved(
    leaning: Leaning, films: np.ndarray, tmp_path: Path
) -> None:
    leaning.save(tmp_path / "leaning")
    found = Leaning.load(tmp_path / "leaning", PX)(films[490:])
    assert np.array_equal(found, leaning(films[490:]))
    for n in (1, 7):
        assert np.array_equal(found[:n].astype(np.float32), leaning(films[490 : 490 + n]).astype(np.float32))


def test_everybody_is_compared_whoever_are_more(films: np.ndarray) -> None:
    for members, decoys in ((films[300:450], films[450:510]), (films[450:510], films[300:450])):
        uneven = Leaning.of(films[:300], members, decoys)
        last = uneven(np.stack([members[-1], decoys[-1]]))
        assert last[0] > 0.03 and last[1] < -0.03


def test_too_few_films_lean_to_nobody(films: np.ndarray) -> None:
    few = NEAREST - 1
    for unable in (Leaning.of(films[:20], films[:60], films[60:120]), Leaning.of(films[:300], films[:few], films)):
        assert np.isnan(unable(films[490:])).all()


def test_the_balance_keeps_as_many_as_it_can() -> None:
    assert balanced(np.array([0.3, -0.2, 0.1, -0.1])).tolist() == [False, True, True, True]
    assert balanced(np.array([0.1, 0.2])).tolist() == [False, False]
    assert balanced(np.zeros(3)).all() and balanced(np.array([])).tolist() == []
