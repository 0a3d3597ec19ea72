"""score: how likely is it, for each image, that it shows somebody in the gallery of real training images?

The gallery and the scores of unseen patients' images (control, test) are made beside; they calibrate the filter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipeline import config, fit, images, records
from pipeline.artifact import Artifact
from pipeline.config import Recipe
from pipeline.privacy import matching, networks
from pipeline.privacy.leaning import Leaning
from pipeline.records import Records
from pipeline.seeds import numpy_generator
from pipeline.task import Made, Task, Work
from pipeline.workers import DECOYS, LEANING, NETWORKS, score_rows

VERSION = 7
UNSEEN = ("control", "test")


def calibration_tasks(recipe: Recipe) -> list[Task]:
    """`score/gallery` and `score/unseen`."""
    nets = tuple(f"identify/{name}" for name in NETWORKS)
    section = _section(recipe)
    return [
        Task(
            "score/gallery", make_gallery, section, ("ingest", *nets), version=VERSION, about="real images, embedded"
        ),
        Task(
            "score/unseen",
            make_unseen,
            section,
            ("ingest", "score/gallery"),
            version=VERSION,
            resumable=True,
            about="risk of unseen patients",
        ),
    ]


def round_tasks(recipe: Recipe, number: int) -> list[Task]:
    """`score/<number>`: the risk of every sample of a round."""
    inputs = ("score/gallery", f"sample/{number}")
    return [
        Task(
            f"score/{number}",
            make_round,
            _section(recipe),
            inputs,
            version=VERSION,
            slots=2,
            resumable=True,
            about="risk of the samples",
        )
    ]


def _section(recipe: Recipe) -> dict[str, Any]:
    place = {"actors", "cpus_per_actor", "gpus_per_actor", "market", "block_rows"}
    return {"score": recipe.score.model_dump(mode="json", exclude=place)}


def make_gallery(work: Work) -> Made:
    """Keep all training images and their embeddings by both networks, and the decoys' by the filter's and in place.

    Those of patients with several are scored against each other: what a match of one patient looks like.
    """
    train, decoys, others = (
        records.of_split(work.inputs["ingest"], split) for split in ("train", "control", "identify")
    )
    trained = {name: work.inputs[f"identify/{name}"] for name in NETWORKS}
    section, group = work.recipe.score, fit.Group(cpus=work.recipe.score.cpus_per_actor)
    leaning = _for_leaning(work, train, decoys, others)
    same_patient = fit.small(_gallery, train, decoys, leaning, trained, section, out=work.draft.folder, group=group)
    work.draft.write_table(same_patient, "same_patient")
    work.draft.write_table(pa.table({"row_id": train.row_ids, "image": records.image_column(train.images)}), "images")
    return Made({"patients": len(set(train.patients.tolist()))}, len(train.images))


def _for_leaning(work: Work, train: Records, decoys: Records, others: Records) -> tuple[np.ndarray, ...]:
    """What `Leaning.of` takes: films in random order, one of each decoy."""
    drawn, unseen = (
        numpy_generator(work.origin, "leaning").permutation(len(some.patients)) for some in (train, decoys)
    )
    one_each = unseen[np.sort(np.unique(decoys.patients[unseen], return_index=True)[1])]
    return others.images, train.images[drawn], train.patients[drawn], decoys.images[one_each]


def _gallery(
    train: Records,
    decoys: Records,
    leaning: tuple[np.ndarray, ...],
    trained: dict[str, Artifact],
    score: config.Score,
    out: Path,
) -> pa.Table:
    Leaning.of(*leaning).save(out / LEANING)
    columns: dict[str, Any] = {}
    patients, sizes = train.table["patient_id"].to_pylist(), np.bincount(train.patients)
    several = np.flatnonzero(sizes[train.patients] > 1)
    for name, artifact in trained.items():
        model = networks.load(artifact.local() / "network")
        model.save(out / name)
        gallery = matching.Gallery.of(model, train.images, patients, train.row_ids, score.batch_size, score.poses)
        gallery.save(out / f"{name}_embeddings.parquet")
        found = matching.best_matches(
            model, gallery.as_they_are[several], gallery, score.gallery_block, exclude_row=torch.from_numpy(several)
        )
        columns[name] = pa.array(found.reid_score.numpy(), pa.float32())
    others = decoys.table["patient_id"].to_pylist()
    model = networks.load(out / NETWORKS[0])
    unseen = matching.Gallery.of(model, decoys.images, others, decoys.row_ids, score.batch_size, score.poses)
    unseen.save(out / f"{DECOYS}_embeddings.parquet")
    named = {"row_id": [train.row_ids[i] for i in several], "patient_id": [patients[i] for i in several]}
    return pa.table(named | columns)


def make_unseen(work: Work) -> Made:
    """Score the images of control and test patients, whom the gallery does not hold."""
    return score_rows(work, work.draft.write_source(unseen(work.inputs["ingest"])), work.inputs["score/gallery"])


def unseen(ingest: Artifact) -> pa.Table:
    """`row_id` and `image` of control and test patients."""
    parts = [records.of_split(ingest, split) for split in UNSEEN]
    return pa.table(
        {
            "row_id": pa.array([row_id for part in parts for row_id in part.row_ids]),
            "image": images.column(np.concatenate([part.images for part in parts])),
        }
    )


def make_round(work: Work) -> Made:
    """Score a round of samples."""
    (sample,) = (artifact for name, artifact in work.inputs.items() if name.startswith("sample/"))
    return score_rows(work, sample.uri_of("rows"), work.inputs["score/gallery"])
