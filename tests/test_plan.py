"""The plan: what a change re-makes and what it leaves, why something runs, and when another round is sampled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from pipeline import config, plan, secret
from pipeline.artifact import ArtifactError, Key, Store
from pipeline.config import Recipe
from pipeline.plan import Line
from pipeline.progress import Bar, View

RECIPE = Recipe()
NO_FACTS: Mapping[str, Any] = {}
ENOUGH, SHORT = {"enough": True, "shortfall": {}}, {"enough": False, "shortfall": {}}


class Notes:
    """What a view is told, without a terminal or a cluster."""

    started_at = 0.0

    def __init__(self) -> None:
        self.said: dict[str, list[str]] = {}

    def note(self, task: str, state: str, seconds: float = 0.0, note: str = "") -> None:
        self.said.setdefault(task, []).append(state)

    def bar(self, task: str) -> Bar:
        """Nothing is counted."""
        return Bar(None, task)


def planned(recipe: Recipe, store: Store) -> dict[str, Line]:
    return {line.task.name: line for line in plan.plan(recipe, store)}


def finish(store: Store, lines: Mapping[str, Line], name: str, facts: Mapping[str, Any] = NO_FACTS) -> None:
    """Commit an artifact without tables where the plan looks for it."""
    line = lines[name]
    draft = store.draft(line.key)
    draft.config, draft.version = line.task.config, line.task.version
    draft.inputs = {given: lines[given].key.fingerprint for given in line.task.inputs}
    store.commit(draft, facts)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store that has its secret, as after `ingest`."""
    store = Store(tmp_path / "store")
    secret.of(RECIPE, store)
    return store


def moved(store: Store, changes: Mapping[str, Any], recipe: Recipe = RECIPE) -> set[str]:
    """Tasks whose artifact is another one after the changes."""
    before, after = planned(recipe, store), planned(config.changed(recipe, changes), store)
    return {name for name in before.keys() | after.keys() if name not in after or before[name].key != after[name].key}


def words(names: set[str]) -> set[str]:
    return {name.split("/")[0] for name in names}


def test_every_input_of_a_task_is_made_by_a_task_before_it(store: Store) -> None:
    seen: set[str] = set()
    for name, line in planned(RECIPE, store).items():
        assert set(line.task.inputs) <= seen, name
        seen.add(name)
    assert words(seen) == set(plan.WORDS)


def test_what_may_be_released_reads_private_artifacts_in_three_places_only(store: Store) -> None:
    lines = planned(RECIPE, store)
    crossing = {
        name
        for name, line in lines.items()
        if line.key.kind == "releasable" and any(lines[given].key.kind == "private" for given in line.task.inputs)
    }
    assert crossing == {"filter", "evaluate", "release/scan", "report"}


@pytest.mark.parametrize(
    "changes", [{"filter.percentile.percentile": 60}, {"filter.rule": "recall"}, {"sample.want_images": 10}]
)
def test_a_changed_filter_remakes_what_comes_after_and_nothing_before(store: Store, changes: dict[str, Any]) -> None:
    names = moved(store, changes)
    assert {"filter/0", "filter", "distill/latents", "distill", "evaluate/student", "evaluate", "release"} <= names
    assert words(names) == {"filter", "distill", "evaluate", "release", "report"}
    assert names.isdisjoint({"evaluate/real", "evaluate/teacher", "evaluate/encoder", "evaluate/changed"})


def test_a_setting_of_a_rule_that_is_not_in_use_changes_no_decision(store: Store) -> None:
    assert words(moved(store, {"filter.fixed.threshold": 0.1})) <= {"report"}  # which prints the recipe


@pytest.mark.parametrize(
    "changes",
    [
        {"cluster.parallel_tasks": 7, "cluster.address": "ray://head:10001", "cluster.object_store_gb": 3},
        {"sample.actors": 8, "sample.min_actors": 4, "sample.cpus_per_actor": 2, "sample.block_rows": 64},
        {"score.actors": 8, "score.gpus_per_actor": 1, "score.block_rows": 64},
        {"ingest.actors": 8},
        {"teach.gpu": True, "distill.cpus_per_worker": 4, "identify.gpu": True, "identify.cpus": 2},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_where_and_how_wide_it_runs_changes_no_artifact(store: Store, changes: dict[str, Any]) -> None:
    assert words(moved(store, changes)) <= {"report"}  # which prints the recipe
    if all(key.startswith("cluster") for key in changes):
        assert moved(store, changes) == set()


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({"seed": 1}, "ingest"),
        ({"ingest.phantom.n_patients": 6000}, "ingest"),
        ({"teach.lr": 1e-3}, "teach"),
        ({"teach.autoencoder.whitening": 0.1}, "teach/latents"),
        ({"identify.auditor.steps": 10}, "identify/auditor"),
        ({"sample.steps": 5}, "sample/0"),
        ({"score.gallery_block": 64}, "score/gallery"),
        ({"distill.ema_decay": 0.9}, "distill"),
        ({"evaluate.n_train": 100}, "evaluate/real"),
        ({"evaluate.large_factor": 3}, "evaluate/student_large"),
        ({"evaluate.encoder_folder": Path(__file__).parents[1] / "benchmarks" / "results"}, "evaluate/encoder"),
        ({"evaluate.bootstrap": 100}, "evaluate"),
        ({"release.conditions.n_probe": 10}, "evaluate/changed"),
        ({"release.conditions.max_excess": 0.2}, "release"),
        ({"release.title": "Films"}, "release/candidate"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_change_remakes_its_task_and_what_reads_it_and_nothing_before(
    store: Store, changes: dict[str, Any], first: str
) -> None:
    names, order = moved(store, changes), list(planned(RECIPE, store))
    assert first in names
    assert all(order.index(first) <= order.index(name) for name in names)


@pytest.mark.parametrize(
    "key",
    [
        "ingest.root",
        "ingest.key_file",
        "teach.text.folder",
        "distill.text.folder",
        "identify.auditor.warm_start",
        "evaluate.encoder_folder",
    ],
)
def test_the_recipe_that_the_public_page_prints_names_no_folder_of_this_machine(tmp_path: Path, key: str) -> None:
    path = tmp_path
    if key == "ingest.root":
        (tmp_path / "metadata.csv").write_text("image,patient_id,text,labels\na.png,p,,effusion\n")
    elif key == "ingest.key_file":
        path = tmp_path / "key"
        path.write_bytes(bytes(range(32)))
        path.chmod(0o600)
    else:
        (tmp_path / "config.json").write_text("{}")
    lines = planned(config.changed(RECIPE, {key: path}), Store(tmp_path / "store"))
    assert str(tmp_path) not in str(lines["report"].task.config["recipe"])


def test_an_image_that_was_replaced_is_another_cohort(store: Store, tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("image,patient_id,text,labels\na.png,p,,effusion\n")
    (tmp_path / "a.png").write_bytes(b"one")
    recipe = config.changed(RECIPE, {"ingest.kind": "table", "ingest.root": tmp_path})
    before = planned(recipe, store)["ingest"].key
    assert planned(recipe, store)["ingest"].key == before
    (tmp_path / "a.png").write_bytes(b"another")
    assert planned(recipe, store)["ingest"].key != before


def test_the_name_of_the_cohort_is_an_input_of_ingest_alone_and_tells_nothing_of_it_without_the_secret(
    store: Store, tmp_path: Path
) -> None:
    other = Store(tmp_path / "other")
    secret.of(RECIPE, other)
    here, there = planned(RECIPE, store), planned(RECIPE, other)
    assert [name for name, line in here.items() if line.task.from_cohort] == ["ingest"]
    assert all(here[name].key != there[name].key for name in here)


def test_what_was_never_made_says_so(store: Store) -> None:
    assert {line.why for line in planned(RECIPE, store).values()} == {"not made yet"}


def test_a_changed_recipe_is_told_with_both_values(store: Store) -> None:
    for name in ("filter/0", "filter"):
        finish(store, planned(RECIPE, store), name, ENOUGH)
    lines = planned(config.changed(RECIPE, {"filter.percentile.percentile": 60}), store)
    assert lines["filter/0"].why == "recipe differs: filter.percentile 80.0 -> 60.0"
    assert lines["filter"].why == "input differs: filter/0"


def test_only_the_first_changes_are_told(store: Store) -> None:
    finish(store, planned(RECIPE, store), "sample/0")
    many = {"sample.steps": 5, "sample.n_images": 10, "sample.guidance_scale": 2, "seed": 1}
    why = planned(config.changed(RECIPE, many), store)["sample/0"].why
    n_images = RECIPE.sample.n_images
    told = f"sample.guidance_scale 1.0 -> 2.0, sample.n_images {n_images} -> 10, sample.steps 12 -> 5"
    assert why == f"recipe differs: {told} ..."


def test_why_the_report_is_made_again_names_the_key_and_not_the_whole_recipe(store: Store) -> None:
    finish(store, planned(RECIPE, store), "report")
    changes = {"sample.steps": RECIPE.sample.steps + 1}
    steps = RECIPE.sample.steps
    why = planned(config.changed(RECIPE, changes), store)["report"].why
    assert why == f"recipe differs: recipe.sample.steps {steps} -> {steps + 1}"


def test_changed_code_of_a_step_is_told(store: Store) -> None:
    draft = store.draft(Key("private", "ingest", "0" * 16))
    draft.version = 0
    store.commit(draft, {})
    assert planned(RECIPE, store)["ingest"].why == "the code of this step changed"


def test_what_is_finished_is_found_by_the_next_plan(store: Store) -> None:
    finish(store, planned(RECIPE, store), "ingest", {"n": 1})
    line = planned(RECIPE, store)["ingest"]
    assert line.why == "finished" and line.artifact is not None and line.artifact.facts == {"n": 1}


def rounds(recipe: Recipe, store: Store) -> int:
    return sum(name.startswith("sample/") for name in planned(recipe, store))


def test_another_round_is_planned_only_once_a_filter_found_too_few(store: Store) -> None:
    assert rounds(RECIPE, store) == 1
    finish(store, planned(RECIPE, store), "filter/0", SHORT)
    assert rounds(RECIPE, store) == 2
    lines = planned(RECIPE, store)
    assert {"sample/0", "sample/1", "score/0", "score/1"} <= set(lines["filter/1"].task.inputs)
    assert "filter/1" in lines["filter"].task.inputs and "score/1" in lines["evaluate"].task.inputs


def test_no_round_follows_where_enough_was_kept(store: Store) -> None:
    finish(store, planned(RECIPE, store), "filter/0", ENOUGH)
    assert rounds(RECIPE, store) == 1


def test_no_round_follows_the_last_that_is_allowed(store: Store) -> None:
    for number in range(2):
        finish(store, planned(RECIPE, store), f"filter/{number}", SHORT)
    assert rounds(RECIPE, store) == 2
    assert rounds(config.changed(RECIPE, {"sample.max_rounds": 3}), store) == 3


def test_a_further_round_changes_nothing_of_the_first(store: Store) -> None:
    before = planned(RECIPE, store)
    finish(store, before, "filter/0", SHORT)
    after = planned(RECIPE, store)
    for name in ("sample/0", "score/0", "filter/0", "evaluate/teacher"):
        assert after[name].key == before[name].key


def test_more_rounds_allowed_after_a_run_that_fell_short_are_sampled(store: Store) -> None:
    one_round = config.changed(RECIPE, {"sample.max_rounds": 1})
    lines = planned(one_round, store)
    for name in lines:
        finish(store, lines, name, SHORT if name == "filter/0" else NO_FACTS)
    assert rounds(RECIPE, store) == 2


def test_who_may_not_read_private_takes_the_rounds_from_the_kept_set(tmp_path: Path) -> None:
    # Here `private/` is a key file elsewhere, of which the other user has neither the bytes nor a scores table.
    (tmp_path / "key").write_bytes(bytes(range(32)))
    (tmp_path / "key").chmod(0o600)
    recipe = config.changed(RECIPE, {"ingest.key_file": tmp_path / "key"})
    store, released = Store(tmp_path / "store"), Store(tmp_path / "releasable only")
    finish(store, planned(recipe, store), "filter/0", SHORT)
    lines = planned(recipe, store)
    finish(released, lines, "filter")
    secret.tell(recipe, released, secret.cohort_name(recipe, store))
    (tmp_path / "key").unlink()
    assert planned(recipe, released)["filter"].key == lines["filter"].key


def test_a_round_for_classes_that_are_short_is_planned(store: Store) -> None:
    recipe = config.changed(RECIPE, {"sample.class_quota": {"edema": 5}})
    finish(store, planned(recipe, store), "filter/0", SHORT | {"shortfall": {"edema": 2}})
    assert "filter/0" in planned(recipe, store)["sample/1"].task.inputs


def test_a_missing_input_names_the_artifact_and_the_command(store: Store) -> None:
    wanted = planned(RECIPE, store)["ingest"].key.path
    with pytest.raises(ArtifactError) as raised:
        plan.run(RECIPE, store, ("teach",), cast(View, Notes()))
    told = str(raised.value)
    assert told.startswith(f"teach/latents input: want artifact {wanted}, got nothing (not made yet)")
    assert "run python -m jobs.ingest with this recipe and store first" in told


def test_an_input_that_another_recipe_made_says_what_differs(store: Store) -> None:
    finish(store, planned(RECIPE, store), "ingest")
    with pytest.raises(ArtifactError, match=r"recipe differs: ingest.image_px 48 -> 96"):
        plan.run(config.changed(RECIPE, {"ingest.image_px": 96}), store, ("teach",), cast(View, Notes()))


def test_what_is_there_is_reused_and_not_made_again(store: Store) -> None:
    made = planned(RECIPE, store)
    for name in made:
        finish(store, made, name, ENOUGH if name == "filter/0" else NO_FACTS)
    before = {path: path.stat().st_mtime_ns for path in Path(store.root).rglob("manifest.json")}
    notes = Notes()
    lines = plan.run(RECIPE, store, plan.WORDS, cast(View, notes))
    assert all(line.artifact for line in lines)
    assert notes.said == {line.task.name: ["reused"] for line in lines}
    assert {path: path.stat().st_mtime_ns for path in Path(store.root).rglob("manifest.json")} == before


def test_a_task_that_fails_is_noted_and_leaves_no_artifact(store: Store) -> None:
    lines = planned(RECIPE, store)
    for name in lines["filter/0"].task.inputs:
        finish(store, lines, name)
    notes = Notes()
    with pytest.raises(FileNotFoundError):  # the inputs have no tables
        plan.run(RECIPE, store, ("filter",), cast(View, notes))
    assert notes.said["filter/0"] == ["waiting", "running", "failed"]
    assert store.find(lines["filter/0"].key) is None
