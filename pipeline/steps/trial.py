"""trial: what one setting of the filter comes to, for a study that compares many (see `tune`).

`trial/kept` measures the kept set itself, in seconds; `trial/student` a student trained on it. Both are measured on
the patients of one split: `control` while the study chooses, `test` once it has chosen. The threshold of the
auditor's ratio is a percentile of that split's scores; the downstream task is tested on that split's images.
"""

# pyarrow.compute makes its functions at import, out of pyright's sight.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int8, UInt8

from pipeline import config, fit, images, measures, records
from pipeline.config import Recipe
from pipeline.estimate import Estimate
from pipeline.privacy.risk import wilson
from pipeline.progress import Bar
from pipeline.records import Records
from pipeline.seeds import Origin, numpy_generator, row_seed
from pipeline.steps import evaluate
from pipeline.task import Made, Task, Work, rounds_of
from pipeline.utility import auroc, classifier
from pipeline.workers import sample_plan, score_rows

VERSION = 2
MIN_CLASSES = 2


class TrialError(RuntimeError):
    """A setting that cannot be measured; the study reports it and goes on."""


def tasks(recipe: Recipe, n_rounds: int, split: config.Split) -> list[Task]:
    """`trial/kept/<split>` and `trial/student/<split>`."""
    section = recipe.evaluate
    measured = {"classifier": section.classifier.model_dump(), "n_train": section.n_train, "seed": recipe.seed}
    measured |= section.model_dump(include={"bootstrap", "control_percentile"}) | {"split": split}
    rounds = [f"score/{number}" for number in range(n_rounds)]
    kept = ("ingest", "filter", f"filter/{n_rounds - 1}", "score/unseen", *rounds)
    student = ("ingest", "filter", "score/unseen", "trial/student_images", "trial/student_scores")
    return [
        Task(f"trial/kept/{split}", make_kept, measured, kept, version=VERSION, about="the kept set, measured"),
        Task(
            f"trial/student/{split}", make_student, measured, student, version=VERSION, about="its student, measured"
        ),
    ]


def student_tasks(recipe: Recipe) -> list[Task]:
    """What all of a student's measures rest on: images of the kept set's prompts, and their risk."""
    sampler = recipe.sample.model_dump(include={"steps", "guidance_scale", "batch_size"})
    n_student = recipe.evaluate.n_student
    seeds = {"seed": recipe.seed, "seed_offset": recipe.distill.seed_offset}
    return [
        Task(
            "trial/student_images",
            make_student_images,
            {"n_student": n_student, "sample": sampler} | seeds,
            ("filter", "distill"),
            version=VERSION,
            about="images of the student",
        ),
        Task(
            "trial/student_scores",
            make_student_scores,
            {"score": recipe.score.model_dump(include={"batch_size", "gallery_block"})},
            ("score/gallery", "trial/student_images"),
            version=VERSION,
            about="their risk",
        ),
    ]


def make_student_images(work: Work) -> Made:
    """Sample the student with the kept set's prompts."""
    kept = work.inputs["filter"].table("kept", ["row_id", "prompt", "labels"])
    return sample_plan(work, evaluate.student_arm(work, "kept", kept), work.inputs["distill"])


def make_student_scores(work: Work) -> Made:
    """Score them against the real training images."""
    return score_rows(work, work.inputs["trial/student_images"].uri_of("rows"), work.inputs["score/gallery"])


def make_kept(work: Work) -> Made:
    """Measure the kept set. The classifier sees all of it, so that a strict rule pays for what it drops."""
    kept = work.inputs["filter"].table("kept")
    (decided,) = rounds_of(work.inputs, "filter")
    chosen = decided.table(columns=["row_id"], where=pc.field("keep"))["row_id"]
    scores = pa.concat_tables([artifact.table() for artifact in rounds_of(work.inputs, "score")])
    return _measured(work, records.among(scores, chosen), images.array(kept["image"]), records.label_matrix(kept))


def make_student(work: Work) -> Made:
    """Measure the student on images that it makes of the kept set's prompts."""
    sampled, scores = work.inputs["trial/student_images"], work.inputs["trial/student_scores"].table()
    plan = sampled.table("plan")
    pixels, labels = records.images_of(sampled, plan["row_id"], "rows"), records.label_matrix(plan)
    n = min(work.recipe.evaluate.n_train, len(pixels))
    rows = np.sort(numpy_generator(work.origin, "arm").permutation(len(pixels))[:n])
    return _measured(work, scores, pixels[rows], labels[rows])


def _measured(
    work: Work, scores: pa.Table, pixels: UInt8[np.ndarray, "n h w c"], labels: Int8[np.ndarray, "n k"]
) -> Made:
    section, findings = work.recipe.evaluate, work.inputs["ingest"].facts["findings"]
    _require_classes(labels, findings)
    unseen = records.of_split(work.inputs["ingest"], work.draft.key.name.split("/")[-1])
    metrics = _ratios(work, scores, unseen) | fit.small(
        _useful, section, pixels, labels, unseen, findings, work.origin, work.bar
    )
    if "macro_auroc" not in metrics or np.isnan(metrics["macro_auroc"].value):
        raise TrialError("macro AUROC: want a number, got NaN — no finding has enough patients with and without it")
    return Made({"metrics": {key: value.as_dict() for key, value in metrics.items()}}, len(pixels))


def _require_classes(labels: Int8[np.ndarray, "n k"], findings: Sequence[str]) -> None:
    present = labels == 1
    n_classes = int(present.any(0).sum()) + int((~present.any(1)).any())
    if n_classes < MIN_CLASSES:
        raise TrialError(
            f"images to learn from: want {MIN_CLASSES} classes of {len(findings) + 1}, got {n_classes} "
            "— the setting leaves too little"
        )


def _ratios(work: Work, scores: pa.Table, unseen: Records) -> dict[str, Estimate]:
    calibration = work.inputs["score/unseen"].table(
        where=pc.field("row_id").isin(unseen.table["row_id"].combine_chunks())
    )
    found = {}
    for column, ratio, _ in measures.RATIOS.values():
        percentile = work.recipe.evaluate.control_percentile
        threshold = measures.control_threshold(calibration[column].to_numpy(), percentile)
        found[ratio] = wilson(int((scores[column].to_numpy() >= threshold).sum()), len(scores))
    return found


def _useful(
    section: config.Evaluate,
    pixels: UInt8[np.ndarray, "n h w c"],
    labels: Int8[np.ndarray, "n k"],
    unseen: Records,
    findings: Sequence[str],
    seed: Origin,
    bar: Bar,
) -> dict[str, Estimate]:
    """AUROC on real images of unseen patients of a classifier trained on these."""
    bar.begin(section.classifier.steps)
    model = classifier.fit(
        section.classifier,
        pixels,
        labels,
        seed=row_seed(seed, "classifier"),
        on_step=lambda done, total: bar.add(1),
    )
    estimates = auroc.bootstrap_auroc(
        unseen.labels,
        classifier.predict(model, unseen.images),
        unseen.patients,
        findings,
        n_resamples=section.bootstrap,
        seed=seed,
    )
    return {measures.auroc_name(name): estimate for name, estimate in estimates.items()}
