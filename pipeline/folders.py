"""Folders that travel: files that one process wrote, for another that may be on another machine."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Folder:
    """The files below a folder, as bytes; for models and pages, not for image sets."""

    files: Mapping[str, bytes]
    """Path below the folder -> content."""

    @classmethod
    def of(cls, path: Path, *parts: str) -> Folder:
        """What lies there now, or in these folders below."""
        files = [file for part in parts or (".",) for file in (path / part).rglob("*") if file.is_file()]
        return cls({str(file.relative_to(path)): file.read_bytes() for file in files})

    def write(self, path: Path) -> None:
        """Put the files below a folder of this machine."""
        for name, content in self.files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)

    def local(self) -> Path:
        """A new temporary folder of this machine with these files."""
        path = Path(tempfile.mkdtemp(prefix="pd-"))
        self.write(path)
        return path
