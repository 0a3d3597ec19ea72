"""From images and prompts to a trained diffusers pipeline: what teacher and student share.

Two artifacts: latents (autoencoder, tokenizer and, by a row step, latents and token ids or frozen embeddings), and
the pipeline folder, trained on those rows. Neither knows which data it is given.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import torch

from pipeline import config, fit, images, rows
from pipeline.artifact import Artifact, folder_digest
from pipeline.folders import Folder
from pipeline.generators import autoencoder, denoiser, folder, text, training
from pipeline.tables import with_images
from pipeline.task import Made, Work

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from transformers import PreTrainedModel

    from pipeline.generators.denoiser import Denoiser

ENCODE_BATCH_ROWS = 256


def fingerprinted(section: config.Generator) -> dict[str, Any]:
    """What of a section decides the model: not the size of a worker, and a folder by its content."""
    told = section.model_dump(mode="json", exclude={"cpus_per_worker", "gpu", "market", "seed_offset"})
    del told["text"]["folder"]
    told["workers"] = max(1, told["workers"])  # one worker and none take the same steps
    if told["min_workers"] is None:
        del told["min_workers"]
    return told | {"text_folder": folder_digest(section.text.folder)}


def fingerprinted_latents(section: config.Generator) -> dict[str, Any]:
    """What of a section decides autoencoder, tokenizer and encoded rows."""
    told = fingerprinted(section)
    return (
        told
        if section.autoencoder.kind == "kl"
        else {key: told[key] for key in ("autoencoder", "text", "text_folder")}
    )


def make_latents(work: Work, section: config.Generator, table: pa.Table, seed: int) -> Made:
    """Fit the autoencoder and the tokenizer on the rows (row_id, prompt, image), and encode every row once."""
    draft = work.draft
    source_uri = draft.write_source(table.select(["row_id", "prompt", "image"]))
    tokenizer = (
        text.train_tokenizer(table["prompt"].to_pylist(), section.text.max_tokens)
        if section.text.folder is None
        else text.load_tokenizer(section.text.folder, section.text.max_tokens)
    )
    text.token_ids(tokenizer, sorted(set(table["prompt"].to_pylist())), section.text.max_tokens)
    tokenizer.save_pretrained(draft.folder / "tokenizer")
    _fit_autoencoder(work, section, images.array(table["image"]), source_uri, seed)
    written = rows.append_columns(
        source_uri,
        Encode,
        {
            "section": section,
            "folder": Folder.of(draft.folder, "vae", "tokenizer"),
            "image_px": work.recipe.ingest.image_px,
            "seed": seed,
        },
        draft.uri_of("rows"),
        work_uri=draft.work_uri,
        leftovers=draft.leftover_uris("rows"),
        pool=rows.Pool(
            section.workers, ENCODE_BATCH_ROWS, 4 * ENCODE_BATCH_ROWS, gpus=float(section.gpu), market=section.market
        ),
        bar=work.bar,
    )
    return Made({"vocabulary": len(tokenizer)} | written.facts, written.rows)


def make_pipeline(work: Work, section: config.Generator, latents: str, seed: int) -> Made:
    """Train denoiser and text encoder on the rows of the artifact named `latents`, save the pipeline folder."""
    source = work.inputs[latents]
    trained = fit.train_on_rows(
        DenoiserTrainee,
        {"section": section, "source": source, "seed": seed},
        source.uri_of("rows"),
        group=_group(section),
        checkpoint_images=section.checkpoint_images,
        work_uri=work.draft.work_uri,
        leftovers=work.draft.leftover_work_uris,
        bar=work.bar,
    )
    out = work.draft.folder / "pipeline"
    shutil.rmtree(out, ignore_errors=True)  # half a copy of a run that was killed
    shutil.copytree(trained, out)
    n_rows = rows.count_rows(source.uri_of("rows"))
    return Made({"epochs": round(section.n_images / n_rows, 1), "trained_on_rows": n_rows})


class Encode:
    """Row worker: an image's latent and its prompt's token ids, or its embeddings if the encoder is frozen."""

    def __init__(self, section: config.Generator, folder: Folder, image_px: int, seed: int):
        parts = folder.local()
        self._section, self._autoencoder = section, autoencoder.load(parts / "vae")
        self._tokenizer = text.load_tokenizer(parts / "tokenizer", section.text.max_tokens)
        self._frozen = section.text.folder is not None and not section.text.train
        channels = self._autoencoder.config["in_channels"]
        self.reads = with_images(pa.schema([("row_id", pa.string()), ("prompt", pa.string())]), image_px, channels)
        shape = autoencoder.latent_shape(section.autoencoder, channels, image_px)
        tokens = (section.text.max_tokens,)
        self.adds = pa.schema(
            [
                ("latent", pa.fixed_shape_tensor(pa.float32(), (shape[0], shape[1], shape[1]))),
                ("mask", pa.fixed_shape_tensor(pa.int64(), tokens)),
            ]
        )
        if self._frozen:
            self._encoder = text.build_encoder(section.text, self._tokenizer, section.denoiser.kind, seed)
            self.adds = self.adds.append(
                pa.field("text", pa.fixed_shape_tensor(pa.float32(), (*tokens, text.width(self._encoder))))
            )
        else:
            self.adds = self.adds.append(pa.field("text", pa.fixed_shape_tensor(pa.int64(), tokens)))

    @torch.inference_mode()
    def __call__(self, batch: pa.Table) -> pa.Table:
        pixels = images.to_torch(images.array(batch["image"]))
        prompts = batch["prompt"].to_pylist()
        ids, mask = text.token_ids(self._tokenizer, prompts, self._section.text.max_tokens)
        words = text.embed(self._encoder, ids, mask, self._section.denoiser.kind) if self._frozen else ids
        latents = autoencoder.encode(self._autoencoder, pixels)
        return pa.table({"latent": _column(latents), "mask": _column(mask), "text": _column(words)})


class DenoiserTrainee:
    """Trains the denoiser, and its text encoder if that one learns too, on latents."""

    def __init__(self, table: pa.Table, *, place: fit.Place, section: config.Generator, source: Artifact, seed: int):
        self._parts, self._section, device = source.local(), section, place.device
        self._latents = _tensor(table["latent"], device)
        self._text, self._mask = _tensor(table["text"], device), _tensor(table["mask"], device)
        self._tokenizer = text.load_tokenizer(self._parts / "tokenizer", section.text.max_tokens)
        encoder = text.build_encoder(section.text, self._tokenizer, section.denoiser.kind, seed)
        model = denoiser.build(
            section.denoiser, self._latents.shape[1], self._latents.shape[2], text.width(encoder), seed
        )
        ids, mask = text.token_ids(self._tokenizer, [""], section.text.max_tokens)
        learns = section.text.folder is None or section.text.train
        self._frozen_encoder = None if learns else encoder
        null = ids
        if not learns:
            with torch.no_grad():
                null = text.embed(encoder, ids, mask, section.denoiser.kind)
        self.fit = training.Training(
            section,
            place.prepared(model),
            place.prepared(encoder) if learns else None,
            (null[0].to(device), mask[0].to(device)),
            seed,
            place.rank,
            place.of,
        )

    def step(self) -> None:
        """Train on this worker's part of the next batch."""
        chosen = torch.from_numpy(self.fit.rows(len(self._latents))).to(self._latents.device)
        self.fit.step(self._latents[chosen], self._text[chosen], self._mask[chosen])

    def save(self, out: Path) -> None:
        """Write the pipeline with averaged weights."""
        modules = self.fit.averaged()
        encoder = cast("PreTrainedModel", modules.get("text", self._frozen_encoder))
        vae, network = autoencoder.load(self._parts / "vae"), cast("Denoiser", modules["denoiser"])
        folder.save(out, vae, self._tokenizer, encoder, network, self._section)


class AutoencoderTrainee:
    """Trains an AutoencoderKL on images."""

    def __init__(self, table: pa.Table, *, place: fit.Place, section: config.Generator, seed: int):
        self._images = images.array(table["image"])
        model = autoencoder.build(section.autoencoder, self._images, seed)
        _, latent_px = autoencoder.latent_shape(section.autoencoder, self._images.shape[-1], self._images.shape[1])
        objective = place.prepared(autoencoder.Objective(section.autoencoder, cast("AutoencoderKL", model)))
        self.fit = training.AutoencoderTraining(section, objective, latent_px, seed, place.rank, place.of)
        self._device = place.device

    def step(self) -> None:
        """Train on this worker's part of the next batch."""
        chosen = self.fit.rows(len(self._images))
        self.fit.step(images.to_torch(self._images[chosen]).to(self._device))

    def save(self, out: Path) -> None:
        """Write the autoencoder with averaged weights and its scaling factor."""
        autoencoder.fit_scale(self.fit.trained().cpu(), self._images).save_pretrained(out)


def _fit_autoencoder(work: Work, section: config.Generator, pixels: np.ndarray, source_uri: str, seed: int) -> None:
    out = work.draft.folder / "vae"
    if section.autoencoder.kind != "kl":
        fit.small(_computed_autoencoder, section.autoencoder, pixels, seed, out=out)
        return
    trained = fit.train_on_rows(
        AutoencoderTrainee,
        {"section": section, "seed": seed},
        source_uri,
        group=_group(section),
        checkpoint_images=section.checkpoint_images,
        work_uri=work.draft.work_uri,
        leftovers=work.draft.leftover_work_uris,
        bar=work.bar,
    )
    shutil.copytree(trained, out, dirs_exist_ok=True)


def _computed_autoencoder(cfg: config.Autoencoder, pixels: np.ndarray, seed: int, out: Path) -> None:
    autoencoder.build(cfg, pixels, seed).save_pretrained(out)


def _group(section: config.Generator) -> fit.Group:
    return fit.Group(section.workers, section.cpus_per_worker, section.gpu, section.market, section.min_workers)


def _column(values: torch.Tensor) -> pa.ExtensionArray:
    flat = values.cpu().contiguous().numpy()
    kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(flat.dtype), flat.shape[1:])
    storage = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), int(np.prod(flat.shape[1:])))
    return pa.ExtensionArray.from_storage(kind, storage)


def _tensor(column: pa.ChunkedArray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.array(images.array(column))).to(device)
