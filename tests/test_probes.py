"""Who is looked for and with what: one film a person, copies planted among the student's, gaps around members."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from pipeline import config, images, probes
from pipeline.artifact import Artifact, Key, Store
from pipeline.config import Recipe
from pipeline.privacy.augment import CHANGES
from pipeline.privacy.networks import SiameseNetwork
from pipeline.progress import Bar
from pipeline.seeds import numpy_generator
from pipeline.tables import RECORDS
from pipeline.task import Work
from pipeline.workers import NETWORKS

PX = 48  # at 32, half of the demanded blur is lost in 8 bits
RECIPE = config.changed(Recipe(), {"evaluate.membership_people": 4, "score.batch_size": 8})
# Patients by split, with their number of films in the cohort; at most three of them are in a split.
SPLITS = {"train": [30, 2, 1, 8, 5, 1], "test": [1, 1, 2], "control": [1, 4], "identify": [2, 2]}


def films(n: int, seed: int = 0) -> np.ndarray:
    smooth = gaussian_filter(np.random.default_rng(seed).normal(size=(n, PX, PX)), (0, 2, 2))
    return np.round(127.5 + 110 * smooth / np.abs(smooth).max((1, 2), keepdims=True)).astype(np.uint8)[..., None]


@pytest.fixture
def ingest(tmp_path: Path) -> Artifact:
    draft = Store(tmp_path).draft(Key("private", "ingest", "ab"))
    rows = [
        {"patient_id": f"{split}-{patient}", "split": split, "labels": [i % 2, -1], "patient_images": n_films}
        for split, sizes in SPLITS.items()
        for patient, n_films in enumerate(sizes)
        for i in range(min(n_films, 3))
    ]
    rows = [row | {"row_id": f"r{i:03d}"} for i, row in enumerate(rows)]
    draft.write_table(pa.Table.from_pylist(rows, RECORDS), "records")
    names = [row["row_id"] for row in rows]
    draft.write_table(pa.table({"row_id": names, "image": images.column(films(len(rows)))}), "images")
    return draft.store.commit(draft, {"findings": ["Pleural_Effusion", "edema"]})


def work(ingest: Artifact, recipe: Recipe = RECIPE) -> Work:
    draft = ingest.store.draft(Key("private", "evaluate/gaps", "cd"))
    return Work(recipe, {"ingest": ingest}, draft, Bar(None, "evaluate/gaps"), 0.0)


@given(st.lists(st.integers(0, 6), max_size=30), st.integers(0, 99))
def test_every_patients_first_film_comes_before_any_second(patients: list[int], seed: int) -> None:
    order = probes._people_first(np.array(patients, np.int64), numpy_generator(seed))
    assert sorted(order) == list(range(len(patients)))
    seen: Counter[int] = Counter()
    turns = []
    for position in order:
        turns.append(seen[patients[position]])
        seen[patients[position]] += 1
    assert turns == sorted(turns)


def test_which_film_stands_for_a_patient_is_drawn_anew_by_another_secret() -> None:
    patients = np.repeat(np.arange(20), 5)
    first, again, other = (probes._people_first(patients, numpy_generator(key)) for key in (b"a" * 32, b"a" * 32, 0))
    assert (first == again).all() and set(first[:20]) != set(other[:20])


def test_one_film_stands_for_each_person_of_the_three_groups_with_the_band_of_their_films(ingest: Artifact) -> None:
    people = probes._people(work(ingest))
    assert Counter(people["part"].to_pylist()) == {"member": 4, "stranger": 3, "control": 2}  # four at most
    records = {row["row_id"]: row for row in ingest.table("records").to_pylist()}
    chosen = [records[row_id] for row_id in people["row_id"].to_pylist()]
    assert len({row["patient_id"] for row in chosen}) == len(chosen)
    assert [row["split"] for row in chosen] == [probes.PEOPLE[part] for part in people["part"].to_pylist()]
    by_films = dict(zip([row["patient_images"] for row in chosen], people["stratum"].to_pylist(), strict=True))
    assert [by_films[n] for n in sorted(by_films)] == sorted(by_films.values())
    real = ingest.table("images")
    own = dict(zip(real["row_id"].to_pylist(), images.array(real["image"]), strict=True))
    for row_id, image in zip(people["row_id"].to_pylist(), images.array(people["image"]), strict=True):
        assert (image == own[row_id]).all()


def test_an_attacker_says_of_a_film_the_findings_that_it_is_known_to_show(ingest: Artifact) -> None:
    people = pa.table({"labels": [[1, -1], [0, 1], [1, 1], [0, 0]]})
    told = probes._label_prompts(people, ["Pleural_Effusion", "edema"])
    assert told == ["pleural effusion", "edema", "pleural effusion, edema", "chest x-ray"]


def test_copies_are_planted_exact_and_nearly_so_of_each_patient_first_and_changed_in_every_way(
    ingest: Artifact,
) -> None:
    copies = probes.planted(work(ingest))
    names = copies["row_id"].to_pylist()
    n = sum(min(size, 3) for size in SPLITS["train"])
    assert names == [f"planted-{kind}-{i:03d}" for kind in ("exact", "near") for i in range(n)]
    pixels = images.array(copies["image"])
    exact, near = pixels[:n], pixels[n:]
    train = {image.tobytes() for image in films(n)}
    assert {image.tobytes() for image in exact} == train  # the first rows of the cohort are its training rows
    assert not {image.tobytes() for image in near} & train
    distance = np.abs(near.astype(float) - exact).mean((1, 2, 3))
    strangers = np.abs(np.roll(near.astype(float), 1, 0) - exact).mean()
    assert len(CHANGES) <= n and distance.max() < strangers


def test_a_gap_is_seen_where_no_kept_image_is_near_a_film_and_not_where_a_copy_was_kept(
    ingest: Artifact, tmp_path: Path
) -> None:
    draft = ingest.store.draft(Key("private", "score/gallery", "ef"))
    for name in NETWORKS:
        SiameseNetwork(config.Network(width=4, embedding=16), PX, 1).save(draft.folder / name)
    gallery = ingest.store.commit(draft, {})
    people = films(6)
    kept = np.concatenate([people[:3], films(5, seed=1)])
    columns = [pa.chunked_array([images.column(some)]) for some in (people, kept)]
    others = np.concatenate([films(16, seed=seed) for seed in range(2, 8)])
    found = probes._gaps(RECIPE.score, gallery, *columns)
    distance = probes._distances(columns[0], {"set": columns[1]}, images.column(others))["set"]
    assert distance[:3].max() < distance[3:].min()
    assert probes._distances(columns[0], {"set": columns[1]}, images.column(others[:20])) == {}
    assert found.keys() == set(NETWORKS)
    for logits in found.values():
        assert logits[:3] == pytest.approx([4.0] * 3, abs=1e-3)  # what an untrained network gives the same film
        assert logits[3:].max() < logits[:3].min()
