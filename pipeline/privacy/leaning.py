"""Does an image lean to the people who were trained on? Its nearness to their films, less that to decoys' films.

A rule that drops whatever is too much like one film leaves what is a little like many: a teacher's images lie nearer
to its films than to strangers', and whoever has a film of somebody reads off that nearness whether he was used. So
images are compared with one film of each training patient and one of each decoy, as many of both, and what leans most
is dropped until the rest leans in the mean to nobody. Axis letters: n images, h height, w width, c channels, p people
of a group, g groups, k eigenfilms.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.images import to_torch
from pipeline.privacy.eigenfilms import EigenFilms
from pipeline.privacy.networks import standardised

N_EIGENFILMS = 192
"""At most. On the demo the kept set of a teacher that gave away members with an AUC of .628 came to .588 with 192, to
.590 with 128 and to .598 with 64, for 16, 22 and 26 % of its images."""
NEAREST = 5
"""Films whose mean cosine says how near people are; with 20 it costs twice as many images."""


class Leaning:
    """Members and decoys among eigenfilms, in groups of one size, so that the nearest of both are among as many."""

    def __init__(self, eigenfilms: EigenFilms, members: Float[Tensor, "g p k"], decoys: Float[Tensor, "g p k"]):
        self._eigenfilms, self._members, self._decoys = eigenfilms, members, decoys

    @classmethod
    def of(
        cls,
        others: UInt8[np.ndarray, "f h w c"],
        members: UInt8[np.ndarray, "m h w c"],
        decoys: UInt8[np.ndarray, "d h w c"],
    ) -> Leaning:
        """From one film of each member and of each decoy; `others` make the eigenfilms. Groups are cut in this order,
        the last one so that everybody is in one.
        """
        eigenfilms = EigenFilms.of(_films(others), N_EIGENFILMS)
        n = min(len(members), len(decoys))
        return cls(eigenfilms, *(_groups(eigenfilms(_films(some)), n) for some in (members, decoys)))

    def __call__(self, pixels: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, " n"]:
        """Mean cosine with the nearest members less that with the nearest decoys; NaN if there are too few films."""
        if not (self._eigenfilms.n_components and self._members.shape[1] >= NEAREST):
            return np.full(len(pixels), np.nan)
        films = _films(pixels)
        # Never one row alone: its product has other last bits than the same row among several.
        places = self._eigenfilms(torch.cat([films, films[:1]]))[: len(films)].double()
        near, other = (_nearness(places, groups.double()) for groups in (self._members, self._decoys))
        return (near - other).numpy()

    def save(self, file: Path) -> None:
        """Write one safetensors file."""
        state = {f"eigenfilms.{name}": value.contiguous() for name, value in self._eigenfilms.state_dict().items()}
        save_file(state | {"members": self._members.contiguous(), "decoys": self._decoys.contiguous()}, file)

    @classmethod
    def load(cls, file: Path, image_px: int) -> Leaning:
        """What `save` wrote."""
        state = load_file(file)
        eigenfilms = EigenFilms(image_px, state["eigenfilms.basis"].shape[1])
        eigenfilms.load_state_dict({name: state[f"eigenfilms.{name}"] for name in eigenfilms.state_dict()})
        return cls(eigenfilms, state["members"], state["decoys"])


def balanced(leans: Float[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Which images stay: as many as can, from the least leaning up, so that their mean is not over 0."""
    order = np.argsort(leans, kind="stable")
    stays = np.zeros(len(leans), bool)
    stays[order] = np.cumsum(leans[order]) <= 0
    return stays


def _films(pixels: UInt8[np.ndarray, "n h w c"]) -> Float[Tensor, "n c h w"]:
    return standardised(to_torch(pixels))


def _groups(places: Float[Tensor, "m k"], n: int) -> Float[Tensor, "g p k"]:
    """Groups of n that hold everybody; the last one shares some with the one before."""
    starts = [*range(0, len(places) - n, n), len(places) - n] if n else []
    groups = [places[start : start + n] for start in starts]
    return torch.stack(groups) if groups else places.new_zeros(0, 0, places.shape[1])


def _nearness(places: Float[Tensor, "n k"], groups: Float[Tensor, "g p k"]) -> Float[Tensor, " n"]:
    """Mean cosine with the nearest few of a group, over groups."""
    nearest = [(places @ group.T).topk(NEAREST, 1).values.mean(1) for group in groups]
    # Rounded, as the last bits of a product depend on the number of rows.
    return torch.stack(nearest).mean(0).float().double()
