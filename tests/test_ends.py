"""Workers that end while they work: one sentence on what ended them, whatever the kind of work."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.exceptions
import torch
from ray import cloudpickle, tune
from rich.console import Console
from running import RECIPE, ROOT, without

from pipeline import ends, fit, trials
from pipeline.cluster import ClusterError
from pipeline.progress import Bar, Board, View
from pipeline.rows import Pool, append_columns

pytestmark = pytest.mark.usefixtures("local_ray")
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not find this file
SEGFAULT = r"killed by signal 11 \(segmentation fault\)"


def end_by(number: int) -> None:
    os.kill(os.getpid(), number)
    signal.pause()


def leave(_: int) -> None:
    os._exit(0)


def need_too_much(_: int) -> None:
    torch.empty(2**50, dtype=torch.uint8)


def need_too_much_of_python(_: int) -> None:
    bytearray(2**60)


def small(function: Callable[[int], Any], argument: int = 0) -> tuple[str, list[str]]:
    """The sentence of a small fit that ends so, and what was told before."""
    told: list[str] = []
    with pytest.raises(ClusterError) as caught, ends.explained("identify/auditor", told.append):
        fit.small(function, argument)
    return str(caught.value), told


@pytest.mark.parametrize(
    ("function", "number", "got", "do"),
    [
        (end_by, signal.SIGSEGV, rf"it {SEGFAULT} twice", "run again"),
        (end_by, signal.SIGABRT, r"it killed by signal 6 \(aborted\) twice", "run again"),
        (end_by, signal.SIGKILL, "it ended without a word, as by signal 9 or an exit twice", "a smaller batch"),
        (leave, 0, "it ended without a word, as by signal 9 or an exit twice", "a smaller batch"),
    ],
)
def test_a_small_fit_whose_worker_ends_is_tried_once_more_and_told_in_a_sentence(
    function: Callable[[int], None], number: int, got: str, do: str
) -> None:
    sentence, told = small(function, number)
    assert re.fullmatch(f"identify/auditor: want its worker to end by itself, got {got} — .*{do}.*", sentence)
    assert len(told) == 1
    assert told[0].startswith("tried again: got it ")


@pytest.mark.parametrize("function", [need_too_much, need_too_much_of_python])
def test_memory_that_does_not_suffice_is_told_with_how_much_is_in_use(function: Callable[[int], None]) -> None:
    sentence, told = small(function)
    assert re.fullmatch(
        r"identify/auditor: want .*, got out of memory: [\d.]+ GB in use of [\d.]+ GB — fewer parallel_tasks.*",
        sentence,
    )
    assert not told, "the same would come again"


def test_a_small_fit_whose_worker_ends_once_gives_its_result(tmp_path: Path) -> None:
    def once(mark: Path) -> int:
        if not mark.exists():
            mark.touch()
            end_by(signal.SIGSEGV)
        return 7

    assert fit.small(once, tmp_path / "mark") == 7


def test_what_a_function_raises_is_raised_as_it_is() -> None:
    def refuse() -> None:
        raise ValueError("want one, got none")

    with pytest.raises(ValueError, match="want one, got none"), ends.explained("teach", lambda _: None):
        fit.small(refuse)


def test_what_rays_memory_monitor_says_is_told_in_its_numbers() -> None:
    message = "Memory on the node (IP: 10.0.0.1, ID: ab) where the task was running was 15.20GB / 16.00GB (0.95)"
    end = ends.end_of(ray.exceptions.OutOfMemoryError(message), [])
    assert end is not None
    assert "out of memory: 15.20 GB in use of 16.00 GB" in end.got


@pytest.mark.parametrize("n_losses", [3, 4])
def test_work_on_nodes_that_are_lost_is_tried_again_three_times(n_losses: int) -> None:
    told: list[str] = []

    def run(_: str) -> str:
        if len(told) < n_losses:
            raise ray.exceptions.NodeDiedError("a spot machine")
        return "made"

    with ends.explained("score/gallery", told.append):
        if n_losses == 3:
            assert ends.tried(run) == "made"
        else:
            with pytest.raises(ClusterError, match="got its node lost 4 times"):
                ends.tried(run)
    assert told == ["tried again: got its node lost"] * 3


def test_a_sentence_reaches_the_console_from_a_worker_and_from_the_driver() -> None:
    console = Console(file=io.StringIO(), width=140)
    with View("test", console) as view:
        view.tell("identify/auditor", "tried again: got [it] killed")
        view.bar("teach").tell("started again")
    assert isinstance(console.file, io.StringIO)
    told = console.file.getvalue()
    assert "identify/auditor: tried again: got [it] killed\n" in told
    assert "teach: started again\n" in told


class Refuses:
    """A row worker that cannot be made."""

    reads = pa.schema([("row_id", pa.string())])
    adds = pa.schema([("more", pa.int64())])

    def __init__(self) -> None:
        raise ValueError("want weights, got none")

    def __call__(self, batch: pa.Table) -> pa.Table:
        return batch


class Dies:
    """A row worker that ends in its constructor."""

    reads = pa.schema([("row_id", pa.string())])
    adds = pa.schema([("more", pa.int64())])

    def __init__(self) -> None:
        end_by(signal.SIGSEGV)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return batch


def append(worker: type, folder: Path) -> None:
    pq.write_table(pa.table({"row_id": ["a", "b"]}), folder / "rows.parquet")
    append_columns(
        str(folder / "rows.parquet"),
        worker,
        {},
        str(folder / "out"),
        work_uri=str(folder / "work"),
        pool=Pool(2, batch_rows=1, block_rows=1),
        bar=Bar(Board.remote(), "test"),
    )


def test_what_a_row_worker_raises_at_its_start_is_not_taken_for_its_end(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="want weights, got none") as caught, ends.explained("sample/0", print):
        append(Refuses, tmp_path)
    assert not isinstance(caught.value, ClusterError)


def test_row_workers_that_end_at_each_start_end_the_step(tmp_path: Path) -> None:
    wanted = f"sample/0: want its worker to end by itself, got it {SEGFAULT} (twice|[34] times)"
    with pytest.raises(ClusterError, match=wanted), ends.explained("sample/0", lambda _: None):
        append(Dies, tmp_path)


class Fatal:
    """A trainee that ends its worker at the first step."""

    def __init__(self, table: pa.Table, *, place: fit.Place):
        self.fit = self
        self.n_images, self.images_seen, self.done = 8, 0, False

    def step(self) -> None:
        end_by(signal.SIGSEGV)

    def save(self, out: Path) -> None:
        """Nothing."""


def test_training_whose_worker_ends_every_time_is_told_in_a_sentence(tmp_path: Path) -> None:
    pq.write_table(pa.table({"row_id": ["a"]}), tmp_path / "rows.parquet")
    board = Board.remote()
    n = fit.MAX_FAILURES + 1
    wanted = f"teach: want its worker to end by itself, got it {SEGFAULT} {n} times — "
    with pytest.raises(ClusterError, match=wanted), ends.explained("teach", lambda _: None):
        fit.train_on_rows(
            Fatal,
            {},
            str(tmp_path / "rows.parquet"),
            group=fit.Group(),
            checkpoint_images=4,
            work_uri=str(tmp_path / "work"),
            bar=Bar(board, "teach"),
        )
    told = [sentence for _, sentence in ray.get(board.untold.remote())]
    assert len(told) == fit.MAX_FAILURES
    wanted = f"started again with 1 workers from the last checkpoint: got it {SEGFAULT}"
    assert all(re.fullmatch(wanted, sentence) for sentence in told)


def test_a_trial_whose_worker_ends_says_what_ended_it(tmp_path: Path) -> None:
    def measure(_: dict[str, Any]) -> None:
        tune.report({"rung": 0})
        with ends.last_words(trials._words(tune.get_context().get_trial_id())):
            end_by(signal.SIGSEGV)

    trainable = tune.with_resources(measure, {"cpu": 1})
    run = tune.RunConfig(storage_path=str(tmp_path), verbose=0)
    (result,) = tune.Tuner(trainable, param_space={"number": 1}, run_config=run).fit()
    error = trials._explained(result)
    assert error is not None
    assert re.fullmatch(f"WorkerDiedError: want .*, got it {SEGFAULT} — .*", trials._reason(error))


SABOTAGED = """
import os, signal, sys
from pipeline.steps import identify
def fatal(*_, **__): os.kill(os.getpid(), signal.SIGSEGV); signal.pause()
identify.{function} = fatal
from jobs.command import main
sys.argv[1:] = {arguments!r}
main("identify")
"""


@pytest.mark.slow
def test_a_command_whose_worker_ends_says_so_in_one_line(finished_store: Path, tmp_path: Path) -> None:
    store = without(finished_store, "identify/auditor", tmp_path / "store")
    program = SABOTAGED.format(function="_train", arguments=[str(RECIPE), "--store", str(store)])
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 2, answer.stdout + answer.stderr
    assert re.fullmatch(f"identify/auditor: want .* got it {SEGFAULT} twice — .*\n", answer.stderr), answer.stderr
    assert re.search(f"identify/auditor: tried again: got it {SEGFAULT}", answer.stdout)
