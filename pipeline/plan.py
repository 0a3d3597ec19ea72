"""The plan: which artifacts a recipe needs, which are there, and running what is missing side by side.

Tasks are listed in the order of urgency. A task starts when its inputs are finished and slots are free; each is
found again by its fingerprint, so running the same command twice does no work.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

from pipeline import cluster, ends, secret
from pipeline.artifact import Artifact, ArtifactError, Key, Store, fingerprint
from pipeline.config import Recipe, canonical
from pipeline.progress import Silence, View
from pipeline.steps import distill, evaluate, filter, identify, ingest, release, report, sample, score, teach
from pipeline.task import Task, Work

WORDS = ("ingest", "teach", "identify", "sample", "score", "filter", "distill", "evaluate", "release", "report")


class Line(NamedTuple):
    """A task in a plan: where its artifact is or will be, and why it runs."""

    task: Task
    key: Key
    artifact: Artifact | None
    why: str


def tasks(recipe: Recipe, n_rounds: int) -> list[Task]:
    """All tasks of a recipe that samples this many rounds, the most urgent first, inputs before their readers."""
    rounds = [
        task
        for number in range(n_rounds)
        for step in (sample, score, filter)
        for task in step.round_tasks(recipe, number)
    ]
    return [
        *ingest.tasks(recipe),
        *teach.tasks(recipe),
        *identify.tasks(recipe),
        *score.calibration_tasks(recipe),
        *rounds,
        *filter.tasks(recipe, n_rounds),
        *distill.tasks(recipe),
        *evaluate.tasks(recipe, n_rounds),
        *release.tasks(recipe),
        *report.tasks(recipe, n_rounds),
    ]


Listing = Callable[[Recipe, int], list[Task]]


def plan(recipe: Recipe, store: Store, listing: Listing = tasks) -> list[Line]:
    """Every task with its key and, where it is finished, its artifact.

    A further round of samples is planned once a filter has found that too few were kept. Who may not read
    `private/` takes the number of rounds from the kept set.
    """
    return _chosen(_candidates(recipe, listing), store, secret.cohort_name(recipe, store))


def _candidates(recipe: Recipe, listing: Listing) -> list[list[Task]]:
    """The tasks for every number of rounds."""
    return [listing(recipe, n) for n in range(1, recipe.sample.max_rounds + 1)]


def _chosen(candidates: list[list[Task]], store: Store, cohort: str) -> list[Line]:
    planned = [list(_lines(listed, store, cohort)) for listed in candidates]
    for n_rounds, lines in enumerate(planned, start=1):
        decided = _artifact(lines, f"filter/{n_rounds - 1}")
        if decided is not None and decided.facts["enough"]:
            return lines
        if decided is None:
            blind = n_rounds == 1
            return next((others for others in planned if blind and _artifact(others, "filter")), lines)
    return planned[-1]


def check(recipe: Recipe, store: Store, lines: list[Line], words: Collection[str]) -> list[str]:
    """What of a table can be wrong as a whole, found before Ray starts and before anything is written; what a user
    should know of how it will be read.

    Raises: whatever `ingest` finds.
    """
    if recipe.ingest.kind == "table" and "ingest" in words and _artifact(lines, "ingest") is None:
        _, listed, _ = ingest.checked(recipe, store)
        line = ingest.grey_values(recipe.ingest, listed).line
        return [f"ingest: {line}"] if line else []
    return []


def _artifact(lines: list[Line], name: str) -> Artifact | None:
    return next(line.artifact for line in lines if line.task.name == name)


def _lines(listed: list[Task], store: Store, cohort: str) -> Iterator[Line]:
    keys: dict[str, Key] = {}
    for task in listed:
        inputs = _fingerprints(task, {name: key.fingerprint for name, key in keys.items()}, cohort)
        key = Key(task.kind, task.name, fingerprint(task.name, task.version, task.config, inputs))
        keys[task.name] = key
        artifact = store.find(key)
        yield Line(task, key, artifact, "finished" if artifact else _why(task, key, inputs, store))


def _fingerprints(task: Task, known: Mapping[str, str], cohort: str) -> dict[str, str]:
    """What a task is made from, by name."""
    return {name: known[name] for name in task.inputs} | ({"cohort": cohort} if task.from_cohort else {})


def _why(task: Task, key: Key, inputs: Mapping[str, str], store: Store) -> str:
    others = store.others(key)
    if not others:
        return "not made yet"
    latest = max(others, key=lambda artifact: artifact.manifest["started_at"])
    if latest.manifest["version"] != task.version:
        return "the code of this step changed"
    changes = list(_differences(latest.manifest["config"], _plain(task.config)))
    if changes:
        return "recipe differs: " + ", ".join(changes[:3]) + (" ..." if len(changes) > 3 else "")
    changed = [name for name, value in inputs.items() if latest.manifest["inputs"].get(name) != value]
    return "input differs: " + ", ".join(changed)


def _plain(config: Mapping[str, Any]) -> Any:
    return json.loads(canonical(dict(config)))


def _differences(there: Any, here: Any, path: str = "") -> Iterator[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        for name in sorted(there.keys() | here.keys()):
            yield from _differences(there.get(name), here.get(name), f"{path}.{name}" if path else name)
    elif there != here:
        yield f"{path} {there} -> {here}"


def run(
    recipe: Recipe, store: Store, wanted: Collection[str], view: View | Silence, listing: Listing = tasks
) -> list[Line]:
    """Make what is missing of the artifacts of these words or task names; the finished plan.

    Raises: ArtifactError if a word's input belongs to another word and is not there; whatever a task raises.
    """
    running: dict[Future[None], Task] = {}
    shown: set[str] = set()
    candidates, cohort = _candidates(recipe, listing), _cohort(recipe, store, wanted)
    pool = ThreadPoolExecutor(max_workers=recipe.cluster.parallel_tasks)
    try:
        while True:
            lines = _chosen(candidates, store, cohort)
            mine = [line for line in lines if {line.task.word, line.task.name} & {*wanted}]
            for line in mine:
                if line.task.name not in shown:
                    shown.add(line.task.name)
                    view.note(line.task.name, "reused" if line.artifact else "waiting")
            busy = {task.name for task in running.values()}
            missing = [line for line in mine if line.artifact is None and line.task.name not in busy]
            if not missing and not running:
                return lines
            done = {line.task.name: line.artifact for line in lines if line.artifact}
            for line in startable(missing, done, running.values(), recipe.cluster.parallel_tasks):
                inputs = {name: done[name] for name in line.task.inputs}
                running[pool.submit(_make, recipe, store, line, inputs, cohort, view)] = line.task
            if not running:
                raise ArtifactError(_explain_missing(lines, missing))
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                del running[future]
                future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _cohort(recipe: Recipe, store: Store, wanted: Collection[str]) -> str:
    """The cohort's name, for this run and for whoever may not read the secret, which is made if ingest is to run."""
    if "ingest" in wanted:
        secret.of(recipe, store)
    name = secret.cohort_name(recipe, store)
    if "ingest" in wanted:
        secret.tell(recipe, store, name)
    return name


def startable(waiting: Iterable[Line], done: Collection[str], running: Iterable[Task], slots: int) -> list[Line]:
    """What of the waiting tasks starts now: the most urgent whose inputs are done, as far as slots are free."""
    busy = list(running)
    starting: list[Line] = []
    for line in waiting:
        if not all(name in done for name in line.task.inputs):
            continue
        if busy and sum(task.slots for task in busy) + line.task.slots > slots:
            break  # what is urgent waits for slots; what is not must not take them
        busy.append(line.task)
        starting.append(line)
    return starting


def _make(
    recipe: Recipe, store: Store, line: Line, inputs: Mapping[str, Artifact], cohort: str, view: View | Silence
) -> None:
    task, started = line.task, time.monotonic()
    view.note(task.name, "running")
    try:
        draft = store.draft(line.key, resumable=task.resumable)
        draft.config, draft.version = task.config, task.version
        draft.place = cluster.told(recipe, task.name)
        draft.inputs = _fingerprints(task, {name: made.key.fingerprint for name, made in inputs.items()}, cohort)
        bar = view.bar(task.name)
        with ends.explained(task.name, lambda sentence: view.tell(task.name, sentence)):
            made = task.make(Work(recipe, inputs, draft, bar, view.started_at))
        draft.work_seconds = bar.work_seconds()
        store.commit(draft, made.facts, made.rows)
    except BaseException:
        view.note(task.name, "failed")
        raise
    note = f"{made.rows:,} rows" if made.rows is not None else ""
    if made.facts.get("set_aside"):
        note += f", {len(made.facts['set_aside'])} set aside"
    if n_again := bar.n_again():
        note += f", {n_again:,} made twice"
    view.note(task.name, "done", time.monotonic() - started, note)
    for remark in made.facts.get("remarks", ()):
        view.say(f"{task.name}: {remark}")


def _explain_missing(lines: list[Line], missing: list[Line]) -> str:
    by_name = {line.task.name: line for line in lines}
    wanted = missing[0].task
    lacking = [name for name in wanted.inputs if by_name[name].artifact is None]
    first = by_name[lacking[0]]
    return (
        f"{wanted.name} input: want artifact {first.key.path}, got nothing ({first.why}) "
        f"— run python -m jobs.{first.task.word} with this recipe and store first"
    )
