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
    return of_one_film_each(films[:300], films[300:360], films[360:490])


def of_one_film_each(others: np.ndarray, members: np.ndarray, decoys: np.ndarray) -> Leaning:
    return Leaning.of(others, members, np.arange(len(members)), decoys)


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
    assert of_members.shape == (200, 1)
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
        uneven = of_one_film_each(films[:300], members, decoys)
        last = uneven(np.stack([members[-1], decoys[-1]]))[:, 0]
        assert last[0] > 0.03 and last[1] < -0.03


def test_too_few_films_lean_to_nobody(films: np.ndarray) -> None:
    few = NEAREST - 1
    too_few_others = of_one_film_each(films[:20], films[:60], films[60:120])
    too_few_members = of_one_film_each(films[:300], films[:few], films)
    for unable in (too_few_others, too_few_members):
        assert np.isnan(unable(films[490:])).all()


def test_who_is_near_to_those_with_many_films_leans_to_their_band_alone(films: np.ndarray) -> None:
    # Forty patients with a film each, twenty with six films that are blends with their first.
    many = films[340:360].astype(float)
    copies = [(0.8 * many + 0.2 * films[490 + 20 * i : 510 + 20 * i]).astype(np.uint8) for i in range(5)]
    members = np.concatenate([films[300:340], films[340:360], *copies])
    patients = np.concatenate([np.arange(60), *[np.arange(40, 60)] * 5])
    banded = Leaning.of(films[:300], members, patients, films[360:490])
    everybody, with_one, with_many = banded(blends(films[340:360], 200)).mean(0)
    assert with_many > everybody > with_one and with_many > 0.05


def test_a_band_of_few_people_counts_among_those_with_fewer_films(films: np.ndarray) -> None:
    patients = np.concatenate([np.arange(50), np.arange(5), np.arange(5), np.arange(5)])
    found = Leaning.of(films[:300], films[300:365], patients, films[365:490])(films[490:500])
    assert found.shape == (10, 1)  # five patients with four films, and nobody with two: one band is everybody


def test_the_balance_keeps_as_many_as_it_can() -> None:
    assert balanced(np.array([[0.3], [-0.2], [0.1], [-0.1]])).tolist() == [False, True, True, True]
    assert balanced(np.array([[0.1], [0.2]])).tolist() == [False, False]
    assert balanced(np.zeros((3, 2))).all() and balanced(np.zeros((0, 2))).tolist() == []


def test_the_balance_holds_in_every_band() -> None:
    leans = np.random.default_rng(0).normal([0.2, -0.1, 0.4], [1, 1, 0.2], (3_000, 3))
    stays = balanced(leans)
    assert (leans[stays].mean(0) <= 0).all() and (leans[stays].mean(0) > -0.1)[[0, 2]].all()
    assert 100 < stays.sum() < 1_000
