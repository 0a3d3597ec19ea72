"""Row workers that several steps use: sample images from a generator, score images against the gallery."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline import config, images, rows
from pipeline.artifact import Artifact
from pipeline.generators.sampler import Sampler
from pipeline.privacy import leaks, matching, networks
from pipeline.privacy.leaning import Leaning
from pipeline.tables import AUDIT_SCORES, SCORES, with_images
from pipeline.task import Made, Work

NETWORKS = ("filter_network", "auditor")
DECOYS, LEANING = "decoys", "leaning.safetensors"
"""Beside `<network>_embeddings.parquet` of the training images: the decoys', by the filter's network; and both in
place."""


class SampleImages:
    """Row worker: the image of a prompt and a seed."""

    reads = pa.schema([("row_id", pa.string()), ("seed", pa.int64()), ("prompt", pa.string())])

    def __init__(self, generator: Artifact, sample: config.Sample, image_px: int, channels: int):
        torch.set_num_threads(max(1, int(sample.cpus_per_actor)))
        self._sampler = Sampler(generator.local() / "pipeline", sample, _device(sample.gpus_per_actor))
        self.adds = with_images(pa.schema([]), image_px, channels)

    def __call__(self, batch: pa.Table) -> pa.Table:
        made = self._sampler(batch["prompt"].to_pylist(), batch["seed"].to_pylist())
        return pa.table({"image": images.column(made)})


class ScoreImages:
    """Row worker: the largest same-patient probability over the gallery, by the filter's network and the auditor.

    Both are read off in one pass over the images; no filter rule ever sees the auditor's column.
    """

    def __init__(self, gallery: Artifact, score: config.Score, image_px: int, channels: int):
        torch.set_num_threads(max(1, int(score.cpus_per_actor)))
        device = _device(score.gpus_per_actor)
        self._score = score
        folder = gallery.local()
        self._models = [networks.load(folder / name).to(device) for name in NETWORKS]
        self._originals = leaks.Originals.of(images.array(pq.read_table(folder / "images.parquet")["image"]))
        self._galleries = [matching.Gallery.load(folder / f"{name}_embeddings.parquet") for name in NETWORKS]
        self._decoys = matching.Gallery.load(folder / f"{DECOYS}_embeddings.parquet")
        self._leaning = Leaning.load(folder / LEANING, image_px)
        self.reads = with_images(pa.schema([("row_id", pa.string())]), image_px, channels)
        self.adds = pa.schema([*list(SCORES)[1:], *list(AUDIT_SCORES)[1:]])

    def __call__(self, batch: pa.Table) -> pa.Table:
        pixels = images.array(batch["image"])
        embedded = [networks.embeddings(model, pixels, self._score.batch_size) for model in self._models]
        block = self._score.gallery_block
        found = [
            matching.best_matches(*searched, block)
            for searched in zip(self._models, embedded, self._galleries, strict=True)
        ]
        decoys = matching.best_matches(self._models[0], embedded[0], self._decoys, block)
        names = self._galleries[0].row_ids
        nearest = [names[position] for position in found[0].nearest.tolist()]
        columns = [
            pa.array(found[0].reid_score.numpy(), pa.float32()),
            pa.array(nearest, pa.string()),
            pa.array(found[0].margin.numpy(), pa.float32()),
            pa.array(decoys.reid_score.numpy(), pa.float32()),
            pa.array(list(self._leaning(pixels)), pa.list_(pa.float32())),
            pa.array(self._originals.copies(pixels)),
            pa.array(found[1].reid_score.numpy(), pa.float32()),
        ]
        return pa.table(columns, schema=self.adds)


class Searched(NamedTuple):
    """A gallery and the network that it is searched by."""

    gallery: Artifact
    """Holds `<network>` and `<network>_embeddings.parquet`."""
    network: str


class MatchImages:
    """Row worker: the largest same-patient probability over a gallery, for each column by a network of its own.

    The score of `ScoreImages` and nothing else, for who wants other networks, or only one of the two.
    """

    def __init__(self, searched: Mapping[str, Searched], score: config.Score, image_px: int, channels: int):
        torch.set_num_threads(max(1, int(score.cpus_per_actor)))
        device = _device(score.gpus_per_actor)
        self._score = score
        self._searched = []
        for gallery, network in searched.values():
            folder = gallery.local()
            films = matching.Gallery.load(folder / f"{network}_embeddings.parquet")
            self._searched.append((networks.load(folder / network).to(device), films))
        self.reads = with_images(pa.schema([("row_id", pa.string())]), image_px, channels)
        self.adds = pa.schema([(column, pa.float32()) for column in searched])

    def __call__(self, batch: pa.Table) -> pa.Table:
        pixels = images.array(batch["image"])
        columns = []
        for model, films in self._searched:
            embedded = networks.embeddings(model, pixels, self._score.batch_size)
            found = matching.best_matches(model, embedded, films, self._score.gallery_block)
            columns.append(pa.array(found.reid_score.numpy(), pa.float32()))
        return pa.table(columns, schema=self.adds)


def sample_plan(work: Work, plan: pa.Table, generator: Artifact, sample: config.Sample) -> Made:
    """Write `plan`, and its images to `rows`, made by a pool of actors from the generator's pipeline.

    What ends its worker every time is in neither.
    """
    draft = work.draft
    written = rows.append_columns(
        draft.write_source(plan),
        SampleImages,
        {"generator": generator, "sample": sample, **_shape(work)},
        draft.uri_of("rows"),
        work_uri=draft.work_uri,
        leftovers=draft.leftover_uris("rows"),
        pool=rows.Pool(
            sample.actors,
            sample.batch_size,
            sample.block_rows,
            sample.min_actors,
            sample.cpus_per_actor,
            sample.gpus_per_actor,
            sample.market,
        ),
        bar=work.bar,
    )
    there = [name not in written.set_aside for name in plan["row_id"].to_pylist()]
    draft.write_table(plan.filter(pa.array(there)), "plan")
    return Made(written.facts, written.rows)


def score_rows(work: Work, source_uri: str, gallery: Artifact) -> Made:
    """Write the scores of the images at `source_uri` to `rows`."""
    return _scored(work, source_uri, ScoreImages, {"gallery": gallery})


def match_rows(work: Work, source_uri: str, searched: Mapping[str, Searched]) -> Made:
    """Write for the images at `source_uri` a score per column to `rows`."""
    return _scored(work, source_uri, MatchImages, {"searched": searched})


def _scored(work: Work, source_uri: str, worker: type[rows.Worker], arguments: Mapping[str, Any]) -> Made:
    score = work.recipe.score
    written = rows.append_columns(
        source_uri,
        worker,
        {**arguments, "score": score, **_shape(work)},
        work.draft.uri_of("rows"),
        work_uri=work.draft.work_uri,
        leftovers=work.draft.leftover_uris("rows"),
        pool=rows.Pool(
            score.actors,
            score.batch_size,
            score.block_rows,
            cpus=score.cpus_per_actor,
            gpus=score.gpus_per_actor,
            market=score.market,
        ),
        bar=work.bar,
    )
    return Made(written.facts, written.rows)


def _shape(work: Work) -> dict[str, int]:
    return {"image_px": work.recipe.ingest.image_px, "channels": work.recipe.ingest.channels}


def _device(gpus: float) -> str:
    return "cuda" if gpus else "cpu"
