"""What stands at the top of a store after a run, and the table that ends it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline import plan, summary
from pipeline.artifact import Store
from pipeline.config import Recipe
from pipeline.estimate import Estimate

METRICS = {
    "privacy/student/reid_ratio": Estimate(0.06, 0.05, 0.07, 1500).as_dict(),
    "privacy/student/audit_ratio": Estimate(0.055, 0.04, 0.07, 1500).as_dict(),
    "utility/real/macro_auroc": Estimate(0.963, 0.95, 0.97, 900).as_dict(),
}


@pytest.fixture(params=["folder", "uri"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(tmp_path if request.param == "folder" else tmp_path.as_uri())


def publish(store: Store, *, cleared: bool, written: bool, seed: int = 0) -> Mapping[str, Any]:
    """Publish a run whose files tell which edition they are."""
    recipe = Recipe(seed=seed)
    files = {
        "evaluate": {"metrics.json": json.dumps(METRICS)},
        "report": {"report.html": f"public {seed}"},
        "report/custodian": {"report.html": f"private {seed}"},
        "release": {"package/README.md": f"package {seed}", "package/dataset/data/0.parquet": ""} if written else {},
    }
    for line in plan.plan(recipe, store):
        if line.task.name in files:
            draft = store.draft(line.key)
            for name, text in files[line.task.name].items():
                (draft.folder / name).parent.mkdir(parents=True, exist_ok=True)
                (draft.folder / name).write_text(text)
            verdicts = [{"name": "leak scan", "verdict": "pass"}]
            store.commit(draft, {"cleared": cleared, "written": written, "verdicts": verdicts})
    return summary.publish(plan.plan(recipe, store), store)


def test_the_custodians_report_the_metrics_and_the_package_stand_at_the_top(store: Store) -> None:
    assert publish(store, cleared=True, written=True) == METRICS
    top = Path(store.root)
    assert (top / "report.html").read_text() == "private 0"
    assert (top / "release" / "README.md").read_text() == "package 0"
    assert (top / "release" / "dataset" / "data" / "0.parquet").exists()
    told = json.loads((top / "summary.json").read_text())
    assert told["metrics"] == METRICS and told["cleared"] is True and told["verdicts"][0]["name"] == "leak scan"
    assert set(told["artifacts"]) == {"evaluate", "release", "report", "report/custodian"}
    assert all(store.uri in address for address in told["artifacts"].values())


def test_the_report_in_the_package_is_the_public_one(store: Store) -> None:
    publish(store, cleared=True, written=True)
    assert (Path(store.root) / "release" / "report.html").read_text() == "public 0"


def test_a_withheld_package_leaves_no_folder_not_even_that_of_the_run_before(store: Store) -> None:
    publish(store, cleared=False, written=False)
    assert not (Path(store.root) / "release").exists()
    publish(store, cleared=True, written=True, seed=1)
    assert (Path(store.root) / "release").exists()
    publish(store, cleared=False, written=False, seed=2)
    assert not (Path(store.root) / "release").exists()
    assert (Path(store.root) / "report.html").read_text() == "private 2"


def test_a_package_replaces_the_one_before_it_whole(store: Store) -> None:
    publish(store, cleared=True, written=True)
    stale = Path(store.root) / "release" / "stale.txt"
    stale.touch()
    publish(store, cleared=False, written=True, seed=1)
    assert (stale.parent / "README.md").read_text() == "package 1" and not stale.exists()


def shown(metrics: Mapping[str, Any]) -> dict[str, str]:
    """The closing table as text by the first word of its lines."""
    console = Console(width=120, force_terminal=False)
    with console.capture() as capture:
        console.print(summary.closing_table(metrics, 1234))
    lines = [line for line in capture.get().splitlines() if line.strip()]
    return {line.split()[0]: " ".join(line.split()) for line in lines}


def test_the_closing_table_shows_each_figure_with_its_interval() -> None:
    lines = shown(METRICS)
    assert lines["images"] == "images in the kept set: 1,234"
    assert lines["student"] == "student 6.0% [5.0%, 7.0%] 5.5% [4.0%, 7.0%]"
    assert lines["real"] == "real 0.963 [0.950, 0.970]"
    assert lines["control"] == "control"


def test_a_figure_that_could_not_be_measured_is_left_blank() -> None:
    unmeasured = {"value": None, "low": None, "high": None, "n": 0}
    lines = shown({"utility/student/macro_auroc": unmeasured, "privacy/control/reid_ratio": unmeasured})
    assert lines["student"] == "student" and lines["control"] == "control"


def test_the_custodians_report_is_for_this_user_alone_and_the_package_is_not(tmp_path: Path) -> None:
    usual = os.umask(0o022)
    try:
        publish(Store(tmp_path), cleared=True, written=True)
        publish(Store(tmp_path), cleared=True, written=True, seed=1)
    finally:
        os.umask(usual)
    assert (tmp_path / "report.html").read_text() == "private 1"
    assert (tmp_path / "report.html").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "release" / "report.html").stat().st_mode & 0o044 == 0o044
