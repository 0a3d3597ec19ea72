"""report: one page that answers at a glance, in a public edition and in one for the custodian.

The public edition shows no real image and no unfiltered sample, and is searched for secrets like the package.
"""

# pyarrow.compute makes its functions at import, out of pyright's sight.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses
import datetime
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from jaxtyping import UInt8

from pipeline import fit, images, records, scan
from pipeline.artifact import Artifact
from pipeline.config import Recipe
from pipeline.estimate import Estimate, is_small, rounded
from pipeline.folders import Folder
from pipeline.privacy import matching, networks
from pipeline.privacy.gate import Verdict
from pipeline.probes import NEAR
from pipeline.report import Drop, LedgerRow, Pair, Private, Report, StepRow, render
from pipeline.seeds import numpy_generator
from pipeline.task import Made, Task, Work, rounds_of

VERSION = 6
GRID_IMAGES = 24
WORST_PAIRS = 12


class LeakError(RuntimeError):
    """The public page holds something that must not leave."""


def tasks(recipe: Recipe, n_rounds: int) -> list[Task]:
    """`report` (public) and `report/custodian`."""
    rounds = tuple(f"{word}/{number}" for word in ("sample", "score") for number in range(n_rounds))
    inputs = (
        "ingest",
        "teach",
        "identify/filter_network",
        "identify/auditor",
        *rounds,
        "score/gallery",
        "score/unseen",
        f"filter/{n_rounds - 1}",
        "filter",
        "distill",
        "evaluate/student_images",
        "evaluate/student_scores",
        "evaluate",
        "release/scan",
        "release",
    )
    config = {"recipe": _told(recipe)}
    return [
        Task("report", make, config, inputs, "releasable", VERSION, about="the page, public edition"),
        Task("report/custodian", make_custodian, config, inputs, version=VERSION, about="the page, private edition"),
    ]


def make(work: Work) -> Made:
    """Write the public edition; refuse if a secret is in it."""
    report = _for_the_public(_report(work), work.recipe.ingest.k_anonymity)
    (work.draft.folder / "report.html").write_text(render(report))
    shown = list(report.grids.values())
    found = fit.small(scan.scan_page, work.recipe, dict(work.inputs), Folder.of(work.draft.folder), shown)
    if found:
        raise LeakError(f"public report: want no secret in it, got {found} — see which text of the recipe holds one")
    return Made({})


def _for_the_public(report: Report, k: int) -> Report:
    """The report without counts of fewer than k rows of the private table, which may be about single patients, and
    with rounded ones of the others, which else tell of its last row whoever knows the rest. How many train, calibrate
    and test is told in full, as every figure stands on it.
    """
    told = [_rounded(drop) for drop in report.dropped if not (_is_of_table(drop) and is_small(drop.n, k))]
    n_small = len(report.dropped) - len(told)
    if n_small:
        told.append(Drop("left out of the public edition", f"reasons with fewer than {k} rows each", n_small))
    by_class = {name: n for name, n in report.kept_by_class.items() if not any(is_small(count, k) for count in n)}
    steps = [_of_the_public(step) for step in report.steps]
    return dataclasses.replace(report, dropped=told, kept_by_class=by_class, steps=steps)


def _of_the_public(step: StepRow) -> StepRow:
    """How many films the gallery holds would tell who was drawn to train, where one of them has very many."""
    match step.word, step.part:
        case "ingest", _:
            return step._replace(rows=rounded(step.rows or 0))
        case "score", "gallery":
            return step._replace(rows=None)
    return step


def _is_of_table(drop: Drop) -> bool:
    """Whether it counts rows of the private table, and not synthetic images."""
    return drop.stage.startswith("ingest")


def _rounded(drop: Drop) -> Drop:
    if not _is_of_table(drop):
        return drop
    of = None if drop.of is None else rounded(drop.of)
    return Drop(f"{drop.stage} (rounded)", drop.reason, rounded(drop.n), of)


def make_custodian(work: Work) -> Made:
    """Write the private edition."""
    private = fit.small(_private, dict(work.inputs), work.recipe.score.gallery_block)
    public, sampled = _report(work), work.inputs["sample/0"].table("rows", ["image"])
    grids = {"Samples of the teacher, unfiltered": _some(_images(sampled)), **public.grids}
    page = render(dataclasses.replace(public, grids=grids, private=private))
    (work.draft.folder / "report.html").write_text(page)
    return Made({}, len(private.ledger))


def _report(work: Work) -> Report:
    inputs, recipe = work.inputs, work.recipe
    ingest, decided, released = inputs["ingest"], _decided(inputs), inputs["release"]
    metrics = json.loads((inputs["evaluate"].local() / "metrics.json").read_text())
    kept = inputs["filter"].table("kept", ["image"])
    student = inputs["evaluate/student_images"]
    return Report(
        name=recipe.name,
        seed=recipe.seed,
        date=datetime.date.fromtimestamp(released.manifest["started_at"]).isoformat(),
        recipe=yaml.safe_dump(_told(recipe), sort_keys=False),
        cleared=released.facts["cleared"],
        verdicts=[Verdict(**verdict) for verdict in released.facts["verdicts"]],
        metrics={key: Estimate.from_dict(value) for key, value in metrics.items()},
        guarantee=decided.facts["guarantee"],
        threshold=decided.facts["threshold"],
        decoys=decided.facts["decoys"],
        strengths=recipe.release.conditions.strengths.model_dump()
        | {NEAR: recipe.release.conditions.near_timestep_frac},
        scores=_scores(inputs),
        grids={
            "Kept synthetic images": _some(images.array(kept["image"])),
            "Images of the student": _some(
                _images(student.table("rows", ["image"], pc.starts_with(pc.field("row_id"), "kept-")))
            ),
        },
        n_train_images=ingest.facts["images_by_split"]["train"],
        n_train_patients=ingest.facts["patients_by_split"]["train"],
        n_sampled=decided.manifest["rows"],
        n_kept=decided.facts["n_kept"],
        min_control=recipe.evaluate.min_control,
        dropped=_dropped(inputs),
        kept_by_class={name: (n[0], n[1]) for name, n in decided.facts["kept_by_class"].items()},
        steps=_steps(work),
        caveats=_caveats(inputs, recipe),
    )


def _private(inputs: Mapping[str, Artifact], gallery_block: int) -> Private:
    """Real images, the worst matches beside them, and each training patient's closest kept image."""
    train = records.of_split(inputs["ingest"], "train")
    scores = inputs["score/0"].table()
    sampled = records.synthetic(inputs["sample/0"], inputs["sample/0"], scores["row_id"])
    student_scores = inputs["evaluate/student_scores"].table(where=pc.starts_with(pc.field("row_id"), "kept-"))
    student = records.among(inputs["evaluate/student_images"].table("rows"), student_scores["row_id"])
    return Private(
        grids={"Real training images": _some(train.images)},
        pairs={
            "Teacher": _worst(sampled.images, scores, train),
            "Student": _worst(_images(student), student_scores, train),
        },
        ledger=_ledger(inputs, train, gallery_block),
    )


def _ledger(inputs: Mapping[str, Artifact], train: records.Records, gallery_block: int) -> list[LedgerRow]:
    kept = inputs["filter"].table("kept", ["row_id", "image"])
    folder = inputs["score/gallery"].local()
    model = networks.load(folder / "filter_network")
    real = matching.Gallery.load(folder / "filter_network_embeddings.parquet")
    names = kept["row_id"].to_pylist()
    # The kept images stand in the gallery's place here: each training image looks for the closest of them.
    synthetic = matching.Gallery.of(model, _images(kept), names, names, 256)
    found = matching.best_matches(model, real.as_they_are, synthetic, gallery_block)
    scores, nearest = found.reid_score.numpy(), found.nearest.numpy()
    patients = np.asarray(train.table["patient_id"].to_pylist())
    rows = []
    for patient in np.unique(patients):
        own = np.flatnonzero(patients == patient)
        best = own[np.argmax(scores[own])]
        rows.append(LedgerRow(str(patient), len(own), names[nearest[best]], float(scores[best])))
    return sorted(rows, key=lambda row: -row.score)


def _worst(synthetic: UInt8[np.ndarray, "n h w c"], scores: pa.Table, train: records.Records) -> list[Pair]:
    values = scores["reid_score"].to_numpy()
    position = {row_id: i for i, row_id in enumerate(train.row_ids)}
    nearest = scores["nearest_row_id"].to_pylist()
    worst = np.argsort(-values, kind="stable")[:WORST_PAIRS]
    return [Pair(synthetic[i], train.images[position[nearest[i]]], float(values[i])) for i in worst]


def _scores(inputs: Mapping[str, Artifact]) -> dict[str, np.ndarray]:
    rounds = rounds_of(inputs, "score")
    teacher = pa.concat_tables([artifact.table(columns=["row_id", "reid_score"]) for artifact in rounds])
    kept = _decided(inputs).table(columns=["row_id"], where=pc.field("keep"))["row_id"]
    student = inputs["evaluate/student_scores"].table(
        columns=["reid_score"], where=pc.starts_with(pc.field("row_id"), "kept-")
    )
    test = inputs["ingest"].table("records", ["row_id"], pc.field("split") == "test")["row_id"].combine_chunks()
    control = inputs["score/unseen"].table(columns=["reid_score"], where=pc.field("row_id").isin(test))
    return {
        "control": control["reid_score"].to_numpy(),
        "teacher": teacher["reid_score"].to_numpy(),
        "filtered": records.among(teacher, kept)["reid_score"].to_numpy(),
        "student": student["reid_score"].to_numpy(),
    }


def _dropped(inputs: Mapping[str, Artifact]) -> list[Drop]:
    ingest, decided, kept = inputs["ingest"].facts, _decided(inputs), inputs["filter"].facts
    drops = [Drop("ingest: images", reason, n, ingest["rows_in"]) for reason, n in sorted(ingest["rejected"].items())]
    drops += [Drop("ingest: words and phrases", reason, n) for reason, n in sorted(ingest["removed_text"].items())]
    drops += [
        Drop(f"{name}: rows", reason, n)
        for name, artifact in inputs.items()
        for reason, n in Counter(artifact.facts.get("set_aside", {}).values()).items()
    ]
    reasons = decided.facts["reasons"]
    drops += [
        Drop("filter", reason, n, decided.manifest["rows"]) for reason, n in reasons.items() if reason != "kept"
    ]
    drops += [Drop("filter: images short of the quota", name, n) for name, n in decided.facts["shortfall"].items()]
    return drops + [
        Drop("percent of prompts, by detail that crosses", name, n, 100) for name, n in kept["prompt_levels"].items()
    ]


def _steps(work: Work) -> list[StepRow]:
    rows = []
    for name, artifact in work.inputs.items():
        word, _, part = name.partition("/")
        reused = artifact.manifest["started_at"] < work.run_started_at
        n_rows = artifact.manifest["rows"] or 0
        rows.append(StepRow(word, part, n_rows, artifact.manifest["seconds"], reused, artifact.key.fingerprint))
    return rows


def _caveats(inputs: Mapping[str, Artifact], recipe: Recipe) -> list[str]:
    facts, evaluated = inputs["ingest"].facts, inputs["evaluate"].facts
    said = [
        "The student is sampled with the prompts of the kept set, as the private prompts are never released; this "
        "shifts the mix away from patients with many images. The ratio on the private prompts stands beside it."
    ]
    for split in ("control", "test"):
        n = facts["images_by_split"][split]
        if n < recipe.evaluate.min_control:
            said.append(
                f"Only {n:,} {split} images: a {recipe.evaluate.control_percentile:g}th percentile means little "
                f"under {recipe.evaluate.min_control:,}. Not enough evidence."
            )
    sizes = {evaluated["n_train"][arm] for arm in ("real", "teacher", "filtered", "student")}
    if len(sizes) > 1:
        said.append(f"Classifiers were trained on different numbers of images: {evaluated['n_train']}.")
    return said


def _decided(inputs: Mapping[str, Artifact]) -> Artifact:
    (decided,) = rounds_of(inputs, "filter")
    return decided


def _told(recipe: Recipe) -> dict[str, Any]:
    """The recipe without what names this machine."""
    return recipe.model_dump(
        mode="json",
        exclude={
            "cluster": True,
            "tune": True,
            "ingest": {"root", "key_file"},
            "teach": {"text": {"folder"}},
            "distill": {"text": {"folder"}},
            "identify": {"filter_network": {"warm_start"}, "auditor": {"warm_start"}},
            "evaluate": {"encoder_folder"},
        },
    )


def _images(table: pa.Table) -> UInt8[np.ndarray, "n h w c"]:
    return images.array(table["image"])


def _some(pixels: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h w c"]:
    chosen = numpy_generator(0, "grid").permutation(len(pixels))[:GRID_IMAGES]
    return pixels[np.sort(chosen)]
