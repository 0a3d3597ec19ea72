"""How fast a program was, from the manifests in a store and from throughputs that the user gives; the time of a task.

No number is made up: a task that nothing like it was measured for has no time. Not here: what time is proportional
to (see `workload`), and how tasks add up to a run (see `costs`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from pipeline.artifact import Artifact, Key, Store
from pipeline.cluster import Place
from pipeline.plan import Line
from pipeline.workload import Workload, workload

SHORT_S = 60.0
"""Of a measurement under a minute a quarter and more is starting (10 to 15 s of Ray, torch and weights) ..."""
FAR = 3.0
"""... which this many times the work would count as often."""


class Measurement(NamedTuple):
    """How long a task took."""

    task: str
    source: str
    seconds: float
    work_seconds: float | None
    """What of them grows with the work, if that is known; the rest is starting and ending."""
    work: Workload
    place: Place | None
    """None in a manifest from before places were written: as many workers as now, and no GPU."""
    accelerators: tuple[str, ...] = ()
    """Kinds of GPU that the cluster had."""
    started_at: float = 0.0
    is_given: bool = False
    """Whether the user gave it: it goes before what the store knows, and for whatever GPU."""


class Timing(NamedTuple):
    """How long a task will take, and how that is known."""

    seconds: float
    low: float
    """The shortest time by any measurement that counts, the longest as `high`."""
    high: float
    growth: float
    """Times the work of what was measured."""
    measured: Measurement

    @property
    def is_rough(self) -> bool:
        """Whether it stretches far what was short, without knowing how much of that was starting."""
        one = self.measured
        return one.work_seconds is None and one.seconds < SHORT_S and self.growth > FAR


def timing(
    task: str, work: Workload, place: Place, measurements: Sequence[Measurement], wanted: frozenset[str] = frozenset()
) -> Timing | None:
    """The time by the nearest measurement: of the same task if there is one, then the closest in size, the latest.

    Work takes time in proportion, and to one over the GPUs (or CPU slots); starting and ending take as long as they
    did. A measurement that does not tell them apart counts all as work: for more work its time is too long, if any.
    `wanted` are the kinds of GPU that it will run on; none if any will do.
    """
    fitting = [one for one in measurements if one.work.alike == work.alike and _same_hardware(one, place, wanted)]
    fitting = [one for one in fitting if one.is_given] or fitting
    if not fitting:
        return None

    def seconds(one: Measurement) -> float:
        working = one.seconds if one.work_seconds is None else min(one.work_seconds, one.seconds)
        return one.seconds - working + working * work.times(one.work) * (one.place or place).units / place.units

    def distance(one: Measurement) -> tuple[bool, float, float]:
        return one.task != task, abs(math.log(max(work.times(one.work), 1e-9))), -one.started_at

    nearest, times = min(fitting, key=distance), [seconds(one) for one in fitting]
    return Timing(seconds(nearest), min(times), max(times), work.times(nearest.work), nearest)


def measurements(lines: Sequence[Line], store: Store) -> Iterator[Measurement]:
    """What the store knows about tasks of this plan, whatever recipe they were made with, by the code as it is now.

    A task that went on from an earlier attempt tells nothing, as its seconds are those of the rest.
    """
    known = _Known(store)
    for line in lines:
        for artifact in [*store.others(line.key), *filter(None, [line.artifact])]:
            told = artifact.manifest
            if told["version"] != line.task.version or told.get("resumed"):
                continue
            try:
                work = workload(line.task.name, known.manifests(artifact))
            except (KeyError, ValidationError):  # of another time, or made from what this user may not read
                continue
            slots = told.get("place")
            place = Place(slots["workers"], slots["cpus"], slots["gpus"]) if slots else None
            kinds = tuple(slots["accelerators"]) if slots else ()
            source = artifact.key.fingerprint[:6]
            taken = told["seconds"], told.get("work_seconds")
            yield Measurement(line.task.name, source, *taken, work, place, kinds, told["started_at"])


def _same_hardware(one: Measurement, place: Place, wanted: frozenset[str]) -> bool:
    if one.is_given:
        return True
    if not place.gpus:
        return one.place is None or not one.place.gpus
    return one.place is not None and bool(one.place.gpus) and (not wanted or wanted == set(one.accelerators))


class _Known:
    """Finished artifacts by name and fingerprint, each read once."""

    def __init__(self, store: Store):
        self._store = store
        self._found: dict[tuple[str, str], Artifact | None] = {}

    def manifests(self, artifact: Artifact) -> dict[str, Mapping[str, Any]]:
        """Manifests of an artifact and of all it was made from, as far as this user may read them."""
        made, waiting = {artifact.key.name: artifact.manifest}, list(artifact.manifest["inputs"].items())
        while waiting:
            name, fingerprint = waiting.pop()
            found = self._find(name, fingerprint) if name not in made else None
            if found is not None:
                made[name] = found.manifest
                waiting += found.manifest["inputs"].items()
        return made

    def _find(self, name: str, fingerprint: str) -> Artifact | None:
        if (name, fingerprint) not in self._found:
            keys = (Key("private", name, fingerprint), Key("releasable", name, fingerprint))
            self._found[name, fingerprint] = next(filter(None, map(self._store.find, keys)), None)
        return self._found[name, fingerprint]
