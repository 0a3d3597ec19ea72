"""Fits on the cluster: long ones through Ray Train, small ones as one task. The only caller of TorchTrainer.

A long fit counts images and checkpoints; killed and started again under the same `work_uri`, it goes on from its
last checkpoint and ends with the same weights. A small fit (seconds) must not pay for a worker group.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import ray
import ray.data
import torch
from ray import train
from ray.train.torch import TorchTrainer
from safetensors.torch import load_file, save_file

from pipeline.generators.training import Fit
from pipeline.progress import Bar

STATE = "state.safetensors"
RESULT = "result"
MAX_FAILURES = 3


@dataclass(frozen=True)
class Group:
    """How many Ray Train workers, and how large each is."""

    workers: int = 1
    cpus: float = 1.0
    gpu: bool = False


class Trainee(Protocol):
    """What one worker trains: made from the rows, its rank and its device."""

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
    trainer = TorchTrainer(
        _loop,
        train_loop_config={
            "trainee": trainee,
            "arguments": dict(arguments),
            "checkpoint_images": checkpoint_images,
            "threads": max(1, int(group.cpus)),
            "bar": bar,
        },
        scaling_config=train.ScalingConfig(
            num_workers=group.workers, use_gpu=group.gpu, resources_per_worker={"CPU": group.cpus}
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


def small(function: Callable[..., Any], *arguments: Any, cpus: float = 1.0, gpu: bool = False) -> Any:
    """The function's result, computed in one task on the cluster."""
    threads = max(1, int(cpus))

    def with_threads(*values: Any) -> Any:
        torch.set_num_threads(threads)
        return function(*values)

    with_threads.__name__ = function.__name__
    task = ray.remote(num_cpus=cpus, num_gpus=float(gpu))(with_threads)
    return ray.get(task.remote(*arguments))


def _loop(config: dict[str, Any]) -> None:
    torch.set_num_threads(config["threads"])
    context, bar = train.get_context(), config["bar"]
    is_first = context.get_world_rank() == 0
    trainee = config["trainee"](_rows(), rank=context.get_world_rank(), **config["arguments"])
    fit = trainee.fit
    checkpoint = train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            fit.load_state(load_file(Path(folder) / STATE))
    if is_first:
        bar.begin(fit.n_images, fit.images_seen)
    if fit.done:  # killed between the last checkpoint and the end
        _report(trainee, is_first)
    while not fit.done:
        before = fit.images_seen
        trainee.step()
        if is_first:
            bar.add(fit.images_seen - before)
        if fit.done or fit.images_seen // config["checkpoint_images"] > before // config["checkpoint_images"]:
            _report(trainee, is_first)


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


def _rows() -> pa.Table:
    shard = train.get_dataset_shard("rows")
    assert shard is not None  # the trainer was given it
    blocks = shard.iter_batches(batch_format="pyarrow", batch_size=4096)
    return pa.concat_tables(list(blocks)).sort_by("row_id")
