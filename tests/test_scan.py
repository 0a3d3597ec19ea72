"""What must not leave: who and what is a secret in a cohort made by hand, and that it is found in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.ndimage import gaussian_filter

from pipeline import config, images, scan
from pipeline.artifact import Artifact, Key, Store
from pipeline.config import Recipe
from pipeline.folders import Folder
from pipeline.privacy import networks
from pipeline.privacy.matching import Gallery, best_matches
from pipeline.steps.ingest import IDENTITIES
from pipeline.tables import KEPT, RECORDS

TABLE = config.changed(Recipe(), {"ingest.kind": "table", "ingest.root": "/cohort", "ingest.k_anonymity": 2})
PHANTOM = config.changed(Recipe(), {"ingest.k_anonymity": 2})
SHARED, RARE, UNSEEN = "small left effusion", "ribbon shaped pleural scar", "horseshoe shaped lung"
# patient, pseudonym, split, text
PATIENTS = [
    ("MRN-00012345", "a3f09c5e7d12b846", "train", f"Impression: {SHARED}."),
    ("MRN-00067890", "b1b2b3b4b5b6b7b8", "train", f"{SHARED}; {RARE}"),
    ("MRN-00067890", "b1b2b3b4b5b6b7b8", "train", f"{RARE}; {SHARED}"),
    ("MRN-00055555", "c0c1c2c3c4c5c6c7", "train", None),
    ("MRN-00099999", "d0d1d2d3d4d5d6d7", "control", UNSEEN),
]


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Artifact]:
    store = Store(tmp_path / "store")
    records, identities = [], []
    for i, (patient, pseudonym, split, text) in enumerate(PATIENTS):
        records.append(
            {"row_id": f"row-{i:06d}", "patient_id": pseudonym, "split": split, "text": text, "labels": [1]}
        )
        identities.append({"row_id": f"row-{i:06d}", "patient": patient, "source": f"films/{patient}_{i}.png"})
    ingest = store.draft(Key("private", "ingest", "ab"))
    ingest.write_table(pa.Table.from_pylist(records, RECORDS), "records")
    ingest.write_table(pa.Table.from_pylist(identities, IDENTITIES), "identities")
    kept = store.draft(Key("releasable", "filter", "ab"))
    prompts = [{"row_id": "synthetic-000000", "prompt": f"60s, woman, {SHARED}", "labels": [1]}]
    kept.write_table(pa.Table.from_pylist(prompts, KEPT), "kept")
    return {"ingest": store.commit(ingest, {}), "filter": store.commit(kept, {})}


def test_patients_are_secret_by_name_and_by_pseudonym_in_every_split(inputs: dict[str, Artifact]) -> None:
    found = scan.secrets(TABLE, inputs["ingest"])
    assert set(found["patient id"]) == {name for row in PATIENTS for name in row[:2]}
    assert set(found["row id"]) == {f"row-{i:06d}" for i in range(5)}
    assert set(found["path"]) == {f"films/{patient}_{i}.png" for i, (patient, *_) in enumerate(PATIENTS)}


def test_drawn_patients_have_no_path(inputs: dict[str, Artifact]) -> None:
    assert set(scan.secrets(PHANTOM, inputs["ingest"])["path"]) == set()


def test_a_phrase_is_secret_if_fewer_than_k_training_patients_use_it_however_often(
    inputs: dict[str, Artifact],
) -> None:
    assert set(scan.secrets(TABLE, inputs["ingest"])["phrase"]) == {RARE}
    three = config.changed(TABLE, {"ingest.k_anonymity": 3})
    assert set(scan.secrets(three, inputs["ingest"])["phrase"]) == {RARE, SHARED}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("trained on a3f09c5e7d12b846", {"patient id": 1}),
        ("films/MRN-00012345_0.png", {"patient id": 1, "path": 1}),
        ("see row-000003", {"row id": 1}),
        (f"a {RARE.title()} is seen", {"phrase": 1}),
        (f"60s, woman, {SHARED}", {}),
        ("nothing to see", {}),
    ],
)
def test_a_secret_in_a_folder_is_counted_by_kind(
    inputs: dict[str, Artifact], tmp_path: Path, text: str, found: dict[str, int]
) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "README.md").write_text(text)
    assert scan.scan_text(TABLE, inputs, tmp_path / "package") == found


def test_what_is_found_is_counted_and_never_quoted(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    for i, (patient, *_) in enumerate(PATIENTS):
        (tmp_path / "package" / f"{i}.txt").write_text(patient)
    assert scan.scan_text(TABLE, inputs, tmp_path / "package") == {"patient id": len(PATIENTS)}


def test_a_shared_prompt_is_no_secret_even_if_k_was_raised_since(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "card.md").write_text(SHARED)
    three = config.changed(TABLE, {"ingest.k_anonymity": 3})
    assert scan.scan_text(three, inputs, tmp_path / "package") == {}


PX = 32
SMOOTH = gaussian_filter(np.random.default_rng(0).normal(size=(9, PX, PX)), (0, 3, 3))
FILMS = np.round(127.5 + 110 * SMOOTH / np.abs(SMOOTH).max((1, 2), keepdims=True)).astype(np.uint8)[..., None]
TRAINED, STRANGERS = FILMS[:4], FILMS[4:]
# Patient, and the prompt and labels that cross of the record.
CROSSING = [("ann", "woman", [1]), ("bob", "woman", [1]), ("bob", "woman", [0]), ("eve", "scar", [1])]


class Package:
    """A folder to be released, and what the scan compares it with."""

    def __init__(self, folder: Path):
        self.store, self.folder = Store(folder / "store"), folder / "package"
        self.made: list[str] = []
        names = [f"r{i}" for i in range(4)]
        rows = [
            {"row_id": name, "patient_id": patient, "split": "train", "shared_prompt": told, "shared_labels": labels}
            for name, (patient, told, labels) in zip(names, CROSSING, strict=True)
        ]
        identities = [{"row_id": name, "patient": f"MRN-0001234{name[1]}", "source": f"{name}.png"} for name in names]
        self.inputs = {
            "ingest": self._finish(
                "ingest",
                records=pa.Table.from_pylist(rows, RECORDS),
                images=pa.table({"row_id": names, "image": images.column(TRAINED)}),
                identities=pa.Table.from_pylist(identities, IDENTITIES),
            ),
        }
        self.threshold(None)
        draft = self.store.draft(Key("private", "score/gallery", "ab"))
        self.model = networks.SiameseNetwork(config.Network(width=4, embedding=16), PX, 1).eval()
        self.model.head.weight.data.fill_(-3.0)  # scores of strangers lie apart
        self.model.save(draft.folder / "filter_network")
        self.gallery = Gallery.of(self.model, TRAINED, ["p"] * 4, names, 4)
        self.gallery.save(draft.folder / "filter_network_embeddings.parquet")
        self.inputs["score/gallery"] = self.store.commit(draft, {})
        self.student(False, False)

    def _finish(self, name: str, facts: dict[str, object] | None = None, **tables: pa.Table) -> Artifact:
        draft = self.store.draft(Key("private", name, f"{len(self.made):016x}"))
        self.made.append(name)
        for table_name, table in tables.items():
            draft.write_table(table, table_name)
        return self.store.commit(draft, facts or {})

    def threshold(self, threshold: float | None) -> None:
        """What the filter dropped from."""
        self.inputs["filter"] = self._finish("filter", {"threshold": threshold}, kept=KEPT.empty_table())

    def student(self, *copies: bool) -> None:
        """Which of the student's own images are copies; beside them stands a planted one."""
        names = [*(f"kept-{i:06d}" for i in range(len(copies))), "planted-exact-000"]
        scores = pa.table({"row_id": names, "pixel_copy": [*copies, True]})
        self.inputs["evaluate/student_scores"] = self._finish("evaluate/student_scores", rows=scores)

    def scores(self, films: np.ndarray) -> np.ndarray:
        found = best_matches(self.model, networks.embeddings(self.model, films, 4), self.gallery, 8)
        return found.reid_score.numpy()

    def release(self, films: np.ndarray, pairs: Sequence[tuple[str, int]] = ()) -> None:
        pairs = pairs or [("woman", 1)] * len(films)
        folder = self.folder / "dataset" / "data"
        folder.mkdir(parents=True)
        encoded = [{"bytes": images.png(film), "path": f"{i}.png"} for i, film in enumerate(films)]
        columns = {"id": [str(i) for i in range(len(films))], "image": encoded}
        columns |= {"prompt": [prompt for prompt, _ in pairs], "finding": pa.array([v for _, v in pairs], pa.int8())}
        pq.write_table(pa.table(columns), folder / "train-00000-of-00001.parquet")

    def found(self) -> dict[str, int]:
        return scan.scan_package(TABLE, self.inputs, self.folder)


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return Package(tmp_path)


def test_strangers_films_are_no_finding(package: Package) -> None:
    package.threshold(1.0)
    package.release(STRANGERS)
    assert package.found() == {}


def test_a_real_film_in_the_package_is_found_by_its_pixels_whatever_the_networks_say(package: Package) -> None:
    nearly = np.clip(TRAINED[1:2].astype(int) + 1, 0, 255).astype(np.uint8)
    package.release(np.concatenate([STRANGERS, TRAINED[:1], nearly]))
    assert package.found() == {"same pixels": 1, "nearly the same pixels": 1}


def test_an_image_that_the_filter_would_have_dropped_is_found_as_it_was_not_filtered(package: Package) -> None:
    scores = np.sort(package.scores(STRANGERS))
    package.threshold(float(scores[2:4].mean()))
    package.release(STRANGERS)
    assert package.found() == {"over the filter's threshold": 2}


def test_a_score_at_the_threshold_that_other_hardware_lifts_by_a_rounding_is_no_finding(package: Package) -> None:
    package.threshold(float(package.scores(STRANGERS).max()) - 1e-7)
    package.release(STRANGERS)
    assert package.found() == {}


@pytest.mark.parametrize(
    ("pair", "n_below"),
    [
        (("woman", 1), 0),  # ann and bob
        (("woman", 0), 1),  # bob alone: the prompt is shared, the pair is not
        (("scar", 1), 1),  # eve alone
        (("woman", -1), 1),  # nobody's
        (("60s, woman", 1), 1),
    ],
)
def test_a_row_whose_prompt_and_labels_k_patients_do_not_share_is_counted(
    package: Package, pair: tuple[str, int], n_below: int
) -> None:
    package.release(STRANGERS[:3], [("woman", 1), pair, ("woman", 1)])
    assert scan.rows_below_k(TABLE, package.inputs, package.folder) == n_below


def test_a_page_is_searched_for_text_and_for_the_real_films_it_shows(package: Package) -> None:
    package.folder.mkdir()
    (package.folder / "report.html").write_text("<p>MRN-00012342</p>")
    page = Folder.of(package.folder)
    assert scan.scan_page(TABLE, package.inputs, page, [STRANGERS]) == {"patient id": 1}
    shown = [STRANGERS, TRAINED[:2]]
    assert scan.scan_page(TABLE, package.inputs, page, shown) == {"patient id": 1, "same pixels": 2}
