"""What the user sees while steps run: a line per task with progress and time left.

Workers count on a board (a Ray actor); the driver's view reads it. On a terminal the view is live; elsewhere (job
logs) it is a line when a task starts and ends and one every half minute in between.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

LINE_EVERY_S = 30.0
LEAST_COUNTS = 16


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
    """Counts of all tasks at work, kept by name."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, int]] = {}
        self._paces: dict[str, list[Pace]] = defaultdict(list)

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

    def work_seconds(self, task: str) -> float | None:
        """What counting took without start and end; none if it began more than once, or counted too little."""
        paces = self._paces[task]
        return paces[0].seconds if len(paces) == 1 else None

    def read(self) -> dict[str, tuple[int, int]]:
        """Done and total by task."""
        return self._counts


@dataclass(frozen=True)
class Bar:
    """One task's place on the board; travels to workers."""

    board: Any
    task: str

    def begin(self, total: int, done: int = 0) -> None:
        """Set what the task will count to."""
        if self.board is not None:
            self.board.begin.remote(self.task, total, done)

    def add(self, n: int = 1) -> None:
        """Count n more."""
        if self.board is not None:
            self.board.add.remote(self.task, n)

    def n_again(self) -> int:
        """How many were counted beyond the total: made twice, as a worker went before its first were written."""
        if self.board is None:
            return 0
        try:
            counts: dict[str, tuple[int, int]] = ray.get(self.board.read.remote(), timeout=5)
        except (ray.exceptions.RayError, TimeoutError):  # the view must never stop the work
            return 0
        done, total = counts.get(self.task, (0, 0))
        return max(0, done - total)

    def work_seconds(self) -> float | None:
        """What counting took at its pace, without start and end; none if that is not known."""
        if self.board is None:
            return None
        try:
            return ray.get(self.board.work_seconds.remote(self.task), timeout=5)
        except (ray.exceptions.RayError, TimeoutError):  # the view must never stop the work
            return None


class Silence:
    """A view that shows nothing, for a run within a run."""

    def __init__(self) -> None:
        self.started_at = time.time()

    def bar(self, task: str) -> Bar:
        """A place on no board."""
        return Bar(None, task)

    def note(self, task: str, state: str, seconds: float = 0.0, note: str = "") -> None:
        """Nothing."""


class View:
    """The driver's view: told when tasks begin and end, reads the board in between."""

    def __init__(self, title: str, console: Console | None = None):
        self.console = console or Console(highlight=False)
        self._title = title
        self._board = Board.remote()
        self._lines: dict[str, tuple[str, float, str]] = {}  # task -> state, start or seconds, note
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self.started_at = time.time()

    def bar(self, task: str) -> Bar:
        """The task's place on the board."""
        return Bar(self._board, task)

    def note(self, task: str, state: str, seconds: float = 0.0, note: str = "") -> None:
        """Set a task's line: `waiting`, `reused`, `running`, `done` or `failed`."""
        if self._stop.is_set():  # a thread of a run that was stopped
            return
        with self._lock:
            self._lines[task] = (state, time.monotonic() if state == "running" else seconds, note)
        if not self.console.is_terminal and state in ("running", "done", "reused", "failed"):
            took = f" in {seconds:.1f} s" if state == "done" else ""
            self.console.print(f"[{self._elapsed()}] {task}: {state}{took}{' - ' + note if note else ''}")

    def __enter__(self) -> View:
        self._thread = threading.Thread(target=self._show, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

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
            return ray.get(self._board.read.remote(), timeout=5)
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
