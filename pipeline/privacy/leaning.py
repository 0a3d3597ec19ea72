"""Does an image lean to the people who were trained on? Its nearness to their films, less that to decoys' films.

A rule that drops whatever is too much like one film leaves what is a little like many: a teacher's images lie nearer
to its films than to strangers', and whoever has a film of somebody reads off that nearness whether he was used. So
images are compared with films of training patients and of decoys, as many people of both, and what leans most is
dropped until the rest leans in the mean to nobody. Who has many films is learned best and is lost in a mean over all:
patients with one, with a few and with many films are balanced each for themselves too. Axis letters: n images,
f films, h height, w width, c channels, p people of a group, g groups, k eigenfilms, b bands of patients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.images import to_torch
from pipeline.privacy.eigenfilms import EigenFilms
from pipeline.privacy.networks import standardised

N_EIGENFILMS = 192
"""At most. On the demo the kept set of a teacher that gave away members with an AUC of .628 came to .588 with 192, to
.590 with 128 and to .598 with 64, for 16, 22 and 26 % of its images."""
NEAREST, NEAREST_FRAC = 5, 1 / 6
"""Films whose mean cosine says how near people are, and of a small group this share of it at most; with 20 it costs
twice as many images."""
MANY_FILMS = 4
FILMS = (2, MANY_FILMS)
"""Numbers of films at which a band of patients begins. Without bands, patients of the demo with four films or more
were told by an AUC of .78 where all had .58; with them by .62 and .57, for 33 % of the images."""
FEWEST_PEOPLE = 12
"""A smaller band is counted among those with fewer films."""
MOST_FILMS = 8
"""Of each training patient, as what leans to none of one film may lean to the others."""
STEP_FRAC = 1e-3


class Band(NamedTuple):
    """Some training patients, and decoys, in groups of one size, so that the nearest of both are among as many."""

    members: Float[Tensor, "g p k"]
    """Every patient in each of as many draws as somebody has films."""
    decoys: Float[Tensor, "g p k"]


class Leaning:
    """Training patients and decoys among eigenfilms: everybody first, then bands by their number of films."""

    def __init__(self, eigenfilms: EigenFilms, bands: Sequence[Band]):
        self._eigenfilms, self._bands = eigenfilms, tuple(bands)

    @classmethod
    def of(
        cls,
        others: UInt8[np.ndarray, "_ h w c"],
        members: UInt8[np.ndarray, "f h w c"],
        patients: Int64[np.ndarray, " f"],
        decoys: UInt8[np.ndarray, "d h w c"],
    ) -> Leaning:
        """From all films of training patients, whom `patients` tells apart, and one film of each decoy.

        Films, patients and decoys are taken in the order given, which is to be random; `others` make the eigenfilms.
        """
        eigenfilms = EigenFilms.of(_films(others), N_EIGENFILMS)
        first = np.sort(np.unique(patients, return_index=True)[1])
        films = [np.flatnonzero(patients == patients[i])[:MOST_FILMS] for i in first]
        places, unseen = (eigenfilms(_films(some)) for some in (members, decoys))
        return cls(eigenfilms, [_band(some, places, unseen) for some in _banded(films)])

    def __call__(self, pixels: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n b"]:
        """By band, mean cosine with the nearest members less that with the nearest decoys; NaN if too few."""
        if not (self._eigenfilms.n_components and self._bands[0].members.shape[1] >= NEAREST):
            return np.full((len(pixels), len(self._bands)), np.nan)
        films = _films(pixels)
        # Never one row alone: its product has other last bits than the same row among several.
        places = self._eigenfilms(torch.cat([films, films[:1]]))[: len(films)].double()
        leans = [
            _nearness(places, band.members.double()) - _nearness(places, band.decoys.double()) for band in self._bands
        ]
        return torch.stack(leans, 1).numpy()

    def save(self, file: Path) -> None:
        """Write one safetensors file."""
        state = {f"eigenfilms.{name}": value.contiguous() for name, value in self._eigenfilms.state_dict().items()}
        for i, band in enumerate(self._bands):
            state |= {f"{side}.{i}": groups.contiguous() for side, groups in band._asdict().items()}
        save_file(state, file)

    @classmethod
    def load(cls, file: Path, image_px: int) -> Leaning:
        """What `save` wrote."""
        state = load_file(file)
        eigenfilms = EigenFilms(image_px, state["eigenfilms.basis"].shape[1])
        eigenfilms.load_state_dict({name: state[f"eigenfilms.{name}"] for name in eigenfilms.state_dict()})
        n_bands = sum(name.startswith("members.") for name in state)
        return cls(eigenfilms, [Band(state[f"members.{i}"], state[f"decoys.{i}"]) for i in range(n_bands)])


def balanced(leans: Float[np.ndarray, "n b"]) -> Bool[np.ndarray, " n"]:
    """Which images stay, so that in no band their mean is over 0.

    What leans most to the bands that are still leant to goes first, a thousandth of the images at a time; bands count
    by how far over 0 they are, each on the scale of its own spread.
    """
    stays = np.ones(len(leans), bool)
    spread = np.maximum(leans.std(0), np.finfo(float).tiny) if len(leans) else 1.0
    while (excess := leans[stays].sum(0) / spread).max(initial=0) > 0:
        left = np.flatnonzero(stays)
        pull = (leans[left] / spread) @ np.maximum(excess, 0)
        stays[left[np.argsort(-pull, kind="stable")[: max(1, int(STEP_FRAC * len(left)))]]] = False
    return stays


def _banded(films: Sequence[Int64[np.ndarray, " _"]]) -> Iterator[list[Int64[np.ndarray, " _"]]]:
    """Everybody's films; and those of patients with one, with a few and with many, unless that is everybody again."""
    yield list(films)
    bands: list[list[Int64[np.ndarray, " _"]]] = [[] for _ in range(len(FILMS) + 1)]
    for some in films:
        bands[int(np.digitize(len(some), FILMS))].append(some)
    for i in range(len(bands) - 1, 0, -1):
        if len(bands[i]) < FEWEST_PEOPLE:
            bands[i - 1] += bands[i]
            bands[i] = []
    there = [band for band in bands if len(band) >= FEWEST_PEOPLE]
    yield from there if len(there) > 1 else ()


def _band(
    films: Sequence[Int64[np.ndarray, " _"]], places: Float[Tensor, "f k"], unseen: Float[Tensor, "d k"]
) -> Band:
    n, n_draws = min(len(films), len(unseen)), max(map(len, films), default=0)
    draws = [places[[int(some[draw % len(some)]) for some in films]] for draw in range(n_draws)]
    return Band(
        torch.cat([_groups(draw, n) for draw in draws] or [places.new_zeros(0, 0, places.shape[1])]),
        _groups(unseen, n),
    )


def _films(pixels: UInt8[np.ndarray, "n h w c"]) -> Float[Tensor, "n c h w"]:
    return standardised(to_torch(pixels))


def _groups(places: Float[Tensor, "m k"], n: int) -> Float[Tensor, "g p k"]:
    """Groups of n that hold everybody; the last one shares some with the one before."""
    starts = [*range(0, len(places) - n, n), len(places) - n] if n else []
    groups = [places[start : start + n] for start in starts]
    return torch.stack(groups) if groups else places.new_zeros(0, 0, places.shape[1])


def _nearness(places: Float[Tensor, "n k"], groups: Float[Tensor, "g p k"]) -> Float[Tensor, " n"]:
    """Mean cosine with the nearest few of a group, over groups."""
    n_nearest = min(NEAREST, max(1, int(NEAREST_FRAC * groups.shape[1])))
    nearest = [(places @ group.T).topk(n_nearest, 1).values.mean(1) for group in groups]
    # Rounded, as the last bits of a product depend on the number of rows.
    return torch.stack(nearest).mean(0).float().double()
