"""The recipe: what it refuses and how it says so, and variants that are validated like a file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.config import ConfigError, Recipe, Section, canonical, changed, read

RECIPES = sorted((Path(__file__).parents[1] / "jobs" / "recipes").glob("*.yaml"))
RECIPE = Recipe()


def from_yaml(folder: Path, text: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return read(path)


def leaves(section: Section, path: str = "") -> dict[str, Any]:
    """Every key of a section by its dotted name."""
    found = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        found |= leaves(value, f"{path}{name}.") if isinstance(value, Section) else {f"{path}{name}": value}
    return found


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_of_the_repository_is_valid(path: Path) -> None:
    assert read(path).ingest.kind in ("phantom", "table")


def test_an_empty_file_is_the_documented_recipe(tmp_path: Path) -> None:
    assert from_yaml(tmp_path, "") == Recipe()


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("sampel: {steps: 4}", "sampel", "sample"),
        ("sample: {step: 4}", "sample.step", "steps"),
        ("teach: {autoencoder: {patch_pixels: 4}}", "teach.autoencoder.patch_pixels", "patch_px"),
        ("identify: {auditor: {widht: 4}}", "identify.auditor.widht", "width"),
    ],
)
def test_an_unknown_key_is_named_and_the_nearest_suggested(tmp_path: Path, text: str, key: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=rf"recipe.yaml: key '{key}': .* did you mean '{nearest}'\?"):
        from_yaml(tmp_path, text)


def test_a_key_like_no_other_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="known keys: rule, fixed, percentile, recall, fdr"):
        from_yaml(tmp_path, "filter: {xyzzy: 1}")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sample.n_images", 0),
        ("sample.steps", "many"),
        ("filter.rule", "fixedd"),
        ("filter.percentile.percentile", 101),
        ("identify.auc_floor", 1.5),
        ("teach.lr", 0),
        ("teach.ema_decay", 1.0),
        ("teach.ema_decay", math.nan),
        ("evaluate.control_percentile", 100),
        ("ingest.channels", 2),
        ("ingest.min_patients.test", 0),
        ("ingest.min_patients.tset", 3),
        ("sample", None),
    ],
)
def test_an_impossible_value_names_its_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"key '{key}"):
        changed(RECIPE, {key: value})


@pytest.mark.parametrize("key", ["teach.lr", "teach.grad_clip", "cluster.object_store_gb", "sample.guidance_scale"])
def test_an_infinite_number_is_an_impossible_value(key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        changed(RECIPE, {key: math.inf})


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'sample.steps'.*'score.batch_size'"):
        from_yaml(tmp_path, "sample: {steps: 0}\nscore: {batch_size: 0}")


def test_the_shares_of_the_splits_must_sum_to_one() -> None:
    with pytest.raises(ConfigError, match=r"shares of the splits must sum to 1, got 1\.15"):
        changed(RECIPE, {"ingest.splits.train": 0.2})
    assert changed(RECIPE, {"ingest.splits.train": 0.15, "ingest.splits.test": 0.2}).ingest.splits.train == 0.15


@given(st.lists(st.floats(0.01, 1), min_size=5, max_size=5))
def test_any_shares_that_sum_to_one_up_to_rounding_are_taken(shares: list[float]) -> None:
    names = RECIPE.ingest.splits.shares()
    fractions = {name: share / sum(shares) for name, share in zip(names, shares, strict=True)}
    assert changed(RECIPE, {"ingest.splits": fractions}).ingest.splits.shares() == fractions


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"ingest.image_px": 44}, "image_px 44 must be a multiple of 8"),
        (
            {"ingest.image_px": 40, "teach.denoiser.patch": 3},
            "image_px 40 must be a multiple of teach's autoencoder.patch_px 8 x denoiser.patch 3",
        ),
        ({"distill.denoiser.patch": 4}, "image_px 48 must be a multiple of distill's .* 8 x denoiser.patch 4"),
        ({"distill.denoiser.heads": 3}, "distill.denoiser.width 128 must be a multiple of heads 3"),
        ({"teach.denoiser.kind": "unet"}, "teach: denoiser 'unet' needs autoencoder 'kl' or 'pixel'"),
        ({"teach.workers": 3}, "batch_size 64 must be a multiple of workers 3"),
        ({"teach.workers": 4, "teach.min_workers": 2}, "batch_size 64 must be a multiple of workers 3"),
        (
            {"teach.workers": 2, "teach.min_workers": 1, "teach.market": "spot"},
            "min_workers 1 must not stand beside market spot",
        ),
        ({"teach.workers": 1, "teach.min_workers": 2}, "min_workers 2 must be at most workers 1"),
        ({"sample.min_actors": 3}, "min_actors 3 must be at most actors 2"),
        ({"ingest.kind": "table"}, "kind 'table' needs a folder: give ingest.root"),
    ],
)
def test_a_rule_between_keys_states_both_values(changes: dict[str, object], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        changed(RECIPE, changes)


def test_what_a_recipe_leaves_out_of_the_student_is_the_students_default() -> None:
    for changes in ({}, {"distill.lr": 1e-3}, {"distill": {"denoiser": {"width": 64}}}):
        assert changed(Recipe(), changes).distill.n_images == Recipe().distill.n_images == 51_200


def test_a_pixel_denoiser_needs_no_patches_that_divide() -> None:
    pixel = {"teach.autoencoder.kind": "pixel", "teach.denoiser.kind": "unet", "teach.denoiser.patch": 7}
    assert changed(RECIPE, pixel).teach.denoiser.patch == 7


def test_a_changed_recipe_differs_in_nothing_else_and_leaves_the_first_alone() -> None:
    before = leaves(RECIPE)
    after = leaves(changed(RECIPE, {"sample.steps": 8, "teach.autoencoder.patch_px": 4}))
    assert {key: after[key] for key in after if after[key] != before[key]} == {
        "sample.steps": 8,
        "teach.autoencoder.patch_px": 4,
    }
    assert leaves(RECIPE) == before


def test_a_recipe_cannot_be_altered_in_place() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RECIPE.sample.steps = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_a_change_of_an_unknown_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'rule'"):
        changed(RECIPE, {"filter.rul": "none"})


def test_a_missing_recipe_suggests_one_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "phantom.yaml").touch()
    with pytest.raises(ConfigError, match=rf"did you mean {tmp_path / 'phantom.yaml'}\?"):
        read(tmp_path / "fantom.yaml")


@pytest.mark.parametrize("path", ["nowhere/recipe.yaml", "."])
def test_a_folder_or_nothing_is_no_recipe(tmp_path: Path, path: str) -> None:
    with pytest.raises(ConfigError, match="want a YAML file"):
        read(tmp_path / path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [("- sample", "want a mapping of sections, got list"), ("a: [b", "want YAML"), ("1: 2", "key '1'")],
)
def test_a_file_that_is_no_mapping_of_sections_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        from_yaml(tmp_path, text)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ConfigError, match="want YAML"):
        read(path)


def test_every_key_is_documented() -> None:
    def undocumented(model: type[Section]) -> list[str]:
        names = [f"{model.__name__}.{name}" for name, field in model.model_fields.items() if not field.description]
        inner = [f.annotation for f in model.model_fields.values() if isinstance(f.annotation, type)]
        return names + [name for kind in inner if issubclass(kind, Section) for name in undocumented(kind)]

    assert undocumented(Recipe) == []


def test_the_canonical_form_does_not_depend_on_the_order_of_keys() -> None:
    assert canonical({"b": 1, "a": {"d": 2, "c": 3}}) == canonical({"a": {"c": 3, "d": 2}, "b": 1})
    assert canonical(RECIPE.sample) == canonical(RECIPE.sample.model_dump())
    assert canonical(RECIPE.sample) != canonical(changed(RECIPE, {"sample.steps": 8}).sample)


def test_the_demo_recipe_and_the_documented_defaults_are_one() -> None:
    demo = next(path for path in RECIPES if path.name == "phantom.yaml")
    assert read(demo) == changed(Recipe(), {"release.title": read(demo).release.title})


def test_a_password_in_the_address_of_a_tracking_server_is_refused_and_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="want an address, got one with credentials in it") as refused:
        from_yaml(tmp_path, "tune: {mlflow: 'https://user:correct-horse@mlflow.example.org'}")
    assert "correct-horse" not in str(refused.value)
    assert from_yaml(tmp_path, "tune: {mlflow: 'https://mlflow.example.org/a@b'}").tune.mlflow


def test_an_error_of_the_command_line_repeats_no_value_of_the_recipe() -> None:
    with pytest.raises(ValidationError) as refused:
        Recipe.model_validate({"tune": {"mlflow": "https://user:correct-horse@mlflow.example.org"}})
    assert "horse" not in str(refused.value)
