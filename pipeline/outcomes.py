"""What a trial of a study changed and what it came to; how outcomes are kept between rungs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from pipeline.artifact import Artifact
from pipeline.config import Recipe
from pipeline.estimate import Estimate
from pipeline.front import Point

PARAMETERS = {
    "fixed": "filter.fixed.threshold",
    "percentile": "filter.percentile.percentile",
    "recall": "filter.recall.recall",
    "fdr": "filter.fdr.q",
}
Settings = Mapping[str, Any]
"""Dotted keys of the recipe -> values: what a trial changes."""


class Outcome(NamedTuple):
    """A trial as it was measured at one rung."""

    number: int
    settings: Settings
    seed_offset: int
    measured: Mapping[str, Mapping[str, Any]]
    """By name of the measuring task, its metrics; beside them `filter`, with threshold and counts."""
    failed: str
    """Why it could not be measured; empty if it could."""


def outcomes_of(rung: Artifact) -> list[Outcome]:
    """What a rung wrote."""
    return [Outcome(**saved) for saved in json.loads((rung.local() / "trials.json").read_text())]


def point(metrics: Mapping[str, Any], kept: Mapping[str, Any]) -> Point:
    """A trial's metrics and its filter's counts as a point of the front: the judge's ratio, never the auditor's."""
    ratio, auroc = (Estimate.from_dict(metrics[key]) for key in ("judge_ratio", "macro_auroc"))
    return Point(ratio, auroc, kept["n_kept"] / kept["n_sampled"])


def own_settings(recipe: Recipe) -> dict[str, Any]:
    """The recipe's own setting."""
    rule = recipe.filter.rule
    if rule == "none":
        return {"filter.rule": rule}
    section, name = PARAMETERS[rule].split(".")[1:]
    return {"filter.rule": rule, PARAMETERS[rule]: getattr(getattr(recipe.filter, section), name)}


def is_own(recipe: Recipe, settings: Settings) -> bool:
    """Whether these are the recipe's own settings."""
    return settings == own_settings(recipe)
