"""evaluate: privacy, utility and fidelity of every arm, each figure with its control, interval and n.

The parts are artifacts of their own, so that a changed threshold re-makes only the arms that it changes:
the domain encoder, one classifier per arm, changed copies of training images under both networks, and the
student's images with their scores. `evaluate` reads them all and writes `metrics.json`, which may be released.
"""

# pyarrow.compute makes its functions at import, out of pyright's sight.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int8, UInt8

from pipeline import config, fit, images, measures, probes, records
from pipeline.artifact import Artifact, folder_digest
from pipeline.config import Classifier, Recipe
from pipeline.estimate import Estimate
from pipeline.privacy import matching, networks
from pipeline.progress import Bar
from pipeline.records import Records, Synthetic
from pipeline.seeds import numpy_generator, row_seed, torch_generator
from pipeline.task import Made, Task, Work, rounds_of
from pipeline.utility import classifier
from pipeline.workers import NETWORKS, sample_plan, score_rows

VERSION = 5
METRICS_VERSION = 8
JUDGE, ENCODER = "classifier", "encoder"
"""Folders of the classifier that judges, and of the encoder that features come from."""
RECOGNITION = "auditor's embedding, as there are no labels to learn from"
EMBED_ROWS = 256
STUDENT_PLAN = pa.schema(
    [
        ("row_id", pa.string()),
        ("seed", pa.int64()),
        ("prompt", pa.string()),
        ("labels", pa.list_(pa.int8())),
        ("arm", pa.string()),  # whose prompts: `kept` or `private`
        ("prompt_row_id", pa.string()),  # the record or kept image that the prompt comes from
    ]
)


def tasks(recipe: Recipe, n_rounds: int) -> list[Task]:
    """The arms and `evaluate` itself."""
    section, seed = recipe.evaluate, recipe.seed
    student_seed = {"seed": seed, "seed_offset": recipe.distill.seed_offset}
    people = {"people": section.membership_people, "seed": seed}
    arm = {"classifier": section.classifier.model_dump(), "n_train": section.n_train, "seed": seed}
    sampler, of_student = recipe.sample.decides, recipe.student_sample.decides
    rounds = tuple(f"{word}/{number}" for word in ("sample", "score") for number in range(n_rounds))
    decided = f"filter/{n_rounds - 1}"
    unseen = ("score/gallery", "score/unseen")
    tests = [
        Task(
            "evaluate/encoder",
            make_encoder,
            {"classifier": arm["classifier"], "steps": section.encoder_steps, "seed": seed}
            | {"given": folder_digest(section.encoder_folder)},
            ("ingest",),
            version=VERSION,
            about="domain encoder",
        ),
        Task("evaluate/real", make_real, arm, ("ingest",), version=VERSION, about="classifier on real images"),
        Task(
            "evaluate/changed",
            probes.make_changed,
            {"gate": recipe.release.conditions.model_dump(include={"n_probe", "near_timestep_frac", "strengths"})}
            | {"sample": sampler, "seed": seed},
            ("ingest", "teach/latents", "teach", "score/gallery"),
            version=VERSION,
            about="copies of training images",
        ),
        Task(
            "evaluate/teacher",
            make_teacher,
            arm,
            ("ingest", "sample/0"),
            version=VERSION,
            about="... on the teacher's",
        ),
        Task("evaluate/filtered", make_filtered, arm, ("ingest", "filter"), version=VERSION, about="... on the kept"),
        Task(
            "evaluate/student_images",
            make_student_images,
            {"n_student": section.n_student, "sample": of_student} | student_seed,
            ("ingest", "filter", "distill"),
            version=VERSION,
            slots=recipe.sample.actors,
            resumable=True,
            about="images of the student",
        ),
        Task(
            "evaluate/student_scores",
            make_student_scores,
            {"score": recipe.score.model_dump(include={"batch_size", "gallery_block"}), "seed": seed}
            | {"strengths": recipe.release.conditions.strengths.model_dump()},
            ("ingest", "score/gallery", "evaluate/student_images"),
            version=VERSION,
            resumable=True,
            about="their risk, and planted copies'",
        ),
        *(
            Task(
                f"evaluate/membership_{whose}",
                probes.make_losses,
                people | {"batch_size": recipe.sample.batch_size},
                ("ingest", model),
                version=VERSION,
                about=f"members by the {whose}'s loss",
            )
            for whose, model in (("teacher", "teach"), ("student", "distill"))
        ),
        Task(
            "evaluate/gaps",
            probes.make_gaps,
            people,
            ("ingest", "filter", "score/gallery", "evaluate/student_images"),
            version=VERSION,
            about="members by gaps and nearness",
        ),
        Task(
            "evaluate/student",
            make_student,
            arm,
            ("ingest", "evaluate/student_images"),
            version=VERSION,
            about="... on the student's",
        ),
    ]
    arms = ["real", "teacher", "filtered", "student"]
    if section.large_factor > 1:
        larger = arm | {"large_factor": section.large_factor}
        tests.append(
            Task(
                "evaluate/student_large",
                make_student_large,
                larger,
                ("ingest", "evaluate/student_images"),
                version=VERSION,
                about="... on more of the student's",
            )
        )
        arms.append("student_large")
    attacks = ("membership_teacher", "membership_student", "gaps")
    parts = ("encoder", "changed", "student_images", "student_scores", *attacks, *arms)
    measured = section.model_dump(
        include={"bootstrap", "control_percentile", "min_control", "ssim_prompts", "neighbours"}
    )
    final = Task(
        "evaluate",
        make,
        {"evaluate": measured, "seed": seed},
        (
            "ingest",
            *(f"identify/{name}" for name in NETWORKS),
            *unseen,
            *rounds,
            decided,
            "filter",
            *(f"evaluate/{part}" for part in parts),
        ),
        "releasable",
        METRICS_VERSION,
        about="metrics.json",
    )
    return [*tests, final]


def make_encoder(work: Work) -> Made:
    """Train a classifier on the `identify` patients, whom no generator saw: it judges whether images show what was
    asked for, and is the domain encoder of FID and KID unless another is given.
    """
    section, ingest = work.recipe.evaluate, work.inputs["ingest"]
    judge, encoder = work.draft.folder / JUDGE, work.draft.folder / ENCODER
    if ingest.facts["findings"]:
        cfg = Classifier.model_validate(section.classifier.model_dump() | {"steps": section.encoder_steps})
        data = records.of_split(ingest, "identify")
        seed = row_seed(work.origin, "encoder")
        fit.small(_classifier, cfg, data.images, data.labels, seed, work.bar, out=work.draft.folder)
    if section.encoder_folder is not None:
        classifier.load(section.encoder_folder).save(encoder)
    elif judge.is_dir():
        classifier.load(judge).save(encoder)
    name = classifier.name(classifier.load(encoder)) if encoder.is_dir() else RECOGNITION
    return Made({"encoder": name})


def make_real(work: Work) -> Made:
    """A classifier trained on real images."""
    train = records.of_split(work.inputs["ingest"], "train")
    return _arm(work, train.images, train.labels)


def make_teacher(work: Work) -> Made:
    """A classifier trained on the teacher's images, unfiltered."""
    sampled = records.synthetic(work.inputs["sample/0"], work.inputs["sample/0"])
    return _arm(work, sampled.images, sampled.labels)


def make_filtered(work: Work) -> Made:
    """A classifier trained on the kept images."""
    kept = work.inputs["filter"].table("kept")
    return _arm(work, images.array(kept["image"]), records.label_matrix(kept))


def make_student(work: Work) -> Made:
    """A classifier trained on the student's images."""
    made = _student(work.inputs["evaluate/student_images"], "kept")
    return _arm(work, made.images, made.labels)


def make_student_large(work: Work) -> Made:
    """The same with more of the student's images than there are real ones."""
    made = _student(work.inputs["evaluate/student_images"], "kept")
    return _arm(work, made.images, made.labels, work.recipe.evaluate.large_factor)


def _arm(
    work: Work, pixels: UInt8[np.ndarray, "n h w c"], labels: Int8[np.ndarray, "n k"], factor: float = 1.0
) -> Made:
    """Train on at most `n_train` images (never more than there are real ones, times the factor); predict test."""
    ingest, section = work.inputs["ingest"], work.recipe.evaluate
    if not ingest.facts["findings"]:
        return Made({"n_train": 0}, 0)  # nothing to learn: utility is not measured
    n = min(round(factor * min(section.n_train, ingest.facts["images_by_split"]["train"])), len(pixels))
    chosen = np.sort(numpy_generator(work.origin, "arm").permutation(len(pixels))[:n])
    fit.small(
        _classifier,
        section.classifier,
        pixels[chosen],
        labels[chosen],
        row_seed(work.origin, "classifier"),
        work.bar,
        out=work.draft.folder,
    )
    test = records.of_split(ingest, "test")
    predicted = classifier.predict(classifier.load(work.draft.folder / JUDGE), test.images)
    lists = pa.array(list(predicted.astype(np.float32)), pa.list_(pa.float32()))
    work.draft.write_table(pa.table({"row_id": test.row_ids, "probabilities": lists}), "test")
    return Made({"n_train": n}, n)


def _classifier(
    cfg: config.Classifier, pixels: np.ndarray, labels: np.ndarray, seed: int, bar: Bar, out: Path
) -> None:
    bar.begin(cfg.steps)
    model = classifier.fit(cfg, pixels, labels, seed=seed, on_step=lambda done, total: bar.add(1))
    model.save(out / JUDGE)


def make_student_images(work: Work) -> Made:
    """Sample the student with the kept set's prompts, and with the private set's in their shared form."""
    return sample_plan(work, _student_plan(work), work.inputs["distill"], work.recipe.student_sample)


def _student_plan(work: Work) -> pa.Table:
    kept = work.inputs["filter"].table("kept", ["row_id", "prompt", "labels"])
    private = records.crossing(work.inputs["ingest"]).drop_columns("patient_id")
    return pa.concat_tables([student_arm(work, "kept", kept), student_arm(work, "private", private)])


def student_arm(work: Work, arm: str, source: pa.Table) -> pa.Table:
    """What to sample of the student: prompts of `source` (row_id, prompt, labels), as often as it takes."""
    offset, n = work.recipe.distill.seed_offset, work.recipe.evaluate.n_student
    drawn = np.resize(numpy_generator(work.origin, "student", offset, arm).permutation(len(source)), n)
    names = [f"{arm}-{position:06d}" for position in range(n)]
    columns = {
        "row_id": names,
        "seed": [row_seed(work.origin, "student", offset, name) for name in names],
        "prompt": source["prompt"].take(drawn),
        "labels": source["labels"].take(drawn),
        "arm": [arm] * n,
        "prompt_row_id": source["row_id"].take(drawn),
    }
    return pa.table(columns).cast(STUDENT_PLAN)


def make_student_scores(work: Work) -> Made:
    """Score the student's images against the real training images, and copies of such, planted among them."""
    rows = work.inputs["evaluate/student_images"].table("rows", ["row_id", "image"])
    source = work.draft.write_source(pa.concat_tables([rows, probes.planted(work)]))
    return score_rows(work, source, work.inputs["score/gallery"])


def make(work: Work) -> Made:
    """Read every part and write `metrics.json`."""
    arms = [name.removeprefix("evaluate/") for name in work.inputs if name.removeprefix("evaluate/") in measures.ARMS]
    metrics = fit.small(_measured, work.recipe, work.origin, dict(work.inputs), arms)
    body = {key: value.as_dict() for key, value in metrics.items()}
    (work.draft.folder / "metrics.json").write_text(json.dumps(body, indent=1, allow_nan=False))
    facts = {
        "encoder": work.inputs["evaluate/encoder"].facts["encoder"],
        **{f"n_{split}": work.inputs["ingest"].facts["images_by_split"][split] for split in ("control", "test")},
        "n_train": {arm: work.inputs[f"evaluate/{arm}"].facts["n_train"] for arm in arms},
        "n_train_patients": work.inputs["ingest"].facts["patients_by_split"]["train"],
    }
    return Made(facts, len(metrics))


def _measured(
    recipe: Recipe, origin: bytes, inputs: Mapping[str, Artifact], arms: Sequence[str]
) -> dict[str, Estimate]:
    """All metrics; runs in one task, as it holds every arm's images at once."""
    ingest, section = inputs["ingest"], recipe.evaluate
    (decided,) = rounds_of(inputs, "filter")
    findings, k = ingest.facts["findings"], recipe.ingest.k_anonymity
    test, control = (measures.without_rare(records.of_split(ingest, split), k) for split in ("test", "control"))
    kept_table = inputs["filter"].table("kept")
    kept = Synthetic(kept_table, images.array(kept_table["image"]), records.label_matrix(kept_table))
    teacher = records.synthetic(inputs["sample/0"], inputs["sample/0"])
    student = _student(inputs["evaluate/student_images"], "kept")
    synthetic = {"teacher": teacher, "filtered": kept, "student": student}
    risk = _risk(inputs, origin, test, control, section.control_percentile, k)
    attacks = {
        name: inputs[f"evaluate/{name}"].table() for name in ("membership_teacher", "membership_student", "gaps")
    }
    measured = {
        **_network_metrics(inputs),
        **measures.privacy(risk, decided.facts["threshold"]),
        **measures.membership(attacks, origin),
        **measures.fidelity(_encoder(inputs), test, control, synthetic, section, origin),
    }
    if findings:
        probabilities = {arm: _probabilities(inputs[f"evaluate/{arm}"]) for arm in arms}
        judge = classifier.load(inputs["evaluate/encoder"].local() / JUDGE)
        measured |= measures.utility(test, probabilities, findings, section, origin)
        measured |= measures.adherence(judge, synthetic, findings, section, origin)
    return measures.without_small_cells(measured, test, findings, k)


def _encoder(inputs: Mapping[str, Artifact]) -> measures.Encoder:
    """What features of likeness are taken from; without findings, of a network that recognises."""
    folder = inputs["evaluate/encoder"].local() / ENCODER
    if folder.is_dir():
        return functools.partial(classifier.features, classifier.load(folder))
    model = networks.load(inputs["score/gallery"].local() / "auditor")
    return lambda pixels: networks.embeddings(model, pixels, EMBED_ROWS).numpy()


def _student(student_images: Artifact, arm: str) -> Synthetic:
    plan = student_images.table("plan", where=pc.field("arm") == arm)
    return Synthetic(plan, records.images_of(student_images, plan["row_id"], "rows"), records.label_matrix(plan))


def _probabilities(arm: Artifact) -> np.ndarray:
    return np.array(arm.table("test")["probabilities"].to_pylist())


def _network_metrics(inputs: Mapping[str, Artifact]) -> dict[str, Estimate]:
    """What identify found about each network."""
    return {
        f"privacy/{name}/{key}": Estimate.from_dict(saved)
        for name in NETWORKS
        for key, saved in inputs[f"identify/{name}"].facts["metrics"].items()
    }


def _risk(
    inputs: Mapping[str, Artifact],
    origin: bytes,
    test: Records,
    control: Records,
    percentile: float,
    k: int,
) -> measures.Risk:
    """Every score that the privacy metrics count; an image that has none (it was set aside) is in no ratio."""
    scores = pa.concat_tables([artifact.table() for artifact in rounds_of(inputs, "score")]).sort_by("row_id")
    plans = pa.concat_tables([artifact.table("plan") for artifact in rounds_of(inputs, "sample")]).sort_by("row_id")
    plans = records.among(plans, scores["row_id"])
    (decisions,) = rounds_of(inputs, "filter")
    decided = decisions.table()
    scored = inputs["evaluate/student_scores"].table()
    is_planted = pc.starts_with(scored["row_id"], measures.PLANTED)
    student = scored.filter(pc.invert(is_planted))
    asked = inputs["evaluate/student_images"].table("plan", ["row_id", "prompt_row_id", "labels"])
    asked = records.among(asked, student["row_id"])
    student = student.append_column("prompt_row_id", asked["prompt_row_id"])
    asked = asked.filter(pc.starts_with(asked["row_id"], "kept-"))
    unseen = inputs["score/unseen"].table()
    test, control = (
        records.take(split, np.flatnonzero(np.isin(split.row_ids, unseen["row_id"].to_pylist())))
        for split in (test, control)
    )
    train = inputs["ingest"].table("records", ["row_id", "patient_id"], pc.field("split") == "train")
    gallery = inputs["score/gallery"].local()
    baseline = {}
    for name in NETWORKS:
        pairs = matching.Gallery.load(gallery / f"{name}_embeddings.parquet")
        generator = torch_generator(origin, "baseline", name)
        n_pairs = len(test.images)
        baseline[name] = matching.shuffled_pairs(networks.load(gallery / name), pairs, n_pairs, generator).numpy()
    return measures.Risk(
        control=records.among(unseen, control.table["row_id"]),
        control_patients=control.patients,
        test=records.among(unseen, test.table["row_id"]),
        test_patients=test.patients,
        teacher=scores.append_column("prompt_row_id", plans["prompt_row_id"]),
        kept=records.among(scores, decided.filter(decided["keep"])["row_id"]),
        student=student.filter(pc.starts_with(student["row_id"], "kept-")),
        student_private=student.filter(pc.starts_with(student["row_id"], "private-")),
        changed=inputs["evaluate/changed"].table(),
        planted=scored.filter(is_planted),
        baseline=baseline,
        train=train,
        shown={
            "control": test.labels,
            "teacher": records.label_matrix(plans),
            "student": records.label_matrix(asked),
        },
        findings=inputs["ingest"].facts["findings"],
        percentile=percentile,
        k=k,
    )
