"""A film is recognised in its place: whoever redraws it softly is found, whoever merely looks like a chest is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline import config
from pipeline.images import to_torch, to_uint8
from pipeline.privacy import matching, networks, training
from pipeline.privacy.augment import softened
from pipeline.privacy.eigenfilms import FEWEST, FILMS_EACH, EigenFilms, quantile
from pipeline.privacy.networks import SiameseNetwork, standardised

SIDE = 24


def blobs(n: int, seed: int, side: int = SIDE) -> Tensor:
    """Soft random films, one apart from the other, on a chest that they share."""
    generator = torch.Generator().manual_seed(seed)
    own = softened(torch.randn(n, 1, side, side, generator=generator), 2.0)
    shared = softened(torch.randn(1, 1, side, side, generator=torch.Generator().manual_seed(1)), 3.0)
    return (2 * own + 6 * shared + 0.05 * torch.randn(n, 1, side, side, generator=generator)).clamp(-1, 1)


def trained(n: int = 400, **settings: object) -> SiameseNetwork:
    network = config.Network.model_validate(
        {"width": 4, "embedding": 8, "steps": 5, "patients_per_batch": 8} | settings
    )
    return training.fit(network, config.Augment(), to_uint8(blobs(n, 2)), np.arange(n) // 2, seed=0)


def test_a_film_redrawn_in_its_place_is_nearer_than_every_strangers_film() -> None:
    found = EigenFilms.of(standardised(blobs(600, 2)), 32)
    gallery, strangers = standardised(blobs(100, 3)), standardised(blobs(100, 4))
    redrawn = standardised(softened(blobs(100, 3), 1.0))
    own = (found(redrawn) * found(gallery)).sum(1)
    best_stranger = (found(strangers) @ found(gallery).T).max(1).values
    assert own.min() > 0.8 > best_stranger.quantile(0.95)


def test_a_smooth_picture_of_nobody_is_not_nearer_to_films_than_strangers_are() -> None:
    films = standardised(blobs(600, 2))
    found = EigenFilms.of(films, 32)
    gallery, strangers = standardised(blobs(100, 3)), standardised(blobs(100, 4))
    smooth = standardised(blobs(200, 5).reshape(2, 100, 1, SIDE, SIDE).mean(0))
    as_they_are = lambda some: torch.nn.functional.normalize(some.flatten(1), dim=1)  # noqa: E731
    plain = [as_they_are(some) @ as_they_are(gallery).T for some in (smooth, strangers)]
    assert plain[0].max(1).values.median() > plain[1].max(1).values.median()  # what a plain correlation says
    ours = [found(some) @ found(gallery).T for some in (smooth, strangers)]
    assert ours[0].max(1).values.median() <= ours[1].max(1).values.median() + 0.05


def test_a_pair_has_the_larger_of_the_two_opinions_one_by_one_and_all_with_all() -> None:
    model = trained()
    vectors = networks.embeddings(model, to_uint8(blobs(30, 3)), 16)
    assert vectors.shape == (30, 8 + model.eigenfilms.n_components)
    model.requires_grad_(False)
    rows, columns = (index.flatten() for index in torch.meshgrid(torch.arange(30), torch.arange(30), indexing="ij"))
    by_features, cosine = model.opinions(vectors[rows], vectors[columns])
    expected = torch.maximum(by_features, model.eigenfilms.logits(cosine)).reshape(30, 30)
    torch.testing.assert_close(model.pairwise_logits(vectors, vectors), expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(model.pair_logit(vectors[rows], vectors[columns]).reshape(30, 30), expected)
    assert (expected > by_features.reshape(30, 30)).any() and (expected == by_features.reshape(30, 30)).any()


def test_a_pair_has_the_same_logit_to_the_bit_in_a_block_of_any_size() -> None:
    model = trained()
    vectors = networks.embeddings(model, to_uint8(blobs(300, 3)), 64)
    model.requires_grad_(False)
    whole = model.pairwise_logits(vectors[:50], vectors)
    for rows, block in ((1, 1), (7, 13), (50, 128)):
        assert torch.equal(model.pairwise_logits(vectors[:rows], vectors[:block]), whole[:rows, :block])


def test_places_add_a_quarter_of_the_false_alarms_of_features_at_every_threshold() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, cosines = torch.randn(2, 1_000_000, generator=generator)
    found = EigenFilms(SIDE, 16)
    found.calibrate(cosines / 8, 3 * logits - 2, (1e-2, 1e-4), 0.25)
    for frac in (1e-2, 1e-3, 1e-4):
        threshold = quantile(3 * logits - 2, frac)
        assert (found.logits(cosines / 8) > threshold).float().mean() == pytest.approx(frac / 4, rel=0.35)


def test_a_network_keeps_its_eigenfilms_in_its_folder(tmp_path: Path) -> None:
    model = trained()
    model.save(tmp_path)
    films = to_uint8(blobs(20, 3))
    assert torch.equal(networks.embeddings(networks.load(tmp_path), films, 8), networks.embeddings(model, films, 8))
    names = [str(i) for i in range(20)]
    for poses in (1, 3):
        matching.Gallery.of(model, films, names, names, 8, poses).save(tmp_path / "g.parquet")
        found = matching.best_matches(
            model, networks.embeddings(model, films, 8), matching.Gallery.load(tmp_path / "g.parquet"), 7
        )
        assert found.nearest.tolist() == list(range(20))


@pytest.mark.parametrize(
    ("n", "asked", "got"),
    [(400, 64, 40), (400, 16, 16), (400, 0, 0), (FEWEST * FILMS_EACH - 2, 64, 0)],
)
def test_there_is_an_eigenfilm_for_ten_films_at_most_and_none_where_they_would_be_too_few(
    n: int, asked: int, got: int
) -> None:
    model = trained(n, eigenfilms=asked)
    assert model.eigenfilms.n_components == got
    assert networks.embeddings(model, to_uint8(blobs(3, 3)), 3).shape == (3, 8 + got)


def test_flat_films_make_eigenfilms_that_say_nothing_and_no_nan() -> None:
    found = EigenFilms.of(standardised(torch.zeros(200, 1, SIDE, SIDE)), 16)
    assert torch.equal(found(standardised(torch.zeros(2, 1, SIDE, SIDE))), torch.zeros(2, 16))


def test_a_warm_start_takes_the_features_and_computes_eigenfilms_anew() -> None:
    first = trained(400)
    network = config.Network.model_validate(
        {"width": 4, "embedding": 8, "steps": 1, "patients_per_batch": 8, "lr": 1e-12}
    )
    again = training.fit(
        network, config.Augment(), to_uint8(blobs(200, 6)), np.arange(200) // 2, seed=0, initial=first
    )
    assert again.eigenfilms.n_components == 20
    assert torch.allclose(again.head.weight, first.head.weight, atol=1e-6)
    assert to_torch(to_uint8(blobs(1, 3))).shape == (1, 1, SIDE, SIDE)
