"""release: student, kept images and metrics become the package that leaves the building, if the gate lets it.

`release/candidate` is the whole package; `release/scan` searches it for real images, identities and rare phrases
(it reads `private/`, and writes counts only); `release` judges and either copies the package or withholds it. The
first and the last read `releasable/` and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline import fit, package, scan
from pipeline.artifact import Artifact
from pipeline.config import Recipe
from pipeline.estimate import Estimate
from pipeline.privacy import gate
from pipeline.task import Made, Task, Work

VERSION = 1


def tasks(recipe: Recipe) -> list[Task]:
    """`release/candidate`, `release/scan`, `release`."""
    about = recipe.release.model_dump(mode="json", include={"title", "licence", "n_images"})
    inputs = ("filter", "distill/latents", "distill", "evaluate")
    private = ("ingest", "score/gallery", "score/unseen")
    scanned = {"control_percentile": recipe.evaluate.control_percentile, "k_anonymity": recipe.ingest.k_anonymity}
    judged = recipe.release.model_dump(mode="json", include={"gate", "conditions"})
    judged |= {"auc_floor": recipe.identify.auc_floor, "min_control": recipe.evaluate.min_control}
    return [
        Task("release/candidate", make_candidate, about, inputs, "releasable", VERSION, about="the whole package"),
        Task(
            "release/scan",
            make_scan,
            scanned,
            ("release/candidate", "filter", *private),
            "releasable",
            VERSION,
            about="leak scan",
        ),
        Task(
            "release",
            make,
            judged,
            ("release/candidate", "release/scan", *inputs),
            "releasable",
            VERSION,
            about="verdicts, package",
        ),
    ]


def make_candidate(work: Work) -> Made:
    """Write the package as if it were cleared of nothing yet."""
    package.write(work.draft.folder / "package", _contents(work, work.recipe, (), cleared=False))
    return Made({}, len(work.inputs["filter"].table("kept", ["row_id"])))


def make_scan(work: Work) -> Made:
    """Search the candidate; only counts by kind leave this task."""
    return Made({"n_leaks": fit.small(_scan, work.recipe, dict(work.inputs))})


def _scan(recipe: Recipe, inputs: Mapping[str, Artifact]) -> dict[str, int]:
    return scan.scan_package(recipe, inputs, inputs["release/candidate"].local() / "package")


def make(work: Work) -> Made:
    """Judge every condition; write the package if it is cleared or the recipe only reports."""
    recipe = work.recipe
    metrics = _metrics(work.inputs["evaluate"])
    n_leaks = work.inputs["release/scan"].facts["n_leaks"]
    evidence = gate.Evidence(
        student_ratio=metrics["privacy/student/audit_ratio"],
        kept_ratio=metrics["privacy/filtered/audit_ratio"],
        control_ratio=metrics["privacy/control/audit_ratio"],
        recall_perturbed=metrics["privacy/filter_network/perturbed_recall"],
        recall_near=metrics["privacy/filter_network/near_duplicate_recall"],
        coverage=metrics["fidelity/student/coverage"],
        filter_auc=metrics["privacy/filter_network/verification_auc"],
        auditor_auc=metrics["privacy/auditor/verification_auc"],
        n_control=work.inputs["evaluate"].facts["n_control"],
        n_leaks=n_leaks,
    )
    verdicts = gate.judge(
        evidence,
        recipe.release.conditions,
        auc_floor=recipe.identify.auc_floor,
        min_control=recipe.evaluate.min_control,
    )
    cleared = gate.cleared(verdicts)
    written = cleared or recipe.release.gate == "report"
    if written:
        package.write(work.draft.folder / "package", _contents(work, recipe, verdicts, cleared=cleared))
    facts = {"cleared": cleared, "written": written, "verdicts": [verdict._asdict() for verdict in verdicts]}
    return Made(facts)


def _metrics(evaluate: Artifact) -> dict[str, Estimate]:
    saved = json.loads((evaluate.local() / "metrics.json").read_text())
    return {key: Estimate.from_dict(value) for key, value in saved.items()}


def _contents(work: Work, recipe: Recipe, verdicts: Sequence[gate.Verdict], *, cleared: bool) -> package.Contents:
    kept, evaluated = work.inputs["filter"], work.inputs["evaluate"]
    return package.Contents(
        recipe=recipe,
        kept=kept.table("kept"),
        findings=kept.facts["findings"],
        student=work.inputs["distill"].local() / "pipeline",
        metrics=_metrics(evaluated),
        facts={**kept.facts, **evaluated.facts},
        verdicts=verdicts,
        cleared=cleared,
        lineage=_lineage(work),
    )


def _lineage(work: Work) -> list[dict[str, Any]]:
    """What was made from what, of the releasable artifacts; a private input is named by its step alone."""
    releasable = [artifact for artifact in work.inputs.values() if artifact.key.kind == "releasable"]
    return [
        {
            "name": artifact.key.name,
            "inputs": sorted(artifact.manifest["inputs"]),
            **{key: artifact.manifest[key] for key in ("version", "packages", "git_commit")},
        }
        for artifact in releasable
        if not artifact.key.name.startswith("release/")
    ]
