"""The trials of a study: Ray Tune runs them, and what they make is found in the store.

A trial is a recipe of its own, made in the trial's own process as far as its rung asks. Not here: which settings are
tried and which climb (`tune`), the arms and measures of a trial (`steps.trial`).
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow.fs as pafs
from ray import tune
from ray.tune import Tuner

from pipeline import ends, plan, proposals
from pipeline.artifact import Store
from pipeline.config import LOCAL_MLFLOW, Recipe, changed
from pipeline.outcomes import Outcome, Settings, point
from pipeline.progress import Silence
from pipeline.steps import judge, trial
from pipeline.storage import located
from pipeline.task import Task, Work

RUNGS = ("kept set", "short student", "full students, the auditor's word")
LAST = len(RUNGS) - 1
KEPT = ("filter", "trial/kept/control")
"""What the lowest rung makes."""
STUDENT = ("filter", "distill", "trial/student_images", "trial/student_scores", "trial/student/control")
"""What the others make."""
HELD_OUT = ("trial/fresh_images", "trial/fresh_scores", "trial/student/test")
"""What the last one makes beside: by it nothing is chosen."""


def tasks(recipe: Recipe, n_rounds: int) -> list[Task]:
    """Every task of a trial: those of a run, the judge's, and its measures."""
    return [*plan.tasks(recipe, n_rounds), *judge.tasks(recipe), *trial.tasks(recipe)]


def recipe_of(recipe: Recipe, settings: Settings, rung: int, seed_offset: int = 0) -> Recipe:
    """The recipe of a trial: one round of samples, as the budget is fixed; a shorter student on rung 1.

    All of it runs in the trial's own process: on a laptop, starting others would take longer than a short student.
    """
    alone = {"cluster.parallel_tasks": 1, "sample.actors": 0, "sample.min_actors": 0, "score.actors": 0}
    alone["distill.workers"] = 0
    changes = {**settings, **alone, "sample.max_rounds": 1, "distill.seed_offset": seed_offset}
    if rung == 1:
        short = recipe.tune.short_frac
        n_images = round(recipe.distill.n_images * short)
        changes |= {
            "distill.n_images": n_images,
            "distill.warmup_images": min(recipe.distill.warmup_images, n_images // 10),
            "evaluate.n_student": max(1, round(recipe.evaluate.n_student * short)),
        }
    return changed(recipe, changes)


def trainable(work: Work, rung: int, settings_of: Mapping[int, Settings]) -> Callable[[Settings], None]:
    """What Ray Tune calls with a trial's settings, or with the number of a chosen trial."""
    recipe, store, bar = work.recipe, work.draft.store, work.bar
    names = STUDENT if rung else KEPT
    if rung == LAST:
        names = (*names, *HELD_OUT)

    def measure(given: Settings) -> None:
        """Make what the trial's recipe lacks and report what it came to."""
        # Without a first report Ray would not say what a trial that fails was given.
        tune.report({"rung": rung} | dict.fromkeys(proposals.OBJECTIVES, math.nan))
        job = given.get("job")
        settings, seed_offset = (settings_of[job["number"]], job["seed_offset"]) if job else (given, 0)
        own = recipe_of(recipe, settings, rung, seed_offset)
        with ends.last_words(_words(tune.get_context().get_trial_id())):
            plan.run(own, store, names, Silence(), tasks)
        found = measured(own, store)
        values = {key: saved["value"] for key, saved in found[names[-1]].items()}
        there = point(found[names[-1]], found["filter"])
        objectives = (there.ratio.value, there.auroc.value, there.kept_frac)
        bar.add(1)
        tune.report({"rung": rung} | values | dict(zip(proposals.OBJECTIVES, objectives, strict=True)))

    return measure


def run(
    work: Work, measure: Callable[[Settings], None], n_trials: int, **space: Any
) -> list[tuple[Settings, Exception | None]]:
    """What each trial of a Ray Tune experiment was given, and its error; restored where it was killed."""
    # Ray Tune saves where it stands every ten seconds, in which several trials of the lowest rung end.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1")
    fs, folder = located(work.draft.work_uri)
    storage_fs = None if isinstance(fs, pafs.LocalFileSystem) else fs
    path = f"{folder}/tuner"
    study = work.recipe.tune
    student = work.recipe.distill
    trainable = tune.with_resources(measure, {"cpu": student.cpus_per_worker, "gpu": float(student.gpu)})
    if Tuner.can_restore(path, storage_filesystem=storage_fs):
        tuner = Tuner.restore(path, trainable, storage_filesystem=storage_fs)
    else:
        search = space.pop("search_alg", None)
        tuner = Tuner(
            trainable,
            **space,
            tune_config=tune.TuneConfig(
                search_alg=search,
                num_samples=n_trials if search else 1,
                max_concurrent_trials=study.concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="tuner",
                storage_path=folder,
                storage_filesystem=storage_fs,
                verbose=0,
                callbacks=_callbacks(work),
            ),
        )
    results = tuner.fit()
    _keep_logs(work)
    return [(_given(result), _explained(result)) for result in results]


def measured(own: Recipe, store: Store) -> dict[str, Mapping[str, Any]]:
    """By task, the metrics of a trial's recipe that the store has; beside them the filter's counts."""
    artifacts = {line.task.name: line.artifact for line in plan.plan(own, store, tasks) if line.artifact}
    metrics = {
        name: one.facts["metrics"]
        for name, one in artifacts.items()
        if name.startswith(("trial/kept/", "trial/student/"))
    }
    decided = artifacts["filter/0"]
    told = ("rule", "threshold", "guarantee", "n_kept", "kept_by_class", "reasons")
    return {**metrics, "filter": {key: decided.facts[key] for key in told} | {"n_sampled": decided.manifest["rows"]}}


def outcome(
    work: Work, number: int, settings: Settings, rung: int, error: Exception | None, seed_offset: int = 0
) -> Outcome:
    """What a trial came to, from the store; or why it failed."""
    if error is not None:
        return Outcome(number, settings, seed_offset, {}, _reason(error))
    own = recipe_of(work.recipe, settings, rung, seed_offset)
    return Outcome(number, settings, seed_offset, measured(own, work.draft.store), "")


def _given(result: tune.Result) -> Settings:
    assert result.config is not None  # every trial reports its start, and Ray adds its configuration
    return result.config


def _explained(result: tune.Result) -> Exception | None:
    """The trial's error; of a worker that ended, how."""
    if result.error is None:
        return None
    try:
        with ends.read_for(_words((result.metrics or {}).get("trial_id"))):
            raise result.error
    except Exception as error:  # the trial's own, or what ended its worker: told, never raised
        return error


def _words(trial_id: object) -> str:
    return f"trial-{trial_id}"


def _callbacks(work: Work) -> list[tune.Callback]:
    address = work.recipe.tune.mlflow
    if address is None:
        return []
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # its news would run through the live view
    if address == LOCAL_MLFLOW:
        address = f"sqlite:///{work.draft.store.local_root}/private/mlflow.db"
    return [MLflowLoggerCallback(tracking_uri=address, experiment_name=f"{work.recipe.name}, {work.draft.key.name}")]


def _keep_logs(work: Work) -> None:
    """Take Ray Tune's TensorBoard files over into the artifact: what else it wrote goes with the checkpoints."""
    store = work.draft.store
    below = f"{store.root}/{work.draft.work_path}/tuner/"
    for info in store.fs.get_file_info(pafs.FileSelector(below, recursive=True)):
        if "tfevents" in info.base_name:
            trial = info.path.removeprefix(below).split("/")[0]
            copy = work.draft.folder / "tensorboard" / trial / info.base_name
            copy.parent.mkdir(parents=True, exist_ok=True)
            pafs.copy_files(
                info.path, str(copy), source_filesystem=store.fs, destination_filesystem=pafs.LocalFileSystem()
            )


def _reason(error: Exception) -> str:
    """One line on why a trial failed."""
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {cause}".splitlines()[0]
