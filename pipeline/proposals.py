"""Which settings a study tries: no filter, the recipe's own, and then what a multi-objective search proposes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import optuna
from ray.tune.search.optuna import OptunaSearch

from pipeline import config
from pipeline.config import Recipe
from pipeline.outcomes import PARAMETERS, Outcome, is_own, own_settings, point
from pipeline.seeds import row_seed

OBJECTIVES = {"judge_ratio": "min", "macro_auroc": "max", "kept_frac": "max"}
DIRECTIONS = [
    optuna.study.StudyDirection.MINIMIZE if mode == "min" else optuna.study.StudyDirection.MAXIMIZE
    for mode in OBJECTIVES.values()
]
LOGARITHMIC = ("fixed", "fdr")
STUDY = "front"
# Settings drawn at random before the search learns from them; Optuna's default of ten would be most of a study.
RANDOM_TRIALS = 5


def search(recipe: Recipe, earlier: Sequence[Outcome]) -> OptunaSearch:
    """A search for the front that knows the earlier outcomes.

    Source: multi-objective TPE, Ozaki et al., GECCO 2020, doi:10.1145/3377930.3389817, as in Optuna.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # its news would run through the live view
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name=STUDY, directions=DIRECTIONS)
    for outcome in earlier:
        study.add_trial(_known(recipe, outcome))
    seed = row_seed(recipe.seed, "tune") % 2**32
    return OptunaSearch(
        functools.partial(propose, recipe),
        metric=[*OBJECTIVES],
        mode=[*OBJECTIVES.values()],
        storage=storage,
        study_name=STUDY,
        sampler=sampler(seed),
    )


def sampler(seed: int) -> optuna.samplers.BaseSampler:
    """What proposes settings once a few were drawn at random."""
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=RANDOM_TRIALS, constant_liar=True)


def propose(recipe: Recipe, proposal: Any) -> dict[str, Any]:
    """The settings of Optuna's next trial: no filter, the recipe's own, and from then on what the search wants."""
    first = [{"filter.rule": "none"}] + ([own_settings(recipe)] if recipe.filter.rule != "none" else [])
    if proposal.number < len(first):
        return first[proposal.number]
    space = distributions(recipe.tune)
    rule = proposal.suggest_categorical("filter.rule", space["filter.rule"].choices)
    suggested = {"filter.rule": rule}
    for key in (PARAMETERS[rule], *(key for key in space if key not in ("filter.rule", *PARAMETERS.values()))):
        suggested[key] = _suggested(proposal, key, space[key])
    return suggested


def distributions(study: config.Tune) -> dict[str, Any]:
    """Dotted keys of the recipe -> what the search may set them to."""
    rules = [rule for rule in study.rules if rule != "none"]
    space: dict[str, Any] = {"filter.rule": optuna.distributions.CategoricalDistribution(rules)}
    for rule in rules:
        low, high = getattr(study, rule)
        space[PARAMETERS[rule]] = optuna.distributions.FloatDistribution(low, high, log=rule in LOGARITHMIC)
    for key in ("guidance_scale", "max_per_class"):
        if values := getattr(study, key):
            word = "sample" if key == "guidance_scale" else "filter"
            space[f"{word}.{key}"] = optuna.distributions.CategoricalDistribution(values)
    return space


def _suggested(proposal: Any, key: str, space: Any) -> Any:
    if isinstance(space, optuna.distributions.CategoricalDistribution):
        return proposal.suggest_categorical(key, space.choices)
    return proposal.suggest_float(key, space.low, space.high, log=space.log)


def _known(recipe: Recipe, outcome: Outcome) -> optuna.trial.FrozenTrial:
    """An earlier outcome as Optuna keeps it. What was not proposed by the search has no parameters."""
    space = distributions(recipe.tune)
    was_proposed = outcome.settings["filter.rule"] != "none" and not is_own(recipe, outcome.settings)
    params = {key: value for key, value in outcome.settings.items() if was_proposed}
    told: dict[str, Any] = {"params": params, "distributions": {key: space[key] for key in params}}
    if outcome.failed:
        return optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL, **told)
    found = point(outcome.measured["trial/kept/control"], outcome.measured["filter"])
    return optuna.trial.create_trial(values=[found.ratio.value, found.auroc.value, found.kept_frac], **told)
