"""What the user sees while steps run: a line per task with progress and time left.

Workers count on a board (a Ray actor); the driver's view reads it. On a terminal the view is live; elsewhere (job
logs) it is a line when a task starts and ends and one every half minute in between.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.config import Cluster

LINE_EVERY_S = 30.0
LEAST_COUNTS = 16
HANG_S = Cluster().hang_s


@dataclass
class Pace:
    """How fast a task counts, between its first count and its last: without what it needs to start and to end."""

    total: int
    first_at: float = 0.0
    last_at: float = 0.0
    n_between: int = 0
    n_counts: int = 0

    def add(self, n: int, now: float) -> None:
        """Count n more."""
        if self.n_counts:
            self.n_between += n
        else:
            self.first_at = now
        self.last_at, self.n_counts = now, self.n_counts + 1

    @property
    def seconds(self) -> float | None:
        """What the total takes at this pace; none for too few counts, as several workers count at almost once."""
        if self.n_counts < LEAST_COUNTS or not self.n_between:
            return None
        return (self.last_at - self.first_at) * self.total / self.n_between


@ray.remote(num_cpus=0)
class Board:
    """Counts of all tasks at work, kept by name; and what workers tried and did not live to end."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, int]] = {}
        self._paces: dict[str, list[Pace]] = defaultdict(list)
        self._attempts: Counter[tuple[str, tuple[str, ...]]] = Counter()
        self._set_aside: dict[str, set[str]] = defaultdict(set)
        self._untold: list[tuple[str, str]] = []

    def begin(self, task: str, total: int, done: int = 0) -> None:
        """Set what the task will count to."""
        self._counts[task] = (done, total)
        self._paces[task].append(Pace(total))

    def add(self, task: str, n: int) -> None:
        """Count n more."""
        done, total = self._counts.get(task, (0, 0))
        self._counts[task] = (done + n, total)
        for pace in self._paces[task][-1:]:
            pace.add(n, time.monotonic())

    def attempt(self, task: str, rows: tuple[str, ...]) -> int:
        """A worker begins with these rows: how many began before it and never came to their end."""
        self._attempts[task, rows] += 1
        return self._attempts[task, rows] - 1

    def ended(self, task: str, rows: tuple[str, ...]) -> None:
        """The worker lives."""
        del self._attempts[task, rows]

    def set_aside(self, task: str, row: str) -> int:
        """Note a row that is left out; how many there are."""
        self._set_aside[task].add(row)
        return len(self._set_aside[task])

    def rows_set_aside(self, task: str) -> list[str]:
        """The rows that were left out."""
        return sorted(self._set_aside[task])

    def n_again(self, task: str) -> int:
        """How many were counted beyond the total."""
        done, total = self._counts.get(task, (0, 0))
        return max(0, done - total)

    def work_seconds(self, task: str) -> float | None:
        """What counting took without start and end; none if it began more than once, or counted too little."""
        paces = self._paces[task]
        return paces[0].seconds if len(paces) == 1 else None

    def tell(self, task: str, sentence: str) -> None:
        """Something that the user is to read."""
        self._untold.append((task, sentence))

    def untold(self) -> list[tuple[str, str]]:
        """What was told since this was asked last, and by which task."""
        told, self._untold = self._untold, []
        return told

    def read(self) -> dict[str, tuple[int, int]]:
        """Done and total by task."""
        return self._counts


@dataclass(frozen=True)
class Bar:
    """One task's place on the board; travels to workers."""

    board: Any
    task: str
    hang_s: float = HANG_S
    """A worker that takes longer for one batch, or one training step, is taken for hanging and ended."""

    def begin(self, total: int, done: int = 0) -> None:
        """Set what the task will count to."""
        if self.board is not None:
            self.board.begin.remote(self.task, total, done)

    def add(self, n: int = 1) -> None:
        """Count n more."""
        if self.board is not None:
            self.board.add.remote(self.task, n)

    def attempt(self, rows: Sequence[str]) -> int:
        """Begin with these rows: how many workers began with just these before, and died."""
        return self._ask("attempt", tuple(rows), otherwise=0)

    def ended(self, rows: Sequence[str]) -> None:
        """Note that the worker came to the end of these rows."""
        if self.board is not None:
            self.board.ended.remote(self.task, tuple(rows))

    def set_aside(self, row: str) -> int:
        """Leave a row out; how many of this task are."""
        return self._ask("set_aside", row, otherwise=0)

    def rows_set_aside(self) -> list[str]:
        """The rows of this task that were left out."""
        return self._ask("rows_set_aside", otherwise=[])

    def tell(self, sentence: str) -> None:
        """Something that the user is to read, of whatever becomes of workers; never of a row."""
        if self.board is not None:
            self.board.tell.remote(self.task, sentence)

    def n_again(self) -> int:
        """How many were counted beyond the total: made twice, as a worker went before its first were written."""
        return self._ask("n_again", otherwise=0)

    def work_seconds(self) -> float | None:
        """What counting took at its pace, without start and end; none if that is not known."""
        return self._ask("work_seconds", otherwise=None)

    def _ask(self, what: str, *arguments: Any, otherwise: Any) -> Any:
        if self.board is None:
            return otherwise
        try:
            return ray.get(getattr(self.board, what).remote(self.task, *arguments), timeout=30)
        except (ray.exceptions.RayError, TimeoutError):  # the view must never stop the work
            return otherwise


class Silence:
    """A view that shows nothing, for a run within a run."""

    def __init__(self) -> None:
        self.started_at = time.time()

    def bar(self, task: str) -> Bar:
        """A place on no board."""
        return Bar(None, task)

    def note(self, task: str, state: str, seconds: float = 0.0, note: str = "") -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""

    def tell(self, task: str, sentence: str) -> None:
        """Nothing."""


class View:
    """The driver's view: told when tasks begin and end, reads the board in between."""

    def __init__(self, title: str, console: Console | None = None, hang_s: float = HANG_S):
        self.console = console or Console(highlight=False)
        self._title, self._hang_s = title, hang_s
        # Beside the driver: another node may be a spot machine, and what it knows would go with it.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._board = Board.options(scheduling_strategy=here).remote()
        self._lines: dict[str, tuple[str, float, str]] = {}  # task -> state, start or seconds, note
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self.started_at = time.time()

    def bar(self, task: str) -> Bar:
        """The task's place on the board."""
        return Bar(self._board, task, self._hang_s)

    def note(self, task: str, state: str, seconds: float = 0.0, note: str = "") -> None:
        """Set a task's line: `waiting`, `reused`, `running`, `done` or `failed`."""
        if self._stop.is_set():  # a thread of a run that was stopped
            return
        with self._lock:
            self._lines[task] = (state, time.monotonic() if state == "running" else seconds, note)
        if not self.console.is_terminal and state in ("running", "done", "reused", "failed"):
            took = f" in {seconds:.1f} s" if state == "done" else ""
            self.console.print(f"[{self._elapsed()}] {task}: {state}{took}{' - ' + note if note else ''}")

    def say(self, line: str) -> None:
        """Tell something that stays to be read, above what changes."""
        if not self._stop.is_set():
            self.console.print(line, markup=False, soft_wrap=True)

    def tell(self, task: str, sentence: str) -> None:
        """A line of its own, above the live view where there is one."""
        self.console.print(f"[{self._elapsed()}] {task}: {sentence}", markup=False, soft_wrap=True)

    def __enter__(self) -> View:
        self._thread = threading.Thread(target=self._show, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._read()  # what was told since

    def _elapsed(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        return f"{minutes:02d}:{seconds:02d}"

    def _show(self) -> None:
        if self.console.is_terminal:
            with Live(self._table({}), console=self.console, refresh_per_second=4) as live:
                while not self._stop.wait(0.5):
                    live.update(self._table(self._read()))
                live.update(self._table(self._read()))
            return
        while not self._stop.wait(LINE_EVERY_S):
            counts = self._read()
            for task, (state, start, _) in dict(self._lines).items():
                if state == "running" and counts.get(task, (0, 0))[1]:
                    done, total = counts[task]
                    left = _time_left(done, total, start)
                    self.console.print(f"[{self._elapsed()}] {task}: {done:,} of {total:,}, {left}")

    def _read(self) -> dict[str, tuple[int, int]]:
        try:
            told, counts = ray.get([self._board.untold.remote(), self._board.read.remote()], timeout=5)
            for task, sentence in told:
                self.tell(task, sentence)
            return counts
        except (ray.exceptions.RayError, TimeoutError):  # the view must never stop the work
            return {}

    def _table(self, counts: dict[str, tuple[int, int]]) -> Table:
        table = Table(title=f"{self._title}  {self._elapsed()}", title_justify="left", box=None, padding=(0, 1))
        for heading in ("step", "", "", "time"):
            table.add_column(heading, no_wrap=True)
        with self._lock:
            lines = dict(self._lines)
        for task, (state, value, note) in lines.items():
            done, total = counts.get(task, (0, 0))
            if state == "running":
                bar = ProgressBar(total=total or None, completed=min(done, total), width=24, pulse=not total)
                table.add_row(task, bar, f"{done:,}/{total:,}" if total else "", _time_left(done, total, value))
            else:
                style = {"done": "green", "reused": "cyan", "failed": "red"}.get(state, "dim")
                seconds = f"{value:.1f} s" if state == "done" else ""
                table.add_row(task, Text(state, style=style), Text(note, style="dim"), seconds)
        return table


def _time_left(done: int, total: int, start: float) -> str:
    elapsed = time.monotonic() - start
    if not done or not total:
        return f"{elapsed:.0f} s so far"
    left = elapsed / done * max(total - done, 0)
    return f"{left:.0f} s left" if left < 120 else f"{left / 60:.0f} min left"
