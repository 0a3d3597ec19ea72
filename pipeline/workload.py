"""What a task's time and size are proportional to, read off manifests: of what was made and of what will be.

A manifest says with which settings (`config`), on how many `rows` and from which inputs. Whoever compares the
workload of a task that was measured with that of one that was not has the one's time from the other's. Not here:
times and prices (see `costs`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline import config
from pipeline.config import canonical
from pipeline.generators import autoencoder, denoiser
from pipeline.privacy import networks

Manifests = Mapping[str, Mapping[str, Any]]
"""Name -> manifest, of a task and of all that it is made from."""
FLOAT_BYTES = 4
ROW_BYTES = 50
"""Id, seed, prompt, scores of a row beside its image, compressed."""
STATE_COPIES = 4
"""Weights, their average and AdamW's two moments: what a checkpoint holds of every parameter ..."""
CHECKPOINTS_KEPT = 2
"""... and how many lie in the store while a fit runs."""
NETWORKS = ("filter_network", "auditor")


class Workload(NamedTuple):
    """How much there is to do."""

    n: float
    unit: str
    """What a throughput counts, and for samples the passes of the denoiser through each."""
    grows_with: tuple[float, ...]
    """The time is a sum of parts, each proportional to one of these."""
    alike: tuple[Any, ...]
    """A throughput counts for another task only if these are the same."""

    def times(self, other: Workload) -> float:
        """How much longer this takes than the other: exact if the time has one part, at most so if it has several."""
        parts = zip(self.grows_with, other.grows_with, strict=True)
        return max((mine / theirs for mine, theirs in parts if theirs), default=1.0)


def workload(name: str, made: Manifests) -> Workload:
    """The workload of the task `name`.

    Raises: KeyError if the manifest of something that it rests on is not there.
    """
    here, ingest = made[name]["config"], made["ingest"]["config"]["ingest"]
    px, images = _values(made), made["ingest"]["facts"]["images_by_split"]
    word, _, part = name.partition("/")
    match word, part:
        case "ingest", _:
            n = sum(images.values())
            return Workload(n, "images", (n, n * px), ("ingest", ingest["kind"]))
        case (("teach" | "distill"), "latents"):
            n, coder = _latent_rows(name, made), here["autoencoder"] | {"n_images": None}
            trained = here["autoencoder"]["n_images"] * px if coder["kind"] == "kl" else 0
            alike = ("latents", coder, here["text_folder"], here["text"]["train"])
            return Workload(n, "images", (n * px, trained), alike)
        case (("teach" | "distill"), _):
            n, alike = here["n_images"], ("train", here["denoiser"]["kind"], here["text"], here["text_folder"])
            return Workload(n, "images", (n * _generator(here, made).flops,), alike)
        case "identify", _:
            network, of_other = here["network"], images["audit" if part == "filter_network" else "identify"]
            n = network["steps"] * 2 * network["patients_per_batch"]
            alike = ("identify", *_architecture(network), here["augment"], here["autoencoder"]["kind"])
            return Workload(n, "images", (n * px, of_other * px), alike)
        case ("sample", _) | ("evaluate", "student_images"):
            n, source = made[name]["rows"], made["teach" if word == "sample" else "distill"]["config"]
            passes = here["sample"]["steps"] * (2 if here["sample"]["guidance_scale"] > 1 else 1)
            alike = ("sample", source["denoiser"]["kind"], source["autoencoder"], source["text"])
            # Denoised step by step, then decoded.
            grows = (n * passes * _generator(source, made).flops, n * px)
            return Workload(n, f"images x {passes}", grows, alike)
        case ("score", _) | ("evaluate", "student_scores"):
            n, kind = made[name]["rows"], "gallery" if part == "gallery" else "score"
            alike = (kind, *(_architecture(made[f"identify/{net}"]["config"]["network"]) for net in NETWORKS))
            # Embedded, then compared with every pose of every image of the gallery, and of the decoys.
            compared = made["score/gallery"]["config"]["score"]["poses"] * (images["train"] + images["control"])
            return Workload(n * compared, "pairs", (n * px, n * compared), alike)
        case "evaluate", ("encoder" | "real" | "teacher" | "filtered" | "student" | "student_large"):
            fit, tested = here["classifier"], 0 if part == "encoder" else images["test"]
            n = here.get("steps", fit["steps"]) * fit["batch_size"]
            return Workload(n, "images", (n * px, tested * px), ("classifier", fit["width"], bool(tested)))
        case "evaluate", "changed":
            n, per_image = here["gate"]["n_probe"], here["sample"]["steps"] * _generator(_teacher(made), made).flops
            return Workload(n, "images", (n * px, n * per_image, n * images["train"]), ("changed",))
        case "evaluate", ("membership_teacher" | "membership_student"):
            n, source = 3 * here["people"], made["teach" if part.endswith("teacher") else "distill"]["config"]
            return Workload(n, "images", (n * _generator(source, made).flops,), ("membership",))
        case "evaluate", "gaps":
            n = 3 * here["people"]
            released = made["filter"]["rows"] + made["evaluate/student_images"]["rows"]
            return Workload(n, "images", ((n + released + images["audit"]) * px, n * released), ("gaps",))
        case "evaluate", "":
            n = images["test"] + sum(made[arm]["rows"] for arm in ("sample/0", "filter", "evaluate/student_images"))
            resampled = here["evaluate"]["bootstrap"] * images["test"]
            return Workload(n, "images", (n * px, n * images["test"], resampled), ("evaluate",))
        case "release", "scan":
            n = made["filter"]["rows"] * images["train"]
            return Workload(n, "pairs", (n,), ("scan",))
        case _:
            n = made["filter"]["rows"] if "filter" in made else made["sample/0"]["rows"]
            return Workload(n, "images", (n * px,), (name.split("/")[0], part))


def stored_bytes(name: str, made: Manifests) -> float:
    """Size of the artifact `name`; tables and weights of a few kilobytes are left out.

    Raises: KeyError if the manifest of something that it rests on is not there.
    """
    here, images = made[name]["config"], made["ingest"]["facts"]["images_by_split"]
    row = _values(made) + ROW_BYTES
    word, _, part = name.partition("/")
    match word, part:
        case "ingest", _:
            return sum(images.values()) * row
        case (("teach" | "distill"), "latents"):
            shape, tokens = _latent_shape(here, made), here["text"]["max_tokens"]
            learned = here["text_folder"] is None or here["text"]["train"]
            text = 2 * 8 * tokens if learned else tokens * (8 + FLOAT_BYTES * here["text"]["width"])
            latent = FLOAT_BYTES * shape[0] * shape[1] ** 2
            return _latent_rows(name, made) * (latent + text) + _coder_bytes(here, made)
        case (("teach" | "distill"), _):
            return _pipeline_bytes(here, made)
        case "identify", _:
            return _network_bytes(here["network"], made)
        case ("sample", _) | ("evaluate", "student_images"):
            return made[name]["rows"] * row
        case "score", "gallery":
            nets = [made[f"identify/{net}"]["config"]["network"] for net in NETWORKS]
            embeddings = sum(FLOAT_BYTES * (network["embedding"] + network["eigenfilms"]) for network in nets)
            stood = made[name]["config"]["score"]["poses"] * (images["train"] + images["control"])
            return images["train"] * row + stood * embeddings + sum(_network_bytes(network, made) for network in nets)
        case ("score", _) | ("evaluate", "student_scores"):
            return made[name]["rows"] * ROW_BYTES
        case "filter", "":
            return made[name]["rows"] * row
        case "release", ("candidate" | ""):
            n = min(made["filter"]["rows"], made["release/candidate"]["config"]["n_images"])
            copies = 2 if part == "" else 1  # it is laid out at the top of the store as well
            return copies * (n * row + _pipeline_bytes(made["distill"]["config"], made))
        case _:
            return 0.0


def checkpoint_bytes(name: str, made: Manifests) -> float:
    """What a fit keeps in the store while it runs, beside what it leaves there."""
    if name not in ("teach", "distill"):
        return 0.0
    return CHECKPOINTS_KEPT * STATE_COPIES * FLOAT_BYTES * _generator(made[name]["config"], made).parameters


class Size(NamedTuple):
    """How large a denoiser is."""

    flops: int
    """Of one forward pass of one image; backward passes, and small parts beside it, are in proportion."""
    parameters: int


@lru_cache
def _denoiser(settings: str, shape: tuple[int, int], text_width: int, n_tokens: int) -> Size:
    """Counted on torch's meta device: no weights, no arithmetic."""
    cfg, (channels, side) = config.Denoiser.model_validate_json(settings), shape
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network = denoiser.build(cfg, channels, side, text_width, seed=0)
        text, mask = torch.zeros(1, n_tokens, text_width), torch.ones(1, n_tokens, dtype=torch.int64)
        timestep = torch.zeros(1, dtype=torch.int64)
        denoiser.predict(network, torch.zeros(1, channels, side, side), timestep, text, mask)
    return Size(counter.get_total_flops(), sum(p.numel() for p in network.parameters()))


def _generator(section: Mapping[str, Any], made: Manifests) -> Size:
    text = section["text"]
    return _denoiser(canonical(section["denoiser"]), _latent_shape(section, made), text["width"], text["max_tokens"])


def _latent_shape(section: Mapping[str, Any], made: Manifests) -> tuple[int, int]:
    ingest = made["ingest"]["config"]["ingest"]
    coder = config.Autoencoder.model_validate(section["autoencoder"])
    return autoencoder.latent_shape(coder, ingest["channels"], ingest["image_px"])


def _teacher(made: Manifests) -> Mapping[str, Any]:
    return made["teach"]["config"]


def _latent_rows(name: str, made: Manifests) -> int:
    by_split = made["ingest"]["facts"]["images_by_split"]
    return by_split["train"] if name.startswith("teach") else made["filter"]["rows"]


def _values(made: Manifests) -> int:
    """Numbers in an image, which are its bytes."""
    ingest = made["ingest"]["config"]["ingest"]
    return ingest["image_px"] ** 2 * ingest["channels"]


def _architecture(network: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(network[key] for key in ("backbone", "width", "embedding", "averaged_shift_px"))


def _pipeline_bytes(section: Mapping[str, Any], made: Manifests) -> float:
    return FLOAT_BYTES * _generator(section, made).parameters + _coder_bytes(section, made)


def _coder_bytes(section: Mapping[str, Any], made: Manifests) -> float:
    ingest = made["ingest"]["config"]["ingest"]
    return FLOAT_BYTES * _n_coder(json.dumps(section["autoencoder"]), ingest["image_px"], ingest["channels"])


@lru_cache
def _n_coder(settings: str, image_px: int, channels: int) -> int:
    cfg = config.Autoencoder.model_validate_json(settings)
    model = autoencoder.build(cfg, np.zeros((2, image_px, image_px, channels), np.uint8), seed=0)
    return sum(p.numel() for p in model.parameters())


def _network_bytes(settings: Mapping[str, Any], made: Manifests) -> float:
    ingest = made["ingest"]["config"]["ingest"]
    return FLOAT_BYTES * _n_network(json.dumps(settings), ingest["image_px"], ingest["channels"])


@lru_cache
def _n_network(settings: str, image_px: int, channels: int) -> int:
    cfg = config.Network.model_validate_json(settings)
    return sum(p.numel() for p in networks.SiameseNetwork(cfg, image_px, channels).parameters())
