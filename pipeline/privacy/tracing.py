"""Can a released image be traced to the row that it came from? Attacks that need a guess of where chance came from.

*Noise.* An image remembers the noise that its sampling began with. Whoever can compute the noises of all rows takes
the one that correlates best, and has the row; rows of one record stand together, so that images are grouped by
patient, in the order of the hospital's table. *Order.* Whoever can compute in which order the kept rows were laid out
reads the row off the position. *Split.* Whoever can compute the splits knows from a list of patients who was trained
on. All three are as good as chance where the origin is a secret. *Content* needs no guess, but films: whoever has
those of a whole hospital takes the one that a released image resembles most, and has a name, often the one whose
record the image was asked for with. Axis letters: n released images, m rows of the plan, c channels and y x positions
of a latent, p of them, f films of the hospital, k eigenfilms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped

from pipeline.estimate import Estimate
from pipeline.privacy.risk import wilson

BLOCK_ROWS = 512
N_SUREST = 30


class Traced(NamedTuple):
    """What an attack by noise came to."""

    first: Estimate
    """Share of images whose own row is the best of all; guessing finds one over the number of rows."""
    own: float
    """Mean correlation of an image with the noise of its own row under the guess, over channels, without sign."""
    n_rows: int
    """Rows that were to choose from."""


class Recognised(NamedTuple):
    """What an attack by content came to."""

    first: Estimate
    """Share of images whose most alike film is of the patient whose record they were asked for with."""
    surest: Estimate
    """The same among the images that are most alike to any film."""
    by_chance: Estimate
    """The same as `first` with the patients dealt anew: popular films are right now and then."""


def traced(latents: Float[np.ndarray, "n c y x"], seeds: Sequence[int], truth: Int64[np.ndarray, " n"]) -> Traced:
    """Which row's noise each image resembles most; `seeds` are the guessed ones of all m rows, `truth` the real rows.

    What all images share is taken out of them, value by value, and every channel counts whatever its sign: an
    autoencoder that was fitted on other images has turned some of its axes round. On the demo that finds all rows of
    1,500 where a plain correlation finds 15 %. The seeds are those of torch's CPU generator, which knows 32 bits of
    each: with all 2^32 streams at hand an attacker finds an image's stream, but not whose it is. Cost: n x m
    correlations of d values.
    """
    spread = latents.std(0, keepdims=True)
    images = _by_channel((latents - latents.mean(0, keepdims=True)) / np.where(spread > 0, spread, 1))
    best, top = np.full(len(latents), -np.inf), np.zeros(len(latents), np.int64)
    own = np.zeros(len(latents))
    for start in range(0, len(seeds), BLOCK_ROWS):
        noises = _by_channel(_noises(seeds[start : start + BLOCK_ROWS], latents.shape[1:]))
        correlations = np.mean([np.abs(a @ b.T) for a, b in zip(images, noises, strict=True)], axis=0)
        column = correlations.argmax(1)
        value = correlations[np.arange(len(latents)), column]
        top = np.where(value > best, column + start, top)
        best = np.maximum(best, value)
        here = (truth >= start) & (truth < start + correlations.shape[1])
        own[here] = correlations[here, truth[here] - start]
    hits = top == truth
    return Traced(wilson(int(hits.sum()), len(hits)), float(own.mean()), len(seeds))


def recognised(
    images: Float[np.ndarray, "n k"],
    films: Float[np.ndarray, "f k"],
    film_patients: Shaped[np.ndarray, " f"],
    truth: Shaped[np.ndarray, " n"],
    generator: np.random.Generator,
) -> Recognised:
    """Whose film each image resembles most, by the angle between them; rows have length 1."""
    cosines = [block @ films.T for block in np.array_split(images, max(1, len(images) // BLOCK_ROWS))]
    nearest = film_patients[np.concatenate([block.argmax(1) for block in cosines])]
    surest = np.argsort(-np.concatenate([block.max(1) for block in cosines]))[:N_SUREST]
    hits = nearest == truth
    dealt = nearest == generator.permutation(truth)
    return Recognised(*(wilson(int(some.sum()), len(some)) for some in (hits, hits[surest], dealt)))


def order_agreement(guess: Int64[np.ndarray, " n"], truth: Int64[np.ndarray, " n"]) -> Estimate:
    """Share of released positions at which the guessed row is the real one."""
    hits: Bool[np.ndarray, " n"] = guess == truth
    return wilson(int(hits.sum()), len(hits))


def split_agreement(guessed: set[str], members: set[str]) -> Estimate:
    """Share of the patients guessed to be trained on who were; guessing at random reaches the share of the split."""
    return wilson(len(guessed & members), len(guessed))


def _noises(seeds: Sequence[int], shape: tuple[int, ...]) -> Float[np.ndarray, "m c y x"]:
    drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds]
    return torch.stack(drawn).numpy().astype(np.float64)


def _by_channel(rows: Float[np.ndarray, "m c y x"]) -> Float[np.ndarray, "c m p"]:
    """Channel by channel, with mean 0 and length 1."""
    flat = rows.reshape(*rows.shape[:2], -1).swapaxes(0, 1)
    centred = flat - flat.mean(2, keepdims=True)
    return centred / np.maximum(np.linalg.norm(centred, axis=2, keepdims=True), 1e-9)
