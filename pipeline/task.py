"""What a step offers to the plan: named tasks, each of which makes one artifact from others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline import secret
from pipeline.artifact import Artifact, Class, Draft
from pipeline.config import Recipe
from pipeline.progress import Bar


class Made(NamedTuple):
    """What a task found out: facts for the manifest, and the rows it wrote."""

    facts: Mapping[str, Any]
    rows: int | None = None


@dataclass(frozen=True)
class Work:
    """All that a task is given."""

    recipe: Recipe
    inputs: Mapping[str, Artifact]
    draft: Draft
    bar: Bar
    run_started_at: float
    """When the command began (seconds since 1970): an artifact that is older was reused."""

    @property
    def origin(self) -> bytes:
        """Where the draws of a step that reads `private/` come from; one that may not takes the recipe's seed."""
        return secret.run_origin(self.recipe, self.draft.store)


def rounds_of(inputs: Mapping[str, Artifact], word: str) -> list[Artifact]:
    """The artifacts of a word that is done once a round: `score/0`, `score/1` ..."""
    names = ((name, *name.split("/")) for name in inputs)
    return [inputs[name] for name, first, *rest in names if first == word and len(rest) == 1 and rest[0].isdigit()]


@dataclass(frozen=True)
class Task:
    """One artifact to be made. The name's first part is the word; `config` is what decides its content."""

    name: str
    make: Callable[[Work], Made]
    config: Mapping[str, Any]
    inputs: tuple[str, ...] = ()
    kind: Class = "private"
    version: int = 1
    from_cohort: bool = False
    """Whether it reads the cohort itself, whose name is then one of its inputs."""
    slots: int = 1
    """Share of `cluster.parallel_tasks` that it takes: two for what everything else waits for, so that no side task
    slows it on a laptop."""
    resumable: bool = False
    """Whether an earlier attempt's leftovers are gone on from."""
    about: str = ""
    """What it makes, in a few words for the plan."""

    @property
    def word(self) -> str:
        """The step it belongs to."""
        return self.name.split("/")[0]
