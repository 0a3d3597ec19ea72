"""Run tasks on Ray with a view, or print the plan; errors a user can act on become one sentence."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from jobs.command import MISTAKE, NOT_CLEARED
from pipeline import cluster, costs, costs_table, plan, summary
from pipeline.artifact import ArtifactError, Store, explained_full_disk
from pipeline.cohorts.splits import SplitError
from pipeline.cohorts.table import CohortError
from pipeline.config import ConfigError, Recipe
from pipeline.inspection import UnsafeFolderError
from pipeline.nodes import Nodes, Throughput, require_known
from pipeline.progress import View
from pipeline.steps.filter import NothingKeptError
from pipeline.steps.identify import WeakNetworkError
from pipeline.steps.report import LeakError
from pipeline.steps.trial import TrialError
from pipeline.storage import StorageError, explained_storage
from pipeline.tables import SchemaError

LOG_WIDTH = 140
LEAST_WIDTH = 110
EXPLAINED = (
    ArtifactError,
    StorageError,
    SplitError,
    CohortError,
    ConfigError,
    NothingKeptError,
    WeakNetworkError,
    LeakError,
    TrialError,
    SchemaError,
    UnsafeFolderError,
    cluster.ClusterError,
)


def run(recipe: Recipe, store_uri: str, word: str | None, *, dry_run: bool) -> int:
    """Make what is missing of one word's artifacts, or of all; the exit status."""
    console, words, listing, check = _console(), (word,) if word else plan.WORDS, plan.tasks, plan.check
    if word == "tune":
        from pipeline import tune  # brings in Optuna, which no other job needs

        recipe, words, listing, check = tune.study_of(recipe), tune.WORDS, tune.listing, tune.check
    try:
        store = Store(store_uri)
        with (
            explained_storage(store.uri),
            # A disk may fill wherever something is written: also where temporary files are.
            explained_full_disk(f"{store.uri} or {tempfile.gettempdir()}"),
            cluster.unwrapped(),
        ):
            if dry_run:
                lines = plan.plan(recipe, store, listing)
                _tell(check(recipe, store, lines, words), console)
                return _show(recipe, lines, console)
            with store.exclusive():
                lines = plan.plan(recipe, store, listing)
                if all(line.artifact for line in lines if line.task.word in words):
                    console.print(f"{recipe.name}: all {len(lines)} artifacts reused, nothing to do")
                else:
                    _tell(check(recipe, store, lines, words), console)
                    with cluster.connect(recipe), View(recipe.name, console, recipe.cluster.hang_s) as view:
                        lines = plan.run(recipe, store, words, view, listing)
                if word == "tune":
                    return _close_study(recipe, lines, store, console)
                return 0 if word else _close(lines, store, console)
    except EXPLAINED as error:
        print(error, file=sys.stderr)
        return MISTAKE


def forecast(recipe: Recipe, store_uri: str, nodes: Nodes, given: Mapping[str, Throughput], command: str) -> int:
    """Print what the run will take on these nodes; `command` is the run's own. Starts no Ray."""
    console = _console(markup=False)  # names and sources are the user's
    console.width = max(console.width, LEAST_WIDTH)  # a narrow terminal breaks lines; rich would leave out columns
    try:
        store = Store(store_uri)
        lines = plan.plan(recipe, store)
        require_known(given, [line.task.name for line in lines])
        found = costs.forecast(recipe, lines, store, nodes, given)
    except EXPLAINED as error:
        print(error, file=sys.stderr)
        return MISTAKE
    console.print(costs_table.table(found, recipe, nodes))
    for remark in costs_table.remarks(found, recipe, nodes, command):
        console.print(f"- {remark}", soft_wrap=command in remark)
    return 0


def _tell(remarks: list[str], console: Console) -> None:
    for remark in remarks:
        console.print(remark, markup=False, soft_wrap=True)


def _show(recipe: Recipe, lines: list[plan.Line], console: Console) -> int:
    console.print(_planned(lines, recipe))
    for step, n, cpus, gpus in cluster.demands(recipe):
        console.print(f"{step} needs {n} x ({cpus:g} CPU slots, {gpus:g} GPUs) at once")
    return 0


def _close(lines: list[plan.Line], store: Store, console: Console) -> int:
    metrics = summary.publish(lines, store)
    artifacts = {line.task.name: line.artifact for line in lines}
    released = artifacts["release"]
    assert released is not None and artifacts["filter"] is not None
    console.print(summary.closing_table(metrics, artifacts["filter"].manifest["rows"]))
    console.print(f"report   {store.uri}/report.html\nsummary  {store.uri}/summary.json")
    if released.facts["cleared"]:
        console.print(f"release  {store.uri}/release/  CLEARED")
        return 0
    state = "written, NOT CLEARED" if released.facts["written"] else "WITHHELD"
    console.print(f"release  {store.uri}/release/  {state}:")
    for verdict in released.facts["verdicts"]:
        if verdict["verdict"] != "pass":
            console.print(
                f"  {verdict['name']}: {verdict['verdict']} - {verdict['measured']}, wanted {verdict['wanted']}"
            )
    return 0 if released.facts["written"] else NOT_CLEARED


def _close_study(recipe: Recipe, lines: list[plan.Line], store: Store, console: Console) -> int:
    from pipeline import tune, tune_report

    found = tune.answer_of(recipe, {line.task.name: line.artifact for line in lines if line.artifact})
    folder = summary.publish_study(lines, store)
    console.print(tune_report.table(found, recipe))
    for line in [*tune_report.failures(found), found.sentence]:
        console.print(line)
    console.print(f"explorer     {folder}/explorer.html\nsummary      {folder}/summary.json")
    if found.recommended is not None:
        console.print(f"recommended  {folder}/recommended.yaml  (run it with python -m jobs.all)")
    return 0


def _planned(lines: list[plan.Line], recipe: Recipe) -> Table:
    table = Table(title=f"plan of {recipe.name}, seed {recipe.seed}", title_justify="left", box=None, padding=(0, 2))
    for heading in ("task", "makes", "", "fingerprint", "why"):
        table.add_column(heading, no_wrap=heading != "why")
    for line in lines:
        state = "reuse" if line.artifact else "run"
        table.add_row(line.task.name, line.task.about, state, line.key.fingerprint, line.why)
    return table


def _console(*, markup: bool = True) -> Console:
    """A terminal's own width; in a log, lines wide enough not to be broken."""
    return Console(highlight=False, markup=markup, width=None if sys.stdout.isatty() else LOG_WIDTH)
