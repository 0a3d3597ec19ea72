"""The step ingest without a cluster: pixels and their rejects, caps, prompts, pseudonyms."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline import config, tables
from pipeline.artifact import ArtifactError, Key, Store
from pipeline.cohorts import phantom
from pipeline.cohorts.splits import SplitError
from pipeline.config import ConfigError, Ingest, Recipe
from pipeline.progress import Bar
from pipeline.steps import ingest
from pipeline.task import Work

SMALL = Ingest.model_validate({"phantom": {"n_patients": 60}, "min_patients": {"train": 3}, "k_anonymity": 2})
LISTED = phantom.listing(SMALL.phantom, seed=0)


def read(row_id: str, digest: str | None, reject: str | None = None) -> dict[str, Any]:
    return {"row_id": row_id, "digest": digest, "reject": reject}


def test_of_equal_images_of_a_patient_the_first_stays_and_of_two_patients_none() -> None:
    outcome = [
        read("r0", "same"),
        read("r1", "same"),
        read("r2", "shared"),
        read("r3", "shared"),
        read("r4", "shared"),
        read("r5", "alone"),
        read("r6", None, "unreadable image: OSError"),
        read("r7", None, "unreadable image: OSError"),
    ]
    patients = ["ann", "ann", "ann", "bob", "ann", "bob", "ann", "bob"]
    patient_of = {f"r{i}": patient for i, patient in enumerate(patients)}
    assert ingest._pixel_reasons(outcome, patient_of) == [
        None,
        "duplicate image",
        *["one image under two patients"] * 3,
        None,
        *["unreadable image: OSError"] * 2,
    ]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([None, "1", "2", "3"])), max_size=12))
def test_no_pixels_stay_twice_and_none_under_two_patients(rows: list[tuple[str, str | None]]) -> None:
    outcome = [read(f"r{i}", digest, None if digest else "broken") for i, (_, digest) in enumerate(rows)]
    reasons = ingest._pixel_reasons(outcome, {f"r{i}": patient for i, (patient, _) in enumerate(rows)})
    stays = [digest for (_, digest), reason in zip(rows, reasons, strict=True) if reason is None]
    owners = {digest: {patient for patient, other in rows if other == digest} for _, digest in rows if digest}
    assert Counter(stays) == Counter(digest for digest, patients in owners.items() if len(patients) == 1)


def test_rows_in_are_rows_that_stay_and_rows_over_the_cap() -> None:
    stays, over = ingest._split(LISTED, SMALL, origin=0)
    assert sorted(stays["row_id"].to_pylist() + over["row_id"].to_pylist()) == LISTED["row_id"].to_pylist()
    assert over.schema == tables.REJECTS and len(over) > 0
    n_images = Counter(zip(stays["split"].to_pylist(), stays["patient"].to_pylist(), strict=True))
    for (split, _), n in n_images.items():
        assert n <= {"identify": 4, "audit": 4, "control": 1, "test": 1}.get(split, n)
    listed = Counter(LISTED["patient"].to_pylist())
    assert all(n == listed[patient] for (split, patient), n in n_images.items() if split == "train")


def test_the_reason_of_a_capped_row_names_its_split() -> None:
    _, over = ingest._split(LISTED, SMALL, origin=0)
    assert {reason.rsplit(" ", 1)[0] for reason in over["reason"].to_pylist()} == {
        "over the cap of images per patient in split"
    }
    assert "train" not in {reason.rsplit(" ", 1)[1] for reason in over["reason"].to_pylist()}


def test_a_split_that_loses_its_patients_to_rejects_is_an_error() -> None:
    with pytest.raises(
        SplitError,
        match=r"split train: want 3 patients with a usable image, got 2 .* rejected images \(2 x too dark\)",
    ):
        rejects = pa.table([["r0", "r1"], ["too dark"] * 2], schema=tables.REJECTS)
        ingest._require_patients({name: {"a", "b"} for name in config.SPLITS}, SMALL, rejects)


def split_listing(*rows: tuple[str, str, str | None]) -> pa.Table:
    """Rows of (patient, split, text)."""
    listed = [
        {
            "row_id": f"r{i}",
            "patient": p,
            "source": "",
            "order": 0,
            "text": text,
            "labels": [i % 2],
            "age": 60.0,
            "sex": "F",
            "split": split,
        }
        for i, (p, split, text) in enumerate(rows)
    ]
    return pa.Table.from_pylist(listed, pa.schema([*tables.LISTING, ("split", pa.string())]))


def test_prompts_are_of_training_rows_and_tell_only_words_that_k_of_their_patients_use() -> None:
    listed = split_listing(
        ("ann", "train", "Small effusion. Seen by Dr. Miller on 2019-03-04."),
        ("bob", "train", "Small effusion with ribbonlike scar."),
        ("eve", "train", None),
        ("cleo", "test", "Small ribbonlike scar."),
        ("dan", "control", "Small ribbonlike scar."),
    )
    prompted, removed = ingest._with_prompts(listed, SMALL, ("edema",))
    found = prompted["prompt"].to_pylist()
    assert found == ["60s, woman, small effusion", "60s, woman, small effusion", "60s, woman", None, None]
    assert removed["name of a person"] == removed["date"] == 1 and removed["rare word"] >= 2


def test_a_text_that_is_left_empty_is_counted() -> None:
    listed = split_listing(("ann", "train", "Zebra."), ("bob", "train", "Yak."), ("cleo", "train", None))
    prompted, removed = ingest._with_prompts(listed, SMALL, ("edema",))
    assert removed["text left empty"] == 2
    assert prompted["prompt"].to_pylist() == ["60s, woman"] * 3


def test_what_may_cross_is_told_of_training_rows_alone_and_of_none_that_too_few_share() -> None:
    columns = {
        "row_id": [f"r{i}" for i in range(4)],
        "patient_id": ["ann", "bob", "eve", "dan"],
        "split": ["train", "train", "train", "test"],
        "prompt": ["60s, woman", "60s, woman", "60s, woman, edema", None],
        "labels": [[0], [0], [1], [0]],
        "age": [60.0] * 4,
        "sex": ["F"] * 4,
        "view": [None] * 4,
    }
    listed = pa.table(columns, schema=pa.schema([tables.RECORDS.field(name) for name in columns]))
    shared, told = ingest._with_shared(listed, SMALL, ("edema",))
    assert shared["shared_prompt"].to_pylist() == ["60s, woman", "60s, woman", None, None]
    assert shared["shared_labels"].to_pylist() == [[0], [0], None, None]
    assert told.levels == {"unchanged": 2, "withheld: fewer than k patients are left": 1}


def test_the_films_of_a_patient_are_counted_in_the_cohorts_table_capped_and_rejected_ones_too() -> None:
    kept = pa.table({"row_id": ["a", "b"], "patient": ["ann", "bob"]})
    counted = ingest._with_films(kept, pa.table({"patient": ["ann", "ann", "bob", "ann"]}))
    assert counted["patient_images"].to_pylist() == [3, 1]


@given(st.lists(st.text(max_size=12), min_size=1, unique=True))
def test_a_pseudonym_is_its_patients_own_and_never_the_original(
    two_stores: tuple[Store, Store], patients: list[str]
) -> None:
    table = pa.table({"patient": patients + patients})
    own, other = (ingest._with_pseudonyms(table, Recipe(), store)["patient_id"].to_pylist() for store in two_stores)
    assert own[: len(patients)] == own[len(patients) :]
    assert len(set(own)) == len(patients)
    assert set(own).isdisjoint(patients)
    assert set(own).isdisjoint(other)


@pytest.fixture(scope="module")
def two_stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Store]:
    return Store(tmp_path_factory.mktemp("own")), Store(tmp_path_factory.mktemp("other"))


def work(folder: Path, **changes: Any) -> Work:
    store, recipe = Store(folder / "store"), config.changed(Recipe(), changes)
    return Work(recipe, {}, store.draft(Key("private", "ingest", "ab")), Bar(None, "ingest"), 0.0)


def test_the_secret_behind_pseudonyms_and_draws_is_the_stores_unless_a_file_is_given(tmp_path: Path) -> None:
    own = work(tmp_path)
    assert own.origin == own.origin != work(tmp_path / "other").origin
    (tmp_path / "key").write_bytes(bytes(range(32)))
    (tmp_path / "key").chmod(0o600)
    shared = [work(tmp_path / name, **{"ingest.key_file": tmp_path / "key"}).origin for name in "ab"]
    assert shared[0] == shared[1] != own.origin
    assert len(shared[0]) == len(own.origin) == 32


def test_splits_and_caps_follow_the_secret_and_not_the_recipes_seed_alone(tmp_path: Path) -> None:
    recipe, store = Recipe(), Store(tmp_path)
    drawn = [ingest.checked(recipe, store, origin)[1] for origin in (b"a" * 32, b"a" * 32, b"b" * 32)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_missing_or_short_key_file_is_told_before_anything_is_written(tmp_path: Path) -> None:
    recipe = config.changed(Recipe(), {"ingest.key_file": tmp_path / "a.key"})
    with pytest.raises(ArtifactError, match=r"key_file: want a file, got nothing at .*a\.key"):
        ingest.checked(recipe, Store(tmp_path / "store"))
    (tmp_path / "a.key").write_bytes(b"our own")
    with pytest.raises(ArtifactError, match=r"key_file: want 32 bytes of chance or more, got 7"):
        ingest.checked(recipe, Store(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_patients_in_one_image_only_are_no_cohort_to_learn_recognition_from() -> None:
    once = [(f"patient {i}", split, None) for i in range(3) for split in ("train", "identify", "audit")]
    twice = [*once, *[(f"patient {i}", "identify", None) for i in range(2)]]
    for rows, lacking in ((once, "identify"), (twice, "audit")):
        with pytest.raises(SplitError, match=f"split {lacking}: want 2 patients with 2 images or more, got 0 of 3"):
            ingest._require_pairs(split_listing(*rows))
    ingest._require_pairs(split_listing(*twice, *[(f"patient {i}", "audit", None) for i in range(2)]))


def test_a_quota_for_a_finding_that_the_cohort_lacks_is_refused() -> None:
    recipe = config.changed(Recipe(), {"sample.class_quota": {"oedema": 5}})
    with pytest.raises(ConfigError, match=r"'sample.class_quota.oedema': .* known: cardiomegaly, effusion"):
        ingest._require_findings(recipe, phantom.FINDINGS)
    ingest._require_findings(config.changed(Recipe(), {"sample.class_quota": {"edema": 5}}), phantom.FINDINGS)


@pytest.mark.parametrize("channels", [1, 3])
def test_drawn_films_have_pixels_and_digests_of_their_own(channels: int) -> None:
    worker = ingest.ReadPixels(Ingest(image_px=32, channels=1 if channels == 1 else 3))
    batch = LISTED.slice(0, 5).select(["row_id", "source"])
    added = worker(batch)
    tables.require(batch, worker.reads, "input")
    tables.require(added, worker.adds, "output")
    assert added["reject"].null_count == 5 and len(set(added["digest"].to_pylist())) == 5
    assert worker(batch.slice(3, 1))["digest"].to_pylist() == added["digest"].to_pylist()[3:4]


def test_a_file_that_cannot_be_read_is_a_row_with_a_reason(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20), np.uint8)
    for name in ("a.png", "b.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:100])
    Image.fromarray(pixels[:8]).save(tmp_path / "small.png")
    settings = {"kind": "table", "root": tmp_path, "image_px": 16}
    worker = ingest.ReadPixels(Ingest.model_validate(settings))
    sources = ["a.png", "broken.png", "b.png", "small.png", "gone.png"]
    added = worker(pa.table({"row_id": list("01234"), "source": sources}))
    tables.require(added, worker.adds, "output")
    digests = added["digest"].to_pylist()
    assert digests[0] == digests[2] is not None and digests[1] is digests[3] is digests[4] is None
    rejects = added["reject"].to_pylist()
    assert rejects[0] is rejects[2] is None
    assert rejects[1].startswith("unreadable image") and rejects[3].startswith("too small")
    assert rejects[4].startswith("unreadable image")
