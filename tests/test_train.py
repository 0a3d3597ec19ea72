"""Training by several workers: as one would, whatever becomes of one of them, and with as many as there are."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from clusters import RAY, end, free_port, head, members, short_folder, started, with_token
from ray import cloudpickle
from running import RECIPE, ROOT, run_job, until

from pipeline import fit, plan
from pipeline.artifact import Artifact, Key, Store
from pipeline.config import Recipe, changed, read
from pipeline.generator import DenoiserTrainee
from pipeline.generators import folder
from pipeline.progress import Bar, Board

pytestmark = pytest.mark.slow
TWO = ("--teach.workers", "2", "--teach.checkpoint-images", "320")
SMALL = ("--object-store-memory=100000000",)
LOSS_TOLERANCE = 1e-3
"""Relative. Sums of gradients are rounded in another order; what that changes grows over the steps."""


def made(store: Path, recipe: Recipe, name: str) -> Artifact:
    artifact = Store(store).find(key_of(store, recipe, name))
    assert artifact is not None
    return artifact


def key_of(store: Path, recipe: Recipe, name: str) -> Key:
    (key,) = (line.key for line in plan.plan(recipe, Store(store)) if line.task.name == name)
    return key


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return changed(read(RECIPE), {"teach.workers": 2, "teach.checkpoint_images": 320})


@pytest.fixture(scope="module")
def by_two(finished_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose teacher was trained by two workers."""
    store = shutil.copytree(finished_store, tmp_path_factory.mktemp("by two") / "store")
    answer = run_job("teach", store, *TWO)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return store


@torch.no_grad()
def loss(store: Path, recipe: Recipe) -> float:
    """The saved teacher's mean loss over many draws of noise, on the rows that it was trained on."""
    saved = folder.load(made(store, recipe, "teach").local() / "pipeline", "cpu")
    latents = made(store, recipe, "teach/latents")
    place = fit.Place(0, 1, torch.device("cpu"), lambda module: module)
    trainee = DenoiserTrainee(latents.table("rows"), place=place, section=recipe.teach, source=latents, seed=0)
    run = trainee.fit
    run.modules["denoiser"].load_state_dict(saved.transformer.state_dict())
    run.modules["text"].load_state_dict(saved.text_encoder.state_dict())
    losses = []
    for images_seen in range(0, 100 * recipe.teach.batch_size, recipe.teach.batch_size):
        run.images_seen = images_seen
        rows = torch.from_numpy(run.rows(len(trainee._latents)))
        losses.append(run.loss(trainee._latents[rows], trainee._text[rows], trainee._mask[rows], images_seen))
    return float(torch.stack(losses).mean())


def test_two_workers_train_to_the_loss_of_one(by_two: Path, recipe: Recipe) -> None:
    alone, together = loss(by_two, read(RECIPE)), loss(by_two, recipe)
    assert together == pytest.approx(alone, rel=LOSS_TOLERANCE)


def test_training_goes_on_from_the_last_checkpoint_when_one_of_two_workers_is_killed(
    by_two: Path, finished_store: Path, recipe: Recipe, tmp_path: Path
) -> None:
    store = shutil.copytree(finished_store, tmp_path / "store")
    command = [sys.executable, "-m", "jobs.teach", str(RECIPE), "--store", str(store), *TWO]
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
    work = store / made(by_two, recipe, "teach").key.work_path
    until(lambda: any(work.rglob("state.safetensors")) or job.poll() is not None, tmp_path / "log")
    workers = members(job.pid, "ray::RayTrainWorker")
    assert len(workers) == 2
    os.kill(max(workers), signal.SIGKILL)
    assert job.wait(300) == 0, (tmp_path / "log").read_text()
    there, wanted = (made(one, recipe, "teach").local() / "pipeline" for one in (store, by_two))
    for part in ("transformer", "text_encoder"):
        (first,), (second,) = (list((one / part).glob("*.safetensors")) for one in (there, wanted))
        assert first.read_bytes() == second.read_bytes(), part


class Counted:
    """A fit that only counts."""

    def __init__(self) -> None:
        self.n_images, self.images_seen = 8, 0

    @property
    def done(self) -> bool:
        return self.images_seen >= self.n_images

    def state(self) -> dict[str, torch.Tensor]:
        return {"images_seen": torch.tensor(self.images_seen)}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        self.images_seen = int(state["images_seen"])


class HangsOnce:
    """Notes every step, and waits for ever at one of them when it comes there first."""

    def __init__(self, table: pa.Table, *, place: fit.Place, log: Path):
        self.fit, self._log = Counted(), log

    def step(self) -> None:
        before = self._log.read_text().split() if self._log.exists() else []
        with self._log.open("a") as log:
            log.write(f"{self.fit.images_seen}\n")
        if self.fit.images_seen == 5 and "5" not in before:
            time.sleep(600)
        self.fit.images_seen += 1

    def save(self, out: Path) -> None:
        out.mkdir()


def test_a_training_worker_that_hangs_is_ended_and_training_goes_on_from_the_last_checkpoint(
    local_ray: None, tmp_path: Path
) -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not find this file
    pq.write_table(pa.table({"row_id": ["a"]}), tmp_path / "rows.parquet")
    fit.train_on_rows(
        HangsOnce,
        {"log": tmp_path / "log"},
        str(tmp_path / "rows.parquet"),
        group=fit.Group(),
        checkpoint_images=4,
        work_uri=str(tmp_path / "work"),
        bar=Bar(Board.remote(), "test", hang_s=15),
    )
    assert (tmp_path / "log").read_text().split() == [*"012345", *"4567"]


def test_training_with_a_range_of_workers_goes_on_with_one_when_the_node_of_the_other_is_lost(
    by_two: Path, recipe: Recipe, tmp_path: Path
) -> None:
    store, environment = shutil.copytree(by_two, tmp_path / "store"), with_token()
    elastic = changed(recipe, {"teach.min_workers": 1})
    port = free_port()
    node = [*RAY, "start", f"--address=127.0.0.1:{port}", "--num-cpus=2", "--block"]
    command = [sys.executable, "-m", "jobs.teach", str(RECIPE), "--store", str(store), *TWO]
    command += ["--teach.min-workers", "1", "--teach.cpus-per-worker", "2", "--cluster.address", f"127.0.0.1:{port}"]
    with (
        short_folder() as folder,
        started(head(port, folder, "--num-cpus=1"), environment, tmp_path / "head.log", ROOT),
        started([*node, *SMALL], environment, tmp_path / "first.log", ROOT),
        started([*node, *SMALL], environment, tmp_path / "second.log", ROOT) as second,
        (tmp_path / "log").open("w") as log,
    ):
        job = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
        work = store / key_of(store, elastic, "teach").work_path
        until(lambda: any(work.rglob("state.safetensors")) or job.poll() is not None, tmp_path / "log")
        assert members(second, "ray::RayTrainWorker"), (tmp_path / "log").read_text()
        end(second)
        assert job.wait(300) == 0, (tmp_path / "log").read_text()
    assert loss(store, elastic) == pytest.approx(loss(by_two, recipe), rel=LOSS_TOLERANCE)
