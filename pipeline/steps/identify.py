"""identify: a re-identification network for the filter, and an auditor that the filter never sees.

The auditor is another architecture, trained on other patients with another seed. Each is verified on the patients
that the other one learned from. A network under the floor stops the run: a filter built on it would be worthless.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import config, fit, images, records
from pipeline.artifact import folder_digest
from pipeline.config import Recipe
from pipeline.estimate import Estimate
from pipeline.generators import autoencoder
from pipeline.privacy import networks, training, verification
from pipeline.privacy.augment import RoundTrip
from pipeline.progress import Bar
from pipeline.records import Records
from pipeline.seeds import row_seed
from pipeline.task import Made, Task, Work

VERSION = 4
EMBED_ROWS = 256
SPLIT_OF = {"filter_network": "identify", "auditor": "audit"}
REPORTED = {
    "auc": "verification_auc",
    "recall": "recall",
    "false_positive_rate": "false_positive_rate",
    "rank1": "rank1",
}


class WeakNetworkError(RuntimeError):
    """A re-identification network is too weak to build a filter on."""


def tasks(recipe: Recipe) -> list[Task]:
    """`identify/filter_network` and `identify/auditor`."""
    return [
        Task(
            f"identify/{name}",
            make,
            settings(recipe, getattr(recipe.identify, name)),
            ("ingest",),
            version=VERSION,
            about=f"trained on split {split}",
        )
        for name, split in SPLIT_OF.items()
    ]


def settings(recipe: Recipe, network: config.Network) -> dict[str, Any]:
    """All that decides what a network learns, beside records and chance."""
    section = recipe.identify
    return {
        "augment": section.augment.model_dump(mode="json"),
        "auc_floor": section.auc_floor,
        "below_floor": section.below_floor,
        "operating_recall": section.operating_recall,
        "autoencoder": recipe.teach.autoencoder.model_dump(mode="json"),
        "seed": recipe.seed,
        "network": network.model_dump(mode="json", exclude={"warm_start"}),
        "warm_start": folder_digest(network.warm_start),
    }


def make(work: Work) -> Made:
    """Train a network and verify it on unseen patients."""
    name = work.draft.key.name.split("/")[1]
    network: config.Network = getattr(work.recipe.identify, name)
    (other,) = (split for split in SPLIT_OF.values() if split != SPLIT_OF[name])
    seed = row_seed(work.origin, "identify", name, network.seed_offset)
    return trained(work, network, seed, SPLIT_OF[name], other, f"identify.{name}", "a filter built on it")


def trained(
    work: Work, network: config.Network, seed: int, learned_from: str, verified_on: str, name: str, use: str
) -> Made:
    """Train a network on the patients of one split and verify it on those of another.

    Raises: WeakNetworkError, which says that `use` would be worthless, if the recipe wants a weak network to stop.
    """
    section, ingest = work.recipe.identify, work.inputs["ingest"]
    metrics = fit.small(
        _train,
        work.recipe,
        network,
        seed,
        records.of_split(ingest, learned_from),
        records.of_split(ingest, verified_on),
        work.bar,
        out=work.draft.folder,
        group=fit.Group(1, section.cpus, section.gpu, section.market),
    )
    auc = metrics["verification_auc"]
    if auc.low < section.auc_floor and section.below_floor == "stop":
        raise WeakNetworkError(
            f"{name}: want a verification AUC whose lower bound is at least {section.auc_floor:g}, got "
            f"{auc.value:.3f} [{auc.low:.3f}, {auc.high:.3f}] on {auc.n:,} pairs of unseen patients, so {use} "
            "would be worthless — give it more patients or steps; or lower identify.auc_floor or set "
            "identify.below_floor to 'warn', and the gate will say 'not enough evidence'"
        )
    return Made({"metrics": {key: value.as_dict() for key, value in metrics.items()}})


def _train(
    recipe: Recipe, network: config.Network, seed: int, seen: Records, unseen: Records, bar: Bar, out: Path
) -> dict[str, Estimate]:
    section = recipe.identify
    device = "cuda" if section.gpu else "cpu"
    bar.begin(network.steps)
    model = training.fit(
        network,
        section.augment,
        seen.images,
        seen.patients,
        seed=seed,
        round_trip=_round_trip(recipe, seen.images, seed),
        on_step=lambda done, total: bar.add(1),
        initial=networks.load(network.warm_start) if network.warm_start else None,
        device=device,
    )
    model.save(out / "network")
    verified = verification.verification(
        model,
        unseen.images,
        unseen.patients,
        seed=seed,
        operating_recall=section.operating_recall,
        batch_size=EMBED_ROWS,
    )
    return {name: getattr(verified, key) for key, name in REPORTED.items()}


def _round_trip(recipe: Recipe, films: np.ndarray, seed: int) -> RoundTrip:
    """Through an autoencoder like the teacher's, but fitted on these patients (the teacher's knows only its own).

    One that would have to be trained is replaced by the patch PCA with as many channels.
    """
    cfg = recipe.teach.autoencoder
    if cfg.kind == "kl":
        cfg = cfg.model_copy(update={"kind": "patch_pca"})
    model = autoencoder.build(cfg, films, seed)

    def round_trip(some: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            back = autoencoder.decode(model, autoencoder.encode(model, some))
        return images.to_torch(images.to_uint8(back))

    return round_trip
