"""The study of the filter: what it shares, what it reports, and that it goes on where it stood.

One small study of the shrunk recipe is made for all tests; its figures mean nothing and are not looked at.
"""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import optuna
import pyarrow as pa
import pytest
from running import RECIPE, run_job

from pipeline import plan, proposals, tune, tune_report
from pipeline.artifact import Artifact, Store
from pipeline.config import ConfigError, Filter, Recipe, changed, read
from pipeline.estimate import Estimate
from pipeline.outcomes import Outcome, Settings, outcomes_of
from pipeline.privacy.risk import wilson
from pipeline.privacy.rules import filter_table

OPTIONS = ("--tune.trials", "5", "--tune.climb", "2", "2", "--tune.student-seeds", "2")
SHARED = ("teach", "sample", "score", "identify")


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    small = changed(read(RECIPE), {"tune.trials": 5, "tune.climb": (2, 2), "tune.student_seeds": 2})
    return tune.study_of(small)


@pytest.fixture(scope="module")
def study(finished_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished store with a study on it."""
    store = shutil.copytree(finished_store, tmp_path_factory.mktemp("study") / "store")
    answer = run_job("tune", store, *OPTIONS)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return store


@pytest.fixture(scope="module")
def artifacts(study: Path, recipe: Recipe) -> dict[str, Artifact]:
    lines = plan.plan(recipe, Store(study), tune.listing)
    return {line.task.name: line.artifact for line in lines if line.artifact}


@pytest.mark.slow
def test_a_study_leaves_an_answer_and_two_editions_of_the_page(study: Path) -> None:
    summary = json.loads((study / "tune" / "summary.json").read_text())
    assert len(summary["settings"]) == 5 and summary["answer"]
    assert (study / "tune" / "recommended.yaml").is_file() == (summary["recommended"] is not None)
    assert "must not leave the building" in (study / "tune" / "explorer.html").read_text()
    assert "must not leave the building" not in (study / "tune" / "explorer_public.html").read_text()


@pytest.mark.slow
def test_no_trial_samples_scores_or_teaches_again(study: Path, finished_store: Path) -> None:
    def made(store: Path) -> dict[str, float]:
        found = {}
        for word in SHARED:
            for path in (store / "private" / word).rglob("manifest.json"):
                found[str(path.relative_to(store))] = json.loads(path.read_text())["started_at"]
        return found

    assert made(study) == made(finished_store)


@pytest.mark.slow
def test_settings_climb_from_rung_to_rung_and_the_last_rung_has_every_seed_and_both_splits(
    artifacts: dict[str, Artifact],
) -> None:
    rungs = [outcomes_of(artifacts[f"tune/{rung}"]) for rung in range(4)]
    assert len(rungs[0]) == 5 and len(rungs[1]) <= 2
    for lower, higher in pairwise(rungs):
        assert {one.number for one in higher} <= {one.number for one in lower if not one.failed}
    last = [one for one in rungs[3] if not one.failed]
    assert {one.seed_offset for one in last} == {0, 1}
    for one in last:
        assert {"trial/kept/control", "trial/student/control", "trial/student/test"} <= one.measured.keys()


@pytest.mark.slow
def test_a_study_that_is_done_does_no_work(study: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in study.rglob("manifest.json")}
    answer = run_job("tune", study, *OPTIONS)
    assert answer.returncode == 0 and "reused, nothing to do" in answer.stdout
    assert {path: path.stat().st_mtime_ns for path in study.rglob("manifest.json")} == before


@pytest.mark.slow
def test_more_trials_go_on_from_those_before(study: Path, artifacts: dict[str, Artifact], recipe: Recipe) -> None:
    larger = changed(recipe, {"tune.trials": 6})
    answer = run_job("tune", study, "--tune.trials", "6", *OPTIONS[2:])
    assert answer.returncode == 0, answer.stdout + answer.stderr
    lines = plan.plan(larger, Store(study), tune.listing)
    (rung,) = [line.artifact for line in lines if line.task.name == "tune/0" and line.artifact]
    outcomes = outcomes_of(rung)
    assert outcomes[:5] == outcomes_of(artifacts["tune/0"])
    assert [one.number for one in outcomes] == list(range(6))


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
    assert proposed(recipe, 1) == {"filter.rule": "percentile", "filter.percentile.percentile": 70.0}


@pytest.mark.parametrize("seed", range(12))
def test_every_proposal_is_a_recipe_within_the_ranges(recipe: Recipe, seed: int) -> None:
    wide = changed(recipe, {"tune.guidance_scale": (1.0, 2.0), "tune.max_per_class": (10, 20)})
    settings = proposed(wide, 2, seed)
    rule = settings["filter.rule"]
    low, high = getattr(wide.tune, rule)
    (value,) = [value for key, value in settings.items() if key.startswith(f"filter.{rule}.")]
    assert low <= value <= high
    assert settings["sample.guidance_scale"] in (1.0, 2.0) and settings["filter.max_per_class"] in (10, 20)
    assert tune.recipe_of(wide, settings, 0).filter.rule == rule


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tune.rules": ()}, "want a rule with a range to try"),
        ({"tune.rules": ("none",)}, "want a rule with a range to try"),
        ({"tune.percentile": (90.0, 30.0)}, "want a range from low to high"),
        ({"tune.fdr": (0.0, 0.5)}, "logarithmic"),
    ],
)
def test_an_empty_space_is_a_mistake_of_the_recipe(recipe: Recipe, changes: Settings, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        changed(recipe, changes)


def outcome(number: int, ratio: float, auroc: float, *, rung: int, seed_offset: int = 0, failed: str = "") -> Outcome:
    """A setting as measured, with a third of a thousand samples kept."""
    settings = {"filter.rule": "percentile", "filter.percentile.percentile": 50.0 + number}
    if failed:
        return Outcome(number, settings, seed_offset, {}, failed)
    metrics = {
        "audit_ratio": Estimate(ratio, ratio - 0.01, ratio + 0.01, 1000).as_dict(),
        "macro_auroc": Estimate(auroc, auroc - 0.01, auroc + 0.01, 1000).as_dict(),
    }
    names = ["trial/kept/control"] if rung == 0 else ["trial/kept/control", "trial/student/control"]
    kept = {"n_kept": 300 + number, "n_sampled": 1000, "threshold": 0.2, "kept_by_class": {}, "reasons": {}}
    measured = dict.fromkeys([*names, *(["trial/student/test"] if rung == 3 else [])], metrics)
    return Outcome(number, settings, seed_offset, {**measured, "filter": kept}, "")


def rungs_of(*settings: tuple[float, float]) -> list[list[Outcome]]:
    """A study whose settings all climb to the end, with two seeds that agree."""
    lower = [[outcome(i, *found, rung=rung) for i, found in enumerate(settings)] for rung in range(3)]
    last = [outcome(i, *found, rung=3, seed_offset=seed) for i, found in enumerate(settings) for seed in (0, 1)]
    return [*lower, last]


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
        "No setting keeps the auditor's ratio at most at 0.01" in found.sentence and "percentile 51" in found.sentence
    )


def test_a_failed_setting_is_told_and_does_not_stop_the_rest(recipe: Recipe) -> None:
    rungs = rungs_of((0.04, 0.80))
    rungs[0].append(outcome(1, 0, 0, rung=0, failed="NothingKeptError: all dropped"))
    found = tune_report.answer(recipe, rungs)
    assert tune_report.failures(found) == ["percentile 51 failed: NothingKeptError: all dropped"]
    assert [one.rung for one in found.tried] == [3, 0]


def test_scores_that_carry_no_information_leave_the_ratio_flat() -> None:
    generator = np.random.default_rng(0)
    at_risk = np.arange(4000) < 1200  # what an auditor would flag
    true_scores = np.where(at_risk, generator.beta(12, 1, 4000), generator.beta(1, 3, 4000))
    control = generator.beta(1, 3, 1000)

    def kept_ratio(scores: np.ndarray, percentile: float) -> Estimate:
        table = pa.table(
            {
                "row_id": [f"{i}" for i in range(4000)],
                "reid_score": pa.array(scores, pa.float32()),
                "nearest_row_id": ["x"] * 4000,
                "margin": pa.array(np.zeros(4000), pa.float32()),
                "pixel_copy": [False] * 4000,
            }
        )
        rule = Filter.model_validate({"rule": "percentile", "percentile": {"percentile": percentile}})
        filtered, _ = filter_table(
            table, rule, control=control, same_patient=control, shown=np.zeros((4000, 1), bool)
        )
        keep = filtered["keep"].to_numpy(zero_copy_only=False)
        return wilson(int(at_risk[keep].sum()), int(keep.sum()))

    shuffled = generator.permutation(true_scores)
    for percentile in (20, 50, 80, 95):
        flat = kept_ratio(shuffled, percentile)
        assert flat.low - 0.02 <= 0.3 <= flat.high + 0.02
        assert kept_ratio(true_scores, percentile).high < 0.25
