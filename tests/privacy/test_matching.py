import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import config
from pipeline.images import to_torch, to_uint8
from pipeline.privacy import matching
from pipeline.privacy.augment import blurred, moved
from pipeline.privacy.matching import POSES, Gallery, Pose, best_matches, different_pairs, shuffled_pairs
from pipeline.privacy.networks import SiameseNetwork, embeddings


def network(weights: list[float], bias: float = 0.0) -> SiameseNetwork:
    model = SiameseNetwork(config.Network(width=1, embedding=len(weights)), 16, 1).eval()
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor([weights]))
        model.head.bias.fill_(bias)
    return model


def gallery(vectors: list[list[float]], patients: str) -> Gallery:
    return Gallery(torch.tensor(vectors), list(patients), [f"r{i}" for i in range(len(vectors))])


def random_case(seed: int, n: int = 9, m: int = 23, n_poses: int = 1) -> tuple[SiameseNetwork, torch.Tensor, Gallery]:
    """Embeddings on a coarse grid, so that ties are common; m films."""
    generator = torch.Generator().manual_seed(seed)
    model = network(torch.randint(-2, 3, (4,), generator=generator).mul(0.5).tolist(), 1.0)
    vectors = torch.randint(0, 3, (n_poses * m, 4), generator=generator) / 2
    patients = [f"p{code}" for code in torch.randint(0, 6, (m,), generator=generator)]
    queries = torch.randint(0, 3, (n, 4), generator=generator) / 2
    return model, queries, Gallery(vectors, patients, [f"r{i}" for i in range(m)])


def by_hand(
    model: SiameseNetwork, queries: torch.Tensor, films: Gallery, allowed: np.ndarray
) -> tuple[list[float], list[int], list[float]]:
    """The definition, pair by pair; `allowed` is by film."""
    n_films = len(films.patients)
    weight, bias = model.head.weight[0].tolist(), model.head.bias.item()
    logits, nearest, margins = [], [], []
    for i, query in enumerate(queries.tolist()):
        row = [
            bias + sum(w * abs(a - g) for w, a, g in zip(weight, query, film, strict=True))
            for film in films.embeddings.tolist()
        ]
        open_to = [j for j in range(len(row)) if allowed[i, j % n_films]]
        best = max(open_to, key=lambda j: (row[j], -j))
        others = [row[j] for j in open_to if films.patients[j % n_films] != films.patients[best % n_films]]
        logits.append(row[best])
        nearest.append(best % n_films)
        margins.append(row[best] - max(others, default=-np.inf))
    return logits, nearest, margins


def test_the_best_match_worked_out_by_hand() -> None:
    model = network([-2.0, 1.0], bias=1.0)
    films = gallery([[0.0, 0.0], [0.1, 0.5], [0.5, 1.0]], "aab")
    # Logits of the query (0.1, 0): 1 - 0.2; 1 + 0.5; 1 - 0.8 + 1.
    found = best_matches(model, torch.tensor([[0.1, 0.0]]), films, 2)
    assert found.nearest.tolist() == [1]
    torch.testing.assert_close(found.logit, torch.tensor([1.5]))
    torch.testing.assert_close(found.margin, torch.tensor([0.3]))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), block=st.integers(1, 80), n_poses=st.sampled_from([1, 3]))
def test_every_block_size_gives_the_definition_with_the_lowest_position_of_equals(
    seed: int, block: int, n_poses: int
) -> None:
    model, queries, films = random_case(seed, n_poses=n_poses)
    found = best_matches(model, queries, films, block)
    logits, nearest, margins = by_hand(model, queries, films, np.ones((9, 23), bool))
    assert found.logit.tolist() == logits
    assert found.nearest.tolist() == nearest
    assert found.margin.tolist() == margins


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), block=st.integers(1, 80), n_poses=st.sampled_from([1, 3]))
def test_an_excluded_film_or_patient_is_never_found_in_any_pose(seed: int, block: int, n_poses: int) -> None:
    model, queries, films = random_case(seed, n_poses=n_poses)
    rng = np.random.default_rng(seed)
    row, patient = rng.integers(-1, 23, 9), rng.integers(-1, 6, 9)
    codes = films.patient_codes.numpy()[:23]
    patient[patient > codes.max()] = -1
    for given_row, given_patient in ((row, None), (None, patient), (row, patient)):
        allowed = np.ones((9, 23), bool)
        if given_row is not None:
            allowed &= np.arange(23) != given_row[:, None]
        if given_patient is not None:
            allowed &= codes != given_patient[:, None]
        found = best_matches(
            model,
            queries,
            films,
            block,
            exclude_row=None if given_row is None else torch.from_numpy(given_row),
            exclude_patient=None if given_patient is None else torch.from_numpy(given_patient),
        )
        logits, nearest, margins = by_hand(model, queries, films, allowed)
        assert (found.logit.tolist(), found.nearest.tolist(), found.margin.tolist()) == (logits, nearest, margins)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_order_of_the_gallery_changes_neither_score_nor_margin_nor_film(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = network(torch.randn(16, generator=generator).tolist(), 2.0)
    films = Gallery(
        torch.rand(50, 16, generator=generator), [str(i // 3) for i in range(50)], list(map(str, range(50)))
    )
    order = torch.randperm(50, generator=generator)
    turned = Gallery(films.embeddings[order], [films.patients[i] for i in order], [films.row_ids[i] for i in order])
    queries = torch.rand(7, 16, generator=generator)
    first, second = best_matches(model, queries, films, 8), best_matches(model, queries, turned, 13)
    assert torch.equal(first.logit, second.logit)
    assert torch.equal(first.margin, second.margin)
    assert [films.row_ids[i] for i in first.nearest] == [turned.row_ids[i] for i in second.nearest]


def test_a_row_does_not_depend_on_the_queries_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    model = network(torch.randn(128, generator=generator).tolist())
    films = Gallery(
        torch.rand(700, 128, generator=generator), [str(i) for i in range(700)], [str(i) for i in range(700)]
    )
    queries = torch.rand(300, 128, generator=generator)
    together = best_matches(model, queries, films, 512)
    for rows in (slice(0, 1), slice(7, 40), slice(255, 258)):
        alone = best_matches(model, queries[rows], films, 512)
        for column, part in zip(together, alone, strict=True):
            assert torch.equal(column[rows], part)
    monkeypatch.setattr(matching, "QUERY_ROWS", 7)
    assert all(map(torch.equal, best_matches(model, queries, films, 64), together))


def test_a_copy_of_a_gallery_film_is_found_with_the_head_s_largest_score() -> None:
    model = network([-3.0] * 8, bias=4.0)
    films = Gallery(torch.rand(40, 8), [str(i) for i in range(40)], [str(i) for i in range(40)])
    found = best_matches(model, films.embeddings, films, 16)
    assert found.nearest.tolist() == list(range(40))
    torch.testing.assert_close(found.reid_score, torch.full((40,), 4.0).sigmoid())
    assert (found.margin > 0).all()


def test_the_margin_is_infinite_where_there_is_one_patient_only() -> None:
    found = best_matches(network([-1.0]), torch.tensor([[0.3]]), gallery([[0.1], [0.4]], "aa"), 1)
    assert found.margin.tolist() == [float("inf")]


def test_no_queries_give_no_matches_and_no_gallery_is_an_error() -> None:
    films = gallery([[0.1], [0.4]], "ab")
    assert [len(column) for column in best_matches(network([-1.0]), torch.empty(0, 1), films, 4)] == [0, 0, 0]
    empty = dataclasses.replace(films, embeddings=torch.empty(0, 1), patients=[], row_ids=[])
    with pytest.raises(ValueError, match="at least one real image"):
        best_matches(network([-1.0]), torch.empty(3, 1), empty, 4)


def test_a_query_with_every_film_excluded_is_an_error() -> None:
    with pytest.raises(ValueError, match="not excluded for every query"):
        best_matches(network([-1.0]), torch.zeros(1, 1), gallery([[0.1]], "a"), 4, exclude_patient=torch.tensor([0]))


@pytest.mark.parametrize("n_poses", [1, 3])
def test_a_saved_gallery_is_the_same_in_all_its_poses(tmp_path, n_poses: int) -> None:
    films = random_case(3, n_poses=n_poses)[2]
    films.save(tmp_path / "gallery.parquet")
    again = Gallery.load(tmp_path / "gallery.parquet")
    assert torch.equal(again.embeddings, films.embeddings)
    assert (again.patients, again.row_ids) == (films.patients, films.row_ids)
    assert (again.n_poses, len(again.as_they_are)) == (n_poses, 23)


class Pixels(SiameseNetwork):
    """A network that sees the pixels themselves, so that only a film in the same pose looks alike."""

    def __init__(self) -> None:
        super().__init__(config.Network(width=1, embedding=32**2), 32, 1)
        torch.nn.init.constant_(self.head.weight, -0.1)
        self.eval()

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) / 2 + 0.5


FILMS = to_uint8(blurred(blurred(torch.rand(12, 1, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1)))
NAMES = [f"r{i}" for i in range(12)]


def posed(n_poses: int) -> Gallery:
    """Two films a patient."""
    return Gallery.of(Pixels(), FILMS, [f"p{i // 2}" for i in range(12)], NAMES, 8, n_poses)


def found(pose: Pose, n_poses: int) -> matching.Matches:
    """Each film looked for, moved."""
    n = len(FILMS)
    shift = torch.tensor([[32 * pose.right, 32 * pose.down]]).expand(n, 2)
    turn, zoom = torch.full((n,), pose.rotation_deg), torch.full((n,), pose.zoom)
    copies = to_uint8(moved(to_torch(FILMS), shift, turn, zoom))
    model = Pixels()
    return best_matches(model, embeddings(model, copies, 8), posed(n_poses), 5)


def test_a_gallery_in_one_pose_is_that_of_the_films_as_they_are() -> None:
    plain = embeddings(Pixels(), FILMS, 8)
    assert torch.equal(posed(1).embeddings, plain)
    for n_poses in (1, 3, 7, 11, 13):
        films = posed(n_poses)
        assert torch.equal(films.as_they_are, plain) and films.n_poses == n_poses
        assert films.patient_codes.tolist() == [i // 2 for i in range(12)] * n_poses


@pytest.mark.parametrize("pose", POSES)
def test_a_copy_in_a_pose_of_the_gallery_is_found_as_if_it_had_not_been_moved(pose: Pose) -> None:
    copies = found(pose, len(POSES))
    torch.testing.assert_close(copies.logit, torch.full((12,), 4.0), rtol=0, atol=1e-3)
    assert copies.nearest.tolist() == list(range(12))


@pytest.mark.parametrize(
    "pose",
    [Pose(1.18), Pose(1 / 1.18), Pose(1, 0.083), Pose(1, 0, -0.05), Pose(1.16, 0.06, -0.06), Pose(rotation_deg=5)],
)
def test_a_film_moved_in_between_is_found_better_in_a_posed_gallery(pose: Pose) -> None:
    plain, in_poses = (found(pose, n_poses) for n_poses in (1, len(POSES)))
    assert (in_poses.logit >= plain.logit).all()
    assert in_poses.logit.mean() > plain.logit.mean() + 1
    assert in_poses.nearest.tolist() == list(range(12))  # positions of films, whichever pose was the nearest


def test_random_pairs_are_of_films_as_they_are() -> None:
    plain, in_poses = (shuffled_pairs(Pixels(), posed(n), 50, torch.Generator().manual_seed(0)) for n in (1, 11))
    assert torch.equal(plain, in_poses)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), n_pairs=st.integers(0, 60))
def test_random_pairs_are_of_different_patients(seed: int, n_pairs: int) -> None:
    codes = torch.tensor([0] * 20 + [1, 2])
    first, second = different_pairs(codes, n_pairs, torch.Generator().manual_seed(seed))
    assert len(first) == len(second) == n_pairs
    assert (codes[first] != codes[second]).all()


def test_shuffled_pairs_score_pairs_of_different_patients_only() -> None:
    films = gallery([[0.0], [0.0], [0.5], [0.5]], "aabb")
    scores = shuffled_pairs(network([-2.0]), films, 30, torch.Generator().manual_seed(0))
    torch.testing.assert_close(scores, torch.full((30,), -1.0).sigmoid())
    with pytest.raises(ValueError, match="two patients"):
        shuffled_pairs(network([-2.0]), gallery([[0.0], [1.0]], "aa"), 3, torch.Generator())
