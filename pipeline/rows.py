"""Row steps: append columns to every row. The only caller of `Dataset.map_batches`.

Same rows, same count, never drops but what kills its worker. Rows are checkpointed by `row_id` in blocks of
`block_rows`, so that a run that was killed goes on where it stood; the files come in any order, and readers sort by
`row_id`. On an object store it goes on from copies, as whoever wrote the originals may be writing still.

A batch whose worker died, or was ended as it hung, is tried again; after `ATTEMPTS` it is taken row by row, each on
its own, so that only the row that ends its worker every time is set aside. Neither costs the rest of the run more
than starting workers anew.
"""

from __future__ import annotations

import posixpath
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import ray
import ray.data
from ray.data import ActorPoolStrategy, SaveMode
from ray.data.checkpoint import CheckpointConfig
from ray.data.checkpoint.checkpoint_writer import PENDING_CHECKPOINT_SUFFIX

from pipeline import ends
from pipeline.cluster import ClusterError, market_labels
from pipeline.config import Market
from pipeline.progress import Bar
from pipeline.storage import located
from pipeline.tables import SchemaError, require

ATTEMPTS = 2
"""A batch, and then each of its rows, may end this many workers."""
MOST_SET_ASIDE = 10
KILLS = "ends its worker every time"


class Written(NamedTuple):
    """What came of a row step: rows written, and why the others are not among them."""

    rows: int
    set_aside: Mapping[str, str]
    """Reason by `row_id`."""

    @property
    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        return {"set_aside": dict(self.set_aside)} if self.set_aside else {}


class Worker(Protocol):
    """What a row step runs: loads once, then answers each batch with only the new columns, row by row."""

    reads: pa.Schema
    adds: pa.Schema

    def __call__(self, batch: pa.Table) -> pa.Table: ...


@dataclass(frozen=True)
class Pool:
    """How many workers (none is the calling process itself), how large each is, and what they take at a time."""

    max_actors: int
    batch_rows: int
    block_rows: int
    min_actors: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    market: Market | None = None


def append_columns(
    source_uri: str,
    worker: type[Worker],
    arguments: Mapping[str, Any],
    out_uri: str,
    *,
    work_uri: str,
    leftovers: Sequence[str] = (),
    pool: Pool,
    bar: Bar,
) -> Written:
    """Write `row_id` and the worker's columns for every row of the Parquet at `source_uri`.

    What other attempts finished of the same rows (`leftovers`, addresses) is copied, not computed again.
    Raises: SchemaError if the rows written and set aside are not the rows read; ClusterError if more than
    `MOST_SET_ASIDE` rows end their workers.
    """
    n_rows = count_rows(source_uri)
    checkpoint = _below(work_uri, "checkpoint")
    if pool.max_actors:
        _take_over(leftovers, out_uri, checkpoint)
    n_done = _count_done(checkpoint)
    bar.begin(n_rows, n_done)
    if pool.max_actors and n_done < n_rows:
        _stream(source_uri, worker, arguments, out_uri, checkpoint, pool, bar)
    elif not pool.max_actors:
        _in_process(source_uri, _Operator(worker, dict(arguments), bar), out_uri, pool.batch_rows, bar)
    written = Written(count_rows(out_uri), dict.fromkeys(bar.rows_set_aside(), KILLS))
    if written.rows + len(written.set_aside) != n_rows:
        raise SchemaError(
            f"{worker.__name__}: want {n_rows} rows, got {written.rows} — remove {out_uri} and run again"
        )
    return written


def _stream(
    source_uri: str,
    worker: type[Worker],
    arguments: Mapping[str, Any],
    out_uri: str,
    checkpoint: str,
    pool: Pool,
    bar: Bar,
) -> None:
    """Through a pool of actors."""
    words = uuid.uuid4().hex
    operator = type(worker.__name__, (_Operator,), {})  # Ray names the operator after the class
    source_fs, source = located(source_uri)
    out_fs, out = located(out_uri)
    work_fs, work = located(checkpoint)
    rows = ray.data.read_parquet(source, filesystem=source_fs)
    # Kept until the manifest is written: deleted earlier, a kill in between would write every row twice.
    rows.context.checkpoint_config = CheckpointConfig(
        "row_id", work, delete_checkpoint_on_success=False, override_filesystem=work_fs
    )
    rows.context.raise_original_map_exception = True
    rows = rows.repartition(target_num_rows_per_block=pool.block_rows).map_batches(
        operator,
        fn_constructor_args=(worker, dict(arguments), bar, words),
        batch_size=pool.batch_rows,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=pool.min_actors, max_size=pool.max_actors, initial_size=pool.max_actors),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus or None,
        label_selector=market_labels(pool.market),
    )
    with ends.read_for(words):
        rows.write_parquet(out, filesystem=out_fs, mode=SaveMode.APPEND)


def _take_over(leftovers: Sequence[str], out_uri: str, checkpoint_uri: str) -> None:
    """Copy the files of other attempts, no row twice, and note their rows as done.

    A file on an object store is whole or not there; one that cannot be read was cut off on its way.
    """
    fs, out = located(out_uri)
    done: set[str] = set()
    for uri in leftovers:
        for info in fs.get_file_info(pafs.FileSelector(located(uri)[1], allow_not_found=True)):
            try:
                names = pq.read_table(info.path, filesystem=fs, columns=["row_id"])["row_id"].to_pylist()
                if done.isdisjoint(names):
                    fs.create_dir(out, recursive=True)
                    fs.copy_file(info.path, f"{out}/{info.base_name}")
                    done.update(names)
            except (pa.ArrowInvalid, FileNotFoundError):
                continue
    if done:
        fs, checkpoint = located(checkpoint_uri)
        fs.create_dir(checkpoint, recursive=True)
        pq.write_table(pa.table({"row_id": sorted(done)}), f"{checkpoint}/taken_over.parquet", filesystem=fs)


def _in_process(source_uri: str, operator: _Operator, out_uri: str, batch_rows: int, bar: Bar) -> None:
    """One batch after the other here, for few rows: starting an actor takes longer than a trial has."""
    source, batches = read_rows(source_uri), []
    for start in range(0, len(source), batch_rows):
        batches.append(operator.run(source.slice(start, batch_rows)))
        bar.add(len(batches[-1]))
    fs, path = located(out_uri)
    fs.create_dir(path, recursive=True)
    pq.write_table(pa.concat_tables(batches), f"{path}/rows.parquet", filesystem=fs)


def read_rows(uri: str) -> pa.Table:
    """The whole Parquet file or folder at `uri`, in whatever order its files are."""
    fs, path = located(uri)
    return pads.dataset(path, filesystem=fs, format="parquet").to_table()


def count_rows(uri: str) -> int:
    """Rows in the Parquet file or folder at `uri`; 0 if there is none."""
    fs, path = located(uri)
    if fs.get_file_info(path).type == pafs.FileType.NotFound:
        return 0
    return pads.dataset(path, filesystem=fs, format="parquet").count_rows()


def _count_done(checkpoint_uri: str) -> int:
    """Rows that an earlier attempt finished. Beside them may be half a file, where it was killed or the disk full."""
    fs, path = located(checkpoint_uri)
    infos = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    done = [info.path for info in infos if not info.path.endswith(f"{PENDING_CHECKPOINT_SUFFIX}.parquet")]
    return pads.dataset(done, filesystem=fs, format="parquet").count_rows() if done else 0


def _below(uri: str, name: str) -> str:
    """Address of something below, before the address's options."""
    path, mark, options = uri.partition("?")
    return posixpath.join(path, name) + mark + options


class _Operator:
    """Runs a worker inside Ray Data, holds it to its schemas, and finds the row that ends it every time."""

    def __init__(self, worker: type[Worker], arguments: dict[str, Any], bar: Bar, words: str = ""):
        self._bar, self._words = bar, words
        self._kept = ExitStack()  # as long as the worker lives
        if words:
            self._kept.enter_context(ends.last_words(words))
            self._begin()
        try:
            with ends.told_memory():
                self._worker = worker(**arguments)
        finally:  # an error does not end it: Ray Data asks it again
            if words:
                self._bar.ended([_start()])

    def _begin(self) -> None:
        """Give up on a worker that ends at each of its starts: Ray would start it for ever."""
        n_before = self._bar.attempt([_start()])
        found = ends.ended_here(self._words) if n_before else []
        if n_before >= ATTEMPTS:
            raise ends.WorkerDiedError(min(found or [ends.LOST], key=lambda end: end.rank), n_before)
        if n_before:
            self._bar.tell(ends.again(found))

    def __call__(self, batch: pa.Table) -> pa.Table:
        names = batch["row_id"].to_pylist()
        with ends.ended_if_hanging(self._bar.hang_s):
            n_before = self._bar.attempt(names)
            if n_before and self._words:
                self._bar.tell(f"{len(names)} rows {ends.again(ends.ended_here(self._words))}")
            whole = n_before < ATTEMPTS
            added = self.run(batch) if whole else None
        if added is None:
            parts = [self._alone(batch.slice(i, 1), name) for i, name in enumerate(names)]
            added = pa.concat_tables(parts)
        self._bar.ended(names)
        self._bar.add(len(names))
        return added

    def _alone(self, row: pa.Table, name: str) -> pa.Table:
        """The row's columns, or no row if it ended its worker alone as well."""
        with ends.ended_if_hanging(self._bar.hang_s):
            if self._bar.attempt([name]) < ATTEMPTS:
                added = self.run(row)
                self._bar.ended([name])
                return added
        n = self._bar.set_aside(name)
        if n > MOST_SET_ASIDE:
            raise ClusterError(
                f"{type(self._worker).__name__}: want at most {MOST_SET_ASIDE} rows that end their workers, got {n} "
                "— see whether workers have enough memory, or take fewer rows at a time"
            )
        return self._result(row.slice(0, 0), self._worker.adds.empty_table())

    def run(self, batch: pa.Table) -> pa.Table:
        """The worker's columns beside `row_id`."""
        name = type(self._worker).__name__
        require(batch, self._worker.reads, f"{name} input")
        with ends.told_memory():
            added = self._worker(batch)
        require(added, self._worker.adds, f"{name} output")
        if added.num_rows != batch.num_rows:
            raise SchemaError(f"{name} output: want {batch.num_rows} rows, got {added.num_rows}")
        return self._result(batch, added)

    def _result(self, batch: pa.Table, added: pa.Table) -> pa.Table:
        return pa.table({"row_id": batch["row_id"]} | {field.name: added[field.name] for field in self._worker.adds})


def _start() -> str:
    """What the starts of this actor are counted under; it keeps its name when Ray starts it again."""
    return f"start of {ray.get_runtime_context().get_actor_id()}"
