"""Fits on the cluster: long ones through Ray Train, small ones as one task. The only caller of TorchTrainer.

A long fit counts images and checkpoints; killed and started again under the same `work_uri`, it goes on from its
last checkpoint and ends with the same weights. A small fit (seconds) must not pay for a worker group.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.fs as pafs
import ray
import ray.data
import torch
from ray import train
from ray.train.torch import TorchConfig, TorchTrainer, get_device, prepare_model
from safetensors.torch import load, load_file, save_file
from torch import nn

from pipeline import ends
from pipeline.artifact import ArtifactError
from pipeline.cluster import is_own, market_labels
from pipeline.config import Market
from pipeline.folders import Folder
from pipeline.generators.training import Fit
from pipeline.loopback import Loopback
from pipeline.progress import Bar
from pipeline.rows import read_rows
from pipeline.storage import located, sizes

STATE = "state.safetensors"
RESULT = "result"
SIZES = "sizes.json"
MAX_FAILURES = 3


@dataclass(frozen=True)
class Group:
    """How many Ray Train workers, and how large each is; none is the calling process itself."""

    workers: int = 1
    cpus: float = 1.0
    gpu: bool = False
    market: Market | None = None
    least: int | None = None
    """Workers to go on with if the cluster has no more; none is all of them."""


class Place(NamedTuple):
    """Where a trainee runs."""

    rank: int
    of: int
    """How many workers there are."""
    device: torch.device
    prepared: Callable[[nn.Module], Any]
    """Moves a module to the device, and wraps it where several workers average gradients."""


class Trainee(Protocol):
    """What one worker trains: made from the rows and its place."""

    @property
    def fit(self) -> Fit:
        """The state that is checkpointed."""
        ...

    def step(self) -> None:
        """Train on this worker's part of the next batch."""
        ...

    def save(self, out: Path) -> None:
        """Write what the fit is for."""
        ...


def train_on_rows(
    trainee: Callable[..., Trainee],
    arguments: Mapping[str, Any],
    rows_uri: str,
    *,
    group: Group,
    checkpoint_images: int,
    work_uri: str,
    leftovers: Sequence[str] = (),
    bar: Bar,
) -> Path:
    """Train on the Parquet rows at `rows_uri`; the folder that the trainee saved.

    Every worker holds all rows (latents are small) and takes its slice of each global batch, so that the result
    does not depend on how a data set would have been split. Without a checkpoint of its own it goes on from the
    latest of other attempts (`leftovers`, addresses like `work_uri`).
    """
    config = {
        "trainee": trainee,
        "arguments": dict(arguments),
        "checkpoint_images": checkpoint_images,
        "threads": max(1, int(group.cpus)),
        "bar": bar,
        "words": uuid.uuid4().hex,
    }
    if not group.workers:
        return _in_process(config, rows_uri, group)
    fs, work = located(work_uri)
    config["state"] = taken_over(leftovers, fs, work)
    rows_fs, rows = located(rows_uri)
    trainer = TorchTrainer(
        _loop,
        train_loop_config=config,
        torch_config=Loopback() if is_own() else TorchConfig(),
        scaling_config=train.ScalingConfig(
            num_workers=(group.least, group.workers) if group.least else group.workers,
            use_gpu=group.gpu,
            resources_per_worker={"CPU": group.cpus},
            label_selector=market_labels(group.market),
        ),
        run_config=train.RunConfig(
            name="train",
            storage_path=work,
            storage_filesystem=None if isinstance(fs, pafs.LocalFileSystem) else fs,
            failure_config=train.FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=train.CheckpointConfig(num_to_keep=2),
        ),
        datasets={"rows": ray.data.read_parquet(rows, filesystem=rows_fs)},
        dataset_config=train.DataConfig(datasets_to_split=[]),
    )
    with ends.read_for(config["words"]):
        checkpoint = trainer.fit().checkpoint
    if checkpoint is None:
        raise RuntimeError(f"training under {work_uri} ended without a checkpoint")
    folder = Path(checkpoint.to_directory(tempfile.mkdtemp(prefix="pd-")))
    require_whole(folder, work)
    return folder / RESULT


def require_whole(folder: Path, where: str) -> None:
    """Check a fetched checkpoint against its list of sizes: Ray Train uploads with pyarrow's `copy_files`, which says
    nothing of an upload to S3 that failed.

    Raises: ArtifactError if anything is missing.
    """
    there = sizes(folder)
    wanted = json.loads((folder / SIZES).read_text()) if SIZES in there else {SIZES: None}
    if not wanted.items() <= there.items():
        raise ArtifactError(
            f"training under {where}: want the last checkpoint whole, got a part of it — run again, an upload failed"
        )


def small(function: Callable[..., Any], *arguments: Any, out: Path | None = None, group: Group | None = None) -> Any:
    """The function's result, computed in one task on the cluster.

    With `out`, the function writes to a folder that it is given under this name, and its files come back to there.
    Raises: WorkerDiedError if its worker ended, and another one as well; whatever the function raises.
    """
    group = group or Group()
    threads = max(1, int(group.cpus))

    def with_threads(words: str, *values: Any) -> tuple[Any, Folder]:
        torch.set_num_threads(threads)
        with ends.last_words(words), ends.told_memory():
            if out is None:
                return function(*values), Folder({})
            with tempfile.TemporaryDirectory(prefix="pd-") as written:
                return function(*values, out=Path(written)), Folder.of(Path(written))

    with_threads.__name__ = function.__name__
    # A trial of a study must not take the task into its own placement group, which is too small for it.
    options: dict[str, Any] = {"scheduling_strategy": "DEFAULT", "label_selector": market_labels(group.market)}
    # By itself Ray would try three times more, and say nothing of it.
    options["max_retries"] = 0
    task = ray.remote(num_cpus=group.cpus, num_gpus=float(group.gpu), **options)(with_threads)
    result, files = ends.tried(lambda words: ray.get(task.remote(words, *arguments)))
    if out is not None:
        files.write(out)
    return result


def taken_over(leftovers: Sequence[str], fs: pafs.FileSystem, work: str) -> tuple[pafs.FileSystem, str] | None:
    """A copy of the latest state among other attempts: whoever wrote it may be alive, and remove it any time."""
    folders = [f"{located(uri)[1]}/train" for uri in leftovers]
    infos = [
        info
        for folder in folders
        for info in fs.get_file_info(pafs.FileSelector(folder, recursive=True, allow_not_found=True))
        if info.base_name == STATE
    ]
    for info in sorted(infos, key=lambda info: info.mtime_ns, reverse=True):
        fs.create_dir(work, recursive=True)
        try:
            fs.copy_file(info.path, f"{work}/{STATE}")
        except FileNotFoundError:
            continue
        return fs, f"{work}/{STATE}"
    return None


def _in_process(config: Mapping[str, Any], rows_uri: str, group: Group) -> Path:
    """The same steps here and now, without a checkpoint: for a fit that is over before workers would have started."""
    torch.set_num_threads(config["threads"])
    device = torch.device("cuda" if group.gpu else "cpu")
    place = Place(0, 1, device, lambda module: module.to(device))
    trainee = config["trainee"](read_rows(rows_uri).sort_by("row_id"), place=place, **config["arguments"])
    _train(trainee, config, None, lambda: None, contextlib.nullcontext)
    out = Path(tempfile.mkdtemp(prefix="pd-")) / RESULT
    trainee.save(out)
    return out


def _loop(config: dict[str, Any]) -> None:
    with ends.last_words(config["words"]), ends.told_memory():
        _in_group(config)


def _in_group(config: dict[str, Any]) -> None:
    torch.set_num_threads(config["threads"])
    rank, of = train.get_context().get_world_rank(), train.get_context().get_world_size()
    if rank == 0 and config["bar"].attempt([config["words"]]):
        # Workers that Ray ended, as another one was gone or as there are more of them now, leave no words.
        spoken = [end.got for end in ends.ended_here(config["words"]) if end != ends.SILENT]
        why = f": got {spoken[-1]}" if spoken else ""
        config["bar"].tell(f"started again with {of} workers from the last checkpoint{why}")
    place = Place(rank, of, get_device(), prepare_model)
    trainee = config["trainee"](_shard(), place=place, **config["arguments"])
    checkpoint = train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            trainee.fit.load_state(load_file(Path(folder) / STATE))
    elif config["state"] is not None:
        fs, path = config["state"]
        with fs.open_input_stream(path) as stream:
            trainee.fit.load_state(load(stream.read()))
    if trainee.fit.done:  # killed between the last checkpoint and the end
        _report(trainee, rank == 0)
    _train(
        trainee,
        config,
        config["bar"] if rank == 0 else None,
        lambda: _report(trainee, rank == 0),
        lambda: ends.ended_if_hanging(config["bar"].hang_s),
    )


def _train(
    trainee: Trainee,
    config: Mapping[str, Any],
    bar: Bar | None,
    report: Callable[[], None],
    watched: Callable[[], AbstractContextManager[None]],
) -> None:
    """Step until the fit is done; report at every checkpoint and at the end."""
    fit, every = trainee.fit, config["checkpoint_images"]
    if bar is not None:
        bar.begin(fit.n_images, fit.images_seen)
    while not fit.done:
        before = fit.images_seen
        with watched():
            trainee.step()
            if bar is not None:
                bar.add(fit.images_seen - before)
            if fit.done or fit.images_seen // every > before // every:
                report()


def _report(trainee: Trainee, is_first: bool) -> None:
    """A barrier for all ranks; the first one's state, and when done its result, are kept."""
    metrics = {"images_seen": trainee.fit.images_seen}
    if not is_first:
        train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        save_file(trainee.fit.state(), Path(folder) / STATE)
        if trainee.fit.done:
            trainee.save(Path(folder) / RESULT)
        (Path(folder) / SIZES).write_text(json.dumps(sizes(Path(folder))))
        train.report(metrics, checkpoint=train.Checkpoint.from_directory(folder))


def _shard() -> pa.Table:
    shard = train.get_dataset_shard("rows")
    assert shard is not None  # the trainer was given it
    blocks = shard.iter_batches(batch_format="pyarrow", batch_size=4096)
    return pa.concat_tables(list(blocks)).sort_by("row_id")
