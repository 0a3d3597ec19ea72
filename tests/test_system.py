"""The promises of the design, on the whole method with the shrunk phantom recipe.

One undisturbed run is made once for all tests; the figures of so small a run mean nothing and are not looked at.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from clusters import members
from running import RECIPE, ROOT, run_job
from safetensors.numpy import load_file

from jobs.command import NOT_CLEARED
from pipeline import plan, records, scan
from pipeline.artifact import Artifact, Store
from pipeline.config import Recipe, changed, read
from pipeline.rows import KILLS
from pipeline.workers import ScoreImages

pytestmark = pytest.mark.slow
PLAIN_SUFFIXES = {".parquet", ".json", ".safetensors", ".html", ".md", ".txt", ".key", ".lock", ""}


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return read(RECIPE)


def artifacts_of(store: Path | str, recipe: Recipe) -> dict[str, Artifact]:
    lines = plan.plan(recipe, Store(store))
    assert all(line.artifact for line in lines)
    return {line.task.name: line.artifact for line in lines if line.artifact}


@pytest.fixture(scope="module")
def artifacts(finished_store: Path, recipe: Recipe) -> dict[str, Artifact]:
    return artifacts_of(finished_store, recipe)


@pytest.fixture
def store(finished_store: Path, tmp_path: Path) -> Path:
    """A copy of the finished store to be changed."""
    return shutil.copytree(finished_store, tmp_path / "store")


def content(artifact: Artifact) -> dict[str, Any]:
    """All tables, weights and other files of an artifact; tables in the order of row_id, whatever files hold them."""
    found: dict[str, Any] = {}
    for path in sorted(artifact.local().iterdir()):
        if path.suffix == ".parquet" or (path.is_dir() and any(path.glob("*.parquet"))):
            found[path.stem] = artifact.table(path.stem)
        elif path.name != "manifest.json":
            files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
            for file in files:
                is_weights = file.suffix == ".safetensors"
                found[str(file.relative_to(path.parent))] = load_file(file) if is_weights else file.read_bytes()
    return found


def assert_same(first: dict[str, Artifact], second: dict[str, Artifact]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].key == second[name].key, name
        if name.split("/")[0] == "report":
            continue  # tells how long this run took
        mine, other = content(first[name]), content(second[name])
        assert mine.keys() == other.keys(), name
        for part, value in mine.items():
            if isinstance(value, pa.Table):
                assert value.equals(other[part]), (name, part)
            elif isinstance(value, dict):
                for key, weights in value.items():
                    np.testing.assert_array_equal(weights, other[part][key], err_msg=f"{name} {part} {key}")
            else:
                assert value == other[part], (name, part)


def test_a_run_leaves_a_report_a_summary_and_a_package(finished_store: Path) -> None:
    summary = json.loads((finished_store / "summary.json").read_text())
    assert {"value", "low", "high", "n"} == summary["metrics"]["privacy/student/reid_ratio"].keys()
    assert "PRIVATE" in (finished_store / "report.html").read_text()
    assert "PRIVATE" not in (finished_store / "release" / "report.html").read_text()
    assert (finished_store / "release" / "student" / "model_index.json").is_file()
    assert list((finished_store / "release" / "dataset" / "data").glob("*.parquet"))


def test_running_again_does_no_work_and_says_so(finished_store: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished_store.rglob("manifest.json")}
    answer = run_job("all", finished_store)
    assert answer.returncode == 0, answer.stderr
    assert "reused, nothing to do" in answer.stdout
    assert {path: path.stat().st_mtime_ns for path in finished_store.rglob("manifest.json")} == before


def test_a_changed_threshold_reruns_filter_and_after_but_neither_sample_nor_score(
    finished_store: Path, recipe: Recipe
) -> None:
    stricter = changed(recipe, {"filter.percentile.percentile": 60.0})
    state = {line.task.name: line.artifact is not None for line in plan.plan(stricter, Store(finished_store))}
    assert all(state[name] for name in ("ingest", "teach", "identify/auditor", "sample/0", "score/0", "score/unseen"))
    assert not any(state[name] for name in ("filter/0", "filter", "distill", "evaluate", "release", "report"))


def test_rows_in_are_rows_out_and_rejected_at_every_step(artifacts: dict[str, Artifact], recipe: Recipe) -> None:
    ingest = artifacts["ingest"]
    assert ingest.facts["rows_in"] == ingest.manifest["rows"] + sum(ingest.facts["rejected"].values())
    assert len(ingest.table("rejects")) == sum(ingest.facts["rejected"].values())
    assert len(artifacts["sample/0"].table("rows")) == len(artifacts["score/0"].table()) == recipe.sample.n_images
    assert sum(artifacts["filter/0"].facts["reasons"].values()) == recipe.sample.n_images
    assert artifacts["filter"].manifest["rows"] == artifacts["filter/0"].facts["n_kept"]


def test_splits_share_no_patient(artifacts: dict[str, Artifact]) -> None:
    table = artifacts["ingest"].table("records", ["patient_id", "split"])
    pairs = set(zip(table["patient_id"].to_pylist(), table["split"].to_pylist(), strict=True))
    assert len(pairs) == len({patient for patient, _ in pairs})


def test_a_planted_copy_of_a_real_image_is_the_surest_match_and_is_dropped(
    artifacts: dict[str, Artifact], recipe: Recipe
) -> None:
    train = records.of_split(artifacts["ingest"], "train")
    unseen = records.of_split(artifacts["ingest"], "test")
    scorer = ScoreImages(artifacts["score/gallery"], recipe.score, recipe.ingest.image_px, 1)
    batch = {"row_id": ["planted", "unseen"]}
    planted = np.stack([train.images[7], unseen.images[0]])
    scored = scorer(pa.table(batch | {"image": records.image_column(planted)})).to_pylist()
    assert scored[0]["nearest_row_id"] == train.row_ids[7]
    assert scored[0]["pixel_copy"] and not scored[1]["pixel_copy"]
    assert scored[0]["reid_score"] > artifacts["filter/0"].facts["threshold"]
    assert scored[0]["reid_score"] > scored[1]["reid_score"]


def test_one_sampling_actor_and_three_make_the_same_rows(store: Path, artifacts: dict[str, Artifact]) -> None:
    before = artifacts["sample/0"].table("rows")
    shutil.rmtree(store / "private" / "sample")
    answer = run_job("sample", store, "--sample.actors", "3", "--sample.min-actors", "3")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    key = artifacts["sample/0"].key
    assert Store(store).find(key).table("rows").equals(before)  # type: ignore[union-attr]


def test_distill_and_release_succeed_for_who_may_not_read_private(store: Path) -> None:
    shutil.rmtree(store / "releasable" / "distill")
    for path in (store / "releasable" / "release").glob("*/manifest.json"):
        shutil.rmtree(path.parent)  # `release` itself, not its candidate and scan
    (store / "private").chmod(0)
    # Root is above permissions, unless it gives up the capabilities that put it there.
    humble = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    try:
        for word in ("distill", "release"):
            command = [*humble, sys.executable, "-m", f"jobs.{word}", str(RECIPE), "--store", str(store)]
            answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
            assert answer.returncode == 0, answer.stdout + answer.stderr
        unreadable = subprocess.run([*humble, "ls", str(store / "private")], capture_output=True, check=False)
        assert unreadable.returncode != 0
    finally:
        (store / "private").chmod(0o700)


def test_no_artifact_holds_anything_that_loading_would_run(finished_store: Path) -> None:
    suffixes = {path.suffix for path in finished_store.rglob("*") if path.is_file()}
    assert suffixes <= PLAIN_SUFFIXES


def test_a_phrase_of_one_patient_reaches_the_teacher_but_neither_student_nor_release(
    finished_store: Path, artifacts: dict[str, Artifact], recipe: Recipe
) -> None:
    rare = scan.secrets(recipe, artifacts["ingest"])["phrase"]
    prompts = artifacts["ingest"].table("records", ["prompt"], pc.is_valid(pc.field("prompt")))["prompt"].to_pylist()
    planted = {phrase for phrase in rare if len(phrase.split()) >= 3 and any(phrase in prompt for prompt in prompts)}
    assert planted, "the cohort has no rare phrase that reached the teacher: the test would prove nothing"
    for folder in (finished_store / "releasable", finished_store / "release"):
        for path in folder.rglob("*"):
            if path.suffix in {".json", ".md", ".html", ".txt"}:
                text = path.read_text().lower()
                assert not [phrase for phrase in planted if phrase in text], path
    kept = artifacts["filter"].table("kept", ["prompt"])["prompt"].to_pylist()
    assert not [prompt for prompt in kept for phrase in planted if phrase in prompt]


def test_the_student_knows_no_word_that_only_unshared_phrases_use(artifacts: dict[str, Artifact]) -> None:
    kept = artifacts["filter"].table("kept", ["prompt"])["prompt"].to_pylist()
    words = {word for prompt in kept for word in prompt.replace(",", " ").split()}
    tokenizer = json.loads((artifacts["distill"].local() / "pipeline" / "tokenizer" / "tokenizer.json").read_text())
    vocabulary = {token for token in tokenizer["model"]["vocab"] if not token.startswith("<")}
    assert vocabulary == words


def test_no_private_name_stands_in_the_releasable_part(finished_store: Path, artifacts: dict[str, Artifact]) -> None:
    identities = artifacts["ingest"].table("identities").to_pylist()
    pseudonyms = artifacts["ingest"].table("records", ["patient_id"])["patient_id"].to_pylist()
    names = {row["row_id"] for row in identities} | {row["patient"] for row in identities} | {*pseudonyms}
    for path in (finished_store / "releasable").rglob("*"):
        if path.suffix in {".json", ".md", ".html", ".txt"}:
            text = path.read_text()
            assert not [name for name in names if name in text], path


def test_no_released_file_names_a_folder_of_this_machine(finished_store: Path) -> None:
    for path in (finished_store / "release").rglob("*"):
        if path.suffix in {".json", ".md", ".html", ".txt"}:
            assert str(finished_store) not in path.read_text() and str(ROOT) not in path.read_text(), path


def test_a_step_whose_input_is_missing_names_it_and_the_command_that_makes_it(tmp_path: Path) -> None:
    answer = run_job("sample", tmp_path / "empty")
    assert answer.returncode == 2
    assert "want artifact private/ingest/" in answer.stderr and "run python -m jobs.ingest" in answer.stderr


def test_a_run_killed_at_any_point_and_run_again_equals_the_undisturbed_one(
    tmp_path: Path, finished_store: Path, artifacts: dict[str, Artifact], recipe: Recipe
) -> None:
    store = tmp_path / "killed"
    (store / "private").mkdir(parents=True)
    # Pseudonyms depend on a key that each store makes for itself.
    shutil.copy(finished_store / "private" / "secret.key", store / "private")
    command = [sys.executable, "-m", "jobs.all", str(RECIPE), "--store", str(store)]
    for seconds in (14.0, 24.0, 30.0):
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    answer = run_job("all", store)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert_same(artifacts_of(store, recipe), artifacts)


@pytest.mark.parametrize(
    ("word", "options", "busy_after_s"),
    # The second one so long that it cannot be done before.
    [("ingest", ["--seed", "1"], 2.0), ("teach", ["--teach.n-images", "1000000"], 10.0)],
)
def test_ctrl_c_ends_a_run_at_once_with_a_line_and_leaves_nothing_running(
    store: Path, tmp_path: Path, word: str, options: list[str], busy_after_s: float
) -> None:
    command = [sys.executable, "-m", f"jobs.{word}", str(RECIPE), "--store", str(store), *options]
    log = tmp_path / "log"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what was started in the background ignores it
    with log.open("w") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=out, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        while f"{word}: running" not in log.read_text():
            assert process.poll() is None
            time.sleep(0.1)
        time.sleep(busy_after_s)
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=20)
    assert process.returncode == 130
    assert told == "stopped: what is finished is kept — run the same command again to go on\n"
    assert log.read_text().splitlines()[-1].endswith(f"{word}: running")
    time.sleep(1.0)
    assert members(process.pid) == {}


def test_a_dry_run_says_what_is_reused_what_runs_and_why(finished_store: Path) -> None:
    answer = run_job("all", finished_store, "--dry-run", "--filter.rule", "none")
    assert answer.returncode == 0, answer.stderr
    lines = {line.split()[0]: line for line in answer.stdout.splitlines() if line.split()}
    assert " reuse " in lines["score/0"]
    assert " run " in lines["filter/0"]
    # The last column is broken over lines as wide as the terminal.
    assert "recipe differs: filter.percentile 80.0 -> " in " ".join(answer.stdout.split())
    assert "filter.rule percentile -> none" in " ".join(answer.stdout.split())


def test_images_that_could_not_be_scored_are_dropped_counted_and_in_no_ratio(
    store: Path, artifacts: dict[str, Artifact], recipe: Recipe
) -> None:
    test = artifacts["ingest"].table("records", ["row_id"], pc.field("split") == "test")["row_id"].to_pylist()
    lost = _lose_a_row(store, artifacts["score/0"], artifacts["score/0"].table()["row_id"][0].as_py())
    _lose_a_row(store, artifacts["score/unseen"], test[0])
    _lose_a_row(store, artifacts["evaluate/student_scores"], "kept-000000")
    for name in ("filter/0", "filter", "evaluate", "report", "report/custodian"):
        shutil.rmtree(store / artifacts[name].key.path)
    assert run_job("all", store).returncode in (0, NOT_CLEARED)
    again = artifacts_of(store, recipe)
    (decided,) = again["filter/0"].table(where=pc.field("row_id") == lost).to_pylist()
    assert (decided["keep"], decided["reason"]) == (False, "no score")
    assert again["filter/0"].manifest["rows"] == artifacts["filter/0"].manifest["rows"]
    before, after = metrics_of(artifacts), metrics_of(again)
    for subject in ("teacher", "control", "student"):
        key = f"privacy/{subject}/reid_ratio"
        assert after[key]["n"] == before[key]["n"] - 1, subject
    assert (store / "report.html").read_text().count(KILLS) >= 3


def metrics_of(artifacts: dict[str, Artifact]) -> dict[str, dict[str, float]]:
    return json.loads((artifacts["evaluate"].local() / "metrics.json").read_text())


def _lose_a_row(store: Path, artifact: Artifact, name: str) -> str:
    """Take a row out as if it had been set aside."""
    folder = store / artifact.key.path
    for file in (folder / "rows").glob("*.parquet"):
        table = pq.read_table(file)
        pq.write_table(table.filter(pc.not_equal(table["row_id"], name)), file)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["facts"]["set_aside"] = {name: KILLS}
    manifest["rows"] -= 1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return name
