"""trial: what one setting of the filter comes to, for a study that compares many (see `tune`).

`trial/kept` measures the kept set itself, in seconds; `trial/student` a student trained on it. While the study
chooses, ratios are by the filter's network and by the study's own judge (`judge`), on the patients of `control`; no
such number knows the auditor. Once it has chosen, `trial/student/test` is the word that was held out: the same
student samples other images, and the auditor judges them too, on the patients of `test`. A ratio's threshold is a
percentile of that split's scores, whose error is in its interval; the downstream task is tested on its images.
"""

# pyarrow.compute makes its functions at import, out of pyright's sight.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
from jaxtyping import Float, Int8, UInt8

from pipeline import config, fit, images, measures, records
from pipeline.artifact import Artifact
from pipeline.config import Recipe
from pipeline.estimate import Estimate
from pipeline.privacy import risk
from pipeline.progress import Bar
from pipeline.records import Records
from pipeline.seeds import Origin, numpy_generator, row_seed
from pipeline.steps import evaluate, judge
from pipeline.task import Made, Task, Work
from pipeline.utility import auroc, classifier
from pipeline.workers import NETWORKS, Searched, match_rows, sample_plan

VERSION = 3
MIN_CLASSES = 2
REID, AUDIT = "reid_score", "audit_score"
CHOSEN_BY = (REID, judge.COLUMN)
"""Columns that a study may choose by."""
HELD_OUT = (*CHOSEN_BY, AUDIT)
RATIO_OF = {REID: "reid_ratio", judge.COLUMN: "judge_ratio", AUDIT: "audit_ratio"}
EXACT = "_exact_threshold"
"""Ends the name of a ratio whose interval takes the threshold for exact; the other's holds the threshold's error."""
NEEDS_FINDINGS = "a study compares settings by what a classifier learns from their images, so it needs labels"


class TrialError(RuntimeError):
    """A setting that cannot be measured; the study reports it and goes on."""


def tasks(recipe: Recipe) -> list[Task]:
    """`trial/kept/control`, `trial/student/control` and `trial/student/test`, and what a student's rest on.

    Of one round of samples, as a study's budget is fixed.
    """
    section = recipe.evaluate
    measured = {"classifier": section.classifier.model_dump(), "n_train": section.n_train, "seed": recipe.seed}
    measured |= section.model_dump(include={"bootstrap", "control_percentile"})
    sampler = recipe.student_sample.decides
    sampled = {"n_student": section.n_student, "sample": sampler, "seed": recipe.seed}
    sampled |= {"seed_offset": recipe.distill.seed_offset}
    scored = {"score": recipe.score.model_dump(include={"batch_size", "gallery_block"})}
    given = ("ingest", "filter", "score/unseen", "tune/unseen")
    of_kept, galleries = ("filter/0", "score/0", "tune/scores"), ("score/gallery", "tune/gallery")
    rows: list[tuple[str, Any, dict[str, Any], tuple[str, ...], str]] = [
        ("kept/control", make_kept, measured, (*given, *of_kept), "the kept set, measured"),
        ("student_images", make_student_images, sampled, ("filter", "distill"), "images of the student"),
        ("student_scores", make_student_scores, scored, (*galleries, "trial/student_images"), "their risk"),
        ("student/control", make_student, measured, (*given, *_of("student")), "its student, measured"),
        ("fresh_images", make_fresh_images, sampled, ("filter", "distill"), "other images of the student"),
        ("fresh_scores", make_fresh_scores, scored, (*galleries, "trial/fresh_images"), "their risk"),
        ("student/test", make_held_out, measured, (*given, *_of("fresh")), "its student, by whom nobody chose"),
    ]
    return [
        Task(f"trial/{name}", make, told, inputs, version=VERSION, about=about)
        for name, make, told, inputs, about in rows
    ]


def _of(arm: str) -> tuple[str, str]:
    return f"trial/{arm}_images", f"trial/{arm}_scores"


def make_student_images(work: Work) -> Made:
    """Sample the student with the kept set's prompts."""
    return _sampled(work, "kept")


def make_fresh_images(work: Work) -> Made:
    """Sample it again: other draws of the prompts, other seeds."""
    return _sampled(work, "fresh")


def _sampled(work: Work, arm: str) -> Made:
    kept = work.inputs["filter"].table("kept", ["row_id", "prompt", "labels"])
    return sample_plan(
        work, evaluate.student_arm(work, arm, kept), work.inputs["distill"], work.recipe.student_sample
    )


def make_student_scores(work: Work) -> Made:
    """Score them against the real training images, by the filter's network and the judge."""
    return _matched(work, "student", CHOSEN_BY)


def make_fresh_scores(work: Work) -> Made:
    """Score them by the auditor too."""
    return _matched(work, "fresh", HELD_OUT)


def _matched(work: Work, arm: str, columns: Sequence[str]) -> Made:
    gallery = work.inputs["score/gallery"]
    known = {REID: Searched(gallery, NETWORKS[0]), AUDIT: Searched(gallery, NETWORKS[1]), **judge.searched(work)}
    uri = work.inputs[f"trial/{arm}_images"].uri_of("rows")
    return match_rows(work, uri, {column: known[column] for column in columns})


def make_kept(work: Work) -> Made:
    """Measure the kept set. The classifier sees all of it, so that a strict rule pays for what it drops."""
    kept = work.inputs["filter"].table("kept")
    chosen = work.inputs["filter/0"].table(columns=["row_id"], where=pc.field("keep"))["row_id"].to_pylist()
    sources = {REID: work.inputs["score/0"], judge.COLUMN: work.inputs["tune/scores"]}
    scores = {column: scores_of(source, column, chosen) for column, source in sources.items()}
    return _measured(work, "control", scores, images.array(kept["image"]), records.label_matrix(kept))


def make_student(work: Work) -> Made:
    """Measure the student on images that it makes of the kept set's prompts."""
    return _student(work, "student", "control", CHOSEN_BY)


def make_held_out(work: Work) -> Made:
    """Measure it on other images and other patients, and by the auditor too, whom no trial asked."""
    return _student(work, "fresh", "test", HELD_OUT)


def _student(work: Work, arm: str, split: config.Split, columns: Sequence[str]) -> Made:
    sampled, scored = (work.inputs[name] for name in _of(arm))
    plan = sampled.table("plan")
    pixels, labels = records.images_of(sampled, plan["row_id"], "rows"), records.label_matrix(plan)
    n = min(work.recipe.evaluate.n_train, len(pixels))
    rows = np.sort(numpy_generator(work.origin, "arm").permutation(len(pixels))[:n])
    scores = {column: scores_of(scored, column, plan["row_id"].to_pylist()) for column in columns}
    return _measured(work, split, scores, pixels[rows], labels[rows])


def scores_of(scored: Artifact, column: str, row_ids: Sequence[str]) -> Float[np.ndarray, " n"]:
    """Scores of the named images; NaN, which counts as flagged, for one that has none."""
    table = scored.table(columns=["row_id", column])
    found = dict(zip(table["row_id"].to_pylist(), table[column].to_pylist(), strict=True))
    return np.array([found.get(row_id) for row_id in row_ids], np.float64)  # None becomes NaN


def _measured(
    work: Work,
    split: config.Split,
    scores: Mapping[str, Float[np.ndarray, " n"]],
    pixels: UInt8[np.ndarray, "m h w c"],
    labels: Int8[np.ndarray, "m k"],
) -> Made:
    section, findings = work.recipe.evaluate, work.inputs["ingest"].facts["findings"]
    _require_classes(labels, findings)
    unseen = records.of_split(work.inputs["ingest"], split)
    metrics = _ratios(work, scores, unseen) | fit.small(
        _useful, section, pixels, labels, unseen, findings, work.origin, work.bar
    )
    if "macro_auroc" not in metrics or np.isnan(metrics["macro_auroc"].value):
        raise TrialError("macro AUROC: want a number, got NaN — no finding has enough patients with and without it")
    return Made({"metrics": {key: value.as_dict() for key, value in metrics.items()}}, len(pixels))


def _require_classes(labels: Int8[np.ndarray, "n k"], findings: Sequence[str]) -> None:
    if not findings:
        raise TrialError("images to learn from: want findings, got none — " + NEEDS_FINDINGS)
    present = labels == 1
    n_classes = int(present.any(0).sum()) + int((~present.any(1)).any())
    if n_classes < MIN_CLASSES:
        raise TrialError(
            f"images to learn from: want {MIN_CLASSES} classes of {len(findings) + 1}, got {n_classes} "
            "— the setting leaves too little"
        )


def _ratios(work: Work, scores: Mapping[str, Float[np.ndarray, " n"]], unseen: Records) -> dict[str, Estimate]:
    """By each network, the share of images over a percentile of unseen patients' scores: with the percentile's own
    error in the interval, and beside it without.
    """
    patient_of = dict(zip(unseen.row_ids, unseen.patients.tolist(), strict=True))
    within = pc.field("row_id").isin(unseen.table["row_id"].combine_chunks())
    percentile = work.recipe.evaluate.control_percentile
    found = {}
    for column, judged in scores.items():
        source = work.inputs["tune/unseen" if column == judge.COLUMN else "score/unseen"]
        strangers = source.table(columns=["row_id", column], where=within)
        control = strangers[column].to_numpy()
        threshold = risk.control_threshold(control, percentile).value
        patients = [patient_of[row_id] for row_id in strangers["row_id"].to_pylist()]
        ratio = RATIO_OF[column]
        found[ratio] = risk.ratio_over_control(judged, control, percentile, control_clusters=np.array(patients))
        found[f"{ratio}{EXACT}"] = risk.wilson(int(risk.flagged(judged, threshold).sum()), len(judged))
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
