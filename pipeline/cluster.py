"""The machine that steps run on: connect to Ray, and check that it can hold the recipe before work starts."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray._private import ray_constants, worker
from ray._private.state import state
from ray.data import DataContext
from ray.exceptions import RayTaskError
from ray.train import WorkerGroupError

from pipeline.config import Market, Recipe

# A fit holds its CPU slot for minutes while Ray Data's reads and writes need one for milliseconds: with no slot
# to spare they would wait for each other (ray#44687 hangs without an error). So a laptop offers two more slots
# than it has cores.
SPARE_SLOTS = 2
MAX_TEMPDIR = 28
LOOPBACK = "127.0.0.1"


class ClusterError(RuntimeError):
    """The cluster cannot run this recipe; the message says what it lacks."""


@contextlib.contextmanager
def connect(recipe: Recipe) -> Iterator[None]:
    """Ray for the time of a run: the cluster at `cluster.address`, or one of its own on this machine.

    The own one answers to this user's processes only: it wants a token, listens on loopback, has no dashboard, and
    keeps its files where nobody else may look. With an address, the environment says which token
    (`RAY_AUTH_MODE`, `RAY_AUTH_TOKEN`, `RAY_AUTH_TOKEN_PATH`).
    After an error it stays until the process ends, as `ray.shutdown` hangs or crashes beside a task that still runs
    in a thread.
    Raises: ClusterError if the cluster cannot hold the recipe's largest pool.
    """
    _configure()
    if recipe.cluster.address:
        ray.init(address=recipe.cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    else:
        _take_token()
        folder = _own_folder()
        with _muted_stderr(), _on_loopback():  # ray's core greets with its log level
            ray.init(
                num_cpus=(os.cpu_count() or 1) + SPARE_SLOTS,
                object_store_memory=int(recipe.cluster.object_store_gb * 1e9),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=f"{folder}/ray",
            )
    preflight(recipe)
    yield
    ray.shutdown()


def is_own() -> bool:
    """Whether this is the Ray that `connect` starts on this machine, and not a cluster."""
    return ray.util.get_node_ip_address() == LOOPBACK


def forget_spilled() -> None:
    """Remove what this process's own Ray wrote to disk of objects that did not fit into memory.

    `ray.shutdown` does it too; a run that ends by an error or Ctrl-C does not get there.
    """
    node = worker._global_node
    if node is not None and node.is_head():
        for folder in Path(node.get_session_dir_path()).glob(f"{ray_constants.DEFAULT_OBJECT_PREFIX}_*"):
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def unwrapped() -> Iterator[None]:
    """Raise what a worker raised instead of what Ray makes of it."""
    try:
        yield
    except RayTaskError as error:
        raise error.cause from error
    except WorkerGroupError as error:
        raise next(iter(error.worker_failures.values())) from error


def market_labels(market: Market | None) -> dict[str, str] | None:
    """The label that a worker's node must have, by Ray's name for it; none for any node."""
    return {"ray.io/market-type": market} if market else None


def preflight(recipe: Recipe) -> None:
    """Check that every pool of actors and every group of workers fits the cluster's slots.

    Of what an autoscaler may start Ray 2.60 knows nothing (its autoscalers, both versions, report no limits), so the
    recipe says whether there is one.
    Raises: ClusterError naming the step, what it wants and what there is.
    """
    slots = state.get_max_resources_from_cluster_config()  # from who reports them
    if slots is None and recipe.cluster.autoscaling:
        return
    slots = slots or ray.cluster_resources()
    for where, n, cpus, gpus in demands(recipe):
        for kind, wanted in (("CPU", n * cpus), ("GPU", n * gpus)):
            there = slots.get(kind, 0.0)
            if wanted > there:
                raise ClusterError(
                    f"{where}: want {wanted:g} {kind} slots ({n} workers), got {there:g} "
                    "— fewer workers, a larger cluster, or --cluster.autoscaling if nodes come with the work"
                )


def demands(recipe: Recipe) -> list[tuple[str, int, float, float]]:
    """Step, number of workers, CPU slots and GPUs of one, for everything that must run at once."""
    training = [
        (word, section.min_workers or section.workers, section.cpus_per_worker, float(section.gpu))
        for word, section in (("teach", recipe.teach), ("distill", recipe.distill))
    ]
    pools = [
        (word, section.actors, section.cpus_per_actor, section.gpus_per_actor)
        for word, section in (("sample", recipe.sample), ("score", recipe.score))
    ]
    return [
        *training,
        *pools,
        ("ingest", recipe.ingest.actors, 1.0, 0.0),
        ("identify", 1, recipe.identify.cpus, float(recipe.identify.gpu)),
    ]


class Place(NamedTuple):
    """What a task takes at once."""

    workers: int = 1
    cpus: float = 1.0
    """CPU slots of one worker."""
    gpus: float = 0.0
    """GPUs of one worker."""
    market: Market | None = None
    """Kind of node; none is any."""

    @property
    def all_gpus(self) -> float:
        """GPUs of all workers."""
        return self.workers * self.gpus

    @property
    def units(self) -> float:
        """GPUs, or CPU slots where it takes no GPU: what its speed is counted by."""
        return self.workers * (self.gpus or self.cpus)


def place(recipe: Recipe, task: str) -> Place:
    """What a task of this name takes; a step's own process counts as one worker."""
    word, _, part = task.partition("/")
    if word in ("teach", "distill"):
        section = recipe.teach if word == "teach" else recipe.distill
        cpus = 1.0 if part == "latents" else section.cpus_per_worker
        return Place(max(1, section.workers), cpus, float(section.gpu), section.market)
    if word == "sample" or part == "student_images":
        sample = recipe.sample
        return Place(max(1, sample.actors), sample.cpus_per_actor, sample.gpus_per_actor, sample.market)
    if task == "score/gallery":  # one task, without a GPU
        return Place(cpus=recipe.score.cpus_per_actor)
    if word == "score" or part == "student_scores":
        score = recipe.score
        return Place(max(1, score.actors), score.cpus_per_actor, score.gpus_per_actor, score.market)
    if word == "identify":
        return Place(1, recipe.identify.cpus, float(recipe.identify.gpu), recipe.identify.market)
    return Place(recipe.ingest.actors if word == "ingest" else 1)


def told(recipe: Recipe, task: str) -> dict[str, Any]:
    """The place of a task, and the kinds of GPU in the cluster, for its manifest: a speed means nothing without."""
    slots = ray.cluster_resources() if ray.is_initialized() else {}
    mark = "accelerator_type:"
    return place(recipe, task)._asdict() | {
        "accelerators": sorted(name.removeprefix(mark) for name in slots if name.startswith(mark))
    }


def _configure() -> None:
    """Ray for a run with a view of its own: silent, and quick to see what ended."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else lines from C++ run through the live view
    # The newer reader of 2.60 starts actors for the footers of whatever Parquet it is given: up to 4 s for one small
    # file, and a run ends with an error if the node of one of them goes, even before it began.
    context = DataContext.get_current()
    context.use_datasource_v2 = False
    context.enable_progress_bars = False
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    # How often a training is looked at, by default every two seconds: its end was seen up to four seconds late.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune's newer output prints boxes whatever verbose says
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):  # what they log as an error they also raise
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _take_token() -> None:
    """A token that only this run's processes know, where the environment names none.

    Ray's own would be one for all runs, in a file of the home folder that everybody may read. That a token is asked
    for at all is Ray's default for a cluster of its own, unless `RAY_AUTH_MODE` says otherwise.
    """
    if not os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _own_folder() -> Path:
    """A folder for Ray's sessions that nobody else may enter: images are spilled to it, and Ray opens its own folders
    to everybody.

    Raises: ClusterError if somebody else made it.
    """
    # Ray's sockets live below it, and their paths may have 107 characters.
    base = Path(tempfile.gettempdir())
    folder = (base if len(str(base)) <= MAX_TEMPDIR else Path("/tmp")) / f"pd-{os.geteuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise ClusterError(
            f"{folder}: want a folder that only this user may enter, got {stat.filemode(found.st_mode)} of user "
            f"{found.st_uid} — remove it, or set TMPDIR to a folder of your own"
        )
    return folder


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """What Ray starts in this block listens on 127.0.0.1 only, as on macOS and Windows.

    On Linux it listens on every interface, and turns a `_node_ip_address` of 127.0.0.1 into the machine's own.
    """
    usual, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = usual


@contextlib.contextmanager
def _muted_stderr() -> Iterator[None]:
    saved = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
