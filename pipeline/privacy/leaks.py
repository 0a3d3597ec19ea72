"""The last look at what is about to leave: is a released image a real one, is a secret in any file?

Images are compared with the gallery pixel by pixel, then nearly. Files are searched for
patient ids, row ids, source paths and unfiltered phrases. Not here: whether a finding stops the release (gate). What
is found is private: count it in logs and cards, never quote it. Axis letters: n released images, m gallery images.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, UInt8, UInt64
from scipy.fft import dctn
from torch.nn.functional import interpolate

from pipeline.images import to_torch

# Chests look alike: 18 % of 1,000 NIH films have a 64-bit hash within 8 bits of another patient's, and 89 % of drawn
# ones; within 4 bits 0.4 % and 15 %. So the hash only proposes, and the correlation of the 32 x 32 greys decides.
# Over patients it is at most 0.97 on NIH and 0.989 on nine drawn cohorts (0 of 7,440 strangers reach 0.99 on the six
# that did not set the limit; Wilson 95 %: under 0.06 %), while copies by JPEG 50, blur, gain or 4 % noise reach 0.99
# in 94 to 100 of 100 cases; noise of 8 % in 77 (COVID films, 48 px) to 100.
HASH_BITS_NEAR = 8
CORRELATION_NEAR = 0.99
GREY_PX = 32
BLOCK_IMAGES = 4_096

Kind = Literal["patient id", "row id", "path", "phrase"]
# Letters and digits an id needs to be searched within text; shorter ones are confused with counts and years.
ID_CHARACTERS = 8
# Words a phrase needs to be searched in prose; shorter ones are words that any card or setting may use.
PHRASE_WORDS = 3
WORD = re.compile(r"[^\W\d_]+|\d+")


class ImageLeak(NamedTuple):
    """A released image that is, or may be taken for, a real one."""

    released: int
    """Position among the released images."""
    gallery: int
    """Position of the real image."""
    why: Literal["same pixels", "nearly the same pixels"]
    """The strongest finding for this image."""


class TextLeak(NamedTuple):
    """A secret in a released file."""

    file: str
    """Path below the scanned folder."""
    kind: Kind
    """What was found."""
    secret: str
    """The secret as it was given; private."""


@dataclass(frozen=True, eq=False)
class Originals:
    """Real images in the form in which copies of them are looked for: 4 kB each, whatever their size."""

    first: Mapping[bytes, int]
    """Digest of an image's bytes -> position of the first such image."""
    hashes: UInt64[np.ndarray, " m"]
    shapes: Float[np.ndarray, "m 1024"]

    @classmethod
    def of(cls, gallery: UInt8[np.ndarray, "m h w c"]) -> Originals:
        """The images of a gallery, made ready once for any number of searches."""
        first: dict[bytes, int] = {}
        for j, image in enumerate(gallery):
            first.setdefault(_digest(image), j)
        blocks = [greys(gallery[start : start + BLOCK_IMAGES]) for start in range(0, len(gallery), BLOCK_IMAGES)]
        small = np.concatenate(blocks) if blocks else np.zeros((0, GREY_PX, GREY_PX), np.float32)
        return cls(first, perceptual_hash(small), _centred(small))

    def same(self, images: UInt8[np.ndarray, "n h w c"]) -> dict[int, int]:
        """Position of an image -> position of the first original with the same bytes."""
        return {i: self.first[key] for i, image in enumerate(images) if (key := _digest(image)) in self.first}

    def near(self, images: UInt8[np.ndarray, "n h w c"]) -> dict[int, int]:
        """Position of an image -> position of the most correlated original among those that the hash proposes."""
        small = greys(images)
        hashes, shapes = perceptual_hash(small), _centred(small)
        found: dict[int, int] = {}
        for i in range(len(images)):
            proposed = np.flatnonzero(np.bitwise_count(hashes[i] ^ self.hashes) <= HASH_BITS_NEAR)
            correlations = self.shapes[proposed] @ shapes[i]
            if len(proposed) and correlations.max() >= CORRELATION_NEAR:
                found[i] = int(proposed[correlations.argmax()])
        return found

    def copies(self, images: UInt8[np.ndarray, "n h w c"]) -> Bool[np.ndarray, " n"]:
        """Which images equal or nearly equal an original: dropped beside the rule, whatever networks say."""
        return np.isin(np.arange(len(images)), [*self.same(images), *self.near(images)])


def scan_images(released: UInt8[np.ndarray, "n h w c"], originals: Originals) -> list[ImageLeak]:
    """The released images that equal a real one, or nearly equal one.

    A shifted or rotated copy is left to the networks, whose verdict is one of rates: single images of strangers are
    flagged as well. Costs n x m hash comparisons.
    """
    same, near = originals.same(released), originals.near(released)
    leaks = []
    for i in range(len(released)):
        if i in same:
            leaks.append(ImageLeak(i, same[i], "same pixels"))
        elif i in near:
            leaks.append(ImageLeak(i, near[i], "nearly the same pixels"))
    return leaks


def perceptual_hash(greys: Float[np.ndarray, "n 32 32"]) -> UInt64[np.ndarray, " n"]:
    """64-bit pHash: which of the 8 x 8 lowest DCT coefficients lie over their median (the mean grey left out of it).

    About half of the bits are set, so that two hashes mostly differ in an even number of them.
    Source: Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions (2010).
    """
    low = np.asarray(dctn(greys, axes=(1, 2), norm="ortho"))[:, :8, :8].reshape(len(greys), 64)
    bits = low > np.median(low[:, 1:], axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def greys(images: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n 32 32"]:
    """Images as 32 x 32 greys in [-1, 1], the form that hashes and correlations are taken of."""
    small = interpolate(to_torch(images).mean(1, keepdim=True), (GREY_PX, GREY_PX), mode="bilinear", antialias=True)
    return small[:, 0].numpy()


def scan_files(
    folder: Path, secrets: Mapping[Kind, Iterable[str]], shared_texts: Iterable[str] = ()
) -> list[TextLeak]:
    """The secrets found in the files below a folder, one finding per file and secret, in the order of the files.

    Searched: file names, text, JSON (keys and values), CSV and Parquet (schema, metadata, strings and whole numbers;
    never image bytes), the header of safetensors, and readable strings of any other file. Words are compared without
    case and punctuation, so `Patient_00012345.PNG` holds the id 00012345. Short secrets would raise false alarms:

    - an id or path of fewer than ID_CHARACTERS letters and digits counts only as a whole value of a table or JSON;
    - a phrase of fewer than PHRASE_WORDS words counts only in tables and in a tokenizer's vocabulary;
    - a phrase that occurs within `shared_texts` (prompts that k patients share, the cards' templates, a
      pre-trained vocabulary) is no secret. Ids and paths always are.

    Of a path to a file, its name alone and its name without suffix count too.
    Raises: OSError if a file cannot be read, ArrowInvalid or ValueError if one is not what its suffix says.
    """
    index = _Index(secrets)
    for text in shared_texts:
        index.forget_phrases(text)
    leaks = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        strings = {_String(name, "prose"), *_strings(path)}  # a set, as prompts repeat
        found = {secret for string in strings for secret in index.found_in(string)}
        leaks += [TextLeak(name, kind, secret) for kind, secret in sorted(found)]
    return leaks


def _digest(image: UInt8[np.ndarray, "h w c"]) -> bytes:
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def _centred(images: Float[np.ndarray, "n 32 32"]) -> Float[np.ndarray, "n 1024"]:
    """Unit vectors whose inner products are Pearson correlations; a blank image correlates with none."""
    flat = images.reshape(len(images), GREY_PX**2) - images.mean((1, 2))[:, None]
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


class _String(NamedTuple):
    """A piece of a file and where it stands: in a table's cell, a JSON value, a tokenizer's vocabulary, or prose."""

    text: str
    place: Literal["cell", "value", "vocabulary", "prose"]


class _Index:
    """Secrets by their words, so that a text is searched in one pass whatever their number."""

    def __init__(self, secrets: Mapping[Kind, Iterable[str]]) -> None:
        self.secrets: dict[tuple[str, ...], set[tuple[Kind, str]]] = {}
        self.lengths: dict[str, set[int]] = {}
        for kind, given in secrets.items():
            for secret in given:
                for form in _forms(kind, secret):
                    if words := _words(form):
                        self.secrets.setdefault(words, set()).add((kind, secret))
                        self.lengths.setdefault(words[0], set()).add(len(words))

    def found_in(self, string: _String) -> Iterator[tuple[Kind, str]]:
        """The secrets in a string that may be counted at its place."""
        words = _words(string.text)
        for run in self._runs(words):
            for kind, secret in self.secrets[run]:
                if _counts(kind, run, string.place, run == words):
                    yield kind, secret

    def forget_phrases(self, text: str) -> None:
        """Take the phrases in a text that is known to be shared off the list."""
        for run in set(self._runs(_words(text))):
            self.secrets[run] = {(kind, secret) for kind, secret in self.secrets[run] if kind != "phrase"}

    def _runs(self, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        for start, word in enumerate(words):
            for length in self.lengths.get(word, ()):
                if (run := words[start : start + length]) in self.secrets:
                    yield run


def _counts(kind: Kind, run: tuple[str, ...], place: str, is_whole: bool) -> bool:
    if kind == "phrase":
        return len(run) >= PHRASE_WORDS or place in ("cell", "vocabulary")
    return sum(map(len, run)) >= ID_CHARACTERS or (is_whole and place in ("cell", "value"))


def _words(text: str) -> tuple[str, ...]:
    return tuple(WORD.findall(text.casefold()))


def _forms(kind: Kind, secret: str) -> list[str]:
    """The secret; for the path of a file also its name, with and without suffix."""
    if kind != "path":
        return [secret]
    path = PureWindowsPath(secret) if "\\" in secret else PurePosixPath(secret)
    return [secret, path.name, path.stem] if path.suffix else [secret]


def _strings(path: Path) -> Iterator[_String]:
    """Everything in a file that a person could read."""
    if path.suffix == ".parquet":
        yield from _parquet(path)
    elif path.name in ("vocab.txt", "merges.txt"):
        yield from (_String(line, "vocabulary") for line in path.read_text().splitlines())
    elif path.suffix == ".json":
        yield from _json(json.loads(path.read_text()), is_vocabulary=path.name == "vocab.json")
    elif path.suffix == ".jsonl":
        for line in path.read_text().splitlines():
            yield from _json(json.loads(line))
    elif path.suffix == ".csv":
        with path.open(newline="") as file:
            yield from (_String(cell, "cell") for row in csv.reader(file) for cell in row)
    elif path.suffix == ".safetensors":
        with path.open("rb") as file:
            yield from _json(json.loads(file.read(int.from_bytes(file.read(8), "little"))))
    else:
        yield from _readable(path.read_bytes())


def _parquet(path: Path) -> Iterator[_String]:
    file = pq.ParquetFile(path)
    for key, value in (file.schema_arrow.metadata or {}).items():
        yield _String(key.decode(errors="replace"), "prose")
        yield _String(value.decode(errors="replace"), "prose")
    for field in file.schema_arrow:
        yield _String(str(field), "prose")
    for batch in file.iter_batches():
        for column in batch.columns:
            yield from _leaves(column)


def _leaves(column: pa.Array) -> Iterator[_String]:
    """Every string and long whole number of a column, however deep in lists, structs, maps and dictionaries."""
    kind = column.type
    if isinstance(column, pa.ExtensionArray):
        yield from _leaves(column.storage)
    elif pa.types.is_dictionary(kind):
        yield from _leaves(column.dictionary)
    elif pa.types.is_struct(kind):
        for position in range(kind.num_fields):
            yield from _leaves(column.field(position))
    elif pa.types.is_map(kind):
        yield from _leaves(column.keys)
        yield from _leaves(column.items)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from _leaves(column.flatten())
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        yield from (_String(text, "cell") for text in column.unique().to_pylist() if text)
    elif pa.types.is_integer(kind) and kind.bit_width >= 32:
        yield from (_String(str(number), "prose") for number in column.unique().to_pylist())


def _json(node: Any, is_vocabulary: bool = False) -> Iterator[_String]:
    """Keys as prose, strings and whole numbers as values; what is under `vocab` or `merges` as vocabulary."""
    if isinstance(node, dict):
        for key, child in node.items():
            yield _String(key, "vocabulary" if is_vocabulary else "prose")
            yield from _json(child, is_vocabulary or key in ("vocab", "merges", "added_tokens"))
    elif isinstance(node, list):
        for child in node:
            yield from _json(child, is_vocabulary)
    elif isinstance(node, str):
        yield _String(node, "vocabulary" if is_vocabulary else "value")
    elif isinstance(node, int):
        yield _String(str(node), "prose")


def _readable(content: bytes) -> Iterator[_String]:
    """A text file as one string; of anything else the readable runs that are long enough to hold a secret."""
    try:
        yield _String(content.decode(), "prose")
    except UnicodeDecodeError:
        runs = re.findall(rb"[\x20-\x7e]{%d,}" % ID_CHARACTERS, content)
        yield from (_String(run.decode(), "prose") for run in runs)
