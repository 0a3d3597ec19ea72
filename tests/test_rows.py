"""Row steps on a local Ray: nothing lost, nothing doubled, whatever the pool and whatever was killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from ray._private.state import actors

from pipeline.artifact import read_table
from pipeline.cluster import ClusterError
from pipeline.progress import Bar, Board
from pipeline.rows import ATTEMPTS, KILLS, MOST_SET_ASIDE, Pool, Written, _Operator, append_columns, count_rows
from pipeline.tables import SchemaError

pytestmark = pytest.mark.usefixtures("local_ray")
N_ROWS = 100


class Square:
    """Adds the square of `number`; while the file `broken` is there, it fails after some rows."""

    reads = pa.schema([("row_id", pa.string()), ("number", pa.int64())])
    adds = pa.schema([("square", pa.int64())])

    def __init__(self, broken: Path | None = None, log: Path | None = None):
        self._broken, self._log = broken, log

    def __call__(self, batch: pa.Table) -> pa.Table:
        if self._broken is not None and self._broken.exists() and "row-060" in batch["row_id"].to_pylist():
            raise RuntimeError("the actor died")
        if self._log is not None:
            with self._log.open("a") as log:
                log.write("".join(f"{row_id}\n" for row_id in batch["row_id"].to_pylist()))
        return pa.table({"square": pa.array([n * n for n in batch["number"].to_pylist()], pa.int64())})


class Poisoned(Square):
    """Dies of two of the rows, hangs at a third, and notes how often it did."""

    def __init__(self, ends: Path, poison: Sequence[str] = ("row-017", "row-020"), hangs_at: str = "row-090"):
        super().__init__()
        self._ends, self._poison, self._hangs_at = ends, poison, hangs_at

    def __call__(self, batch: pa.Table) -> pa.Table:
        names = batch["row_id"].to_pylist()
        if {*names} & {*self._poison, self._hangs_at}:
            with self._ends.open("a") as log:
                log.write(f"{os.getpid()}\n")
        if {*names} & {*self._poison}:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._hangs_at in names:
            time.sleep(600)
        return super().__call__(batch)


class Forgetful(Square):
    """Answers with one row too few."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        return super().__call__(batch).slice(1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "source.parquet"
    names = [f"row-{i:03d}" for i in range(N_ROWS)]
    pq.write_table(pa.table({"row_id": names, "number": list(range(N_ROWS)), "unused": ["x"] * N_ROWS}), file)
    return file


def appended(
    source: Path, out: Path, worker: type = Square, n_actors: int = 2, hang_s: float = 900, **arguments: Any
) -> Written:
    return append_columns(
        str(source),
        worker,
        arguments,
        str(out),
        work_uri=str(out.with_suffix(".work")),
        pool=Pool(n_actors, batch_rows=8, block_rows=16),
        bar=Bar(Board.remote(), "test", hang_s),
    )


def rows_of(out: Path) -> list[dict[str, Any]]:
    return read_table(pafs.LocalFileSystem(), str(out)).to_pylist()


def test_every_row_comes_out_once_with_only_its_id_and_the_new_column(source: Path, tmp_path: Path) -> None:
    assert appended(source, tmp_path / "out").rows == N_ROWS
    assert rows_of(tmp_path / "out") == [{"row_id": f"row-{i:03d}", "square": i * i} for i in range(N_ROWS)]


def test_one_actor_and_three_write_the_same_rows(source: Path, tmp_path: Path) -> None:
    appended(source, tmp_path / "one", n_actors=1)
    appended(source, tmp_path / "three", n_actors=3)
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "three")


def test_a_failed_run_goes_on_where_it_stood_and_loses_and_doubles_nothing(source: Path, tmp_path: Path) -> None:
    broken, log, out = tmp_path / "broken", tmp_path / "log", tmp_path / "out"
    broken.touch()
    with pytest.raises(Exception, match="the actor died"):
        appended(source, out, n_actors=1, broken=broken)
    done_before = count_rows(str(out))
    broken.unlink()
    assert appended(source, out, n_actors=1, broken=broken, log=log).rows == N_ROWS
    assert rows_of(out) == [{"row_id": f"row-{i:03d}", "square": i * i} for i in range(N_ROWS)]
    assert len(log.read_text().splitlines()) <= N_ROWS - done_before


def test_running_again_computes_nothing(source: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    appended(source, tmp_path / "out")
    assert appended(source, tmp_path / "out", log=log).rows == N_ROWS
    assert not log.exists()


def test_a_worker_that_drops_a_row_is_named(source: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="Forgetful output: want 8 rows, got 7"):
        appended(source, tmp_path / "out", Forgetful)


def test_rows_that_are_there_twice_are_an_error_not_a_larger_set(source: Path, tmp_path: Path) -> None:
    appended(source, tmp_path / "out")
    doubled = next((tmp_path / "out").glob("*.parquet"))
    (tmp_path / "out" / "again.parquet").write_bytes(doubled.read_bytes())
    with pytest.raises(SchemaError, match="want 100 rows, got"):
        appended(source, tmp_path / "out")


def test_rows_that_end_their_worker_every_time_are_set_aside_and_all_others_are_written(
    source: Path, tmp_path: Path
) -> None:
    ends, out = tmp_path / "ends", tmp_path / "out"
    written = appended(source, out, Poisoned, hang_s=5, ends=ends)
    assert written.set_aside == dict.fromkeys(["row-017", "row-020", "row-090"], KILLS)
    assert written.rows == N_ROWS - 3
    squares = {f"row-{i:03d}": i * i for i in range(N_ROWS)}
    assert {row["row_id"]: row["square"] for row in rows_of(out)} == {
        name: square for name, square in squares.items() if name not in written.set_aside
    }
    # Bounded: each of the two batches ends some workers, then each of the three rows does.
    assert len(ends.read_text().splitlines()) <= ATTEMPTS * (2 + 3)


def test_more_rows_that_end_their_workers_than_chance_explains_end_the_step() -> None:
    names = [f"row-{i:03d}" for i in range(MOST_SET_ASIDE + 1)]
    bar = Bar(Board.remote(), "test")
    for _ in range(ATTEMPTS):
        bar.attempt(names)
        for name in names:
            bar.attempt([name])
    batch = pa.table({"row_id": names, "number": list(range(len(names)))})
    with pytest.raises(ClusterError, match=f"want at most {MOST_SET_ASIDE} rows that end their workers, got"):
        _Operator(Square, {}, bar)(batch)
    assert bar.rows_set_aside() == names


def test_a_row_step_starts_no_actor_but_its_workers(source: Path, tmp_path: Path) -> None:
    appended(source, tmp_path / "first")  # Ray Data's own, once for all steps
    before = set(actors())
    appended(source, tmp_path / "out")
    started = {actor["ActorClassName"] for name, actor in actors().items() if name not in before}
    assert started == {"Board", "MapWorker(MapBatches(Square))"}, "whose node goes, goes the step"
