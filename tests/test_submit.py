"""`ray job submit` as the README says it: a head with a token and a job server, and clients that come and go."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from clusters import RAY, end, free_port, head, members, short_folder, started, with_token
from running import GIVE_UP_S, RECIPE, ROOT, until, without
from test_system import artifacts_of, assert_same

from pipeline.config import read

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
TRAINING, SAMPLING = "ray::RayTrainWorker", "ray::MapWorker(MapBatches(SampleImages))"
UPLOADED = {"jobs", "pipeline", "my.yaml"}
# Run as a job: where a worker, not the driver, finds the program, and what else came with it.
PROBE = """
import os, json, ray
ray.init("auto", log_to_driver=False)
@ray.remote
def seen():
    import pipeline
    return pipeline.__file__, os.getcwd(), sorted(os.listdir())
print("seen", json.dumps(ray.get(seen.remote())))
"""


@dataclass
class Cluster:
    """A head of this machine, and what a client needs to reach it."""

    session: int
    environment: dict[str, str]
    project: Path

    def client(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`ray job ...`, finished, its output with its errors."""
        return subprocess.run(
            [*RAY, "job", *arguments],
            cwd=self.project,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=GIVE_UP_S,
            check=False,
        )

    def submit(self, store: Path, log: Path, name: str) -> subprocess.Popen[bytes]:
        """The client that submits the job and follows it, as the README says it."""
        job = ["python", "-m", "jobs.all", "my.yaml", "--store", str(store), "--cluster.address", "auto"]
        command = [*RAY, "job", "submit", "--submission-id", name, "--working-dir", ".", "--", *job]
        with log.open("w") as out:
            return subprocess.Popen(command, cwd=self.project, env=self.environment, stdout=out, stderr=out)


@contextlib.contextmanager
def head_of(folder: Path, project: Path, log: Path) -> Iterator[Cluster]:
    port, jobs_port = free_port(), free_port()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = with_token() | {"PATH": path, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{jobs_port}"}
    serves = ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={jobs_port}"]
    agent = f"--dashboard-agent-listen-port={free_port()}"
    with started(head(port, folder, "--num-cpus=4", *serves, agent), environment, log, folder) as session:
        yield Cluster(session, environment, project)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's folder as a user has it: with a recipe, an environment, and a store with patients."""
    project = tmp_path_factory.mktemp("project")
    for name in ("jobs", "pipeline"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".rayignore", ".gitignore", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, project)
    shutil.copy(RECIPE, project / "my.yaml")
    for name in (
        "mine/private/secret.key",
        "runs/demo/report.html",
        ".venv/bin/python",
        ".git/config",
        "patients.csv",
    ):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("a patient")
    return project


@pytest.fixture(scope="module")
def cluster(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    log = tmp_path_factory.mktemp("cluster") / "log"
    with short_folder() as folder, head_of(folder, project, log) as cluster:
        yield cluster


def state_of(store: Path) -> dict[str, int]:
    """When each file of a store was written."""
    return {str(path): path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}


def test_a_job_takes_program_and_recipes_along_and_no_patient(cluster: Cluster) -> None:
    answer = cluster.client("submit", "--working-dir", ".", "--", "python", "-c", PROBE)
    assert answer.returncode == 0, answer.stdout
    (line,) = (line for line in answer.stdout.splitlines() if line.startswith("seen"))
    imported, folder, listing = json.loads(line.removeprefix("seen"))
    assert imported == f"{folder}/pipeline/__init__.py" and "working_dir_files" in folder
    assert set(listing) == UPLOADED


@pytest.mark.parametrize("token", ["", "0" * 64])
def test_a_job_without_the_token_is_refused(cluster: Cluster, token: str, tmp_path: Path) -> None:
    made = tmp_path / "made"
    stranger = {"RAY_AUTH_TOKEN": token, "RAY_AUTH_MODE": "token" if token else "disabled"}
    answer = cluster.client("submit", "--working-dir", ".", "--", "touch", str(made), **stranger)
    assert answer.returncode != 0 and "oken" in answer.stdout, answer.stdout
    assert not made.exists()


def test_ctrl_c_leaves_the_job_running_and_stop_ends_it_so_that_the_next_goes_on(
    cluster: Cluster, finished_store: Path, tmp_path: Path
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what was started in the background ignores it
    recipe, log = read(RECIPE), tmp_path / "log"
    undisturbed = artifacts_of(finished_store, recipe)
    store = without(finished_store, "teach", tmp_path / "store")
    client = cluster.submit(store, log, "first")
    until(lambda: members(cluster.session, TRAINING) or client.poll() is not None, log)
    training = members(cluster.session, TRAINING)
    for pid in training:  # or it may be done before the client has asked
        os.kill(pid, signal.SIGSTOP)
    until(lambda: "teach: running" in log.read_text() or client.poll() is not None, log)
    client.send_signal(signal.SIGINT)
    client.wait(60)
    assert "RUNNING" in cluster.client("status", "first").stdout
    for pid in training:
        os.kill(pid, signal.SIGCONT)

    answer = cluster.client("stop", "first")
    assert answer.returncode == 0 and "stopped" in answer.stdout, answer.stdout
    told = cluster.client("logs", "first").stdout.splitlines()
    assert "stopped: what is finished is kept — run the same command again to go on" in told
    assert told[-1].startswith("stopped"), "Python ended beside tasks that still ran"
    with (store / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not members(cluster.session, TRAINING) and not members(cluster.session, "jobs.all")
    before = state_of(store)

    again = cluster.submit(store, log, "second")
    until(lambda: "ingest: reused" in log.read_text() or again.poll() is not None, log)
    assert state_of(store).items() >= before.items(), "the stopped job went on writing"
    assert again.wait(GIVE_UP_S) == 0, log.read_text()
    assert_same(artifacts_of(store, recipe), undisturbed)


def test_a_job_that_died_with_its_head_goes_on_when_submitted_to_a_new_one(
    finished_store: Path, project: Path, tmp_path: Path
) -> None:
    recipe, log = read(RECIPE), tmp_path / "log"
    undisturbed = artifacts_of(finished_store, recipe)
    store = without(finished_store, "sample/0", tmp_path / "store")
    for attempt in ("killed", "again"):
        with short_folder() as folder, head_of(folder, project, tmp_path / "head.log") as cluster:
            client = cluster.submit(store, log, attempt)
            if attempt == "killed":
                until(lambda: members(cluster.session, SAMPLING), log)
                end(cluster.session)
                assert client.wait(60) != 0
            else:
                assert client.wait(GIVE_UP_S) == 0, log.read_text()
    assert_same(artifacts_of(store, recipe), undisturbed)
