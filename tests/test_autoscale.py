"""Workers come with the work and go after it: Ray's own autoscaler with nodes that are processes of this machine.

What is told of nodes is what the cluster says of itself, asked five times a second. Finished rows are read off the
checkpoints; rows made twice are what the job's board counted beyond the total. It counts finished batches, so what a
lost worker had in its hands (16 rows) comes on top.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import yaml
from clusters import free_port, head, lose, members, processes, short_folder, started, with_token
from running import GIVE_UP_S, RECIPE, ROOT, run_job, until, without
from test_system import artifacts_of, assert_same

from pipeline.artifact import Artifact, Store
from pipeline.config import changed, read
from pipeline.plan import plan

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
ACTORS, MOST_NODES = 3, 5
TOLD_BY = 64
"""Rows, two blocks and more: when so many more are finished, those before them were told long ago."""
IDLE_S, SLACK_S = 10.0, 15.0
"""A node may be idle so long; and so much longer until it is gone, as the autoscaler looks about once a second."""
NO_COMMANDS = {
    f"{part}_commands": []
    for part in ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
}
WATCH = """
import sys, time
from ray._raylet import GcsClient
gcs, n_before = GcsClient(address=sys.argv[1]), None
while True:
    n_workers = sum(node.state == 0 for node in gcs.get_all_node_info().values()) - 1
    if n_workers != n_before:
        print(time.monotonic(), n_workers, flush=True)
    n_before = n_workers
    time.sleep(0.2)
"""


@dataclass
class Cluster:
    """A head that takes no task, and how many workers were there when."""

    session: int
    address: str
    environment: dict[str, str]
    seen: list[tuple[float, int]] = field(default_factory=list)
    """Time (monotonic), number of live workers; one entry per change."""

    @property
    def workers(self) -> int:
        """How many there are now."""
        return self.seen[-1][1]

    def watch(self, answers: TextIO) -> None:
        """Note what the cluster says, until it is asked no more."""
        for line in answers:
            at, n_workers = line.split()
            self.seen.append((float(at), int(n_workers)))

    def lose(self, n_nodes: int, at_work: str) -> None:
        """Take nodes with such a worker away, as a spot market does: all their processes at once."""
        everybody = processes()
        raylets = {everybody[pid].parent for pid in members(self.session, at_work)}
        assert len(raylets) >= n_nodes
        for pid in sorted(raylets)[:n_nodes]:
            assert "/raylet/raylet" in everybody[pid].title
            lose(pid)

    def run(self, word: str, store: Path, log: Path, *options: str) -> subprocess.Popen[bytes]:
        """A job that follows the recipe with three actors."""
        where = ["--store", str(store), "--cluster.address", self.address, "--cluster.autoscaling"]
        command = [
            sys.executable,
            "-m",
            f"jobs.{word}",
            str(RECIPE),
            *where,
            f"--{word}.actors",
            str(ACTORS),
            *options,
        ]
        with log.open("w") as out:
            return subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=out, stderr=out)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    port, log = free_port(), tmp_path_factory.mktemp("cluster") / "log"
    worker = {"resources": {"CPU": 1, "object_store_memory": 100_000_000}, "node_config": {}, "min_workers": 0}
    config = NO_COMMANDS | {
        "cluster_name": "fake",
        "max_workers": MOST_NODES,
        "idle_timeout_minutes": IDLE_S / 60,
        "upscaling_speed": 100,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": f"127.0.0.1:{port}",  # else it takes port 6379
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "auth": {},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": worker | {"max_workers": MOST_NODES},
        },
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
    }
    environment = with_token() | {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": f"{'f' * 51}00000",
        "RAY_enable_autoscaler_v2": "0",  # the second version starts no such nodes
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "AUTOSCALER_HEARTBEAT_TIMEOUT_S": "5",  # until a node that is gone makes room for another
        "RAY_health_check_failure_threshold": "2",  # of a node that is gone; else it takes 15 s to be seen
        "RAY_health_check_period_ms": "1000",
        "PYTHONPATH": str(ROOT),
    }
    with short_folder() as folder:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        scales = f"--autoscaling-config={folder}/config.yaml"
        command = head(port, folder, "--num-cpus=0", "--include-dashboard=false", scales)
        with started(command, environment, log, folder) as session:
            cluster = Cluster(session, f"127.0.0.1:{port}", environment)
            asking = [sys.executable, "-c", WATCH, cluster.address]  # another process, as this one has no token
            with subprocess.Popen(asking, env=environment, stdout=subprocess.PIPE, text=True) as watcher:
                assert watcher.stdout is not None
                threading.Thread(target=cluster.watch, args=(watcher.stdout,)).start()
                yield cluster
                watcher.kill()


def test_a_cluster_without_workers_is_refused_unless_the_recipe_says_that_they_come(
    cluster: Cluster, finished_store: Path, tmp_path: Path
) -> None:
    log, store = tmp_path / "log", without(finished_store, "sample/0", tmp_path / "store")
    job = cluster.run("sample", store, log, "--cluster.no-autoscaling")
    assert job.wait(GIVE_UP_S) == 2
    assert (
        "CPU slots" in log.read_text() and "or --cluster.autoscaling if nodes come with the work" in log.read_text()
    )


def test_workers_come_with_the_work_and_go_after_it(
    cluster: Cluster, finished_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, log = read(RECIPE), tmp_path / "log"
    store = without(finished_store, "sample/0", tmp_path / "store")
    until(lambda: cluster.seen, log)
    assert cluster.seen == [(cluster.seen[0][0], 0)], "there were workers before there was work"
    job = cluster.run("sample", store, log)
    began = until(lambda: "sample/0: running" in log.read_text() or job.poll() is not None, log)
    assert job.wait(GIVE_UP_S) == 0, log.read_text()
    ended = time.monotonic()
    most = max(n for _, n in cluster.seen)
    assert most >= ACTORS
    gone = until(lambda: cluster.workers == 0, log)
    assert gone - ended <= IDLE_S + SLACK_S
    assert_same(artifacts_of(store, recipe), artifacts_of(finished_store, recipe))
    with capsys.disabled():
        came = ", ".join(f"{at - began:.0f} s: {n}" for at, n in cluster.seen[1:])
        print(f"\nworkers after the step began: {came}; the work ended at {ended - began:.0f} s", end=" ")


# More rows than the recipe's in smaller blocks, so that there is a middle to lose nodes in.
LARGER = {"sample.n_images": 960, "sample.steps": 24, "sample.block_rows": 16, "score.batch_size": 16}


def options(more: dict[str, int]) -> list[str]:
    return [text for name, value in more.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def rows_of(store: Path, task: str) -> Artifact:
    lines = {line.task.name: line.artifact for line in plan(changed(read(RECIPE), LARGER), Store(store))}
    found = lines[task]
    assert found is not None
    return found


@pytest.fixture(scope="module")
def larger_store(finished_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with more samples and their scores, made by one process."""
    store = shutil.copytree(finished_store, tmp_path_factory.mktemp("larger") / "store")
    in_process = {"sample": ["--sample.actors", "0", "--sample.min-actors", "0"], "score": ["--score.actors", "0"]}
    for word in in_process:
        answer = run_job(word, store, *options(LARGER), *in_process[word])
        assert answer.returncode == 0, answer.stdout + answer.stderr
    return store


def done(store: Path, word: str) -> set[str]:
    """Rows that are finished: the checkpoint has them."""
    files = [str(path) for path in store.glob(f"private/work/{word}-0-*/checkpoint/*.parquet")]
    whole = [path for path in files if "pending" not in path]
    return set(pads.dataset(whole, format="parquet").to_table()["row_id"].to_pylist()) if whole else set()


def files_of(store: Path, word: str, rows: set[str]) -> dict[str, int]:
    """Files that hold none but these rows, and when each was written."""
    found = {}
    for path in store.glob(f"private/{word}/0/*/rows/*.parquet"):
        with contextlib.suppress(pa.ArrowInvalid, FileNotFoundError):  # one that is being written
            if rows.issuperset(pq.read_table(path, columns=["row_id"])["row_id"].to_pylist()):
                found[str(path)] = path.stat().st_mtime_ns
    return found


@pytest.mark.parametrize(("word", "worker"), [("sample", "SampleImages"), ("score", "ScoreImages")])
def test_two_lost_nodes_cost_the_blocks_in_their_hands_and_nothing_else(
    cluster: Cluster,
    larger_store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    word: str,
    worker: str,
) -> None:
    log, store = tmp_path / "log", shutil.copytree(larger_store, tmp_path / "store")
    undisturbed = rows_of(larger_store, f"{word}/0")
    shutil.rmtree(rows_of(store, f"{word}/0").path)
    small = {"score.block_rows": 32} if word == "score" else {}
    job = cluster.run(word, store, log, *options(LARGER | small))

    def many_done() -> bool:
        actors = members(cluster.session, f"ray::MapWorker(MapBatches({worker}))")
        return job.poll() is not None or (len(actors) >= 2 and len(done(store, word)) >= 100)

    until(many_done, log)
    finished = done(store, word)
    written = files_of(store, word, finished)
    # A block counts as finished once its write is told, a moment after its file and its checkpoint are there.
    until(lambda: job.poll() is not None or len(done(store, word)) >= len(finished) + TOLD_BY, log)
    n_done, lost_at = len(done(store, word)), time.monotonic()
    assert written and job.poll() is None, log.read_text()
    cluster.lose(2, f"ray::MapWorker(MapBatches({worker}))")
    assert job.wait(GIVE_UP_S) == 0, log.read_text()
    n_rows = undisturbed.manifest["rows"]
    found = re.search(r"(\d+) made twice", log.read_text())
    n_again = int(found[1]) if found else 0
    assert n_done < n_rows, "all was done before the nodes went"
    assert rows_of(store, f"{word}/0").table().equals(undisturbed.table())
    assert files_of(store, word, finished) == written, "what was finished was made again"
    with capsys.disabled():
        print(
            f"\n{word}: two nodes lost with {n_done} of {n_rows} rows done; {n_again} rows made twice; "
            f"the end came {time.monotonic() - lost_at:.0f} s later",
            end=" ",
        )
