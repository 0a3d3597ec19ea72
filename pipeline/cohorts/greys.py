"""Which values are black and white in a cohort's images of more than 8 bits, and whether its greys look right.

A 16-bit file may hold 8, 10, 12 or 14 bits, values below zero, or white at the low end, and does not say so. One
range holds for the whole cohort, given by the recipe or observed on an even sample of its images, and is told; an
image outside it is rejected. Not here: what a file does say of itself (see `image_files`).

Axis letters: n images, h height, w width, c channels.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from pipeline.cohorts.table import CohortError
from pipeline.image_files import GreyRange, Header, ImageError, extremes, header

MOST_IMAGES = 512
MOST_PIXELS = 250_000_000
"""Read to observe a range: about 50 images from a detector, which take some 15 s."""
DEPTHS_BIT = (8, 10, 12, 14, 16)
FEWEST_LEVELS = 32
LEVEL_FRAC = 1e-4
"""A grey that fewer pixels have is noise or writing."""
DARK_PERCENTILE_99 = 64
FAR_ABOVE, FEW, FEW_FRAC = 4, 2, 0.1
"""Images that reach no more than a quarter of white are of another depth, or nearly black: if they are few they are
rejected, else nobody knows which depth is the cohort's. So are few that reach beyond the white of the others, as
writing does. An image that is black all over says nothing."""


class Greys(NamedTuple):
    """How a cohort's images of more than 8 bits are to be read."""

    grey_range: GreyRange | None
    """The values of black and white; none if no image that was looked at has more than 8 bits."""
    is_deep: Mapping[str, bool]
    """Per path looked at, whether it has more than 8 bits."""
    facts: Mapping[str, Any]
    line: str | None
    """What to tell the user; none if all images that were looked at have 8 bits."""
    least_value: int = 0
    """The largest value of an image of this depth is over it; 0 if the recipe gave the range."""


class _Seen(NamedTuple):
    """The values of an image."""

    source: str
    smallest: int
    largest: int


@functools.lru_cache(maxsize=1)  # asked before the run and in it, and images from a detector are slow to read
def greys(root: Path, sources: tuple[str, ...], declared: GreyRange | None) -> Greys:
    """What the headers of up to 512 images say and, if no range is declared, what values the deep ones have.

    Raises: CohortError if no range is declared where values lie below zero or above 16 bits, or where images seem to
    have several depths.
    """
    headers = _headers(root, evenly(sources, MOST_IMAGES))
    deep = [source for source, found in headers.items() if found.is_deep]
    facts: dict[str, Any] = {"looked_at": len(headers), "n_8bit": len(headers) - len(deep), "n_deep": len(deep)}
    is_deep = {source: found.is_deep for source, found in headers.items()}
    if not deep:
        return Greys(declared, is_deep, facts | {"range": declared and list(declared)}, _unused(declared, facts))
    facts["n_min_is_white"] = sum(found.min_is_white for found in headers.values())
    grey_range = declared
    if grey_range is None:
        n_pixels = sum(headers[source].n_pixels for source in deep)
        n_most = max(1, len(deep) * MOST_PIXELS // max(MOST_PIXELS, n_pixels))
        seen = _observed(root, evenly(deep, n_most))
        if not seen:  # all of them are broken, and rejected as such
            return Greys(None, is_deep, facts | {"range": None}, None)
        grey_range = _range(seen)
        ends = {"smallest": min(image.smallest for image in seen), "largest": max(image.largest for image in seen)}
        facts |= {"observed_on": len(seen)} | ends
    facts["range"] = list(grey_range)
    least_value = 0 if declared else (grey_range[1] + 1) // FAR_ABOVE
    return Greys(grey_range, is_deep, facts, _line(facts, declared), least_value)


def summary(
    pixels: UInt8[np.ndarray, "n h w c"], is_deep: Bool[np.ndarray, " n"]
) -> tuple[dict[str, Any], list[str]]:
    """Greys of decoded images, as facts, and what about them should make a user look again."""
    if not len(pixels):
        return {}, []
    counts = np.bincount(pixels.reshape(-1), minlength=256)
    levels = int((counts > LEVEL_FRAC * counts.sum()).sum())
    cumulated = np.cumsum(counts) / counts.sum()
    percentiles = {str(p): int(np.searchsorted(cumulated, p / 100)) for p in (1, 50, 99)}
    facts = {"n": len(pixels), "mean": round(float(pixels.mean()), 1), "levels": levels, "percentiles": percentiles}
    remarks = []
    if levels < FEWEST_LEVELS or percentiles["99"] < DARK_PERCENTILE_99:
        remarks.append(
            f"the images use {levels} of 256 greys and 99 % of their pixels are at or below {percentiles['99']}: "
            "want a cohort with contrast — look at some images, and set ingest.grey_range to its black and white"
        )
    if is_deep.any() and not is_deep.all():
        facts |= {"mean_deep": _mean(pixels[is_deep]), "mean_8bit": _mean(pixels[~is_deep])}
        remarks.append(
            f"images of 8 bits are taken as they are and have a mean grey of {facts['mean_8bit']} "
            f"({(~is_deep).sum()} looked at), those of more bits {facts['mean_deep']} ({is_deep.sum()}) "
            "— if they should look alike, set ingest.grey_range or bring them to one depth"
        )
    return facts, remarks


def _mean(pixels: UInt8[np.ndarray, "n h w c"]) -> float:
    return round(float(pixels.mean()), 1)


def evenly(sources: Sequence[str], n: int) -> list[str]:
    """At most n of them, as far apart as can be."""
    chosen = np.unique(np.linspace(0, len(sources) - 1, min(n, len(sources))).astype(int))
    return [sources[int(i)] for i in chosen]


def _headers(root: Path, sources: Sequence[str]) -> dict[str, Header]:
    """Of those that can be read: the others are rejected with their reason when their turn comes."""
    found = {}
    for source in sources:
        try:
            found[source] = header(root / source)
        except ImageError:
            continue
    return found


def _observed(root: Path, sources: Sequence[str]) -> list[_Seen]:
    """What values the images have, without those that cannot be read."""
    seen = []
    for source in sources:
        try:
            seen.append(_Seen(source, *extremes(root / source)))
        except ImageError:
            continue
    return seen


def _range(seen: Sequence[_Seen]) -> GreyRange:
    """Black and white of the fewest bits that hold all values, unless that would be a guess."""
    smallest, highest = min(image.smallest for image in seen), max(seen, key=lambda image: image.largest)
    want = "ingest.grey_range: want the values of black and white for images"
    if smallest < 0 or highest.largest >= 2 ** DEPTHS_BIT[-1]:
        raise CohortError(
            f"{want} with values from {smallest} to {highest.largest} ({len(seen)} looked at), got none — give both "
            "as the scanner defines them, such as [-1024, 3071]"
        )
    whites = sorted(_white(image.largest) for image in seen)
    white = whites[-1 - int(FEW_FRAC * len(seen))]
    far_below = [image.largest for image in seen if 0 < FAR_ABOVE * image.largest <= white]
    if len(far_below) > max(FEW, FEW_FRAC * len(seen)):
        raise CohortError(
            f"{want} of which {len(far_below)} of {len(seen)} looked at have no value over {max(far_below)}, but "
            f"{highest.source} reaches {highest.largest}, got none — bring all to one depth; or give what holds for "
            f"the many, such as [0, {_white(max(far_below))}], and what lies outside will be rejected"
        )
    return 0, white


def _white(largest: int) -> int:
    return next(2**bits for bits in DEPTHS_BIT if largest < 2**bits) - 1


def _unused(declared: GreyRange | None, facts: Mapping[str, Any]) -> str | None:
    if declared is None:
        return None
    return (
        f"grey values: all {facts['looked_at']} images looked at have 8 bits, to which ingest.grey_range says nothing"
    )


def _line(facts: Mapping[str, Any], declared: GreyRange | None) -> str:
    black, white = facts["range"]
    line = f"grey values: black is {black} and white {white} in images of more than 8 bits, "
    if declared:
        line += "as ingest.grey_range says"
    else:
        line += (
            f"as {facts['observed_on']} of them have values from {facts['smallest']} to {facts['largest']}; "
            "if that is not so, set ingest.grey_range"
        )
    line += f" ({facts['n_deep']} of {facts['looked_at']} images looked at have more than 8 bits"
    if facts["n_min_is_white"]:
        line += f", {facts['n_min_is_white']} of which say that their lowest value is white"
    return line + ")"
