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
from pipeline.estimate import Estimate, recalls
from pipeline.privacy import gate
from pipeline.probes import DEMANDED
from pipeline.task import Made, Task, Work

VERSION = 2

NETWORKS = {"filter_network": "filter's network", "auditor": "auditor"}


def tasks(recipe: Recipe) -> list[Task]:
    """`release/candidate`, `release/scan`, `release`."""
    about = recipe.release.model_dump(mode="json", include={"title", "licence", "n_images"})
    inputs = ("filter", "distill/latents", "distill", "evaluate")
    private = ("ingest", "score/gallery")
    scanned = {"k_anonymity": recipe.ingest.k_anonymity}
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
    return Made(fit.small(_scan, work.recipe, dict(work.inputs)))


def _scan(recipe: Recipe, inputs: Mapping[str, Artifact]) -> dict[str, Any]:
    package_folder = inputs["release/candidate"].local() / "package"
    n_below_k = scan.rows_below_k(recipe, inputs, package_folder)
    return {"n_leaks": scan.scan_package(recipe, inputs, package_folder), "n_below_k": n_below_k}


def make(work: Work) -> Made:
    """Judge every condition; write the package if it is cleared or the recipe only reports."""
    recipe = work.recipe
    metrics = _metrics(work.inputs["evaluate"])
    verdicts = gate.judge(
        _evidence(metrics, work.inputs["evaluate"].facts, work.inputs["release/scan"].facts),
        recipe.release.conditions,
        auc_floor=recipe.identify.auc_floor,
        min_unseen=recipe.evaluate.min_control,
    )
    cleared = gate.cleared(verdicts)
    written = cleared or recipe.release.gate == "report"
    if written:
        package.write(work.draft.folder / "package", _contents(work, recipe, verdicts, cleared=cleared))
    facts = {"cleared": cleared, "written": written, "verdicts": [verdict._asdict() for verdict in verdicts]}
    return Made(facts)


def _evidence(
    metrics: Mapping[str, Estimate], evaluated: Mapping[str, Any], scanned: Mapping[str, Any]
) -> gate.Evidence:
    """What was measured, in the gate's terms; what was not is there with n = 0."""

    def of(key: str) -> Estimate:
        return metrics.get(f"privacy/{key}", gate.NOTHING)

    judged = {"student": "student", "student, private prompts": "student_private_prompts", "kept set": "filtered"}
    attacks = {
        "the student's loss": "student/membership",
        "gaps in the kept set": "filtered/gap",
        "gaps in the kept set, another network": "filtered/gap_audit",
        "nearness to the kept set": "filtered/nearness",
        "nearness to the student's images": "student/nearness",
    }
    return gate.Evidence(
        excess={name: of(f"{key}/audit_excess") for name, key in judged.items()},
        strict={name: of(f"{judged[name]}/audit_excess_strict") for name in ("student", "kept set")},
        near_copies=of("student/near_copies_excess"),
        recalls={
            name: {kind: series[DEMANDED] for kind, series in recalls(metrics, key).items()}
            for key, name in NETWORKS.items()
        },
        planted_exact={name: of(f"{key}/planted_exact") for key, name in NETWORKS.items()},
        planted_near={name: of(f"{key}/planted_near") for key, name in NETWORKS.items()},
        membership={name: of(f"{key}_auc") for name, key in attacks.items()},
        membership_many={
            name: metrics[f"privacy/{key}_many_auc"]
            for name, key in attacks.items()
            if f"privacy/{key}_many_auc" in metrics
        },
        membership_null={
            "the student's loss": of("student/membership_null_auc"),
            "nearness to the kept set": of("filtered/nearness_control_auc"),
            "nearness to the student's images": of("student/nearness_control_auc"),
        },
        membership_teacher=of("teacher/membership_auc"),
        coverage=metrics.get("fidelity/student/coverage_relative", gate.NOTHING),
        network_auc={name: of(f"{key}/verification_auc") for key, name in NETWORKS.items()},
        n_unseen={"control size": evaluated["n_control"], "test size": evaluated["n_test"]},
        n_below_k=scanned["n_below_k"],
        n_leaks=scanned["n_leaks"],
    )


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
