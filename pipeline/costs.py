"""What a run will take on given nodes: hours, GPU-hours, storage, price.

Three steps, each a function: how long every task takes (see `measured`), when each runs (as `plan.run` would start
them), and who pays for the nodes meanwhile.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from pipeline import cluster, expected, measured
from pipeline.artifact import Store
from pipeline.cluster import Place
from pipeline.config import ConfigError, Recipe
from pipeline.measured import Measurement, Timing
from pipeline.nodes import Group, Nodes, Throughput
from pipeline.plan import Line, startable
from pipeline.workload import Workload, checkpoint_bytes, stored_bytes, workload

SECONDS_PER_HOUR = 3600.0


class Item(NamedTuple):
    """A task of the run."""

    line: Line
    work: Workload
    place: Place
    groups: Mapping[str, Group]
    """The nodes that it occupies."""
    timing: Timing | None
    """None if it is finished, or nothing like it was measured."""
    bytes: float
    checkpoint_bytes: float

    @property
    def name(self) -> str:
        """The task's name."""
        return self.line.task.name

    @property
    def missing(self) -> bool:
        """Whether it has to run."""
        return self.line.artifact is None

    @property
    def on_spot(self) -> bool:
        """Whether only nodes hold it that may be taken away."""
        holding = [one for one in self.groups.values() if one.room(self.place.cpus, self.place.gpus)]
        return all(group.spot for group in holding)

    @property
    def seconds(self) -> float:
        """0 if it is finished or unknown."""
        return self.timing.seconds if self.timing else 0.0


class Span(NamedTuple):
    """When a task runs, in seconds from the start of the run."""

    start: float
    end: float

    def covers(self, start: float, end: float) -> bool:
        """Whether it runs all the time from `start` to `end`."""
        return self.start <= start and end <= self.end


class Share(NamedTuple):
    """What a task pays for."""

    gpu_hours: float = 0.0
    price: float = 0.0


class Forecast(NamedTuple):
    """A run on these nodes."""

    items: list[Item]
    spans: dict[str, Span]
    shares: dict[str, Share]
    wall_s: tuple[float, float, float]
    """From start to end: expected, by the fastest and by the slowest measurements that count."""


def forecast(
    recipe: Recipe, lines: Sequence[Line], store: Store, nodes: Nodes, given: Mapping[str, Throughput]
) -> Forecast:
    """What is missing of the plan, on these nodes, by what the store knows and by the throughputs given.

    Raises: ConfigError if a task does not fit the nodes; whatever `ingest` finds wrong with the cohort's table.
    """
    made = expected.manifests(recipe, lines, store)
    work = {line.task.name: workload(line.task.name, made) for line in lines}
    places = {name: cluster.place(recipe, name) for name in work}
    known = [
        *measured.measurements(lines, store),
        *(_given(name, one, work[name], places[name]) for name, one in given.items()),
    ]
    items = []
    for line in lines:
        name, place = line.task.name, places[line.task.name]
        there = nodes.of(line.task.word, takes_gpu=bool(place.gpus), market=place.market)
        kinds = frozenset(group.accelerator for group in there.values() if group.accelerator)
        found = None if line.artifact else measured.timing(name, work[name], place, known, kinds)
        size = stored_bytes(name, made), checkpoint_bytes(name, made)
        items.append(Item(line, work[name], place, there, found, *size))
        if line.artifact is None:
            _require_room(items[-1])

    def spans(seconds: Callable[[Timing], float]) -> dict[str, Span]:
        times = {item.name: seconds(item.timing) if item.timing else 0.0 for item in items}
        return schedule(items, recipe.cluster.parallel_tasks, times)

    def wall(spans: Mapping[str, Span]) -> float:
        return max((span.end for span in spans.values()), default=0.0)

    chosen = spans(lambda one: one.seconds)
    walls = [wall(chosen), wall(spans(lambda one: one.low)), wall(spans(lambda one: one.high))]
    return Forecast(items, chosen, shares(items, chosen, nodes), (walls[0], min(walls), max(walls)))


def schedule(items: Sequence[Item], slots: int, seconds: Mapping[str, float]) -> dict[str, Span]:
    """When each missing task runs, if they are started as `plan.run` starts them."""
    now, spans = 0.0, {}
    done = {item.name for item in items if not item.missing}
    waiting = [item.line for item in items if item.missing]
    running: dict[str, Line] = {}
    while waiting or running:
        for line in startable(waiting, done, [line.task for line in running.values()], slots):
            running[line.task.name] = line
            spans[line.task.name] = Span(now, now + seconds[line.task.name])
        waiting = [line for line in waiting if line.task.name not in running]
        now = min(spans[name].end for name in running)
        for name in [name for name in running if spans[name].end <= now]:
            del running[name]
            done.add(name)
    return spans


def shares(items: Sequence[Item], spans: Mapping[str, Span], nodes: Nodes) -> dict[str, Share]:
    """What each task pays for: a group is paid for while tasks occupy it, by these in equal parts."""
    paid = dict.fromkeys(spans, Share())
    for start, end in itertools.pairwise(sorted({edge for span in spans.values() for edge in span})):
        running = [item for item in items if item.missing and spans[item.name].covers(start, end)]
        for name, group in nodes.groups.items():
            payers = [item.name for item in running if name in item.groups]
            for payer in payers:
                hours = group.count * (end - start) / SECONDS_PER_HOUR / len(payers)
                gpu_hours, price = paid[payer]
                paid[payer] = Share(gpu_hours + hours * group.gpus, price + hours * group.price_per_hour)
    return paid


def duration(seconds: float) -> str:
    """Seconds under two minutes, minutes under two hours, else hours."""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / SECONDS_PER_HOUR:,.1f} h"


def _given(name: str, throughput: Throughput, work: Workload, place: Place) -> Measurement:
    """As if this very task had been measured."""
    seconds = work.n / throughput.per_s / place.units
    return Measurement(name, throughput.source, seconds, seconds, work, place, is_given=True)


def _require_room(item: Item) -> None:
    wanted = item.place
    if not item.groups:
        raise ConfigError(f"--nodes: want a group that {item.name} runs on, got none — add it to the steps of one")
    room = sum(group.room(wanted.cpus, wanted.gpus) for group in item.groups.values())
    if room < wanted.workers:
        size = f"{wanted.cpus:g} CPU" + (f" and {wanted.gpus:g} GPU" if wanted.gpus else "")
        raise ConfigError(
            f"--nodes: {item.name}: want room for {wanted.workers} workers of {size}, got room for {room} on "
            f"{', '.join(item.groups)} — fewer workers in the recipe, or more or larger nodes"
        )
