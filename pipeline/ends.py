"""Why a worker ended that was not meant to, in one sentence with what to do.

Ray 2.60 says of a task that its worker died, of an actor beside it what may have been the cause, and never the
signal. So a worker keeps a file of last words, in the folder of its node's Ray session, to which Python writes a
signal as it dies; it is read on all nodes once a worker is gone. Not here: rows that end their workers (`rows`).
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import psutil
import ray
import torch
from ray import exceptions
from ray._private import worker
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.cluster import ClusterError

CRASHES, LOSSES = 1, 3
"""A task is tried again after so many ends of its worker, and so many losses of its node."""
READ_S = 30.0
SIGNALS = {
    "Segmentation fault": 11,
    "Aborted": 6,
    "Bus error": 7,
    "Illegal instruction": 4,
    "Floating-point exception": 8,
}
"""As faulthandler calls them."""
LESS = "fewer parallel_tasks, a smaller batch, or more memory"
_told: ContextVar[Callable[[str], None]] = ContextVar("told", default=lambda _: None)
_files: list[TextIO] = []


class End(NamedTuple):
    """How a worker ended."""

    got: str
    do: str
    is_lost: bool = False
    """Whether its node went: nothing that the work did."""

    @property
    def rank(self) -> int:
        """How much it says; where workers end together, the first that goes takes the others along."""
        return ENDS.index(self) if self in ENDS else -1


HUNG = End("it ended as it hung", "run again, with a larger cluster.hang_s if it was only slow")
NO_MEMORY = End("it killed by the kernel, out of memory", LESS)
SILENT = End("it ended without a word, as by signal 9 or an exit", f"run again; if memory was short: {LESS}")
LOST = End("its node lost", "see whether the nodes live, and run again to go on", is_lost=True)
ENDS = (NO_MEMORY, HUNG, SILENT, LOST)


class WorkerDiedError(ClusterError):
    """A worker ended that was not meant to; the message is one sentence, without where."""

    def __init__(self, end: End, times: int = 1):
        self.end, self.times = end, times
        often = {1: "", 2: " twice"}.get(times, f" {times} times")
        super().__init__(f"want its worker to end by itself, got {end.got}{often} — {end.do}")

    def __reduce__(self) -> tuple[type, tuple[End, int]]:
        return type(self), (self.end, self.times)


@contextlib.contextmanager
def explained(where: str, tell: Callable[[str], None]) -> Iterator[None]:
    """Say where a worker ended; what of it is tried again in this block is told.

    Raises: ClusterError for a worker that ended, or memory that did not suffice here.
    """
    token = _told.set(tell)
    try:
        with told_memory():
            yield
    except Exception as error:  # whatever Ray or a worker raised: only the end of a worker is told anew
        died = next((one for one in _causes(error) if isinstance(one, WorkerDiedError)), None)
        end = None if died else end_of(error, [])
        if died is None and end is None:
            raise
        raise ClusterError(f"{where}: {died or WorkerDiedError(end or SILENT)}") from error
    finally:
        _told.reset(token)


@contextlib.contextmanager
def last_words(key: str) -> Iterator[None]:
    """Keep this worker's last words under the key while the block runs; a block that ends leaves none."""
    path = _folder() / f"last-words-{key}-{os.getpid()}"
    with path.open("w") as file:
        file.write(f"{_kernel_kills()}\n")
        file.flush()
        faulthandler.enable(file, all_threads=False)
        _files.append(file)
        try:
            yield
        finally:
            _files.remove(file)
            faulthandler.enable(all_threads=False)  # as Ray has it
    path.unlink(missing_ok=True)


@contextlib.contextmanager
def ended_if_hanging(seconds: float) -> Iterator[None]:
    """End this process if the block takes longer, whatever it waits for; Ray starts another in its place."""
    if _files:
        faulthandler.dump_traceback_later(seconds, exit=True, file=_files[-1])
    else:
        faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def told_memory() -> Iterator[None]:
    """Say of memory that does not suffice in this block how much is in use.

    Raises: WorkerDiedError.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, (ClusterError, exceptions.RayError)) or not _is_memory(error):
            raise
        raise WorkerDiedError(_no_room(isinstance(error, torch.OutOfMemoryError))) from error


def tried(run: Callable[[str], Any]) -> Any:
    """What `run` gives, which is handed a key for the last words of its worker; tried again where that may help.

    Raises: WorkerDiedError once its worker ended too often; whatever else it raises.
    """
    ends: Counter[bool] = Counter()
    while True:
        key = uuid.uuid4().hex
        try:
            return run(key)
        except exceptions.RayError as error:
            died = next((one for one in _causes(error) if isinstance(one, WorkerDiedError)), None)
            if died is not None:
                raise died from error
            end = _found(error, key)
            if end is None:
                raise
            ends[end.is_lost] += 1
            if ends[end.is_lost] > (LOSSES if end.is_lost else CRASHES):
                raise WorkerDiedError(end, ends[end.is_lost]) from error
            _told.get()(f"tried again: got {end.got}")


@contextlib.contextmanager
def read_for(key: str) -> Iterator[None]:
    """Say of workers that Ray started and started again in this block how they ended.

    Raises: WorkerDiedError.
    """
    try:
        yield
    except Exception as error:  # Ray Data and Ray Train wrap the end of a worker in errors of many kinds
        words = _words(key) if end_of(error, []) is not None else []
        end = end_of(error, words)
        if end is None:
            raise
        raise WorkerDiedError(end, max(1, words.count(end))) from error


def ended_here(key: str) -> list[End]:
    """How workers of this node that are gone ended."""
    files = [path for path in _folder().glob(f"last-words-{key}-*") if not _lives(path)]
    return [_end(path.read_text(errors="replace")) for path in files]


def again(ends: list[End]) -> str:
    """How the last worker ended, where there were others before this one."""
    return f"tried again: got {min(ends or [LOST], key=lambda end: end.rank).got}"


def end_of(error: BaseException, words: list[End]) -> End | None:
    """How the worker ended that this error is about, given what workers left; none for an error of another kind."""
    for cause in _causes(error):
        if isinstance(cause, WorkerDiedError):
            return cause.end
        if isinstance(cause, exceptions.OutOfMemoryError):
            return _no_memory(str(cause))
        if isinstance(cause, exceptions.NodeDiedError | exceptions.LocalRayletDiedError | exceptions.ObjectLostError):
            return LOST
        if isinstance(cause, exceptions.RayActorError):
            if cause._actor_init_failed and WorkerDiedError.__name__ not in str(cause):  # of its error only the text
                return None
            return LOST if cause.preempted else min(words or [SILENT], key=lambda end: end.rank)
        if isinstance(cause, exceptions.WorkerCrashedError):
            return min(words or [LOST], key=lambda end: end.rank)
    return None


def _found(error: Exception, key: str) -> End | None:
    """Looks at the nodes only if a worker ended."""
    return None if end_of(error, []) is None else end_of(error, _words(key))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """What an error of Ray's is about, from the inside of its wrappings."""
    while error is not None:
        if not isinstance(error, exceptions.RayTaskError):  # which is of its cause's class as well
            yield error
        if isinstance(error, WorkerGroupError):
            error = next(iter(error.worker_failures.values()), None)
        elif isinstance(error, ControllerError):
            error = error.controller_failure
        elif isinstance(error, WorkerHealthCheckFailedError):
            error = error.health_check_failure
        elif isinstance(error, exceptions.RayTaskError):
            error = error.cause if isinstance(error.cause, BaseException) else None
        else:
            error = error.__cause__


def _words(key: str) -> list[End]:
    """How workers ended, as far as their nodes live."""
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    asked = [_read.options(scheduling_strategy=NodeAffinitySchedulingStrategy(name, soft=False)) for name in nodes]
    answers = [one.remote(key) for one in asked]
    done, _ = ray.wait(answers, num_returns=len(answers), timeout=READ_S)
    found: list[End] = []
    for answer in done:
        with contextlib.suppress(exceptions.RayError):  # a node may go any time
            found += ray.get(answer)
    return found


@ray.remote(num_cpus=0, max_retries=0)
def _read(key: str) -> list[End]:
    return ended_here(key)


def _end(text: str) -> End:
    kills, _, words = text.partition("\n")
    for name, number in SIGNALS.items():
        if f"Fatal Python error: {name}" in words:
            return End(
                f"it killed by signal {number} ({name.lower()})",
                "run again; if it comes again, native code fails at this: try another size or batch, and report it",
            )
    if words.startswith("Timeout"):
        return HUNG
    return NO_MEMORY if kills.isdigit() and _kernel_kills() > int(kills) else SILENT


def _no_memory(message: str) -> End:
    """From what Ray's memory monitor says when it ends a worker."""
    found = re.search(r"([\d.]+) ?GB / ([\d.]+) ?GB", message)
    return End(
        f"it ended by Ray, out of memory: {found[1]} GB in use of {found[2]} GB" if found else NO_MEMORY.got, LESS
    )


def _no_room(gpu: bool) -> End:
    if gpu:
        free, total = torch.cuda.mem_get_info()
        used, kind = total - free, " of the GPU"
    else:
        memory = psutil.virtual_memory()
        used, total, kind = memory.total - memory.available, memory.total, ""
    return End(f"out of memory{kind}: {used / 1e9:.1f} GB in use of {total / 1e9:.1f} GB", LESS)


def _is_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _kernel_kills() -> int:
    """How many processes this machine's kernel ended for lack of memory."""
    with contextlib.suppress(OSError):  # not on Linux
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _lives(path: Path) -> bool:
    return psutil.pid_exists(int(path.name.rpartition("-")[2]))


def _folder() -> Path:
    node = worker._global_node
    assert node is not None  # this runs in a worker
    return Path(node.get_session_dir_path())
