"""Does the study's search beat chance, is its interval right, and what does a study cost?

    python -m benchmarks.study search jobs/recipes/phantom.yaml --store runs/demo
    python -m benchmarks.study interval jobs/recipes/phantom.yaml --store runs/demo
    python -m benchmarks.study cost jobs/recipes/phantom.yaml --store runs/demo

Each needs a store with scored samples (`python -m jobs.score`), `cost` a finished run and a finished study. The
study's judge is made if it is missing. Prints JSON. `search` measures settings as rung 0 does, by kept set;
`interval` measures students of the recipe's own setting as rung 1 does, all by one threshold, whose error is in the
interval and not in where they land. What was measured before is read from the store. `cost` takes a run from the
start of its filter to the end of its evaluation.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import ray

from pipeline import cluster, front, plan, proposals, trials, tune
from pipeline.artifact import Store
from pipeline.config import Recipe, read
from pipeline.estimate import Estimate
from pipeline.front import Point
from pipeline.outcomes import Settings, own_settings, point
from pipeline.progress import Silence
from pipeline.steps import judge
from pipeline.steps.trial import EXACT, TrialError

N_SEARCHES = 5
N_SEEDS = 2
N_NEW_SEEDS = 10
AT_ONCE = 2
OTHERS: list[Settings] = [
    {"filter.rule": "none"},
    {"filter.rule": "recall", "filter.recall.recall": 0.9},
    {"filter.rule": "fdr", "filter.fdr.q": 0.1},
]
SAMPLERS = {"study": proposals.sampler, "random": lambda seed: optuna.samplers.RandomSampler(seed=seed)}


def search(recipe: Recipe, store: Store) -> dict[str, Any]:
    """Hypervolumes of the study's search and of random search, and of everything that either found.

    The reference point is no filter's ratio, the AUROC of a coin and no image kept.
    """
    jobs = list(itertools.product(SAMPLERS, range(N_SEARCHES)))
    found = _side_by_side(_searched, [(recipe, store.uri, name, seed) for name, seed in jobs])
    unfiltered = found[0][0]
    reference = np.array([unfiltered.ratio.value, 0.5, 1.0])

    def volume(points: Sequence[Point]) -> float:
        return front.hypervolume(front.losses(points), reference)

    every = [one for points in found for one in points]
    result: dict[str, Any] = {"reference": reference.tolist(), "all": volume(every), "n_all": len(every)}
    for name in SAMPLERS:
        own = [points for (whose, _), points in zip(jobs, found, strict=True) if whose == name]
        volumes = [volume(points) for points in own]
        result[name] = {
            "hypervolume": volumes,
            "median": float(np.median(volumes)),
            "of_all": float(np.median(volumes)) / result["all"],
            "on_front": [int(front.non_dominated(front.losses(points)).sum()) for points in own],
        }
    result["ratio_of_medians"] = result["study"]["median"] / result["random"]["median"]
    return result


def _searched(recipe: Recipe, store_uri: str, sampler: str, seed: int) -> list[Point]:
    """The settings that one search measured; those that cannot be measured are told to it as failed."""
    study = optuna.create_study(directions=proposals.DIRECTIONS, sampler=SAMPLERS[sampler](seed))
    points = []
    for _ in range(recipe.tune.trials):
        proposal = study.ask()
        try:
            found = _measured(recipe, store_uri, proposals.propose(recipe, proposal), trials.KEPT, 0)
        except TrialError:
            study.tell(proposal, state=optuna.trial.TrialState.FAIL)
        else:
            points.append(found)
            study.tell(proposal, [found.ratio.value, found.auroc.value, found.kept_frac])
    return points


def interval(recipe: Recipe, store: Store) -> dict[str, Any]:
    """How often a student of the recipe's own setting with a new seed lands in the interval that a study would state.

    `first`: the interval of the first seeds against the rest; `every`: the mean over every choice of as many seeds.
    The other settings have `N_SEEDS` students each, as in a study, and lend their spread.
    """
    settings = [own_settings(recipe), *OTHERS]
    n_seeds = [N_SEEDS + N_NEW_SEEDS, *[N_SEEDS] * len(OTHERS)]
    jobs = [(position, seed) for position, n in enumerate(n_seeds) for seed in range(n)]
    found = _side_by_side(
        _metrics, [(recipe, store.uri, settings[position], trials.STUDENT, seed) for position, seed in jobs]
    )

    measure = trials.STUDENT[-1]

    def groups(key: str) -> list[list[Estimate]]:
        """By setting, a metric of each of its students."""
        return [
            [
                Estimate.from_dict(one[measure][key])
                for (at, _), one in zip(jobs, found, strict=True)
                if at == position
            ]
            for position in range(len(settings))
        ]

    ratios = _coverage(groups(f"judge_ratio{EXACT}"), groups("judge_ratio"))
    aurocs = groups("macro_auroc")
    return {"ratio": ratios, "auroc": _coverage(aurocs, aurocs)}


def _coverage(groups: Sequence[Sequence[Estimate]], whole: Sequence[Sequence[Estimate]]) -> dict[str, Any]:
    """`whole` holds the error that all students share, which the students at hand do not show: see `over_seeds`."""
    own = groups[0]

    def stated_by(chosen: Sequence[int]) -> Estimate:
        some = ([[every[0][i] for i in chosen], *every[1:]] for every in (groups, whole))
        return front.over_seeds(*some)[0]

    shares = []
    for chosen in itertools.combinations(range(len(own)), N_SEEDS):
        stated = stated_by(chosen)
        rest = [one.value for i, one in enumerate(own) if i not in chosen]
        shares.append(np.mean([stated.low <= value <= stated.high for value in rest]))
    first = stated_by(range(N_SEEDS))
    return {
        "stated": first.as_dict(),
        "first": float(shares[0]),
        "every": float(np.mean(shares)),
        "values": [one.value for one in own],
    }


def _measured(recipe: Recipe, store_uri: str, settings: Settings, names: Sequence[str], seed_offset: int) -> Point:
    """A setting's point, as a trial measures it."""
    measured = _metrics(recipe, store_uri, settings, names, seed_offset)
    return point(measured[names[-1]], measured["filter"])


def _metrics(
    recipe: Recipe, store_uri: str, settings: Settings, names: Sequence[str], seed_offset: int
) -> dict[str, Mapping[str, Any]]:
    """A setting as a trial measures it: the kept set as on rung 0, or a short student as on rung 1."""
    rung = int(names == trials.STUDENT)
    own, store = trials.recipe_of(recipe, settings, rung, seed_offset), Store(store_uri)
    plan.run(own, store, names, Silence(), trials.tasks)
    return trials.measured(own, store)


def _side_by_side(function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]]) -> list[Any]:
    """The function's results, as many at once as a study has trials."""
    task = ray.remote(num_cpus=1)(function)
    with cluster.unwrapped(), ThreadPool(AT_ONCE) as pool:
        return pool.map(lambda job: ray.get(task.remote(*job)), jobs, chunksize=1)


def cost(recipe: Recipe, store: Store) -> dict[str, Any]:
    """Seconds of a study against those of one run from filter to evaluation."""
    lines = plan.plan(recipe, store, tune.listing)
    made = {line.task.name: line.artifact.manifest for line in lines if line.artifact}
    after = [one for name, one in made.items() if name.split("/")[0] in ("filter", "distill", "evaluate")]
    one_run = max(one["started_at"] + one["seconds"] for one in after) - made["filter/0"]["started_at"]
    rungs = {name: one["seconds"] for name, one in made.items() if name.startswith("tune/")}
    study = sum(rungs.values())
    return {"one_run_s": one_run, "rungs_s": rungs, "study_s": study, "ratio": study / one_run}


QUESTIONS = {"search": search, "interval": interval, "cost": cost}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=QUESTIONS)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--store", required=True)
    arguments = parser.parse_args()
    study_recipe = tune.study_of(read(arguments.recipe))
    with cluster.connect(study_recipe):
        if arguments.question != "cost":
            plan.run(study_recipe, Store(arguments.store), judge.NAMES, Silence(), trials.tasks)
        print(json.dumps(QUESTIONS[arguments.question](study_recipe, Store(arguments.store)), indent=1))
