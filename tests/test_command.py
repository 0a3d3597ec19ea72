"""The command line: overrides by the recipe's own keys, and mistakes answered before anything heavy loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jobs.command import Options, options
from pipeline.config import ConfigError

REPOSITORY = Path(__file__).parents[1]
RECIPE = REPOSITORY / "jobs" / "recipes" / "phantom_tiny.yaml"

# What a job does until its recipe is valid, in a process of its own; prints what it has loaded by then.
ANSWERS = """
import sys
from jobs.command import options
from pipeline.config import ConfigError
try:
    options(sys.argv[1:], "jobs.all")
except (ConfigError, SystemExit):
    print(sorted({"torch", "ray", "diffusers", "transformers", "numpy"} & set(sys.modules)), file=sys.stderr)
else:
    sys.exit("no mistake was found")
"""


def chosen(*arguments: str) -> Options:
    return options([str(RECIPE), "--store", "runs/x", *arguments], "jobs.all")


def test_without_overrides_the_recipe_is_the_file() -> None:
    plain = chosen()
    assert plain.recipe.sample.steps == 4 and plain.recipe.name == "phantom, shrunk"
    assert (plain.store, plain.dry_run) == ("runs/x", False)


@pytest.mark.parametrize(
    ("arguments", "key", "value"),
    [
        (["--sample.steps", "8"], "sample.steps", 8),
        (["--sample.n-images", "7"], "sample.n_images", 7),
        (["--sample.n_images=7"], "sample.n_images", 7),
        (["--filter.rule", "recall"], "filter.rule", "recall"),
        (["--teach.gpu"], "teach.gpu", True),
        (["--teach.snr-gamma", "None"], "teach.snr_gamma", None),
        (["--sample.class-quota", "edema", "3"], "sample.class_quota", {"edema": 3}),
        (["--ingest.table.labels", "edema", "mass"], "ingest.table.labels", ("edema", "mass")),
        (["--identify.auditor.width", "16"], "identify.auditor.width", 16),
    ],
)
def test_any_key_is_an_option(arguments: list[str], key: str, value: object) -> None:
    found = chosen(*arguments).recipe
    for name in key.split("."):
        found = getattr(found, name)
    assert found == value


def test_an_override_changes_nothing_else() -> None:
    changed, plain = (one.recipe.model_dump() for one in (chosen("--sample.steps", "8"), chosen()))
    assert changed["sample"].pop("steps") != plain["sample"].pop("steps")
    assert changed == plain


def test_another_cohort_is_chosen_by_its_folder(tmp_path: Path) -> None:
    ingest = chosen("--ingest.kind", "table", "--ingest.root", str(tmp_path)).recipe.ingest
    assert (ingest.kind, ingest.root) == ("table", tmp_path)


@pytest.mark.parametrize("arguments", [["--store", "s3://b/p"], ["--store=s3://b/p"]])
@pytest.mark.parametrize("position", ["before", "after"])
def test_the_store_and_the_dry_run_stand_anywhere(arguments: list[str], position: str) -> None:
    others = ["--dry-run", "--seed", "3"]
    given = others + arguments if position == "before" else arguments + others
    found = options([str(RECIPE), *given], "jobs.all")
    assert (found.store, found.dry_run, found.recipe.seed) == ("s3://b/p", True, 3)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--sampl.steps", "3"], "--sample.steps"),
        (["--sample.steps", "0"], "greater than or equal to 1"),
        (["--filter.rule", "fixedd"], "'percentile'"),
        (["--ingest.splits.train", "0.9"], "sum to 1"),
        (["--ingest.image-px", "44"], "multiple of 8"),
        (["--ingest.kind", "table"], "give ingest.root"),
    ],
)
def test_a_bad_override_ends_with_a_message(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        chosen(*arguments)
    assert ended.value.code == 2
    assert told in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize("arguments", [[], ["--store"], ["--seed", "3"], ["--store", "--dry-run"], ["--store", ""]])
def test_a_missing_store_is_asked_for(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        options([str(RECIPE), *arguments], "jobs.all")
    assert ended.value.code == 2
    assert "--store: want a folder" in capsys.readouterr().err


def test_a_store_that_looks_like_an_option_is_a_forgotten_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options([str(RECIPE), "--store", "--sample.steps", "8"], "jobs.all")
    assert "--store: want a folder" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "status"), [([], 2), (["--help"], 0), (["--store", "runs/x"], 2)])
def test_without_a_recipe_the_usage_is_told(
    arguments: list[str], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        options(arguments, "jobs.teach")
    assert ended.value.code == status
    assert "usage: python -m jobs.teach RECIPE.yaml --store DIR" in capsys.readouterr().out


def test_help_lists_every_key_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        options([str(RECIPE), "--help"], "jobs.all")
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert "--sample.steps" in told and "Denoising steps" in told and "--cluster.parallel-tasks" in told


def test_a_recipe_that_is_not_there_is_a_mistake_of_the_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="want a YAML file"):
        options([str(tmp_path / "none.yaml"), "--store", "runs/x"], "jobs.all")


@pytest.mark.parametrize(
    "arguments", [[str(RECIPE), "--help"], ["none.yaml", "--store", "x"], [str(RECIPE), "--store", "x", "--oops"]]
)
def test_help_and_mistakes_are_answered_before_anything_heavy_is_loaded(arguments: list[str]) -> None:
    command = [sys.executable, "-c", ANSWERS, *arguments]
    answer = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr.splitlines()[-1] == "[]"


def test_a_job_ends_with_one_sentence_and_status_2() -> None:
    command = [sys.executable, "-m", "jobs.teach", "jobs/recipes/phantom_tny.yaml", "--store", "runs/x"]
    answer = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith("recipe: want a YAML file, got nothing at jobs/recipes/phantom_tny.yaml")
    assert "did you mean jobs/recipes/phantom_tiny.yaml?" in answer.stderr and answer.stderr.count("\n") == 1
