"""Costs: times follow from what was measured and from nothing else, and nodes are paid for while they are in use."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jobs import plan as job
from pipeline import config, costs, costs_table, expected, nodes, plan
from pipeline.artifact import Store
from pipeline.cluster import Place, place
from pipeline.config import ConfigError, Recipe
from pipeline.costs import Forecast, Item
from pipeline.progress import LEAST_COUNTS, Pace
from pipeline.task import Task
from pipeline.workload import stored_bytes, workload

ROOT = Path(__file__).parent.parent
RECIPE = config.read(ROOT / "jobs" / "recipes" / "phantom_tiny.yaml")
OTHER = config.changed(RECIPE, {"seed": 1})
PC = nodes.nodes("{groups: {pc: {cpus: 2, price_per_hour: 3.6}}}")  # a thousandth a second
ON_CPU = {"workers": 1, "cpus": 1.0, "gpus": 0.0, "accelerators": []}
SECONDS = {"ingest": 20.0, "teach": 100.0, "identify/auditor": 30.0, "sample/0": 40.0, "distill": 50.0}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def finish(store: Store, recipe: Recipe, changes: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """A whole run of manifests; every task took a second but those of `SECONDS`."""
    lines = plan.plan(recipe, store)
    made, inputs = expected.manifests(recipe, lines, store), {line.task.name: line.key.fingerprint for line in lines}
    for line in lines:
        name = line.task.name
        draft = store.draft(line.key)
        draft.config, draft.version = line.task.config, line.task.version
        draft.inputs = {given: inputs[given] for given in line.task.inputs}
        draft.place = place(recipe, name)._asdict() | {"accelerators": []}
        draft.started_at = time.time() - SECONDS.get(name, 1.0)
        for field, value in (changes or {}).get(name, {}).items():
            setattr(draft, field, value)
        facts = {"enough": True, "n_kept": 100} | made[name].get("facts", {})
        store.commit(draft, facts, made[name].get("rows"))


def forecast(recipe: Recipe, store: Store, on: nodes.Nodes = PC, given: str = "") -> Forecast:
    throughputs = nodes.throughputs(given) if given else {}
    return costs.forecast(recipe, plan.plan(recipe, store), store, on, throughputs)


def seconds(found: Forecast) -> dict[str, float | None]:
    return {item.name: item.timing.seconds if item.timing else None for item in found.items}


def told(found: Forecast, recipe: Recipe = OTHER, on: nodes.Nodes = PC) -> str:
    console = Console(width=140, markup=False)
    with console.capture() as captured:
        console.print(costs_table.table(found, recipe, on))
        for remark in costs_table.remarks(found, recipe, on, "python -m jobs.all"):
            console.print(remark, soft_wrap=True)
    return captured.get()


def near(value: float) -> Any:
    return pytest.approx(value, rel=0.1)  # another seed has a few images more or less


def test_the_same_run_with_another_seed_takes_as_long_as_the_measured_one(store: Store) -> None:
    finish(store, RECIPE)
    found = forecast(OTHER, store)
    assert all(seconds(found)[name] == near(SECONDS.get(name, 1.0)) for name in ("ingest", "teach", "sample/0"))
    # ingest 20, latents 1, teach 100 beside identify and what can run without it; sample 40, ..., distill 50 ...
    assert found.wall_s[0] == near(20 + 1 + 100 + 40 + 1 + 1 + 1 + 50 + 1 + 2 + 4)


def test_what_is_finished_takes_nothing_and_says_so(store: Store) -> None:
    finish(store, RECIPE)
    found = forecast(RECIPE, store)
    assert found.wall_s == (0, 0, 0) and not found.shares
    assert "31 finished" in told(found, RECIPE) and "takes nothing" in told(found, RECIPE)


def test_a_changed_filter_pays_for_what_comes_after_only(store: Store) -> None:
    finish(store, RECIPE)
    found = forecast(config.changed(RECIPE, {"filter.percentile.percentile": 60}), store)
    assert {item.line.task.word for item in found.items if item.missing} == {
        "filter", "distill", "evaluate", "release", "report",
    }  # fmt: skip


def test_what_was_never_measured_has_no_time_and_names_a_pilot(store: Store) -> None:
    recipe = config.changed(OTHER, {"sample.n_images": 9000})
    found = forecast(recipe, store)
    assert set(seconds(found).values()) == {None} and found.wall_s == (0, 0, 0)
    text = told(found, recipe)
    assert "31 tasks are not measured" in text and "--sample.n-images 1500 --sample.max-rounds 1" in text
    assert "--teach.n-images" not in text  # 1,280 images are no more than a pilot


def test_one_task_that_was_not_measured_makes_the_sums_at_least(store: Store) -> None:
    finish(store, RECIPE, {"teach": {"version": 0}})
    found = forecast(config.changed(OTHER, {"distill.denoiser.kind": "pixart"}), store)
    assert seconds(found)["teach"] is not None  # by the student's training, the same program
    finish(store, RECIPE, {"teach": {"version": 0}, "distill": {"version": 0}})
    text = told(forecast(OTHER, store))
    assert ">= " in text and "2 tasks are not measured, so all sums are `at least`" in text


@pytest.mark.parametrize(
    ("work_seconds", "expected_s"),
    [(None, 200.0), (80.0, 20 + 160.0), (500.0, 200.0)],
    ids=["all of it is work", "starting is not", "never more than all"],
)
def test_twice_the_images_take_twice_the_work_but_start_once(
    store: Store, work_seconds: float | None, expected_s: float
) -> None:
    finish(store, RECIPE, {"teach": {"work_seconds": work_seconds}})
    found = forecast(config.changed(OTHER, {"teach.n_images": 2 * RECIPE.teach.n_images}), store)
    assert seconds(found)["teach"] == near(expected_s)


@pytest.mark.parametrize(
    ("changes", "name", "times"),
    [
        ({"sample.n_images": 480}, "sample/0", 3),
        ({"sample.steps": 8}, "sample/0", 2),
        ({"sample.guidance_scale": 2}, "sample/0", 2),
        ({"sample.actors": 4, "sample.n_images": 320}, "sample/0", 1),
        ({"teach.workers": 2}, "teach", 0.5),
        ({"identify.auditor.steps": 60}, "identify/auditor", 3),
        ({"sample.n_images": 480}, "evaluate/teacher", 1),
        ({"evaluate.n_student": 128}, "evaluate/student_scores", (256 + 200) / (128 + 200)),  # planted copies as well
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),
)
def test_time_grows_with_the_work_and_falls_with_the_workers(
    store: Store, changes: dict[str, Any], name: str, times: float
) -> None:
    finish(store, RECIPE)
    many = nodes.nodes("{groups: {pc: {cpus: 8, price_per_hour: 1}}}")
    before, after = (
        seconds(forecast(recipe, store, many))[name] for recipe in (OTHER, config.changed(OTHER, changes))
    )
    assert before is not None and after is not None
    assert after / before == near(times)


def test_a_wider_network_takes_longer_by_its_operations(store: Store) -> None:
    finish(store, RECIPE)
    before, after = (
        workload("teach", expected.manifests(recipe, plan.plan(recipe, store), store))
        for recipe in (RECIPE, config.changed(RECIPE, {"teach.denoiser.width": 128}))
    )
    assert 2 < after.times(before) < 4  # twice the width: up to four times the products


def test_another_architecture_is_not_measured_by_this_one(store: Store) -> None:
    finish(store, RECIPE)
    changes = {"identify.auditor.width": 16, "teach.autoencoder.latent_channels": 4}
    found = seconds(forecast(config.changed(OTHER, changes), store))
    for name in ("teach/latents", "sample/0", "identify/auditor", "score/0"):
        assert found[name] is None, name


@pytest.mark.parametrize(
    "changes",
    [{"version": 0}, {"resumed": True}, {"place": ON_CPU | {"gpus": 1.0}}],
    ids=["of other code", "that went on from another attempt", "on a GPU"],
)
def test_a_measurement_does_not_count(store: Store, changes: dict[str, Any]) -> None:
    finish(store, RECIPE, dict.fromkeys(("ingest", "identify/auditor"), changes))
    found = seconds(forecast(OTHER, store))
    assert found["ingest"] is None and found["identify/auditor"] is None


@pytest.mark.parametrize(("kind", "counts"), [("A100", True), ("H100", False), ("", True)])
def test_a_gpu_is_measured_by_its_own_kind(store: Store, kind: str, counts: bool) -> None:
    on_gpu = {"workers": 1, "cpus": 1.0, "gpus": 1.0, "accelerators": ["A100"]}
    finish(store, RECIPE, {"teach": {"place": on_gpu}})
    told_kind = f"accelerator: {kind}, " if kind else ""
    there = nodes.nodes(f"{{groups: {{gpu: {{cpus: 4, gpus: 1, {told_kind}price_per_hour: 1}}}}}}")
    found = seconds(forecast(config.changed(OTHER, {"teach.gpu": True}), store, there))
    assert (found["teach"] is not None) == counts


def test_a_throughput_of_the_user_goes_before_the_stores_and_serves_the_same_program(store: Store) -> None:
    finish(store, RECIPE)
    found = forecast(OTHER, store, given="{sample/0: {per_s: 4, source: our own}}")
    n_workers = RECIPE.sample.actors
    assert seconds(found)["sample/0"] == pytest.approx(160 / 4 / n_workers)
    assert seconds(found)["evaluate/student_images"] == pytest.approx(2 * 64 / 4 / n_workers)
    assert "our own" in told(found)


def test_several_measurements_give_a_range(store: Store) -> None:
    finish(store, RECIPE)
    finish(store, config.changed(RECIPE, {"seed": 2}), {"teach": {"started_at": time.time() - 300}})
    found = forecast(OTHER, store)
    expected_s, low, high = found.wall_s
    assert low <= expected_s < high and high - low > 150
    assert "by the slowest" in told(found)


def item(name: str, slots: int = 1, inputs: tuple[str, ...] = (), **changes: Any) -> Item:
    task = Task(name, lambda work: pytest.fail("planned, not made"), {}, inputs, slots=slots)
    line = plan.Line(task, plan.Key("private", name, name), None, "")
    work = costs.Workload(1, "", (1,), ())
    return Item(line, work, Place(), changes.get("groups", PC.groups), None, 0, 0)


def test_tasks_start_when_their_inputs_are_done_and_slots_are_free() -> None:
    items = [item("a"), item("b"), item("c", inputs=("b",)), item("d", slots=2, inputs=("a",)), item("e")]
    spans = costs.schedule(items, 2, {"a": 10, "b": 3, "c": 4, "d": 5, "e": 1})
    # d is more urgent than e and waits for both slots, so nothing after it starts before.
    assert spans == {"a": (0, 10), "b": (0, 3), "c": (3, 7), "e": (7, 8), "d": (10, 15)}


def test_nodes_are_paid_for_while_a_task_is_on_them_in_equal_parts() -> None:
    there = nodes.nodes(
        "{groups: {head: {cpus: 0, price_per_hour: 3600},"
        " gpu: {count: 2, cpus: 4, gpus: 4, price_per_hour: 36000, steps: [teach, sample]},"
        " cpu: {cpus: 4, price_per_hour: 7200, steps: [teach, score]}}}"
    )
    items = [
        item("teach", groups=there.of("teach", takes_gpu=True)),
        item("score", groups=there.of("score", takes_gpu=False)),
    ]
    found = costs.shares(items, {"teach": costs.Span(0, 10), "score": costs.Span(0, 4)}, there)
    assert found["teach"].price == pytest.approx(
        4 * 0.5 + 6 * 1 + 10 * 2 * 10
    )  # half the head for 4 s, then all of it
    assert found["score"].price == pytest.approx(4 * 0.5 + 4 * 2)
    assert found["teach"].gpu_hours == pytest.approx(10 * 8 / 3600) and found["score"].gpu_hours == 0


def test_a_task_goes_to_the_nodes_of_its_step_that_are_of_its_kind() -> None:
    both = nodes.nodes(
        "{groups: {gpu: {cpus: 4, gpus: 1, price_per_hour: 1, steps: [evaluate]},"
        " cpu: {cpus: 4, price_per_hour: 1, steps: [evaluate]}}}"
    )
    assert list(both.of("evaluate", takes_gpu=False)) == ["cpu"] and list(both.of("evaluate", takes_gpu=True)) == [
        "gpu"
    ]
    spot = nodes.nodes(
        "{groups: {a: {cpus: 4, gpus: 1, price_per_hour: 1, spot: true, steps: [teach]},"
        " b: {cpus: 4, gpus: 1, price_per_hour: 1, steps: [teach]}}}"
    )
    assert list(spot.of("teach", takes_gpu=True, market="on-demand")) == ["b"]
    one = nodes.nodes("{groups: {gpu: {cpus: 4, gpus: 1, price_per_hour: 1}}}")
    assert list(one.of("evaluate", takes_gpu=False)) == ["gpu"]


def test_spot_nodes_warn_of_the_longest_task_that_starts_over(store: Store) -> None:
    finish(store, RECIPE)
    spot = nodes.nodes("{groups: {pc: {cpus: 2, price_per_hour: 1, spot: true}}}")
    # About 30 s: splits of a store without a secret are counted as another origin deals them.
    text = told(forecast(OTHER, store, spot), on=spot)
    assert re.search(r"the longest on spot nodes is identify/auditor, (29|30|31) s", text)
    assert "spot" not in told(forecast(OTHER, store))


def test_gpus_that_idle_and_gpus_that_are_wanted_twice_are_told(store: Store) -> None:
    finish(store, RECIPE)
    there = nodes.nodes("{groups: {big: {cpus: 32, gpus: 8, price_per_hour: 1}}}")
    text = told(forecast(OTHER, store, there), on=there)
    assert "teach pays for 8 GPUs and takes 0" in text
    wide = config.changed(OTHER, {"teach.workers": 8, "teach.gpu": True, "identify.gpu": True})
    given = "{teach: {per_s: 1, source: x}, identify/auditor: {per_s: 1, source: x}}"
    assert "want 9 GPUs at once of 8" in told(forecast(wide, store, there, given), wide, there)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{grups: {}}", "did you mean 'groups'?"),
        (
            "{groups: {a: {cpuz: 2, price_per_hour: 1}}}",
            "key 'groups.a.cpuz': want a known key, got an unknown one — did",
        ),
        ("{groups: {a: {cpus: 2}}}", "key 'groups.a.price_per_hour': want a value, got none"),
        ("{groups: {a: {cpus: 2, price_per_hour: -1}}}", "greater than or equal to 0 (got -1)"),
        ("{groups: {a: {cpus: 2, price_per_hour: 1, steps: [teech]}}}", "'teach'"),
        ("{groups: {a: {cpus: 2, price_per_hour: 1, accelerator: H100}}}", "accelerator H100 needs gpus, got 0"),
        ("{groups: {}}", "at least 1 item"),
        ("{groups: [}", "want YAML"),
        ("nodez.yaml", "want a YAML file, got nothing at nodez.yaml"),
        ("", "such as '{groups:"),
    ],
)
def test_nodes_that_are_wrong_are_told_in_a_sentence(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        nodes.nodes(text)
    assert str(raised.value).startswith("--nodes: ") and told in str(raised.value)


def test_nodes_are_read_from_a_file(tmp_path: Path) -> None:
    assert list(nodes.nodes(str(ROOT / "jobs" / "nodes.yaml")).groups) == ["head", "train", "sample", "cpu"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "{groups: {a: {cpus: 1, price_per_hour: 1}}}",
            "ingest: want room for 2 workers of 1 CPU, got room for 1 on a",
        ),
        ("{groups: {a: {cpus: 4, price_per_hour: 1, steps: [teach]}}}", "want a group that ingest runs on, got none"),
    ],
)
def test_a_task_that_fits_no_nodes_is_an_error(store: Store, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        forecast(OTHER, store, nodes.nodes(text))


def test_a_pace_leaves_out_what_comes_before_the_first_count_and_after_the_last() -> None:
    pace = Pace(total=100)
    for count in range(10):
        pace.add(5, now=1000.0 + 2 * count)
    assert pace.seconds is None  # two workers that count at once would look like one that takes no time
    for count in range(10, LEAST_COUNTS):
        pace.add(5, now=1000.0 + 2 * count)
    assert pace.seconds == pytest.approx(100 / 5 * 2)


def test_sizes_follow_from_rows_and_pixels(store: Store) -> None:
    recipe = config.changed(RECIPE, {"sample.n_images": 1_000, "ingest.image_px": 64, "ingest.channels": 3})
    made = expected.manifests(recipe, plan.plan(recipe, store), store)
    assert stored_bytes("sample/0", made) == pytest.approx(1_000 * 64 * 64 * 3, rel=0.01)
    assert stored_bytes("teach", made) < 1e7 < stored_bytes("sample/0", made)


def run_job(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    recipe = str(ROOT / "jobs" / "recipes" / "phantom_tiny.yaml")
    monkeypatch.setattr(sys, "argv", ["plan", recipe, *arguments])
    return job.main()


def test_the_command_prints_the_table_and_starts_no_ray(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    finish(store, RECIPE)
    nodes_text = "{groups: {pc: {cpus: 2, price_per_hour: 3.6}}}"
    was_there = ray.is_initialized()
    assert run_job(monkeypatch, "--store", str(store.uri), "--nodes", nodes_text, "--seed", "1") == 0
    lines = capsys.readouterr().out.splitlines()
    (teach,) = (line.split() for line in lines if line.startswith("teach "))
    assert " ".join(teach).startswith("teach 1,280 images 1 CPU 13 100 s")
    assert any(line.startswith("all ") for line in lines)
    assert ray.is_initialized() == was_there


def test_a_throughput_for_a_task_that_there_is_not_is_a_mistake(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--store", str(store.uri), "--nodes", "{groups: {pc: {cpus: 2, price_per_hour: 1}}}")
    assert run_job(monkeypatch, *options, "--measured", "{teech: {per_s: 1, source: x}}") == 2
    assert "want a task of this plan, got 'teech' — did you mean 'teach'?" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        run_job(monkeypatch, *options, "--measured")
    assert ended.value.code == 2
    assert "--measured: want a file or a mapping, got nothing" in capsys.readouterr().err


def test_a_finished_run_is_sized_as_it_is_and_says_what_of_its_time_was_work(finished_store: Path) -> None:
    found = {one.name: one for one in forecast(RECIPE, Store(finished_store)).items}
    for name in ("ingest", "teach", "identify/filter_network", "distill", "release/candidate"):
        artifact = found[name].line.artifact
        assert artifact is not None
        size = sum(path.stat().st_size for path in artifact.local().rglob("*") if path.is_file())
        assert found[name].bytes == pytest.approx(size, rel=0.5), name
    teach = found["teach"].line.artifact
    assert teach is not None and 0 < teach.manifest["work_seconds"] < teach.manifest["seconds"]
    assert teach.manifest["place"]["workers"] == 1 and not teach.manifest["resumed"]
