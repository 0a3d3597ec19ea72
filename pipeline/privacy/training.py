"""Teach the Siamese network which films show one patient.

A batch holds two films each of P patients, and films of patients who have only one, as further negatives. The data
order, augmentation, initial weights and dropout are functions of the seed. Not here: how good it became
(`verification`).
Axis letters: n images, c channels, h height, w width, d embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from pipeline import config
from pipeline.images import to_torch
from pipeline.privacy.augment import RoundTrip, augmented
from pipeline.privacy.eigenfilms import EigenFilms
from pipeline.privacy.matching import different_pairs
from pipeline.privacy.networks import SiameseNetwork, standardised
from pipeline.seeds import numpy_generator, row_seed, torch_generator

BCE_WEIGHT = 0.5
EMBED_FILMS, PAIR_ROWS = 512, 100_000
STRANGER_PAIRS = 1_000_000
STRANGER_FRACS = (1e-2, 1e-4)
"""Shares of strangers' pairs at which places and features are put on one scale."""
PLACE_PART = 0.25


class Batch(NamedTuple):
    """Positions of the films of a batch: the two films of every pair, then single films."""

    pairs: Int[np.ndarray, "p 2"]
    singles: Int[np.ndarray, " s"]


def fit(
    network: config.Network,
    augment: config.Augment,
    images: UInt8[np.ndarray, "n h w c"],
    patients: Int[np.ndarray, " n"],
    *,
    seed: int,
    round_trip: RoundTrip | None = None,
    on_step: Callable[[int, int], None] | None = None,
    initial: SiameseNetwork | None = None,
    device: str = "cpu",
) -> SiameseNetwork:
    """The trained network in eval mode; the same for the same arguments on one kind of hardware.

    `on_step` is told (steps done, steps in all). `initial` is a network of the same shape to start from.
    Raises: ValueError if fewer than two patients have two films, ConfigError if `initial` has another shape.
    """
    pixels = to_torch(images).to(device)
    batches = drawn_batches(patients, network.patients_per_batch, numpy_generator(seed, "network batches"))
    noise = torch_generator(seed, "network augmentation")
    with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
        torch.manual_seed(row_seed(seed, "network weights and dropout"))
        model = _started(network, images.shape[1], images.shape[3], initial).to(device).train()
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=network.lr, weight_decay=network.weight_decay, fused=True
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / network.steps))
        )
        for step in range(network.steps):
            batch = next(batches)
            films = torch.from_numpy(np.concatenate([batch.pairs.T.reshape(-1), batch.singles])).to(device)
            embedding = model.embed(augmented(pixels[films], augment, noise, round_trip))
            logits = model.pairwise_logits(embedding, embedding)
            loss = pair_loss(logits, len(batch.pairs), network.hard_negative_weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if on_step is not None:
                on_step(step + 1, network.steps)
        model.eval()
        _compare_in_place(model, network.eigenfilms, pixels, patients, torch_generator(seed, "network strangers"))
    return model


@torch.no_grad()
def _compare_in_place(
    model: SiameseNetwork,
    most: int,
    films: Float[Tensor, "n c h w"],
    patients: Int[np.ndarray, " n"],
    generator: torch.Generator,
) -> None:
    """Give a trained network its eigenfilms, on its own scale.

    At thresholds between `STRANGER_FRACS` they add about `PLACE_PART` of the false alarms that its features give,
    beyond that more: a film redrawn in its place is so much nearer than any stranger's that this finds nearly all,
    and what is left for the features is nearly all of what they had.
    """
    blocks = films.split(EMBED_FILMS)
    model.eigenfilms = EigenFilms.of(torch.cat([standardised(some) for some in blocks]), most).to(films.device)
    if not model.eigenfilms.n_components:
        return
    vectors = torch.cat([model.embed(some) for some in blocks])
    codes = torch.from_numpy(np.unique(patients, return_inverse=True)[1])
    strangers = torch.stack(different_pairs(codes, STRANGER_PAIRS, generator)).to(films.device)
    found = [model.opinions(vectors[some[0]], vectors[some[1]]) for some in strangers.split(PAIR_ROWS, 1)]
    by_features, cosines = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
    model.eigenfilms.calibrate(cosines, by_features, STRANGER_FRACS, PLACE_PART)


def drawn_batches(
    patients: Int[np.ndarray, " n"], patients_per_batch: int, generator: np.random.Generator
) -> Iterator[Batch]:
    """Endless batches of `patients_per_batch` different patients.

    Patients with two films or more come first, each epoch in a new order with a new pair of films each; if there are
    too few of them for a batch, it is filled up with patients of one film.
    Raises: ValueError if fewer than two patients have two films.
    """
    films = [np.flatnonzero(patients == patient) for patient in np.unique(patients)]
    several = [some for some in films if len(some) > 1]
    single = np.array([some[0] for some in films if len(some) == 1], np.int64)
    if len(several) < 2:
        raise ValueError(f"re-identification: want 2 patients with 2 images or more, got {len(several)}")
    n_pairs = min(patients_per_batch, len(several))
    n_singles = min(patients_per_batch - n_pairs, len(single))
    return _batches(several, single, n_pairs, n_singles, generator)


def _batches(
    several: list[np.ndarray],
    single: np.ndarray,
    n_pairs: int,
    n_singles: int,
    generator: np.random.Generator,
) -> Iterator[Batch]:
    while True:
        order = generator.permutation(len(several))
        for start in range(0, len(order) - n_pairs + 1, n_pairs):
            chosen = order[start : start + n_pairs]
            pairs = np.stack([generator.choice(several[i], 2, replace=False) for i in chosen])
            yield Batch(pairs, generator.choice(single, n_singles, replace=False))


def pair_loss(logits: Float[Tensor, "n n"], n_pairs: int, hard_negative_weight: float) -> Float[Tensor, ""]:
    """InfoNCE on the head's own score, plus half the balanced cross-entropy over all pairs.

    Rows i and i + n_pairs are the films of one patient, rows from 2 n_pairs on are single films. In InfoNCE each
    paired film must find its other film among all films of the batch; its gradient is a softmax over the
    negatives, so the hardest carry it. The cross-entropy keeps the score a probability at equal odds: positives and
    negatives weigh the same in sum, as in the published pairing of as many negatives as positives.
    Source: van den Oord et al., arXiv 1807.03748, Eq. 4; Packhäuser et al., Sci. Rep. 12:14851.
    """
    anchors = torch.arange(2 * n_pairs, device=logits.device)
    partner = anchors.roll(n_pairs)
    itself = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    ranking = logits.masked_fill(itself, -torch.inf)[: 2 * n_pairs]
    positive = torch.zeros_like(itself)
    positive[anchors, partner] = True
    return hard_negative_weight * F.cross_entropy(ranking, partner) + BCE_WEIGHT * _balanced_bce(
        logits, positive, ~itself & ~positive
    )


def _balanced_bce(
    logits: Float[Tensor, "n n"], positive: Bool[Tensor, "n n"], negative: Bool[Tensor, "n n"]
) -> Float[Tensor, ""]:
    return 0.5 * (F.softplus(-logits[positive]).mean() + F.softplus(logits[negative]).mean())


def _started(network: config.Network, image_px: int, channels: int, initial: SiameseNetwork | None) -> SiameseNetwork:
    model = SiameseNetwork(network, image_px, channels)
    if initial is not None:
        # Its eigenfilms are left behind: those of the films at hand are computed in a moment.
        learned = {name: value for name, value in initial.state_dict().items() if not name.startswith("eigenfilms.")}
        shapes = {
            name: value.shape for name, value in model.state_dict().items() if not name.startswith("eigenfilms.")
        }
        if shapes != {name: value.shape for name, value in learned.items()}:
            raise config.ConfigError(
                f"warm start: want a network like {model.settings}, got {initial.settings} "
                "— train it with the same backbone, width, embedding, image side and channels"
            )
        model.load_state_dict(learned, strict=False)
    return model
