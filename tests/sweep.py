"""Search for what must not be written: credentials, keys and names, in every file of a folder, also decoded."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

SHAPES = {
    "AWS access key": rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "password in an address": rb"[a-z][a-z0-9+.-]*://[^\s/:@\"'<>]+:[^\s/@\"'<>]+@[\w.-]+",
    "private key": rb"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----",
    "bearer token": rb"[Bb]earer [0-9A-Za-z._-]{20,}",
    "token of a hub": rb"\b(?:hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|glpat-[\w-]{20,})",
    "key of Google": rb"\bAIza[0-9A-Za-z_-]{35}\b",
}


class Find(NamedTuple):
    """A kind of secret and the file that holds one; what it says is not repeated."""

    kind: str
    path: str


def sweep(folder: Path, values: Mapping[str, Iterable[bytes]], leave_out: Iterable[str] = ()) -> list[Find]:
    """What is found below a folder (or in a file) by shape and by value; `leave_out` are paths that may hold it."""
    exact = {kind: re.compile(b"|".join(map(re.escape, sorted(set(wanted))))) for kind, wanted in values.items()}
    patterns = {kind: re.compile(shape) for kind, shape in SHAPES.items()} | exact
    found = []
    files = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        name = path.name if path == folder else path.relative_to(folder).as_posix()
        if any(Path(name).match(pattern) for pattern in leave_out):
            continue
        for kind, pattern in patterns.items():
            if any(pattern.search(part) for part in contents(path)):
                found.append(Find(kind, name))
    return found


def contents(path: Path) -> Iterator[bytes]:
    """The file's bytes, and the text of a Parquet file, which compression hides."""
    yield path.name.encode()
    yield path.read_bytes()
    if path.suffix == ".parquet":
        file = pq.ParquetFile(path)
        names = [field.name for field in file.schema_arrow if _is_text(field.type)]
        for batch in file.iter_batches(columns=names) if names else ():
            for column in batch.columns:
                flat = column.flatten() if pa.types.is_nested(column.type) else [column]
                for part in flat if isinstance(flat, list) else [flat]:
                    if pa.types.is_string(part.type) or pa.types.is_binary(part.type):
                        yield b"\n".join(pc.drop_null(part).cast(pa.binary()).to_pylist())


def spellings(secret: bytes) -> set[bytes]:
    """A key as bytes, in hex and in base64."""
    encoded = {base64.b64encode(secret), base64.urlsafe_b64encode(secret)}
    return {secret, secret.hex().encode(), secret.hex().upper().encode(), *(text.rstrip(b"=") for text in encoded)}


def _is_text(kind: pa.DataType) -> bool:
    parts = [kind.field(i).type for i in range(kind.num_fields)]
    return pa.types.is_string(kind) or pa.types.is_binary(kind) or any(_is_text(part) for part in parts)
