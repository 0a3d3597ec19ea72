"""The study of the filter: what it shares, what it reports, and that it goes on where it stood.

One small study of the shrunk recipe is made for all tests, and killed once on the way; its figures mean nothing and
are not looked at.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import mlflow
import numpy as np
import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from running import RECIPE, ROOT, run_job
from scipy.stats import norm

from pipeline import front, plan, proposals, secret, trials, tune, tune_report, workers
from pipeline.artifact import Artifact, Key, Store
from pipeline.config import ConfigError, Recipe, canonical, changed, read
from pipeline.estimate import Estimate
from pipeline.outcomes import Outcome, Settings, outcomes_of
from pipeline.privacy import risk
from pipeline.progress import Silence
from pipeline.steps import identify, judge, trial
from pipeline.steps.trial import EXACT

OPTIONS = ("--tune.trials", "5", "--tune.climb", "2", "2", "--tune.student-seeds", "2")
# Thresholds that drop everything.
OPTIONS += ("--tune.rules", "percentile", "fixed", "--tune.fixed", "1e-9", "2e-9")
OPTIONS += ("--tune.mlflow", "local")
SHARED = ("teach", "sample", "score", "identify")


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    small = {"tune.trials": 5, "tune.climb": (2, 2), "tune.student_seeds": 2}
    space = {"tune.rules": ("percentile", "fixed"), "tune.fixed": (1e-9, 2e-9)}
    return tune.study_of(changed(read(RECIPE), small | space))


class Study(NamedTuple):
    """A copy of the finished store with a study on it."""

    store: Path
    measured_before_kill: Mapping[Path, int]
    """Manifests of kept sets that were measured when the study was killed, and when they were written."""


@pytest.fixture(scope="module")
def study(finished_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study that was killed once two of its trials had ended, and run again."""
    store = shutil.copytree(finished_store, tmp_path_factory.mktemp("study") / "store")
    command = [sys.executable, "-m", "jobs.tune", str(RECIPE), "--store", str(store), *OPTIONS]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    while len(measured := list(store.glob("private/trial/kept/control/*/manifest.json"))) < 2:
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in measured}
    answer = run_job("tune", store, *OPTIONS)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return Study(store, before)


@pytest.fixture(scope="module")
def artifacts(study: Study, recipe: Recipe) -> dict[str, Artifact]:
    lines = plan.plan(recipe, Store(study.store), tune.listing)
    return {line.task.name: line.artifact for line in lines if line.artifact}


@pytest.mark.slow
def test_a_study_that_was_killed_goes_on_with_no_trial_lost_or_repeated(
    study: Study, artifacts: dict[str, Artifact], recipe: Recipe
) -> None:
    outcomes = outcomes_of(artifacts["tune/0"])
    assert [one.number for one in outcomes] == list(range(5))
    assert len({canonical(dict(one.settings)) for one in outcomes}) == 5
    assert {path: path.stat().st_mtime_ns for path in study.measured_before_kill} == study.measured_before_kill
    kept = set()
    for one in outcomes:
        lines = plan.plan(trials.recipe_of(recipe, one.settings, 0), Store(study.store), trials.tasks)
        kept |= {line.key.fingerprint for line in lines if line.task.name == "trial/kept/control"}
    assert {path.parent.name for path in study.measured_before_kill} <= kept


@pytest.mark.slow
def test_a_study_leaves_an_answer_and_two_editions_of_the_page(study: Study) -> None:
    summary = json.loads((study.store / "tune" / "summary.json").read_text())
    assert len(summary["settings"]) == 5 and summary["answer"]
    assert (study.store / "tune" / "recommended.yaml").is_file() == (summary["recommended"] is not None)
    assert "must not leave the building" in (study.store / "tune" / "explorer.html").read_text()
    assert "must not leave the building" not in (study.store / "tune" / "explorer_public.html").read_text()


@pytest.mark.slow
def test_a_setting_that_drops_everything_is_reported_and_does_not_stop_the_rest(study: Study) -> None:
    settings = json.loads((study.store / "tune" / "summary.json").read_text())["settings"]
    for one in settings:
        drops_everything = one["settings"]["filter.rule"] == "fixed"
        assert drops_everything == ("NothingKeptError" in one["failed"])
    assert {one["settings"]["filter.rule"] for one in settings} == {"none", "percentile", "fixed"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # MLflow's own
def test_every_trial_is_seen_in_tensorboard_and_in_mlflow(study: Study, artifacts: dict[str, Artifact]) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{study.store}/private/mlflow.db")
    reported = ("trial/kept/control", "trial/student/control", "trial/student/test")
    for rung, name in enumerate(reported):
        artifact = artifacts[f"tune/{rung}"]
        measured = [one.measured[name]["macro_auroc"]["value"] for one in outcomes_of(artifact) if not one.failed]
        logs = [path.read_bytes() for path in artifact.local().glob("tensorboard/*/events.out.tfevents*")]
        assert sum(b"ray/tune/macro_auroc" in log and b"ray/tune/judge_ratio" in log for log in logs) >= len(measured)
        experiment = client.get_experiment_by_name(f"phantom, shrunk, tune/{rung}")
        assert experiment is not None
        runs = [run.data.metrics for run in client.search_runs([experiment.experiment_id])]
        logged = [run["macro_auroc"] for run in runs if "macro_auroc" in run]
        assert all(any(value == pytest.approx(other) for other in logged) for value in measured)


@pytest.mark.slow
def test_no_trial_samples_scores_or_teaches_again(study: Study, finished_store: Path) -> None:
    def made(store: Path) -> dict[str, float]:
        found = {}
        for word in SHARED:
            for path in (store / "private" / word).rglob("manifest.json"):
                found[str(path.relative_to(store))] = json.loads(path.read_text())["started_at"]
        return found

    assert made(study.store) == made(finished_store)


@pytest.mark.slow
def test_settings_climb_from_rung_to_rung_and_the_last_rung_has_every_seed_and_both_splits(
    artifacts: dict[str, Artifact],
) -> None:
    rungs = [outcomes_of(artifacts[f"tune/{rung}"]) for rung in range(3)]
    assert len(rungs[0]) == 5 and len(rungs[1]) <= 2
    for lower, higher in pairwise(rungs):
        assert {one.number for one in higher} <= {one.number for one in lower if not one.failed}
    last = [one for one in rungs[2] if not one.failed]
    assert {one.seed_offset for one in last} == {0, 1}
    for one in last:
        assert {"trial/kept/control", "trial/student/control", "trial/student/test"} <= one.measured.keys()


@pytest.mark.slow
def test_no_number_that_the_study_chose_by_is_the_auditors_and_the_held_out_one_is(
    study: Study, artifacts: dict[str, Artifact], recipe: Recipe
) -> None:
    for rung in range(3):
        for one in outcomes_of(artifacts[f"tune/{rung}"]):
            for name, metrics in one.measured.items():
                assert ("audit_ratio" in metrics) == (name == "trial/student/test")
                assert ("judge_ratio" in metrics) == (name != "filter")
    own = trials.recipe_of(recipe, next(o for o in outcomes_of(artifacts["tune/2"]) if not o.failed).settings, 2)
    made = {line.task.name: line.artifact for line in plan.plan(own, Store(study.store), trials.tasks)}
    chosen, held_out = (made[f"trial/{arm}_scores"] for arm in ("student", "fresh"))
    images = [made[f"trial/{arm}_images"] for arm in ("student", "fresh")]
    assert chosen is not None and held_out is not None
    assert chosen.table().column_names == ["row_id", "reid_score", "judge_score"]
    assert held_out.table().column_names == ["row_id", "reid_score", "judge_score", "audit_score"]
    seeds = [set(one.table("plan")["seed"].to_pylist()) for one in images if one is not None]
    assert len(seeds) == 2 and not seeds[0] & seeds[1]


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_the_filters_own_scores_of_a_students_images_are_those_that_a_run_gives(
    study: Study, artifacts: dict[str, Artifact], recipe: Recipe
) -> None:
    own = trials.recipe_of(recipe, next(o for o in outcomes_of(artifacts["tune/2"]) if not o.failed).settings, 2)
    made = {line.task.name: line.artifact for line in plan.plan(own, Store(study.store), trials.tasks)}
    images_of, scored = made["trial/fresh_images"], made["trial/fresh_scores"]
    assert images_of is not None and scored is not None
    run = workers.ScoreImages(artifacts["score/gallery"], own.score, own.ingest.image_px, own.ingest.channels)
    again = run(images_of.table())
    for column in ("reid_score", "audit_score"):
        assert again[column].to_pylist() == scored.table()[column].to_pylist()


@pytest.mark.slow
def test_a_study_that_is_done_does_no_work(study: Study) -> None:
    before = {path: path.stat().st_mtime_ns for path in study.store.rglob("manifest.json")}
    answer = run_job("tune", study.store, *OPTIONS)
    assert answer.returncode == 0 and "reused, nothing to do" in answer.stdout
    assert {path: path.stat().st_mtime_ns for path in study.store.rglob("manifest.json")} == before


@pytest.mark.slow
def test_more_trials_go_on_from_those_before(study: Study, artifacts: dict[str, Artifact], recipe: Recipe) -> None:
    larger = changed(recipe, {"tune.trials": 6})
    answer = run_job("tune", study.store, "--tune.trials", "6", *OPTIONS[2:])
    assert answer.returncode == 0, answer.stdout + answer.stderr
    lines = plan.plan(larger, Store(study.store), tune.listing)
    (rung,) = [line.artifact for line in lines if line.task.name == "tune/0" and line.artifact]
    outcomes = outcomes_of(rung)
    assert outcomes[:5] == outcomes_of(artifacts["tune/0"])
    assert [one.number for one in outcomes] == list(range(6))


@pytest.mark.slow
def test_a_store_of_another_recipe_is_refused_before_hours_are_spent(finished_store: Path) -> None:
    answer = run_job("tune", finished_store, "--teach.n-images", "2560")
    assert answer.returncode == 2
    assert answer.stderr == (
        "teach: want what this recipe makes, got another recipe's (recipe differs: n_images 1280 -> 2560) — give the "
        "recipe of this store, or run python -m jobs.all with this one first\n"
    )


def test_a_cohort_without_findings_is_refused_before_hours_are_spent(recipe: Recipe, tmp_path: Path) -> None:
    store = Store(tmp_path)
    secret.of(recipe, store)
    (line,) = [line for line in plan.plan(recipe, store, tune.listing) if line.task.name == "ingest"]
    store.commit(store.draft(line.key), {"findings": []})
    lines = plan.plan(recipe, store, tune.listing)
    with pytest.raises(ConfigError, match="tune needs findings: want a cohort with labels, got none"):
        tune.check(recipe, store, lines, tune.WORDS)


def test_an_image_without_a_score_counts_as_flagged_at_any_threshold(tmp_path: Path) -> None:
    store = Store(tmp_path)
    draft = store.draft(Key("private", "trial/student_scores", "0123456789abcdef"))
    scores = pa.table({"row_id": ["a", "b", "c"], "judge_score": pa.array([0.25, math.nan, None], pa.float32())})
    draft.write_table(scores)
    scored = store.commit(draft, {}, 3)
    found = trial.scores_of(scored, "judge_score", ["c", "a", "b", "set aside"])
    for threshold in (0.3, 1.0, math.inf):
        assert risk.flagged(found, threshold).tolist() == [True, False, True, True]


def test_the_judge_differs_from_the_filters_network_and_from_the_auditor_in_more_than_its_seed(
    recipe: Recipe,
) -> None:
    architecture, patients = judge.ARCHITECTURE_OF, judge.PATIENTS_OF
    assert judge.network_of(recipe).backbone != recipe.identify.filter_network.backbone
    assert identify.SPLIT_OF[patients] != identify.SPLIT_OF["auditor"] and architecture != patients


def test_what_chooses_reads_nothing_of_the_auditor_and_what_is_held_out_does(recipe: Recipe) -> None:
    made = {task.name: task for task in trials.tasks(recipe, 1)}
    assert "judge_ratio" in proposals.OBJECTIVES and "audit_ratio" not in proposals.OBJECTIVES
    assert trial.AUDIT not in trial.CHOSEN_BY and trial.AUDIT in trial.HELD_OUT
    held_out = made["trial/student/test"]
    assert {"trial/fresh_images", "trial/fresh_scores"} < set(held_out.inputs)
    assert "trial/student_images" not in held_out.inputs


class Drawn:
    """What Optuna hands to a proposal: a numbered trial of a real study."""

    def __init__(self, number: int, seed: int = 0):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        for _ in range(number):
            study.ask()
        self.trial = study.ask()


def proposed(recipe: Recipe, number: int, seed: int = 0) -> Settings:
    return proposals.propose(recipe, Drawn(number, seed).trial)


def test_no_filter_and_the_recipes_own_setting_are_always_tried(recipe: Recipe) -> None:
    assert proposed(recipe, 0) == {"filter.rule": "none"}
    assert proposed(recipe, 1) == {"filter.rule": "percentile", "filter.percentile.percentile": 80.0}


@pytest.mark.parametrize("seed", range(12))
def test_every_proposal_is_a_recipe_within_the_ranges(seed: int) -> None:
    wide = changed(read(RECIPE), {"tune.guidance_scale": (1.0, 2.0), "tune.max_per_class": (10, 20)})
    settings = proposed(wide, 2, seed)
    rule = settings["filter.rule"]
    low, high = getattr(wide.tune, rule)
    (value,) = [value for key, value in settings.items() if key.startswith(f"filter.{rule}.")]
    assert low <= value <= high
    assert settings["sample.guidance_scale"] in (1.0, 2.0) and settings["filter.max_per_class"] in (10, 20)
    assert trials.recipe_of(wide, settings, 0).filter.rule == rule


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tune.rules": ()}, "want a rule with a range to try"),
        ({"tune.rules": ("none",)}, "want a rule with a range to try"),
        ({"tune.percentile": (90.0, 30.0)}, "want a range from low to high"),
        ({"tune.fdr": (0.0, 0.5)}, "logarithmic"),
    ],
)
def test_an_empty_space_is_a_mistake_of_the_recipe(changes: Settings, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        changed(read(RECIPE), changes)


def outcome(
    number: int,
    ratio: float,
    auroc: float,
    *,
    rung: int,
    seed_offset: int = 0,
    failed: str = "",
    audited: float = 0.07,
    threshold_error: float = 0.0,
) -> Outcome:
    """A setting as measured, with a third of a thousand samples kept; on the last rung the auditor says `audited`."""
    settings = {"filter.rule": "percentile", "filter.percentile.percentile": 50.0 + number}
    if failed:
        return Outcome(number, settings, seed_offset, {}, failed)
    far = math.hypot(0.01, threshold_error)
    metrics = {
        "judge_ratio": Estimate(ratio, ratio - far, ratio + far, 1000).as_dict(),
        f"judge_ratio{EXACT}": Estimate(ratio, ratio - 0.01, ratio + 0.01, 1000).as_dict(),
        "macro_auroc": Estimate(auroc, auroc - 0.01, auroc + 0.01, 1000).as_dict(),
    }
    held_out = metrics | {"audit_ratio": Estimate(audited, audited - 0.01, audited + 0.01, 1000).as_dict()}
    names = ["trial/kept/control"] if rung == 0 else ["trial/kept/control", "trial/student/control"]
    kept = {"n_kept": 300 + number, "n_sampled": 1000, "threshold": 0.2, "kept_by_class": {}, "reasons": {}}
    measured = dict.fromkeys(names, metrics) | ({"trial/student/test": held_out} if rung == 2 else {})
    return Outcome(number, settings, seed_offset, {**measured, "filter": kept}, "")


def rungs_of(*settings: tuple[float, float], **more: float) -> list[list[Outcome]]:
    """A study whose settings all climb to the end, with two seeds that agree."""
    lower = [[outcome(i, *found, rung=rung) for i, found in enumerate(settings)] for rung in range(2)]
    last = [
        outcome(i, *found, rung=2, seed_offset=seed, **more) for i, found in enumerate(settings) for seed in (0, 1)
    ]
    return [*lower, last]


def test_the_auditor_chooses_nothing_and_is_told_beside_what_was_chosen(recipe: Recipe) -> None:
    asked = changed(recipe, {"tune.max_ratio": 0.2})
    settings = ((0.04, 0.80), (0.05, 0.90), (0.30, 0.95))
    mild, harsh = (tune_report.answer(asked, rungs_of(*settings, audited=said)) for said in (0.07, 0.6))
    assert harsh.recommended == mild.recommended == 1 and harsh.on_front == mild.on_front
    assert [one.point for one in harsh.tried] == [one.point for one in mild.tried]
    assert mild.chosen is not None and mild.chosen.test["audit_ratio"].value == pytest.approx(0.07)
    assert "audit_ratio" not in mild.chosen.validation
    told = "by the auditor, which the study did not look at, on new images of the same students and on patients that"
    assert told in mild.sentence and "0.070 [" in mild.sentence and "does not confirm" not in mild.sentence
    assert "0.600 [" in harsh.sentence and "which does not confirm at most 0.2" in harsh.sentence


@pytest.mark.parametrize("threshold_error", [0.0085, 0.03])
def test_an_interval_over_seeds_is_wider_by_the_error_of_the_threshold_that_seeds_share(
    recipe: Recipe, threshold_error: float
) -> None:
    settings = ((0.2, 0.80), (0.25, 0.90))
    without, with_it = (rungs_of(*settings, threshold_error=error) for error in (0.0, threshold_error))
    for before, after in zip(*(tune_report.tried_at(rungs) for rungs in (without, with_it)), strict=True):
        for metrics in ("validation", "test"):
            narrow, wide = (getattr(one, metrics)["judge_ratio"] for one in (before, after))
            assert narrow.value == wide.value
            assert wide.high - wide.value == pytest.approx(math.hypot(narrow.high - narrow.value, threshold_error))
            assert wide.value - wide.low == pytest.approx(math.hypot(narrow.value - narrow.low, threshold_error))
            assert getattr(before, metrics)["macro_auroc"] == getattr(after, metrics)["macro_auroc"]
            assert not any(key.endswith(EXACT) for key in getattr(after, metrics))


def test_the_interval_over_seeds_covers_the_ratio_over_the_percentile_of_all_unseen_patients() -> None:
    """400 control scores, four settings of two students each; a student's scores are shifted by chance of its own."""
    rng, covered, before = np.random.default_rng(0), [], []
    shifts, spread, n, true_threshold = (0.0, 0.2, 0.4, 0.6), 0.08, 1500, norm.ppf(0.95)
    for _ in range(300):
        control = rng.normal(size=400)
        groups = [[rng.normal(shift + spread * rng.normal(), size=n) for _ in range(2)] for shift in shifts]
        limit = risk.control_threshold(control, 95.0).value
        whole = [[risk.ratio_over_control(scores, control, 95.0) for scores in group] for group in groups]
        exact = [[risk.wilson(int((scores >= limit).sum()), n) for scores in group] for group in groups]
        others = norm.sf(true_threshold, loc=np.array(shifts) + spread * rng.normal(size=len(shifts)))
        for found, told in ((front.over_seeds(exact, whole), covered), (front.over_seeds(exact), before)):
            told += [one.low <= other <= one.high for one, other in zip(found, others, strict=True)]
    assert np.mean(covered) >= 0.95 > np.mean(before)


def test_the_most_useful_setting_that_surely_meets_the_constraint_is_recommended(recipe: Recipe) -> None:
    rungs = rungs_of((0.04, 0.80), (0.05, 0.90), (0.30, 0.95))
    asked = changed(recipe, {"tune.max_ratio": 0.2})
    found = tune_report.answer(asked, rungs)
    assert found.recommended == 1 and "Use percentile 51" in found.sentence
    assert set(found.on_front) == {0, 1, 2}


def test_a_constraint_that_nobody_meets_is_said_with_the_best_that_was_reached(recipe: Recipe) -> None:
    found = tune_report.answer(changed(recipe, {"tune.max_ratio": 0.01}), rungs_of((0.3, 0.9), (0.2, 0.8)))
    assert found.recommended is None
    assert (
        "No setting keeps the ratio by the study's judge at most at 0.01" in found.sentence
        and "percentile 51" in found.sentence
    )


def test_the_table_has_no_filter_and_no_student_beside_every_front(recipe: Recipe) -> None:
    rungs = rungs_of((0.04, 0.80), (0.05, 0.90))
    rungs = [
        [one._replace(settings={"filter.rule": "none"}) if not one.number else one for one in rung] for rung in rungs
    ]
    console = Console(width=80)
    with console.capture() as captured:
        console.print(tune_report.table(tune_report.answer(recipe, rungs), recipe))
    lines = captured.get().splitlines()
    assert "full students:" in lines[2]
    for setting in ("no filter", "percentile 51"):
        (at,) = [i for i, line in enumerate(lines) if setting in line]
        assert "held out, auditor" in lines[at + 1] and "0.070" in lines[at + 1]
        assert "without a student" in lines[at + 2] and "0." in lines[at + 2]
    assert "new images of the same students" in " ".join(" ".join(lines[-4:]).split())
    assert not any("…" in line for line in lines)


def test_a_failed_setting_is_told_and_does_not_stop_the_rest(recipe: Recipe) -> None:
    rungs = rungs_of((0.04, 0.80))
    rungs[0].append(outcome(1, 0, 0, rung=0, failed="NothingKeptError: all dropped"))
    found = tune_report.answer(recipe, rungs)
    assert tune_report.failures(found) == ["percentile 51 failed: NothingKeptError: all dropped"]
    assert [one.rung for one in found.tried] == [2, 0]


def ratio_of_kept(store: Path, recipe: Recipe, threshold: float) -> Estimate:
    """The judge's ratio of the images that a trial keeps under a fixed threshold."""
    settings = {"filter.rule": "fixed", "filter.fixed.threshold": threshold}
    lines = plan.run(trials.recipe_of(recipe, settings, 0), Store(store), trials.KEPT, Silence(), trials.tasks)
    (measured,) = [line.artifact for line in lines if line.task.name == "trial/kept/control"]
    assert measured is not None
    return Estimate.from_dict(measured.facts["metrics"][f"judge_ratio{EXACT}"])


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_trials_on_shuffled_scores_have_a_flat_ratio_and_on_true_ones_they_do_not(
    study: Study, artifacts: dict[str, Artifact], recipe: Recipe, tmp_path: Path
) -> None:
    scores = artifacts["score/0"].table()
    generator = np.random.default_rng(0)
    at_risk = np.arange(len(scores)) % 3 == 0  # what the judge flags
    true_scores = generator.uniform(0.0, 0.6, len(scores)) + 0.4 * at_risk

    def rewritten(store: Path, name: str, table: pa.Table, columns: Mapping[str, np.ndarray]) -> None:
        for column, values in columns.items():
            field = table.schema.field(column)
            position = table.schema.get_field_index(column)
            table = table.set_column(position, field, pa.array(values).cast(field.type))
        rows = store / artifacts[name].key.path / "rows"
        shutil.rmtree(rows)
        rows.mkdir()
        pq.write_table(table, rows / "0.parquet")

    def store_with(reid_scores: np.ndarray, name: str) -> Path:
        store = shutil.copytree(study.store, tmp_path / name)
        for made in ("trial", "filter"):  # of the study's own scores
            shutil.rmtree(store / "private" / made)
        nothing = {
            "pixel_copy": at_risk & False,
            "decoy_score": at_risk * 0.0,
            "lean": [[0.0]] * len(at_risk),
        }  # no other reason to drop
        rewritten(store, "score/0", scores, {"reid_score": reid_scores, **nothing})
        rewritten(store, "tune/scores", artifacts["tune/scores"].table(), {"judge_score": at_risk})
        return store

    true, shuffled = (store_with(true_scores, "true"), store_with(generator.permutation(true_scores), "shuffled"))
    for threshold in (0.3, 0.5, 0.7):
        flat = ratio_of_kept(shuffled, recipe, threshold)
        assert flat.low <= at_risk.mean() <= flat.high
    assert ratio_of_kept(true, recipe, 0.5).high < at_risk.mean()
    assert ratio_of_kept(true, recipe, 0.39).value == 0.0
