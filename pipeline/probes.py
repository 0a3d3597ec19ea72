"""What tests the judges and looks for members: changed copies of training films, planted copies, losses, gaps.

Each makes a table of scores, which `measures` reads; the attacks' stories stand in `privacy`. Films are drawn by the
run's secret, one a patient where people are compared. Axis letters: n images, h, w, c pixels.
"""

# pyarrow.compute makes its functions at import, out of pyright's sight.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Int64, UInt8

from pipeline import config, fit, images, records
from pipeline.artifact import Artifact
from pipeline.cohorts.splits import STRATA
from pipeline.config import Recipe
from pipeline.generators import autoencoder, losses, prompts
from pipeline.generators.sampler import Sampler
from pipeline.measures import DISTANCE, EXACT_COPY, NEAR_COPY, STUDENT_DISTANCE
from pipeline.privacy import matching, networks
from pipeline.privacy.augment import CHANGES, changed_copies
from pipeline.privacy.eigenfilms import EigenFilms
from pipeline.records import Records
from pipeline.seeds import numpy_generator, row_seed, torch_generator
from pipeline.task import Made, Work
from pipeline.workers import NETWORKS

SERIES = (0.5, 1.0, 1.5)
"""Strengths at which recall is measured, in units of the strength at which it is demanded."""
DEMANDED = 1.0
CURVE_PART = 1 / 3
"""Share of the films that show how recall goes at the other strengths, which nothing is judged by."""
ROUND_TRIP, NEAR = "round_trip", "near_duplicate"
NEAREST = 5
"""Kept images whose mean distance says how near the kept set is to a film."""
EIGENFILMS = 192
"""Of an attacker. On the demo 64 told members from strangers by nearness with an AUC of .67, 192 with .77."""
N_PLANTED = 100
"""Exact copies, and as many near ones, that are planted among the student's images."""
PEOPLE = {"member": "train", "stranger": "test", "control": "control"}
"""Who is compared, and the split they come from."""


def make_changed(work: Work) -> Made:
    """Score changed copies of training images: by an attacker's means, and near-duplicates made by the teacher."""
    train = records.of_split(work.inputs["ingest"], "train")
    chosen = _people_first(train.patients, numpy_generator(work.origin, "changed"))
    probes = records.take(train, chosen[: work.recipe.release.conditions.n_probe])
    table = fit.small(_changed, work.recipe, work.origin, probes, dict(work.inputs))
    work.draft.write_table(table)
    return Made({}, len(table))


def _people_first(patients: Int64[np.ndarray, " n"], generator: np.random.Generator) -> Int64[np.ndarray, " n"]:
    """All positions, at random; every patient's first film before anybody's second, so that few give many."""
    order = generator.permutation(len(patients))
    turn = np.empty(len(patients), np.int64)
    seen: dict[int, int] = {}
    for position, patient in zip(order.tolist(), patients[order].tolist(), strict=True):
        turn[position] = seen.get(patient, 0)
        seen[patient] = seen.get(patient, 0) + 1
    return order[np.argsort(turn[order], kind="stable")]


def _changed(recipe: Recipe, origin: bytes, probes: Records, inputs: Mapping[str, Artifact]) -> pa.Table:
    gallery = inputs["score/gallery"].local()
    judges = {
        name: (networks.load(gallery / name), matching.Gallery.load(gallery / f"{name}_embeddings.parquet"))
        for name in NETWORKS
    }
    parts = []
    for kind, factor, copies in _copies(recipe, origin, probes, inputs):
        columns = {
            "row_id": [f"{kind}-{factor:g}-{row_id}" for row_id in probes.row_ids[: len(copies)]],
            "kind": [kind] * len(copies),
            "factor": [factor] * len(copies),
            "patient": probes.patients[: len(copies)],
        }
        for name, (model, films) in judges.items():
            queries = networks.embeddings(model, copies, recipe.score.batch_size)
            columns[name] = matching.best_matches(
                model, queries, films, recipe.score.gallery_block
            ).reid_score.numpy()
        parts.append(pa.table(columns))
    return pa.concat_tables(parts)


def _copies(
    recipe: Recipe, origin: bytes, probes: Records, inputs: Mapping[str, Artifact]
) -> Iterator[tuple[str, float, UInt8[np.ndarray, "n h w c"]]]:
    """Kind, factor of the demanded strength, and the changed images."""
    conditions, pixels = recipe.release.conditions, images.to_torch(probes.images)
    n_of = {factor: len(pixels) if factor == DEMANDED else math.ceil(CURVE_PART * len(pixels)) for factor in SERIES}
    for kind in CHANGES:
        for factor in SERIES:
            generator = torch_generator(origin, "changed copies", kind, factor)
            strength = factor * getattr(conditions.strengths, kind)
            yield kind, factor, images.to_uint8(changed_copies(pixels[: n_of[factor]], kind, strength, generator))
    vae = autoencoder.load(inputs["teach/latents"].local() / "vae")
    yield ROUND_TRIP, DEMANDED, images.to_uint8(autoencoder.decode(vae, autoencoder.encode(vae, pixels)))
    teacher = Sampler(inputs["teach"].local() / "pipeline", recipe.sample)
    for factor, n in n_of.items():
        seeds = [row_seed(origin, "near", factor, row_id) for row_id in probes.row_ids[:n]]
        start = min(1.0, factor * conditions.near_timestep_frac)
        asked = probes.table["prompt"].to_pylist()[:n]
        yield NEAR, factor, teacher.partial_denoise(probes.images[:n], asked, seeds, start)


def planted(work: Work) -> pa.Table:
    """Copies of training images to be scored among the student's: whoever judges these must find them.

    Exact ones, and near ones: each changed in one way, at half of the strength at which recall is demanded.
    """
    train = records.of_split(work.inputs["ingest"], "train")
    order = _people_first(train.patients, numpy_generator(work.origin, "planted"))
    chosen = train.images[order[:N_PLANTED]]
    near, strengths = np.empty_like(chosen), work.recipe.release.conditions.strengths
    for position, kind in enumerate(CHANGES):
        rows = slice(position, None, len(CHANGES))
        if len(chosen[rows]):
            generator = torch_generator(work.origin, "planted", kind)
            strength = getattr(strengths, kind) / 2
            near[rows] = images.to_uint8(changed_copies(images.to_torch(chosen[rows]), kind, strength, generator))
    names = [f"{mark}{i:03d}" for mark in (EXACT_COPY, NEAR_COPY) for i in range(len(chosen))]
    return pa.table({"row_id": names, "image": images.column(np.concatenate([chosen, near]))})


def make_losses(work: Work) -> Made:
    """The denoising loss of a model (the student's, or the teacher's) on films of members and of strangers."""
    (model,) = (artifact for name, artifact in work.inputs.items() if name != "ingest")
    people = _people(work)
    findings = work.inputs["ingest"].facts["findings"]
    lost = fit.small(
        _losses, work.recipe.sample, work.origin, model, people["image"], _label_prompts(people, findings)
    )
    columns = people.select(["row_id", "part", "stratum"])
    work.draft.write_table(columns.append_column("loss", pa.array(lost.mean(axis=1), pa.float64())))
    return Made({}, len(people))


def _losses(
    sample: config.Sample, origin: bytes, model: Artifact, films: pa.ChunkedArray, asked: Sequence[str]
) -> np.ndarray:
    return losses.denoising_losses(model.local() / "pipeline", images.array(films), asked, sample, origin=origin)


def make_gaps(work: Work) -> Made:
    """How near the closest kept image is to a film of each person, by both networks; how far the nearest few kept
    images and images of the student are.

    A filter that drops whatever resembles a training film leaves gaps around those who were trained on. What a
    teacher draws lies nearer to its films than to strangers' all the same, in what no network was taught to look at:
    so the distance is that of places among eigenfilms of the attacker's own patients, if those are enough for any.
    """
    people, kept = _people(work), work.inputs["filter"].table("kept", ["image"])
    of_student = work.inputs["evaluate/student_images"].table(
        "rows", ["image"], pc.starts_with(pc.field("row_id"), "kept-")
    )
    own = images.column(records.of_split(work.inputs["ingest"], "audit").images)
    released = {DISTANCE: kept["image"], STUDENT_DISTANCE: of_student["image"]}
    scores = fit.small(_nearness, work.recipe.score, work.inputs["score/gallery"], people["image"], released, own)
    columns = people.select(["row_id", "part", "stratum"])
    for name, values in scores.items():
        columns = columns.append_column(name, pa.array(values, pa.float64()))
    work.draft.write_table(columns)
    return Made({}, len(people))


def _nearness(
    score: config.Score,
    gallery: Artifact,
    films: pa.ChunkedArray,
    released: Mapping[str, pa.ChunkedArray],
    own: pa.Array,
) -> dict[str, np.ndarray]:
    return _gaps(score, gallery, films, released[DISTANCE]) | _distances(films, released, own)


def _gaps(
    score: config.Score, gallery: Artifact, films: pa.ChunkedArray, kept: pa.ChunkedArray
) -> dict[str, np.ndarray]:
    """Logit of each film with the closest kept image, by each network."""
    pixels, released = images.array(films), images.array(kept)
    names = [str(i) for i in range(len(released))]
    found = {}
    for name in NETWORKS:
        model = networks.load(gallery.local() / name)
        # The kept images stand in the gallery's place: each film looks for the closest of them.
        there = matching.Gallery.of(model, released, names, names, score.batch_size)
        queries = networks.embeddings(model, pixels, score.batch_size)
        found[name] = matching.best_matches(model, queries, there, score.gallery_block).logit.double().numpy()
    return found


def _distances(
    films: pa.ChunkedArray, released: Mapping[str, pa.ChunkedArray], own: pa.Array
) -> dict[str, np.ndarray]:
    """Mean distance of each film to the nearest few of each released set; empty if own films allow no eigenfilms."""
    eigenfilms = EigenFilms.of(_standardised(own), EIGENFILMS)
    if not eigenfilms.n_components:
        return {}
    places = eigenfilms(_standardised(films)).double()
    found = {}
    for name, pictures in released.items():
        cosines = places @ eigenfilms(_standardised(pictures)).double().T
        found[name] = 1 - cosines.topk(min(NEAREST, len(pictures)), 1).values.mean(1).numpy()
    return found


def _standardised(column: pa.ChunkedArray | pa.Array) -> torch.Tensor:
    return networks.standardised(images.to_torch(images.array(column)))


def _people(work: Work) -> pa.Table:
    """One film a person of every part: `row_id, part, stratum, labels, image`.

    The stratum is the person's number of films in the cohort, in bands: members and strangers are compared as if they
    had the same mix, as a person with many films is learned better whoever he is.
    """
    parts, most = [], work.recipe.evaluate.membership_people
    for part, split in PEOPLE.items():
        films = records.of_split(work.inputs["ingest"], split)
        order = _people_first(films.patients, numpy_generator(work.origin, "people", split))
        n_people = len(np.unique(films.patients))
        chosen = records.take(films, np.sort(order[:n_people][:most]))
        bands = np.digitize(chosen.table["patient_images"].to_numpy(), STRATA)
        columns = {"row_id": chosen.row_ids, "part": [part] * len(bands), "stratum": bands}
        columns |= {"labels": chosen.table["labels"].combine_chunks(), "image": images.column(chosen.images)}
        parts.append(pa.table(columns))
    return pa.concat_tables(parts)


def _label_prompts(people: pa.Table, findings: Sequence[str]) -> list[str]:
    """What an attacker can say of a film: its findings."""
    labels_alone = config.Prompt(parts=("labels",))
    return [
        prompts.compose(
            labels_alone,
            age=None,
            sex=None,
            view=None,
            labels=[name for name, value in zip(findings, row, strict=True) if value == 1],
            phrases=(),
        )
        for row in people["labels"].to_pylist()
    ]
