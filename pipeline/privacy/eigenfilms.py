"""How alike two films are in place: the angle between them in whitened coordinates of eigenfilms.

A Siamese network learns that two films of a patient are one whatever their pose, and so it learns not to see what a
generator keeps of a film that it has smoothed: the exact place of everything. Here films are compared where they lie.
Whitening takes out what all chests share, so that a smooth picture is not alike to everybody: with 64 eigenfilms of
the phantom, strangers' films, a teacher's samples and a student's were no nearer to strangers than real films are.
Axis letters: n films, c channels, h height, w width, p pixels, k eigenfilms.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

SIDE_PX = 32
"""Films are compared at this side, or at their own if it is smaller."""
FILMS_EACH = 10
"""Films that an eigenfilm takes: fewer say nothing about patients that were not among them."""
FEWEST = 8
"""With fewer eigenfilms than these, strangers' films agree by chance, and the comparison is left out."""


class EigenFilms(nn.Module):
    """The k first principal components of films, each scaled to a variance of 1.

    Source: Turk & Pentland, J. Cogn. Neurosci. 3:71 (1991); the angle after whitening: Moon & Phillips, Perception
    30:303 (2001).
    """

    mean: Float[Tensor, " p"]
    basis: Float[Tensor, "p k"]
    line: Float[Tensor, " 3"]
    """Offset and slope of `logits`, and the cosine under which they say nothing."""

    def __init__(self, image_px: int, n_components: int) -> None:
        super().__init__()
        n_pixels = min(image_px, SIDE_PX) ** 2
        self.register_buffer("mean", torch.zeros(n_pixels))
        self.register_buffer("basis", torch.zeros(n_pixels, n_components))
        self.register_buffer("line", torch.zeros(3))

    @classmethod
    def of(cls, films: Float[Tensor, "n c h w"], most: int) -> EigenFilms:
        """The eigenfilms of these films, `most` or as many as they allow; none if that is too few to tell people by.

        Films have mean 0 and standard deviation 1 each. Costs p^2 numbers of memory beside the films.
        """
        n_components = min(most, len(films) // FILMS_EACH)
        if n_components < FEWEST:
            return cls(films.shape[-1], 0)
        found = cls(films.shape[-1], n_components)
        pixels = torch.cat([_greys(some) for some in films.split(512)]).double()
        found.mean = pixels.mean(0).float()
        values, vectors = torch.linalg.eigh(torch.cov(pixels.T))
        # Flat films have no variance in most directions; those say nothing, rather than everything.
        values = values[-n_components:].clamp(min=1e-6 * values[-1].clamp(min=1e-12))
        found.basis = (vectors[:, -n_components:] / values.sqrt()).float().contiguous()
        return found

    @property
    def n_components(self) -> int:
        """k."""
        return self.basis.shape[1]

    def forward(self, films: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Directions of the films, of length 1; of films with mean 0 and standard deviation 1 each."""
        return F.normalize((_greys(films) - self.mean) @ self.basis, dim=1)

    def logits(self, cosines: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """The cosine of the angle between two films, on the scale of a network's logit; minus infinity if it is one
        that many strangers have."""
        offset, slope, least = self.line
        return torch.where(cosines >= least, offset + slope * cosines, -torch.inf)

    def calibrate(
        self, cosines: Float[Tensor, " n"], logits: Float[Tensor, " n"], fracs: tuple[float, float], part: float
    ) -> None:
        """Put cosines on the scale of logits, both of pairs of strangers.

        A straight line through two points: a share of `part` x frac of strangers has a cosine over that which
        becomes the logit that a share of `frac` has, for both `fracs`. It begins at the first. So whoever takes the
        larger of the two comes to about 1 + `part` as many false alarms.
        """
        found = [(quantile(cosines, part * frac), quantile(logits, frac)) for frac in fracs]
        (near, low), (nearer, high) = found
        slope = max(high - low, 1e-3) / max(nearer - near, 1e-3)
        self.line = torch.tensor([low - slope * near, slope, near], device=self.basis.device)


def quantile(values: Float[Tensor, " n"], exceeded_by: float) -> float:
    """The value that this share of the values exceeds; the largest where the share is less than one of them."""
    return torch.topk(values, max(1, round(exceeded_by * len(values)))).values[-1].item()


def _greys(films: Float[Tensor, "n c h w"]) -> Float[Tensor, "n p"]:
    """Films as greys of at most `SIDE_PX`."""
    side = min(films.shape[-1], SIDE_PX)
    small = F.interpolate(films.mean(1, keepdim=True), (side, side), mode="bilinear", antialias=True)
    return small.flatten(1)
