"""What a user reads when the cohort, the recipe, the store or the disk is not as it should be: whole commands.

An error is one sentence, status 2 and nothing written; a bad row is set aside with a reason that is counted. The
rules themselves are tested where they live.
"""

from __future__ import annotations

import fcntl
import json
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
import yaml
from PIL import Image
from running import run_job

from pipeline import images
from pipeline.artifact import Artifact, Key, Store
from pipeline.config import SPLITS
from pipeline.image_files import TOO_DARK

N_PATIENTS = 60
COLUMNS = ("image", "patient_id", "text", "edema")
REPORT = "Small effusion on the left side."
IDENTIFIERS = "MRN 12345678, Dr. Miller, 2019-03-04."
RECIPE = {
    "name": "a small table",
    "ingest": {
        "kind": "table",
        "image_px": 16,
        "batch_rows": 1,
        "k_anonymity": 2,
        "table": {"labels": ["edema"]},
        "splits": dict.fromkeys(SPLITS, 0.2),
        "min_patients": dict.fromkeys(SPLITS, 5),
        "max_images_per_patient": {},
    },
    "teach": {"autoencoder": {"patch_px": 4}, "denoiser": {"patch": 2}},
    "distill": {"autoencoder": {"patch_px": 4}, "denoiser": {"patch": 2}},
}


class Cohort(NamedTuple):
    """Images, their table and the recipe that reads them; `write` after a change."""

    root: Path
    rows: list[dict[str, str]]
    recipe: dict[str, Any]

    @property
    def file(self) -> Path:
        """The recipe's file."""
        return self.root.with_suffix(".yaml")

    def write(self) -> None:
        """Table and recipe as they are now."""
        cells = {name: pa.array([row[name] for row in self.rows], pa.string()) for name in COLUMNS}
        pa.csv.write_csv(pa.table(cells), self.root / "metadata.csv")
        self.file.write_text(yaml.safe_dump(self.recipe))

    def add(self, name: str, patient: str, text: str = "") -> Path:
        """A row; the path of its image."""
        self.rows.append({"image": name, "patient_id": patient, "text": text, "edema": f"{len(self.rows) // 2 % 2}"})
        return self.root / name


def noise(seed: int, side_px: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side_px, side_px), np.uint8)


def cohort_in(folder: Path) -> Cohort:
    """Two images of each patient; of every second one the other text is blank, of the others it holds identifiers."""
    cohort = Cohort(folder / "cohort", [], json.loads(json.dumps(RECIPE)))
    cohort.recipe["ingest"]["root"] = str(cohort.root)
    cohort.root.mkdir(parents=True)
    for number in range(N_PATIENTS):
        texts = (REPORT, "" if number % 2 else IDENTIFIERS)
        for position, text in enumerate(texts):
            image = cohort.add(f"{number:02d}-{position}.png", f"patient {number:02d}", text)
            Image.fromarray(noise(2 * number + position)).save(image)
    cohort.write()
    return cohort


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    return cohort_in(tmp_path)


def sentence(answer: subprocess.CompletedProcess[str]) -> str:
    """What was told, which is one sentence of the house form."""
    assert answer.returncode == 2, answer.stdout + answer.stderr
    assert re.fullmatch(r"[^\n]+: want [^\n]+, got [^\n]+ — [^\n]+\n", answer.stderr), answer.stderr
    return answer.stderr


def files_in(store: Path) -> set[str]:
    return {path.name for path in store.rglob("*") if path.is_file()}


def ingested_in(store: Path) -> Artifact:
    (folder,) = (store / "private" / "ingest").iterdir()
    artifact = Store(store).find(Key("private", "ingest", folder.name))
    assert artifact is not None
    return artifact


def rename_patients(cohort: Cohort) -> None:
    header, rest = (cohort.root / "metadata.csv").read_text().split("\n", 1)
    (cohort.root / "metadata.csv").write_text(header.replace("patient_id", "patientid") + "\n" + rest)


def keep_first_images(cohort: Cohort) -> None:
    del cohort.rows[1::2]
    cohort.write()


def changed(section: str, **values: Any) -> Callable[[Cohort], None]:
    def change(cohort: Cohort) -> None:
        cohort.recipe[section] |= values
        cohort.write()

    return change


def labelled_maybe(cohort: Cohort) -> None:
    cohort.rows[2]["edema"] = "maybe"
    cohort.write()


def without_rows(cohort: Cohort) -> None:
    cohort.rows.clear()
    cohort.write()


REFUSED = {
    "a missing folder": (changed("ingest", root="nowhere"), "ingest.root: want a folder, got nothing at nowhere"),
    "an empty table": (without_rows, "metadata.csv: want a row per image, got none"),
    "a missing column": (rename_patients, "column 'patient_id': .* did you mean 'patientid'?"),
    "an unknown label": (labelled_maybe, "row-000003, column 'edema': want 1, 0, -1 or blank, got 'maybe'"),
    "an unknown finding": (changed("sample", class_quota={"oedema": 3}), "class_quota.oedema.* known: edema"),
    "too few patients": (
        changed("ingest", min_patients={"train": 13}),
        r"split train: want 13 patients, got 12 .* about 70 patients in the cohort",
    ),
    "nobody with two images": (
        keep_first_images,
        r"split identify: want 2 patients with 2 images or more, got 0 of 12",
    ),
    "a missing key file": (changed("ingest", key_file="no.key"), "key_file: .* nothing at no.key"),
    "a missing text encoder": (changed("teach", text={"folder": "no/t5"}), "saved model, got nothing at no/t5"),
    "a misspelt key": (changed("ingest", rot="x"), "key 'ingest.rot': want a known key, .* did you mean 'root'?"),
}


@pytest.mark.parametrize(("spoil", "told"), REFUSED.values(), ids=REFUSED)
def test_a_cohort_that_cannot_be_meant_is_refused_before_anything_is_written(
    cohort: Cohort, tmp_path: Path, spoil: Callable[[Cohort], None], told: str
) -> None:
    cohort.recipe["sample"] = {}
    spoil(cohort)
    answer = run_job("ingest", tmp_path / "store", recipe=cohort.file)
    assert re.search(told, sentence(answer))
    assert answer.stdout == "" and files_in(tmp_path / "store") <= {".lock"}


def test_a_dry_run_tells_the_mistake_too(cohort: Cohort, tmp_path: Path) -> None:
    labelled_maybe(cohort)
    answer = run_job("all", tmp_path / "store", "--dry-run", recipe=cohort.file)
    assert "row-000003" in sentence(answer) and not (tmp_path / "store").exists()


def test_a_second_run_on_a_store_is_refused(cohort: Cohort, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    with (store / ".lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        answer = run_job("ingest", store, recipe=cohort.file)
    assert "want it alone, got another run at work on it" in sentence(answer)
    assert files_in(store) == {".lock"}


SET_ASIDE = {
    "unreadable image": 2,
    "too small": 1,
    "unsupported mode": 1,
    "image file missing": 1,
    "no patient id": 1,
    "no image path": 1,
    "image path outside the root": 1,
    "duplicate image": 2,
    "one image under two patients": 4,
}


def soil(cohort: Cohort) -> None:
    """Add each kind of bad row; beside them a 16-bit image and a patient in one image only, which are fine."""
    whole = cohort.root / "00-0.png"
    cohort.add("cut.png", "patient 00").write_bytes(whole.read_bytes()[:300])
    cohort.add("note.png", "patient 00").write_text("not an image")
    Image.fromarray(noise(1000, side_px=8)).save(cohort.add("small.png", "patient 00"))
    Image.fromarray(noise(1001).astype(np.float32)).save(cohort.add("fractions.tiff", "patient 00"))
    cohort.add("gone.png", "patient 00")
    Image.fromarray(noise(1002)).save(cohort.add("nobody.png", " "))
    cohort.add("", "patient 00")
    cohort.add("../outside.png", "patient 00")
    cohort.add("00-0.png", "patient 00")
    cohort.add("00-0-again.png", "patient 00").write_bytes(whole.read_bytes())
    for patient in ("patient 01", "patient 02"):
        Image.fromarray(noise(1003)).save(cohort.add("shared.png", patient))
        Image.fromarray(noise(1004)).save(cohort.add(f"copy of {patient}.png", patient))
    Image.fromarray(noise(1005).astype(np.uint16) << 8).save(cohort.add("deep.png", "patient in one image"))
    cohort.write()


@pytest.fixture(scope="module")
def soiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cohort, Path]:
    """A cohort with every kind of bad row, and the store into which it was ingested."""
    folder = tmp_path_factory.mktemp("soiled")
    cohort = cohort_in(folder)
    soil(cohort)
    answer = run_job("ingest", folder / "store", recipe=cohort.file)
    assert (answer.returncode, answer.stderr) == (0, "")
    return cohort, folder / "store"


def test_bad_rows_are_set_aside_with_reasons_and_every_row_is_counted(soiled: tuple[Cohort, Path]) -> None:
    (cohort, store), n_good = soiled, 2 * N_PATIENTS + 1
    artifact = ingested_in(store)
    counted: Counter[str] = Counter()
    for reason, n in artifact.facts["rejected"].items():
        counted[reason.split(":")[0]] += n
    assert counted == SET_ASIDE
    assert artifact.facts["rows_in"] == len(cohort.rows) == n_good + counted.total()
    assert artifact.manifest["rows"] == n_good
    kept, rejects = (artifact.table(name)["row_id"].to_pylist() for name in ("records", "rejects"))
    assert sorted(kept + rejects) == [f"row-{i + 1:06d}" for i in range(len(cohort.rows))]
    assert f"row-{len(cohort.rows):06d}" in kept  # 16 bits, and its patient's only image


def test_a_text_without_content_leaves_no_trace_in_a_prompt(soiled: tuple[Cohort, Path]) -> None:
    artifact = ingested_in(soiled[1])
    train = [row for row in artifact.table("records").to_pylist() if row["split"] == "train"]
    identifiers = [row for row in train if row["text"] == IDENTIFIERS]
    assert len(identifiers) == artifact.facts["removed_text"]["text left empty"] > 0
    prompts = {row["text"]: row["prompt"] for row in train}
    assert prompts[IDENTIFIERS] == prompts[None] == "chest x-ray"
    assert prompts[REPORT] == "small effusion on the left side"


def test_a_store_of_another_recipe_says_what_differs_and_which_command_helps(soiled: tuple[Cohort, Path]) -> None:
    cohort, store = soiled
    told = sentence(run_job("teach", store, "--ingest.image-px", "24", recipe=cohort.file))
    assert "recipe differs: ingest.image_px 16 -> 24" in told and "run python -m jobs.ingest" in told


def test_a_prompt_that_is_too_long_is_told_and_not_quoted(soiled: tuple[Cohort, Path]) -> None:
    cohort, store = soiled
    told = sentence(run_job("teach", store, "--teach.text.max-tokens", "4", recipe=cohort.file))
    assert "want at most 4 tokens, got 1 of 2 prompts with up to 7" in told and "effusion" not in told


DARKER = {0: 10, 1: 10, 2: 3, 3: 3}
"""How many times darker than the others the images of the first two patients are."""
VERY_DARK = {"row-000001", "row-000002"}


def deepen(cohort: Cohort, black: int = 0, white: int = 4095) -> None:
    """Every image as values of black to white in 16 bits, some darker than the others."""
    for number, row in enumerate(cohort.rows):
        greys = np.asarray(Image.open(cohort.root / row["image"])) / DARKER.get(number, 1)
        values = np.rint(black + greys / 255 * (white - black))
        row["image"] = row["image"].replace(".png", ".tiff")
        Image.fromarray(values.astype(np.int32 if min(black, white) < 0 else np.uint16)).save(
            cohort.root / row["image"]
        )
    cohort.write()


def greys_of(artifact: Artifact) -> dict[str, np.ndarray]:
    table = artifact.table("images", ["row_id", "image"])
    return dict(zip(table["row_id"].to_pylist(), images.array(table["image"]).astype(int), strict=True))


@pytest.fixture(scope="module")
def of_eight_bits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The images as they are read from 8-bit files, darkened as `deepen` does."""
    cohort = cohort_in(tmp_path_factory.mktemp("shallow"))
    found = {}
    for number, row in enumerate(cohort.rows):
        greys = np.asarray(Image.open(cohort.root / row["image"])) / DARKER.get(number, 1)
        Image.fromarray(np.rint(greys).astype(np.uint8)).save(cohort.root / row["image"])
        found[f"row-{number + 1:06d}"] = images.decode(cohort.root / row["image"], 16, 1).astype(int)
    return found


def require_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    assert max(np.abs(found[row_id] - expected[row_id]).max() for row_id in found) <= 2


def test_twelve_bits_in_sixteen_look_as_in_eight_and_the_range_is_told(
    cohort: Cohort, tmp_path: Path, of_eight_bits: dict[str, np.ndarray]
) -> None:
    deepen(cohort)
    answer = run_job("ingest", tmp_path / "store", recipe=cohort.file)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert (
        "ingest: grey values: black is 0 and white 4095 in images of more than 8 bits, "
        "as 120 of them have values from 0 to 4095; if that is not so, set ingest.grey_range "
        "(120 of 120 images looked at have more than 8 bits)\n"
    ) in answer.stdout
    artifact = ingested_in(tmp_path / "store")
    kept = {row_id: pixels for row_id, pixels in of_eight_bits.items() if row_id not in VERY_DARK}
    found = greys_of(artifact)
    require_equal({row_id: found[row_id] for row_id in kept}, kept)
    rejects = artifact.table("rejects").to_pylist()
    assert {row["row_id"] for row in rejects} == VERY_DARK
    assert all(row["reason"].startswith(TOO_DARK) for row in rejects)
    grey = artifact.facts["grey"]
    assert (grey["range"], grey["observed_on"], grey["largest"], grey["n_8bit"]) == ([0, 4095], 120, 4095, 0)
    assert grey["mean"] == pytest.approx(np.mean(list(kept.values())), abs=1)
    assert [remark.startswith("2 images do not fit the grey range") for remark in artifact.facts["remarks"]] == [True]


def test_a_dry_run_tells_the_range_and_writes_nothing(cohort: Cohort, tmp_path: Path) -> None:
    deepen(cohort)
    answer = run_job("ingest", tmp_path / "store", "--dry-run", recipe=cohort.file)
    assert answer.returncode == 0 and "black is 0 and white 4095" in answer.stdout
    assert not (tmp_path / "store").exists()


def test_values_with_a_sign_need_a_range_and_are_read_by_it(
    cohort: Cohort, tmp_path: Path, of_eight_bits: dict[str, np.ndarray]
) -> None:
    deepen(cohort, black=-1024, white=3071)
    told = sentence(run_job("ingest", tmp_path / "store", recipe=cohort.file))
    assert "ingest.grey_range: want the values of black and white for images with values from -1024 to 3071" in told
    assert files_in(tmp_path / "store") <= {".lock"}
    answer = run_job("ingest", tmp_path / "store", "--ingest.grey-range", "-1024", "3071", recipe=cohort.file)
    assert (answer.returncode, answer.stderr) == (0, "")
    require_equal(greys_of(ingested_in(tmp_path / "store")), of_eight_bits)


def test_an_inverted_range_with_values_outside_rejects_and_counts_them_and_says_so(
    cohort: Cohort, tmp_path: Path, of_eight_bits: dict[str, np.ndarray]
) -> None:
    deepen(cohort, black=4095, white=0)
    odd = np.full((24, 24), 5000, np.uint16)
    Image.fromarray(odd).save(cohort.add("odd.png", "patient 00"))
    Image.fromarray(noise(1006)).save(cohort.add("shallow.png", "patient 00"))
    cohort.recipe["ingest"]["grey_range"] = [4095, 0]
    cohort.write()
    answer = run_job("ingest", tmp_path / "store", recipe=cohort.file)
    assert answer.returncode == 0 and "black is 4095 and white 0" in answer.stdout
    assert "ingest: 1 images do not fit the grey range and are rejected" in answer.stdout
    assert re.search(r"images of 8 bits are taken as they are and have a mean grey of 12\d", answer.stdout)
    artifact = ingested_in(tmp_path / "store")
    assert artifact.facts["rejected"] == {"values outside the grey range 0 to 4095": 1}
    found = greys_of(artifact)
    require_equal({row_id: found[row_id] for row_id in of_eight_bits}, of_eight_bits)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 100 kB: enough for what is asked for beforehand, too little for one small file per block of rows."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "none", disk], check=False)
    if mounted.returncode:
        pytest.skip("a disk can be mounted only by root")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_fills_while_workers_write_is_told_and_the_next_run_goes_on(
    cohort: Cohort, small_disk: Path
) -> None:
    assert "want free space, got a full disk" in sentence(run_job("ingest", small_disk, recipe=cohort.file))
    written = {path: path.stat().st_mtime_ns for path in small_disk.rglob("*-0.parquet") if path.stat().st_size}
    subprocess.run(["mount", "-o", "remount,size=10m", small_disk], check=True)
    answer = run_job("ingest", small_disk, recipe=cohort.file)
    assert (answer.returncode, answer.stderr) == (0, "")
    artifact = ingested_in(small_disk)
    everybody = [f"row-{i + 1:06d}" for i in range(len(cohort.rows))]
    assert artifact.table("images", ["row_id"])["row_id"].to_pylist() == everybody
    assert artifact.table("records", ["row_id"])["row_id"].to_pylist() == everybody
    assert any(path.exists() and path.stat().st_mtime_ns == time for path, time in written.items())
