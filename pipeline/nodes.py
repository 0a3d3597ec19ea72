"""The machines a run is planned for, and throughputs that somebody else measured: what the user of a plan gives.

A mapping from a file or from the command line itself. Not here: what a run costs on them (see `costs`). Imports
neither torch nor Ray, so that a mistake is told at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, model_validator

from pipeline.config import ConfigError, Count, Market, NonNegativeInt, Positive, Section, validated

Word = Literal["ingest", "teach", "identify", "sample", "score", "filter", "distill", "evaluate", "release", "report"]
Price = Annotated[float, Field(ge=0)]
SUFFIXES = (".yaml", ".yml", ".json")


class Group(Section):
    """Nodes of one kind."""

    count: Count = 1
    """How many."""
    cpus: NonNegativeInt
    """CPU slots of one node; 0 for a head that runs no task."""
    gpus: NonNegativeInt = 0
    """GPUs of one node."""
    accelerator: str | None = None
    """Kind of GPU under Ray's name (`A100`, `H100`); throughputs measured on another kind then do not count."""
    price_per_hour: Price
    """Price of one node for one hour."""
    spot: bool = False
    """Whether a node may be taken away at any time."""
    steps: tuple[Word, ...] = ()
    """Steps that may run here; the group is paid for while one does. Empty: all, and paid for from start to end."""

    def room(self, cpus: float, gpus: float) -> int:
        """How many workers of this size the group holds."""
        by_cpu = self.cpus // cpus
        return self.count * int(min(by_cpu, self.gpus // gpus) if gpus else by_cpu)


class Nodes(Section):
    """What a run is planned for."""

    groups: Annotated[dict[str, Group], Field(min_length=1)]
    """Name -> nodes of one kind."""
    currency: str = ""
    """What prices are in; printed, nothing else."""
    price_per_gb_month: Price | None = None
    """Price of storage."""

    @model_validator(mode="after")
    def _accelerators_are_on_gpus(self) -> Self:
        for name, group in self.groups.items():
            if group.accelerator and not group.gpus:
                raise ValueError(f"groups.{name}: accelerator {group.accelerator} needs gpus, got 0")
        return self

    def of(self, word: str, *, takes_gpu: bool, market: Market | None = None) -> dict[str, Group]:
        """Groups that a task of a step occupies: those that hold it, and those that are there for all steps.

        One that takes no GPU is put on nodes without, if its step has such, as in cluster.yaml.
        """
        there = {name: group for name, group in self.groups.items() if not group.steps or word in group.steps}
        wanted = [name for name, group in there.items() if market is None or group.spot == (market == "spot")]
        fitting = [name for name in wanted if there[name].cpus and bool(there[name].gpus) == takes_gpu]
        return {name: group for name, group in there.items() if not group.steps or name in (fitting or wanted)}


class Throughput(Section):
    """A speed that was measured elsewhere."""

    per_s: Positive
    """In the unit that the plan names for the task, by one GPU, or by one CPU slot where the task takes no GPU."""
    source: Annotated[str, Field(min_length=1)]
    """Where the figure comes from; printed beside it."""


def nodes(text: str) -> Nodes:
    """The nodes in a file, or in the text itself: `{groups: {gpu: {cpus: 16, gpus: 1, price_per_hour: 2.5}}}`.

    Raises: ConfigError
    """
    return validated(Nodes, _tree(text, "--nodes"), "--nodes")


def throughputs(text: str) -> Mapping[str, Throughput]:
    """Task as the plan names it (`teach`, `sample/0`) -> throughput, from a file or the text itself.

    Raises: ConfigError
    """
    tree = _tree(text, "--measured")
    return {name: validated(Throughput, found, f"--measured {name}") for name, found in tree.items()}


def require_known(measured: Mapping[str, Throughput], tasks: list[str]) -> None:
    """Raises: ConfigError if a throughput is for a task that no plan has."""
    for name in measured:
        if name not in tasks:
            near = difflib.get_close_matches(name, tasks, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(tasks)}"
            raise ConfigError(f"--measured: want a task of this plan, got '{name}' — {hint}")


def _tree(text: str, option: str) -> dict[str, Any]:
    path = Path(text)
    is_file = "{" not in text and (path.suffix in SUFFIXES or path.is_file())
    if is_file and not path.is_file():
        raise ConfigError(f"{option}: want a YAML file, got nothing at {path} — correct its path")
    try:
        tree = yaml.safe_load(path.read_text() if is_file else text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{option}: want YAML, got {' '.join(str(error).split())} — correct it") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{option}: want a file or a mapping, got {text!r} — give one, such as {EXAMPLE[option]}")
    return tree


EXAMPLE = {
    "--nodes": "'{groups: {gpu: {count: 4, cpus: 16, gpus: 1, price_per_hour: 2.5}}}'",
    "--measured": "'{sample/0: {per_s: 12.5, source: our A100, May}}'",
}
