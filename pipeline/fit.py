"""Fits on the cluster: long ones through Ray Train, small ones as one task. The only caller of TorchTrainer.

A long fit counts images and checkpoints; killed and started again under the same `work_uri`, it goes on from its
last checkpoint and ends with the same weights. A small fit (seconds) must not pay for a worker group.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import ray
import ray.data
import torch
from ray import train
from ray.train.torch import TorchTrainer, get_device, prepare_model
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.cluster import market_labels
from pipeline.config import Market
from pipeline.folders import Folder
from pipeline.generators.training import Fit
from pipeline.progress import Bar
from pipeline.rows import read_rows

STATE = "state.safetensors"
RESULT = "result"
MAX_FAILURES = 3


@dataclass(frozen=True)
class Group:
    """How many Ray Train workers, and how large each is; none is the calling process itself."""

    workers: int = 1
    cpus: float = 1.0
    gpu: bool = False
    market: Market | None = None


class Place(NamedTuple):
    """Where a trainee runs."""

    rank: int
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
    bar: Bar,
) -> Path:
    """Train on the Parquet rows at `rows_uri`; the folder that the trainee saved.

    Every worker holds all rows (latents are small) and takes its slice of each global batch, so that the result
    does not depend on how a data set would have been split.
    """
    config = {
        "trainee": trainee,
        "arguments": dict(arguments),
        "checkpoint_images": checkpoint_images,
        "threads": max(1, int(group.cpus)),
        "bar": bar,
    }
    if not group.workers:
        return _in_process(config, rows_uri, group)
    trainer = TorchTrainer(
        _loop,
        train_loop_config=config,
        scaling_config=train.ScalingConfig(
            num_workers=group.workers,
            use_gpu=group.gpu,
            resources_per_worker={"CPU": group.cpus},
            label_selector=market_labels(group.market),
        ),
        run_config=train.RunConfig(
            name="train",
            storage_path=work_uri,
            failure_config=train.FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=train.CheckpointConfig(num_to_keep=2),
        ),
        datasets={"rows": ray.data.read_parquet(rows_uri)},
        dataset_config=train.DataConfig(datasets_to_split=[]),
    )
    checkpoint = trainer.fit().checkpoint
    if checkpoint is None:
        raise RuntimeError(f"training under {work_uri} ended without a checkpoint")
    return Path(checkpoint.to_directory(tempfile.mkdtemp(prefix="pd-"))) / RESULT


def small(function: Callable[..., Any], *arguments: Any, out: Path | None = None, group: Group | None = None) -> Any:
    """The function's result, computed in one task on the cluster.

    With `out`, the function writes to a folder that it is given under this name, and its files come back to there.
    """
    group = group or Group()
    threads = max(1, int(group.cpus))

    def with_threads(*values: Any) -> tuple[Any, Folder]:
        torch.set_num_threads(threads)
        if out is None:
            return function(*values), Folder({})
        with tempfile.TemporaryDirectory(prefix="pd-") as written:
            return function(*values, out=Path(written)), Folder.of(Path(written))

    with_threads.__name__ = function.__name__
    # A trial of a study must not take the task into its own placement group, which is too small for it.
    options: dict[str, Any] = {"scheduling_strategy": "DEFAULT", "label_selector": market_labels(group.market)}
    task = ray.remote(num_cpus=group.cpus, num_gpus=float(group.gpu), **options)(with_threads)
    result, files = ray.get(task.remote(*arguments))
    if out is not None:
        files.write(out)
    return result


def _in_process(config: Mapping[str, Any], rows_uri: str, group: Group) -> Path:
    """The same steps here and now, without a checkpoint: for a fit that is over before workers would have started."""
    torch.set_num_threads(config["threads"])
    device = torch.device("cuda" if group.gpu else "cpu")
    place = Place(0, device, lambda module: module.to(device))
    trainee = config["trainee"](read_rows(rows_uri).sort_by("row_id"), place=place, **config["arguments"])
    _train(trainee, config, None, lambda: None)
    out = Path(tempfile.mkdtemp(prefix="pd-")) / RESULT
    trainee.save(out)
    return out


def _loop(config: dict[str, Any]) -> None:
    torch.set_num_threads(config["threads"])
    rank = train.get_context().get_world_rank()
    place = Place(rank, get_device(), prepare_model)
    trainee = config["trainee"](_shard(), place=place, **config["arguments"])
    checkpoint = train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            trainee.fit.load_state(load_file(Path(folder) / STATE))
    if trainee.fit.done:  # killed between the last checkpoint and the end
        _report(trainee, rank == 0)
    _train(trainee, config, config["bar"] if rank == 0 else None, lambda: _report(trainee, rank == 0))


def _train(trainee: Trainee, config: Mapping[str, Any], bar: Bar | None, report: Callable[[], None]) -> None:
    """Step until the fit is done; report at every checkpoint and at the end."""
    fit, every = trainee.fit, config["checkpoint_images"]
    if bar is not None:
        bar.begin(fit.n_images, fit.images_seen)
    while not fit.done:
        before = fit.images_seen
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
        train.report(metrics, checkpoint=train.Checkpoint.from_directory(folder))


def _shard() -> pa.Table:
    shard = train.get_dataset_shard("rows")
    assert shard is not None  # the trainer was given it
    blocks = shard.iter_batches(batch_format="pyarrow", batch_size=4096)
    return pa.concat_tables(list(blocks)).sort_by("row_id")
