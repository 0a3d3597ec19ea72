"""A cohort of images, texts and patients alone runs to its end: what needs labels is not measured, all else is."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from running import RECIPE, run_job

pytestmark = pytest.mark.slow
IN_PROCESS = {"sample": {"actors": 0, "min_actors": 0}, "score": {"actors": 0}}


def cohort(folder: Path, n_patients: int = 100) -> None:
    """Two films each of people who are a bright disc: its place and size are theirs."""
    (folder / "images").mkdir(parents=True)
    draw, (y, x) = np.random.default_rng(0), np.mgrid[:48, :48]
    rows = []
    for patient in range(n_patients):
        right, down, radius = draw.uniform(14, 34), draw.uniform(14, 34), draw.uniform(5, 13)
        disc = 120 * ((x - right) ** 2 + (y - down) ** 2 < radius**2)
        for film in range(2):
            name = f"images/{patient}-{film}.png"
            noise = draw.normal(60, 12, (48, 48))
            Image.fromarray((disc + noise).clip(0, 255).astype(np.uint8)).save(folder / name)
            text = "clear lungs" if patient % 2 else "small left effusion"
            rows.append({"image": name, "patient_id": f"person {patient}", "text": text})
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_a_cohort_without_any_label_is_distilled_judged_and_reported_with_utility_not_measured(
    tmp_path: Path,
) -> None:
    cohort(tmp_path / "cohort")
    tree = yaml.safe_load(RECIPE.read_text())
    tree["ingest"] = {
        **tree["ingest"],
        "kind": "table",
        "root": str(tmp_path / "cohort"),
        "table": {"labels": None},
        "prompt": {"parts": ["text"]},
        "min_patients": dict.fromkeys(tree["ingest"]["min_patients"], 10),
    }
    del tree["ingest"]["phantom"]
    for name, section in IN_PROCESS.items():
        tree[name] = {**tree.get(name, {}), **section}
    tree["teach"]["workers"] = tree["distill"]["workers"] = 0
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    answer = run_job("all", tmp_path / "store", recipe=recipe)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "no labels: utility and adherence to prompts are not measured" in answer.stdout
    summary = json.loads((tmp_path / "store" / "summary.json").read_text())
    groups = {key.split("/")[0] for key in summary["metrics"]}
    assert groups == {"privacy", "fidelity"}
    assert summary["metrics"]["fidelity/student/coverage"]["n"] > 0
    card = (tmp_path / "store" / "release" / "dataset" / "README.md").read_text()
    assert "not measured" in card
