"""From the outcomes of a study to its answer: a table of what was tried, a recommendation, the data of the explorer.

The front is measured on the last rung alone, over several seeds; the setting is chosen by the study's judge on the
patients that the study may look at. Beside it stands what was held out: the auditor, by whom nothing is chosen, on
other images of the same students and on patients that no trial saw. Not here: running trials (`tune`), the page
(`explorer`).
"""

# pyarrow.compute makes its functions at import, out of pyright's sight.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from rich.table import Table

from pipeline import front
from pipeline.config import Recipe
from pipeline.estimate import Estimate
from pipeline.front import Point
from pipeline.outcomes import PARAMETERS, Outcome, Settings, is_own
from pipeline.steps.trial import EXACT

MEASURED_ON = ("kept set", "short student", "full students")
HELD_OUT = (
    "by the auditor, which the study did not look at, on new images of the same students and on patients that no "
    "trial saw"
)
JUDGED, AUDITED = "judge_ratio", "audit_ratio"
NAMES = {"fixed": "threshold", "percentile": "percentile", "recall": "recall", "fdr": "fdr"}


class Tried(NamedTuple):
    """A setting at the highest rung that it reached."""

    number: int
    settings: Settings
    rung: int
    kept: Mapping[str, Any]
    """Threshold and counts of the filter; empty if it failed."""
    validation: Mapping[str, Estimate]
    """Metrics on the patients that the study chooses by; over seeds on the last rung."""
    test: Mapping[str, Estimate]
    """What was held out: other images of the same students, on patients that no trial saw, with `audit_ratio`; empty
    under the last rung."""
    kept_set: Mapping[str, Estimate]
    """Metrics of the kept set itself, without a student, on the patients of `validation`."""
    failed: str

    @property
    def point(self) -> Point:
        """Where it stands on the plane of the front."""
        return Point(self.validation[JUDGED], self.validation["macro_auroc"], self.kept_frac)

    @property
    def kept_frac(self) -> float:
        """Share of the sampled images that is kept."""
        return self.kept["n_kept"] / self.kept["n_sampled"]


class Answer(NamedTuple):
    """What the study says."""

    tried: Sequence[Tried]
    on_front: Sequence[int]
    """Numbers of the settings of the front."""
    recommended: int | None
    """Number of the setting to use; none if none meets the constraint."""
    sentence: str

    @property
    def chosen(self) -> Tried | None:
        """The setting to use."""
        return next((one for one in self.tried if one.number == self.recommended), None)


def answer(recipe: Recipe, rungs: Sequence[Sequence[Outcome]]) -> Answer:
    """The study's answer from the outcomes of every rung."""
    tried = tried_at(rungs)
    last = [one for one in tried if one.rung == len(rungs) - 1 and not one.failed]
    points = [one.point for one in last]
    on_front = front.non_dominated(front.losses(points))
    eligible = [i for i, one in enumerate(last) if on_front[i] and one.settings["filter.rule"] != "none"]
    chosen = front.recommended([points[i] for i in eligible], recipe.tune.max_ratio)
    recommended = None if chosen is None else last[eligible[chosen]]
    sentence = _sentence(recipe, recommended, [last[i] for i in eligible])
    numbers = [one.number for one, is_on_front in zip(last, on_front, strict=True) if is_on_front]
    return Answer(tried, numbers, None if recommended is None else recommended.number, sentence)


def tried_at(rungs: Sequence[Sequence[Outcome]]) -> list[Tried]:
    """Every setting of the first rung at the highest rung where it was measured."""
    measured: list[dict[int, list[Outcome]]] = [defaultdict(list) for _ in rungs]
    for rung, outcomes in enumerate(rungs):
        for one in outcomes:
            if not one.failed:
                measured[rung][one.number].append(one)
    last = measured[-1]
    validation, test = (_over_seeds(last, f"trial/student/{split}") for split in ("control", "test"))
    found = []
    for first in rungs[0]:
        rung = max((rung for rung, settings in enumerate(measured) if first.number in settings), default=0)
        outcomes = measured[rung].get(first.number, [])
        failed = [one.failed for one in chain.from_iterable(rungs) if one.number == first.number and one.failed]
        arm = "trial/student/control" if rung else "trial/kept/control"
        found.append(
            Tried(
                first.number,
                first.settings,
                rung,
                outcomes[0].measured["filter"] if outcomes else {},
                validation.get(first.number) or _estimates(outcomes, arm),
                test.get(first.number, {}),
                _estimates(outcomes, "trial/kept/control"),
                " / ".join(dict.fromkeys(failed)),
            )
        )
    return found


def _over_seeds(settings: Mapping[int, Sequence[Outcome]], name: str) -> dict[int, dict[str, Estimate]]:
    """By number of the setting, its metrics over seeds; a metric that some run lacks is left out.

    A ratio's interval holds the error of its threshold, which all students share: see `front.over_seeds`.
    """
    runs = {number: [one.measured[name] for one in outcomes] for number, outcomes in settings.items()}
    every = [metrics for of_setting in runs.values() for metrics in of_setting]
    found: dict[int, dict[str, Estimate]] = {number: {} for number in runs}
    for key in every[0] if every else ():
        if key.endswith(EXACT) or not all(key in metrics for metrics in every):
            continue
        whole = [[Estimate.from_dict(metrics[key]) for metrics in of_setting] for of_setting in runs.values()]
        exact = [
            [Estimate.from_dict(metrics.get(key + EXACT, metrics[key])) for metrics in of_setting]
            for of_setting in runs.values()
        ]
        for number, estimate in zip(runs, front.over_seeds(exact, whole), strict=True):
            found[number][key] = estimate
    return found


def _estimates(outcomes: Sequence[Outcome], name: str) -> dict[str, Estimate]:
    """Metrics of the first run."""
    return {
        key: Estimate.from_dict(saved)
        for one in outcomes[:1]
        for key, saved in one.measured[name].items()
        if not key.endswith(EXACT)
    }


def parameter(settings: Settings) -> str:
    """A setting in words, such as `percentile 63.2`."""
    rule = settings["filter.rule"]
    words = ["no filter" if rule == "none" else f"{NAMES[rule]} {settings[PARAMETERS[rule]]:.4g}"]
    if "sample.guidance_scale" in settings:
        words.append(f"guidance {settings['sample.guidance_scale']:g}")
    if "filter.max_per_class" in settings:
        words.append(f"at most {settings['filter.max_per_class']:,} of a finding")
    return ", ".join(words)


def told(one: Tried) -> dict[str, Any]:
    """A setting as JSON."""
    return {
        "number": one.number,
        "settings": dict(one.settings),
        "rung": one.rung,
        "kept": dict(one.kept),
        "validation": {key: found.as_dict() for key, found in one.validation.items()},
        "test": {key: found.as_dict() for key, found in one.test.items()},
        "kept_set": {key: found.as_dict() for key, found in one.kept_set.items()},
        "failed": one.failed,
    }


def table(found: Answer, recipe: Recipe) -> Table:
    """What was measured, for the terminal: the front first."""
    shown = Table(title=f"settings tried: {len(found.tried)}", title_justify="left", box=None, padding=(0, 1))
    shown.add_column("")
    shown.add_column("setting", overflow="fold")
    for heading in ("kept", "judge's ratio", "macro AUROC"):
        shown.add_column(heading, justify="right", no_wrap=True)
    measured = [one for one in found.tried if one.validation]
    rung = None
    for one in sorted(measured, key=lambda one: (-one.rung, one.number not in found.on_front, one.number)):
        if one.rung != rung:
            rung = one.rung
            shown.add_row("", f"{MEASURED_ON[rung]}:")
        mark = "→" if one.number == found.recommended else "•" if one.number in found.on_front else ""
        own = " (the recipe's)" if is_own(recipe, one.settings) else ""
        shown.add_row(
            mark, f"{parameter(one.settings)}{own}", f"{one.kept_frac:.0%}", *_both_of(one.validation, JUDGED)
        )
        if one.test:
            shown.add_row("", "  held out, auditor", "", *_both_of(one.test, AUDITED))
            shown.add_row("", "  without a student", "", *_both_of(one.kept_set, JUDGED))  # what it adds or costs
    if any(one.test for one in measured):
        shown.caption, shown.caption_justify = f"held out: {HELD_OUT}", "left"
    return shown


def failures(found: Answer) -> list[str]:
    """A line for every setting that could not be measured."""
    return [f"{parameter(one.settings)} failed: {one.failed}" for one in found.tried if one.failed]


def _both_of(metrics: Mapping[str, Estimate], ratio: str) -> list[str]:
    return [_told(metrics.get(key)) for key in (ratio, "macro_auroc")]


def _told(found: Estimate | None) -> str:
    return "" if found is None else f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _sentence(recipe: Recipe, recommended: Tried | None, eligible: Sequence[Tried]) -> str:
    limit = f"{recipe.tune.max_ratio:g}"
    if recommended is not None:
        held_out = recommended.test[AUDITED]
        confirmed = "" if held_out.high <= recipe.tune.max_ratio else f", which does not confirm at most {limit}"
        return (
            f"Use {parameter(recommended.settings)}: the most useful of the settings whose ratio by the study's "
            f"judge is at most {limit} with 95 % confidence, {_both(recommended.validation, JUDGED)}. Held out, "
            f"{HELD_OUT}: {_both(recommended.test, AUDITED)}{confirmed}. It keeps "
            f"{recommended.kept_frac:.0%} of the samples."
        )
    if not eligible:
        return f"No setting could be measured to the end, so none is known to stay at most at {limit}."
    best = min(eligible, key=lambda one: one.validation[JUDGED].high)
    return (
        f"No setting keeps the ratio by the study's judge at most at {limit} with 95 % confidence; the best, "
        f"{parameter(best.settings)}, reaches {_both(best.validation, JUDGED)}."
    )


def _both(metrics: Mapping[str, Estimate], ratio: str) -> str:
    return f"ratio {_told(metrics[ratio])}, macro AUROC {_told(metrics['macro_auroc'])}"
