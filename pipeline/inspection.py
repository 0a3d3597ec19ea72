"""Whether a folder of a model from outside is data alone: nothing in it that a loader would unpickle or run.

Not here: whether its parts fit together (`generators.folder`, and the loaders themselves).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SUFFIXES = {".json", ".safetensors", ".txt", ".md", ".model"}
# Keys of a config that make diffusers or transformers import code of the folder or of a hub.
CODE_KEYS = ("auto_map", "custom_pipeline", "custom_pipelines", "custom_code", "trust_remote_code")
# What archives of pickles (torch's, NumPy's) and pickles of protocol 2 and later begin with.
PICKLES = (b"PK\x03\x04", b"\x93NUMPY", *(bytes([0x80, protocol]) for protocol in range(2, 6)))
LENGTH_BYTES = 8


class UnsafeFolderError(ValueError):
    """A folder that holds more than a model's data; the message says which file, what is wanted and what to do."""


def require_plain(folder: Path) -> None:
    """Check every file of a folder by name, kind and content.

    Raises: UnsafeFolderError for anything but regular files of JSON, text, safetensors and SentencePiece models, and
        for a config that names code.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise _refused(folder, path, "files of its own", f"a link to {path.readlink()}", "copy what it points to")
        if path.is_dir():
            continue
        if not path.is_file() or path.suffix not in SUFFIXES:
            wanted = f"only {', '.join(sorted(SUFFIXES))} files"
            raise _refused(folder, path, wanted, path.name, "convert weights to safetensors and remove code")
        with path.open("rb") as file:
            start = file.read(LENGTH_BYTES + 1)
        if start.startswith(PICKLES):
            raise _refused(folder, path, f"{path.suffix[1:]} inside", "a pickle", "convert weights to safetensors")
        if path.suffix == ".safetensors":
            _require_safetensors(folder, path, start)
        elif path.suffix == ".json":
            _require_no_code(folder, path)


def _require_safetensors(folder: Path, path: Path, start: bytes) -> None:
    """A length of eight bytes, and within the file a JSON header of that length."""
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    if len(start) <= LENGTH_BYTES or start[LENGTH_BYTES:] != b"{" or length + LENGTH_BYTES > path.stat().st_size:
        raise _refused(
            folder, path, "safetensors inside", "something else", "save the weights again with safetensors"
        )


def _require_no_code(folder: Path, path: Path) -> None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise _refused(folder, path, "JSON inside", "something else", "repair or remove it") from None
    for key, value in _pairs(content):
        if key in CODE_KEYS and value is not False:
            raise _refused(folder, path, "no custom code", f"the field {key}", "remove it")
        if key == "_class_name" and not isinstance(value, str):
            raise _refused(folder, path, "the name of one class as _class_name", repr(value), "remove custom code")


def _pairs(content: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(content, dict):
        yield from content.items()
    for part in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        yield from _pairs(part)


def _refused(folder: Path, path: Path, want: str, got: str, do: str) -> UnsafeFolderError:
    return UnsafeFolderError(f"model {folder}: {path.relative_to(folder)}: want {want}, got {got} — {do}")
