"""What the manifests of a plan will say, as far as that can be told before it runs: settings and numbers of rows.

Not here: what follows for time and size (see `workload`).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.artifact import Key, Store
from pipeline.config import SPLITS, Recipe, canonical
from pipeline.plan import Line
from pipeline.probes import N_PLANTED
from pipeline.steps import ingest


def manifests(recipe: Recipe, lines: Sequence[Line], store: Store) -> dict[str, Mapping[str, Any]]:
    """Name -> manifest: the real one of what is finished, and `config`, `rows` and `facts` of what is not.

    Raises: whatever `ingest` finds wrong with the cohort's table.
    """
    made: dict[str, Mapping[str, Any]] = {}  # grows on: a task's rows follow from those of its inputs
    for line in lines:
        name = line.task.name
        told: dict[str, Any] = {"config": json.loads(canonical(dict(line.task.config)))}
        if line.artifact is not None:
            made[name] = line.artifact.manifest
        elif name == "ingest":
            made[name] = told | {"facts": {"images_by_split": _listed(recipe, store)}}
        else:
            made[name] = told | {"rows": _expected_rows(line, recipe, made, store)}
    return made


def _listed(recipe: Recipe, store: Store) -> dict[str, int]:
    """Images by split, from the cohort's table: broken images are found only when they are read."""
    _, listed, _ = ingest.checked(recipe, store)
    found = Counter(listed["split"].to_pylist())
    return {name: found[name] for name in SPLITS}


def _expected_rows(line: Line, recipe: Recipe, made: Mapping[str, Any], store: Store) -> float | None:
    images = made["ingest"]["facts"]["images_by_split"]
    match line.task.name.split("/"):
        case ["sample", _]:
            return recipe.sample.n_images
        case ["score", "unseen"]:
            return images["control"] + images["test"]
        case ["score", "gallery"]:
            return images["train"]
        case ["score", number]:
            return made[f"sample/{number}"]["rows"]
        case ["filter", _]:
            return sum(made[name]["rows"] for name in made if name.startswith("sample/"))
        case ["filter"]:
            (decided,) = (name for name in line.task.inputs if name.startswith("filter/"))
            return math.ceil(made[decided]["rows"] * _kept_frac(made[decided]["config"], store))
        case ["evaluate", "student_images"]:
            return 2 * recipe.evaluate.n_student
        case ["evaluate", "student_scores"]:
            return 2 * recipe.evaluate.n_student + 2 * min(N_PLANTED, images["train"])
        case _:
            return None


def _kept_frac(config: Mapping[str, Any], store: Store) -> float:
    """What the same rule kept the last time; all, if it was never used on this store."""
    others = [one for one in store.others(Key("private", "filter/0", "")) if one.manifest["config"] == config]
    latest = max(others, key=lambda one: one.manifest["started_at"], default=None)
    return latest.facts["n_kept"] / latest.manifest["rows"] if latest else 1.0
