"""The study: how strict must the filter be, and what does that cost?

All trials share teacher, samples and scores; a trial makes again what follows the filter. Trials climb rungs: the
kept set itself (`tune/0`, seconds each), a short student (`tune/1`), and full ones of several seeds (`tune/2`). What
they are compared by is the study's own judge (`steps.judge`); the auditor is asked on the last rung alone, by whose
word nothing is chosen, about other images of these students and on patients that no trial saw. Each rung is a Ray
Tune experiment and an artifact: if it is killed, Ray Tune restores it, and what a trial made is found again in the
store. A setting climbs while it may still be on the front (`front.may_be_on_front`), the most promising first. Not
here: how Ray Tune runs trials (`trials`), how a setting is measured (`steps.trial`), the mathematics of fronts
(`front`), the page (`explorer`).
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import yaml
from ray import tune

from pipeline import explorer, fit, front, generator, plan, proposals, scan, trials, tune_page
from pipeline.artifact import Artifact, ArtifactError, Store
from pipeline.config import LOCAL_MLFLOW, ConfigError, Recipe, canonical, changed
from pipeline.explorer import Explorer
from pipeline.folders import Folder
from pipeline.outcomes import PARAMETERS, Outcome, Settings, outcomes_of, own_settings, point
from pipeline.progress import Silence
from pipeline.steps import ingest, judge, trial
from pipeline.steps.report import LeakError
from pipeline.task import Made, Task, Work
from pipeline.tune_report import Answer, Tried, answer, parameter, told

VERSION = 2
SHARED = ("teach", "identify", "sample", "score")
"""What all trials share."""
WORDS = ("ingest", *SHARED, "tune")


def tasks(recipe: Recipe) -> list[Task]:
    """The study's judge, and the rungs after what they rest on."""
    shared = ("ingest", "score/gallery", "score/unseen", "sample/0", "score/0", *judge.NAMES)
    study = recipe.tune
    space = {"trials", *PARAMETERS, "rules", "guidance_scale", "max_per_class"}
    measured = {"classifier", "n_train", "bootstrap", "control_percentile"}
    kept = {
        "tune": study.model_dump(mode="json", include=space),
        "own": own_settings(recipe),
        "evaluate": recipe.evaluate.model_dump(mode="json", include=measured),
        "seed": recipe.seed,
    }
    student = {
        "distill": generator.fingerprinted(recipe.distill),
        "n_student": recipe.evaluate.n_student,
        "tune": study.model_dump(mode="json", include={"climb", "short_frac"}),
    }
    configs = (kept, student, student | {"student_seeds": study.student_seeds})
    rungs = [
        Task(
            f"tune/{rung}",
            functools.partial(make, rung=rung),
            configs[rung],
            (*shared, *([f"tune/{rung - 1}"] if rung else [])),
            version=VERSION,
            slots=2,
            resumable=True,
            about=trials.RUNGS[rung],
        )
        for rung in range(len(trials.RUNGS))
    ]
    inputs = (*shared, *(task.name for task in rungs))
    asked = {"max_ratio": study.max_ratio, "filter": recipe.filter.model_dump(mode="json"), "name": recipe.name}
    return [
        *judge.tasks(recipe),
        *rungs,
        Task("tune", make_answer, asked, inputs, "releasable", VERSION, about="front, recommendation, public page"),
        Task("tune/custodian", make_private_page, asked, inputs, version=VERSION, about="the page, private edition"),
    ]


def study_of(recipe: Recipe) -> Recipe:
    """The recipe as a study takes it: one round of samples, as the budget is fixed."""
    return changed(recipe, {"sample.max_rounds": 1})


def listing(recipe: Recipe, n_rounds: int) -> list[Task]:
    """The tasks of a run and of the study."""
    return [*plan.tasks(recipe, n_rounds), *tasks(recipe)]


def check(recipe: Recipe, store: Store, lines: list[plan.Line], words: Collection[str]) -> list[str]:
    """A study makes what a store lacks, but it does not take hours because it was given another recipe's store.

    Raises: ArtifactError if the store has a teacher, networks, samples or scores, and they are of another recipe;
        ConfigError if there is no MLflow to log to, or no finding to learn; whatever `plan.check` raises.
    """
    remarks = plan.check(recipe, store, lines, words)
    _require_findings(recipe, store, lines)
    if recipe.tune.mlflow and not importlib.util.find_spec("mlflow"):
        raise ConfigError(
            "key 'tune.mlflow': want the package mlflow, got none — pip install mlflow-skinny, or leave it"
        )
    if recipe.tune.mlflow == LOCAL_MLFLOW and store.local_root is None:
        raise ConfigError(
            f"key 'tune.mlflow': want a store on this machine for {LOCAL_MLFLOW}, got {store.uri} — give the address "
            "of a tracking server"
        )
    for line in lines:
        if line.task.word in SHARED and line.artifact is None and "differs" in line.why:
            raise ArtifactError(
                f"{line.task.name}: want what this recipe makes, got another recipe's ({line.why}) — give the recipe "
                "of this store, or run python -m jobs.all with this one first"
            )
    return remarks


def _require_findings(recipe: Recipe, store: Store, lines: list[plan.Line]) -> None:
    """A cohort has findings or not, as soon as it is listed; hours later no trial could be measured."""
    made = next((line.artifact for line in lines if line.task.name == "ingest"), None)
    findings = made.facts["findings"] if made else ingest.checked(recipe, store)[0].findings
    if not findings:
        raise ConfigError(
            f"tune needs findings: want a cohort with labels, got none — {trial.NEEDS_FINDINGS}; give some "
            "(ingest.table.labels), or use jobs.all, which does without"
        )


def make(work: Work, rung: int) -> Made:
    """Measure the settings of one rung; `trials.json` holds every outcome."""
    if rung == 0:
        outcomes = _search(work)
    else:
        before = outcomes_of(work.inputs[f"tune/{rung - 1}"])
        outcomes = _measure_again(work, rung, _chosen(work.recipe, rung, before))
    failed = sum(bool(outcome.failed) for outcome in outcomes)
    if rung == 0 and failed == len(outcomes):
        raise trial.TrialError(f"tune: want a setting that can be measured, got none: {outcomes[0].failed}")
    body = [outcome._asdict() for outcome in outcomes]
    (work.draft.folder / "trials.json").write_text(json.dumps(body, indent=1, allow_nan=False))
    return Made({"measured": len(outcomes) - failed, "failed": failed}, len(outcomes))


def make_answer(work: Work) -> Made:
    """The answer as JSON, and the explorer without anything private."""
    found, page = _answered(work)
    folder = work.draft.folder
    (folder / "explorer.html").write_text(explorer.render(page))
    body = {
        "answer": found.sentence,
        "recommended": found.recommended,
        "front": list(found.on_front),
        "settings": [told(one) for one in found.tried],
    }
    (folder / "summary.json").write_text(json.dumps(body, indent=1, allow_nan=False))
    kept = _kept(work, next(one for one in found.tried if one.kept))
    shown = [] if page.kept_images is None else [page.kept_images]
    leaks = fit.small(scan.scan_page, work.recipe, {**work.inputs, "filter": kept}, Folder.of(folder), shown)
    if leaks:
        raise LeakError(f"public explorer: want no secret, got {leaks} — see which text of the recipe holds one")
    return Made({"answer": found.sentence, "recommended": found.recommended, "front": list(found.on_front)})


def make_private_page(work: Work) -> Made:
    """The explorer with raw samples, those at risk included, and the recommended recipe, which names folders."""
    found, page = _answered(work)
    if (chosen := found.chosen) is not None:
        (work.draft.folder / "recommended.yaml").write_text(_recommended(work.recipe, chosen.settings))
    private = tune_page.private_part(work.inputs)
    (work.draft.folder / "explorer.html").write_text(explorer.render(dataclasses.replace(page, private=private)))
    return Made({})


def answer_of(recipe: Recipe, artifacts: Mapping[str, Artifact]) -> Answer:
    """The answer of a finished study, whose rungs are among the artifacts."""
    return answer(recipe, [outcomes_of(artifacts[f"tune/{rung}"]) for rung in range(len(trials.RUNGS))])


def _answered(work: Work) -> tuple[Answer, Explorer]:
    found = answer_of(work.recipe, work.inputs)
    page = tune_page.explorer_of(work.recipe, work.inputs, found, work.run_started_at)
    if (chosen := found.chosen) is None:  # no other kept set may leave
        return found, page
    return found, dataclasses.replace(page, kept_images=tune_page.kept_images(_kept(work, chosen)))


def _kept(work: Work, one: Tried) -> Artifact:
    """The kept set of a setting that was measured."""
    lines = plan.plan(trials.recipe_of(work.recipe, one.settings, 0), work.draft.store, trials.tasks)
    return next(line.artifact for line in lines if line.task.name == "filter" and line.artifact)


def _recommended(recipe: Recipe, settings: Settings) -> str:
    """A recipe that `jobs.all` runs: this one with the setting, and with the study's one round of samples."""
    tree = changed(recipe, {**settings, "sample.max_rounds": 1}).model_dump(mode="json")
    return f"# {recipe.name}, with the filter that the study recommends: {parameter(settings)}\n" + yaml.safe_dump(
        tree, sort_keys=False, allow_unicode=True
    )


def _search(work: Work) -> list[Outcome]:
    """Rung 0: Optuna proposes settings, knowing those that an earlier study of the same space has measured."""
    earlier = _earlier(work)
    n_new = work.recipe.tune.trials - len(earlier)
    if n_new <= 0:
        return earlier[: work.recipe.tune.trials]
    _sample_all(work)
    work.bar.begin(n_new)
    found = trials.run(work, trials.trainable(work, 0, {}), n_new, search_alg=proposals.search(work.recipe, earlier))
    new = [trials.outcome(work, len(earlier) + i, settings, 0, error) for i, (settings, error) in enumerate(found)]
    return earlier + new


def _sample_all(work: Work) -> None:
    """Sample and score at every guidance scale of the space, once and before trials that share them."""
    for scale in work.recipe.tune.guidance_scale:
        own = changed(work.recipe, {"sample.guidance_scale": scale})
        plan.run(own, work.draft.store, ("sample", "score", *judge.NAMES), Silence(), trials.tasks)


def _measure_again(work: Work, rung: int, chosen: Sequence[Outcome]) -> list[Outcome]:
    """A higher rung: a student of each of the chosen settings, or on the last one a student for each seed."""
    offsets = range(work.recipe.tune.student_seeds) if rung == trials.LAST else [0]
    jobs = [{"number": one.number, "seed_offset": offset} for one in chosen for offset in offsets]
    work.bar.begin(len(jobs))
    measure = trials.trainable(work, rung, {one.number: one.settings for one in chosen})
    found = trials.run(work, measure, len(jobs), param_space={"job": tune.grid_search(jobs)}) if jobs else []
    errors = {(given["job"]["number"], given["job"]["seed_offset"]): error for given, error in found}
    return [
        trials.outcome(work, one.number, one.settings, rung, errors[one.number, offset], offset)
        for one in chosen
        for offset in offsets
    ]


def _chosen(recipe: Recipe, rung: int, before: Sequence[Outcome]) -> list[Outcome]:
    """Who climbs: no filter at all, for comparison, and the most promising that may still be on the front."""
    measured = [one for one in before if not one.failed]
    points = [point(_metrics(one, rung - 1), one.measured["filter"]) for one in measured]
    alive = front.may_be_on_front(points)
    order = [i for i in front.most_promising(front.losses(points)) if alive[i]]
    unfiltered = [i for i, one in enumerate(measured) if one.settings["filter.rule"] == "none"]
    climbing = list(dict.fromkeys([*unfiltered, *order]))[: max(recipe.tune.climb[rung - 1], len(unfiltered))]
    return [measured[i] for i in sorted(climbing)]


def _metrics(outcome: Outcome, rung: int) -> Mapping[str, Any]:
    return outcome.measured["trial/kept/control" if rung == 0 else "trial/student/control"]


def _earlier(work: Work) -> list[Outcome]:
    """The outcomes of the largest study of the same space and data, which this one goes on from."""

    def space(told: Mapping[str, Any]) -> Any:
        return {**told, "tune": {**told["tune"], "trials": 0}}

    own = json.loads(canonical(dict(work.draft.config)))
    same = [
        artifact
        for artifact in work.draft.store.others(work.draft.key)
        if space(artifact.manifest["config"]) == space(own) and artifact.manifest["inputs"] == work.draft.inputs
    ]
    return outcomes_of(max(same, key=lambda artifact: artifact.manifest["rows"])) if same else []
