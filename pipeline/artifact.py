"""Artifacts: content-addressed folders whose manifest is written last.

Done means that the manifest is there. A folder is `<store>/<class>/<word>/.../<fingerprint>/`; a changed recipe has
another fingerprint and so never overwrites. On an object store, where no lock keeps two runs apart and no rename is
atomic, every attempt writes to a folder of its own below it; the manifest (one small PUT) names the one that counts.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import importlib.metadata
import json
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipeline.config import canonical
from pipeline.inspection import require_plain
from pipeline.storage import S3, Patience, is_denied, located, sizes

Class = Literal["private", "releasable"]
MANIFEST = "manifest.json"
SETTLE_S = 1.5
"""Longer than a PUT that has been answered may take to show in a listing, and than a tick of the store's clock."""
UPLOADS = 8
"""Files that are uploaded at once, each in pieces of `COPIED_BYTES`."""
COPIED_BYTES = 1 << 20
SECRET_BYTES = 32
READS = 3
"""A manifest that ends in the middle is read so often, before it is taken for half an upload."""
CUT_OFF = "— run again, the upload was cut off"
ABANDONED_S = 7 * 24 * 3600.0
"""What an attempt wrote to an object store and did not finish is removed when nothing was added to it for so long."""


class ArtifactError(RuntimeError):
    """An artifact is missing, unfinished or cannot be written; the message says which and what to do."""


def fingerprint(name: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """SHA-256 (first 16 hex digits) over what decides an artifact's content: never over where or when."""
    text = json.dumps([name, version, canonical(dict(config)), sorted(inputs.items())])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def folder_digest(folder: Path | None) -> str | None:
    """SHA-256 over names and bytes of a folder's files; none for no folder. A recipe's folder counts by content.

    Raises: ArtifactError if the folder is not there; UnsafeFolderError if it holds more than a model's data.
    """
    if folder is None:
        return None
    if not folder.is_dir():
        raise ArtifactError(f"recipe: want the folder of a saved model, got nothing at {folder} — correct its path")
    require_plain(folder)
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(
            f"{path.relative_to(folder).as_posix()}\0".encode() + hashlib.sha256(path.read_bytes()).digest()
        )
    return digest.hexdigest()


@dataclass(frozen=True)
class Key:
    """Where an artifact is: class (who may read it), name (`teach`, `score/0`) and fingerprint."""

    kind: Class
    name: str
    fingerprint: str

    @property
    def path(self) -> str:
        """Folder below the store."""
        return f"{self.kind}/{self.name}/{self.fingerprint}"

    @property
    def work_path(self) -> str:
        """Folder below the store for checkpoints."""
        return f"{self.kind}/work/{self.name.replace('/', '-')}-{self.fingerprint}"


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: its folder and its manifest."""

    store: Store
    key: Key
    manifest: Mapping[str, Any]

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the step found out beside its tables: counts, thresholds, estimates."""
        return self.manifest["facts"]

    @property
    def path(self) -> str:
        """Its folder within the store's filesystem."""
        return _joined(self.store.path_of(self.key), self.manifest.get("attempt"))

    @property
    def uri(self) -> str:
        """Address that any process can open."""
        return self.store.uri_below(_joined(self.key.path, self.manifest.get("attempt")))

    def uri_of(self, name: str) -> str:
        """Address of one of its tables."""
        return self.store.uri_below(f"{_joined(self.key.path, self.manifest.get('attempt'))}/{name}")

    def table(
        self, name: str = "rows", columns: Sequence[str] | None = None, where: pads.Expression | None = None
    ) -> pa.Table:
        """A table of this artifact in the order of `row_id` (files come in the order of arrival)."""
        return read_table(self.store.fs, f"{self.path}/{name}", columns, where)

    def local(self) -> Path:
        """The folder on this machine; fetched once to a temporary folder if the store is remote."""
        return self.store.local(self)


def read_table(
    fs: pafs.FileSystem, path: str, columns: Sequence[str] | None = None, where: pads.Expression | None = None
) -> pa.Table:
    """The Parquet folder or file at `path`, sorted by `row_id` where it has one."""
    is_folder = fs.get_file_info(path).type == pafs.FileType.Directory
    path = path if is_folder else f"{path}.parquet"
    data = pads.dataset(path, filesystem=fs, format="parquet")
    if columns is None:
        table = data.to_table(filter=where)
    else:
        wanted = list(columns) if "row_id" in columns or "row_id" not in data.schema.names else ["row_id", *columns]
        table = data.to_table(columns=wanted, filter=where)
    if "row_id" in table.column_names:
        table = table.sort_by("row_id")
    return table if columns is None else table.select(list(columns))


@dataclass
class Draft:
    """An artifact being made. Nothing sees it before `Store.commit`."""

    store: Store
    key: Key
    folder: Path
    """Local folder; for a remote store it is uploaded by `commit`."""
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    version: int = 1
    place: Mapping[str, Any] = field(default_factory=dict)
    """What it is made on; decides its `seconds`, never its content."""
    resumed: bool = False
    """Whether an earlier attempt left work to go on from, so that its `seconds` are not those of all of it."""
    work_seconds: float | None = None
    """What of its `seconds` grows with its work, if that is known; the rest is starting and ending."""
    started_at: float = field(default_factory=time.time)
    attempt: str | None = None
    """On a remote store, the name of its own folder: a second run on the same store writes to another."""
    leftovers: Sequence[str] = ()
    """Attempts of others, dead or alive, whose finished parts may be taken over by copying."""

    @property
    def path(self) -> str:
        """Its folder within the store's filesystem."""
        return _joined(self.store.path_of(self.key), self.attempt)

    def uri_of(self, name: str) -> str:
        """Final address of a table, for workers that write their own rows."""
        return self.store.uri_below(f"{_joined(self.key.path, self.attempt)}/{name}")

    @property
    def work_uri(self) -> str:
        """Address for checkpoints, removed by `commit`."""
        return self.store.uri_below(self.work_path)

    @property
    def work_path(self) -> str:
        """The same below the store."""
        return _joined(self.key.work_path, self.attempt)

    def leftover_uris(self, name: str) -> list[str]:
        """Addresses of a table in the leftovers."""
        return [self.store.uri_below(f"{self.key.path}/{attempt}/{name}") for attempt in self.leftovers]

    @property
    def leftover_work_uris(self) -> list[str]:
        """Addresses of the leftovers' checkpoints."""
        return [self.store.uri_below(f"{self.key.work_path}/{attempt}") for attempt in self.leftovers]

    def write_table(self, table: pa.Table, name: str = "rows") -> None:
        """Write a table as one Parquet file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with explained_disk(self.folder):
            pq.write_table(table, self.folder / f"{name}.parquet", compression="zstd")

    def write_source(self, table: pa.Table) -> str:
        """Write rows for workers wherever they are; the address, which `commit` removes."""
        path = f"{self.store.root}/{self.work_path}"
        if self.store.local_root:
            self.store.fs.create_dir(path, recursive=True)
        with explained_disk(path):
            pq.write_table(table, f"{path}/source.parquet", filesystem=self.store.fs, compression="zstd")
        return self.store.uri_below(f"{self.work_path}/source.parquet")


class Store:
    """A folder or bucket prefix that holds artifacts of every recipe that was run on it."""

    def __init__(self, uri: str | Path, patience: Patience | None = None):
        text = str(uri)
        self._options = ""
        if "://" in text:
            try:
                self.fs, self.root = located(text, patience)
            except (pa.ArrowInvalid, OSError) as error:
                raise ArtifactError(
                    f"--store {text}: want a folder or an s3:// or gs:// address, got {error}"
                ) from error
            self.uri, mark, options = text.partition("?")  # such as s3://bucket/prefix?endpoint_override=...
            self.uri, self._options = self.uri.rstrip("/"), mark + options
            self.local_root: Path | None = None
        else:
            self.local_root = Path(text).resolve()
            self.fs, self.root, self.uri = pafs.LocalFileSystem(), str(self.local_root), str(self.local_root)
        self._found: dict[Key, Artifact] = {}
        self._downloads: dict[str, Path] = {}
        self._secrets: dict[str, bytes] = {}

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        """Another process, perhaps on another machine, opens the store anew; what was fetched here is not there."""
        return Store, (self.uri + self._options,)

    def path_of(self, key: Key) -> str:
        """Path within the store's filesystem."""
        return f"{self.root}/{key.path}"

    def uri_of(self, key: Key) -> str:
        """Address that any process can open."""
        return self.uri_below(key.path)

    def uri_below(self, path: str) -> str:
        """Address of a path below the store, with the options of the store's own address."""
        return f"{self.uri}/{path}{self._options}"

    def find(self, key: Key) -> Artifact | None:
        """The finished artifact; nothing if there is none, or none that this user may read."""
        if key in self._found:
            return self._found[key]
        try:
            manifest = self._manifest(f"{self.path_of(key)}/{MANIFEST}")
        except OSError as error:
            if is_denied(error):
                return None
            raise
        if manifest is None:
            return None
        artifact = Artifact(self, key, manifest)
        if self.local_root is None:  # asked for many times a run, and each time costs a request
            self._found[key] = artifact
        return artifact

    def _manifest(self, path: str) -> dict[str, Any] | None:
        """Its content; nothing if it is not there or half an upload.

        pyarrow asks a bucket for an object's size, and then for so many bytes: if a longer manifest was put in
        between, half of that one comes.
        """
        for _ in range(READS):
            if self.fs.get_file_info(path).type != pafs.FileType.File:
                return None
            with self.fs.open_input_stream(path) as stream, contextlib.suppress(json.JSONDecodeError):
                return json.loads(stream.read())
        return None

    def others(self, key: Key) -> list[Artifact]:
        """Finished artifacts of the same name that other recipes made."""
        folder = f"{self.root}/{key.kind}/{key.name}"
        try:
            infos = self.fs.get_file_info(pafs.FileSelector(folder, allow_not_found=True))
        except OSError as error:
            if is_denied(error):
                return []
            raise
        names = sorted(info.base_name for info in infos if info.base_name != key.fingerprint)
        found = (self.find(Key(key.kind, key.name, name)) for name in names)
        return [artifact for artifact in found if artifact is not None]

    def draft(self, key: Key, *, resumable: bool = False) -> Draft:
        """A place to make the artifact; leftovers of an earlier attempt are removed unless it resumes from them.

        A folder `private/` that is not there yet is made for this user alone; who shares it changes its permissions.

        On a remote store they may be another run's, at work this moment: they are left alone until nothing was added
        for a week.
        """
        if self.local_root is None:
            attempts = self._attempts(key)
            for name, age_s in attempts.items():
                if age_s > ABANDONED_S:
                    self._remove(f"{self.path_of(key)}/{name}", f"{self.root}/{key.work_path}/{name}")
            fresh = [name for name, age_s in attempts.items() if age_s <= ABANDONED_S]
            return Draft(self, key, _temporary(), attempt=secrets.token_hex(4), leftovers=fresh if resumable else ())
        folder = self.local_root / key.path
        if not resumable:
            self._remove(self.path_of(key))
        with explained_disk(folder):
            if key.kind == "private":
                self._make_private()
            folder.mkdir(parents=True, exist_ok=True)
        draft = Draft(self, key, folder)
        work = self.fs.get_file_info(f"{self.root}/{draft.work_path}")
        draft.resumed = resumable and work.type != pafs.FileType.NotFound
        return draft

    def _attempts(self, key: Key) -> dict[str, float]:
        """Seconds since anything was added, by attempt."""
        latest: dict[str, float] = {}
        for below in (self.path_of(key), f"{self.root}/{key.work_path}"):
            for info in self.fs.get_file_info(pafs.FileSelector(below, recursive=True, allow_not_found=True)):
                name, slash, _ = info.path.removeprefix(f"{below}/").partition("/")
                if slash and info.type == pafs.FileType.File:
                    latest[name] = max(latest.get(name, 0.0), info.mtime_ns / 1e9)
        return {name: time.time() - at for name, at in sorted(latest.items())}

    def commit(self, draft: Draft, facts: Mapping[str, Any], rows: int | None = None) -> Artifact:
        """Finish the artifact: upload if remote, then write the manifest last.

        Who finds that another run finished it meanwhile drops the own attempt and answers with the other's.
        """
        path = self.path_of(draft.key)
        if self.local_root is None:
            self._upload(draft)
            theirs = self.find(draft.key)
            if theirs is not None:
                self._remove(draft.path, f"{self.root}/{draft.work_path}")
                return theirs
        manifest: dict[str, Any] = {
            "fingerprint": draft.key.fingerprint,
            "name": draft.key.name,
            "class": draft.key.kind,
            "version": draft.version,
            "config": json.loads(canonical(dict(draft.config))),
            "inputs": dict(draft.inputs),
            "rows": rows,
            "facts": dict(facts),
            "packages": _packages(),
            "git_commit": _git_commit(),
            "place": dict(draft.place),
            "resumed": draft.resumed,
            "work_seconds": draft.work_seconds,
            "started_at": draft.started_at,
            "seconds": round(time.time() - draft.started_at, 2),
        }
        if draft.attempt is not None:
            manifest["attempt"] = draft.attempt
        body = json.dumps(manifest, indent=1, allow_nan=False).encode()
        with explained_disk(path):
            self._put(f"{path}/{MANIFEST}", body)
        # On a remote store another run may have put its own on top in this moment: what is there counts.
        artifact = self.find(draft.key)
        if artifact is None:
            raise ArtifactError(f"store {path}/{MANIFEST}: want {len(body)} bytes, got others {CUT_OFF}")
        self._remove(f"{self.root}/{draft.work_path}")
        return artifact

    def _upload(self, draft: Draft) -> None:
        """Copy the draft's local folder to its place, and compare the sizes of what arrived."""
        wanted = sizes(draft.folder)
        for folder in {"", *(name.rpartition("/")[0] for name in wanted)}:
            self.fs.create_dir(f"{draft.path}/{folder}".rstrip("/"), recursive=True)

        def upload(name: str) -> None:
            # Not `copy_files`: with pyarrow 26 it says nothing of an upload to S3 that failed.
            with (
                (draft.folder / name).open("rb") as file,
                self.fs.open_output_stream(f"{draft.path}/{name}") as stream,
            ):
                shutil.copyfileobj(file, stream, COPIED_BYTES)

        with ThreadPoolExecutor(UPLOADS) as pool:
            list(pool.map(upload, wanted))
        infos = self.fs.get_file_info(pafs.FileSelector(draft.path, recursive=True, allow_not_found=True))
        arrived = {info.path.removeprefix(f"{draft.path}/"): info.size for info in infos}
        for name, size in wanted.items():
            _require_size(f"{self.uri}/{draft.key.path}/{draft.attempt}/{name}", size, arrived.get(name))
        shutil.rmtree(draft.folder)

    def _remove(self, *paths: str) -> None:
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                self.fs.delete_dir(path)

    def secret(self, name: str, *, create: bool = True) -> bytes:
        """32 random bytes that belong to this store, made at the first call; without `create`, empty until then.

        On a remote store several runs may make one at once. Each puts its own, and the oldest counts for all: no
        later one can change that.
        """
        if name not in self._secrets and (found := self._secret(f"{self.root}/{name}", create)):
            if len(found) != SECRET_BYTES:
                raise ArtifactError(
                    f"store {self.uri}/{name}: want {SECRET_BYTES} bytes, got {len(found)} — put the file back; "
                    "without it, nothing that was made here can be made again"
                )
            self._secrets[name] = found
        return self._secrets.get(name, b"")

    def _secret(self, path: str, create: bool) -> bytes:
        if self.fs.get_file_info(path).type != pafs.FileType.File:
            if self.local_root is None:
                path = self._oldest(path, create)
            elif create:
                self._make_private()
                self._put(path, secrets.token_bytes(SECRET_BYTES), mode=0o600)
            else:
                path = ""
        if not path:
            return b""
        with self.fs.open_input_stream(path) as stream:
            return stream.read()

    def _oldest(self, folder: str, create: bool) -> str:
        """The oldest file of a folder of secrets; the first is made here, or there is none."""

        def listed() -> list[tuple[int, str]]:
            infos = self.fs.get_file_info(pafs.FileSelector(folder, allow_not_found=True))
            return sorted((info.mtime_ns // 10**9, info.path) for info in infos if info.type == pafs.FileType.File)

        if not listed():
            if not create:
                return ""
            self.fs.create_dir(folder, recursive=True)
            path = f"{folder}/{secrets.token_hex(4)}"
            self._put(path, secrets.token_bytes(SECRET_BYTES))
            _require_size(path, SECRET_BYTES, self.fs.get_file_info(path).size)
        time.sleep(SETTLE_S)  # until whatever was put in the same second is listed
        return listed()[0][1]

    def put(self, name: str, body: bytes) -> None:
        """Write a small file of the store, at once or not at all."""
        path = f"{self.root}/{name}"
        self.fs.create_dir(path.rsplit("/", 1)[0], recursive=True)
        with explained_disk(path):
            self._put(path, body)

    def _make_private(self) -> None:
        """The folder `private/` of a store on this machine, for this user alone where it is not there yet."""
        assert self.local_root is not None
        (self.local_root / "private").mkdir(mode=0o700, parents=True, exist_ok=True)

    def _put(self, path: str, body: bytes, mode: int = 0o644) -> None:
        if self.local_root is None:
            with self.fs.open_output_stream(path) as stream:
                stream.write(body)
            return
        beside = Path(f"{path}.part")
        beside.touch(mode)
        with beside.open("wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)

    def copy_for_custodian(self, source: str, name: str) -> None:
        """Copy a file of the store to a name at its top, in a folder of this machine for this user alone."""
        path = f"{self.root}/{name}"
        if self.local_root is not None:
            Path(path).touch(0o600)
            Path(path).chmod(0o600)
        self.fs.copy_file(source, path)

    def local(self, artifact: Artifact) -> Path:
        """The artifact's folder on this machine."""
        if self.local_root is not None:
            return self.local_root / artifact.key.path
        if artifact.path not in self._downloads:
            folder = _temporary()
            pafs.copy_files(artifact.path, str(folder), source_filesystem=self.fs)
            self._downloads[artifact.path] = folder
        return self._downloads[artifact.path]

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the store against a second run on this machine; freed by the kernel if this process dies.

        A remote store is not held, as two runs do not meet there; what was fetched from it is removed at the end.
        Raises: ArtifactError if another run holds it, or if there is no such bucket.
        """
        if self.local_root is None:
            top = self.root.split("/")[0]
            if isinstance(self.fs, S3) and self.fs.get_file_info(top).type == pafs.FileType.NotFound:
                raise ArtifactError(
                    f"store {self.uri}: want a bucket, got none named {top} — make it, or correct the name"
                )
            try:
                yield
            finally:
                self._found.clear()
                self._downloads.clear()
                _scratch().cleanup()
                _scratch.cache_clear()
            return
        import fcntl

        with explained_disk(self.local_root):
            self.local_root.mkdir(parents=True, exist_ok=True)
        with explained_disk(self.local_root):
            lock = (self.local_root / ".lock").open("a+")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ArtifactError(
                    f"store {self.uri}: want it alone, got another run at work on it — wait, or give another --store"
                ) from None
            yield


@contextlib.contextmanager
def explained_disk(where: Path | str) -> Iterator[None]:
    """Turn a full disk or a forbidden folder into a sentence."""
    try:
        with explained_full_disk(where):
            yield
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise ArtifactError(f"store {where}: want a folder to write to, got {error.strerror}") from error
        raise


@contextlib.contextmanager
def explained_full_disk(where: Path | str) -> Iterator[None]:
    """Turn a full disk, whoever finds it, into a sentence."""
    try:
        yield
    except Exception as error:  # known by its words, as what safetensors and tokenizers raise has no errno
        if any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT)):
            raise ArtifactError(
                f"store {where}: want free space, got a full disk — free some and run again"
            ) from error
        raise


def require_space(store: Store, bytes_wanted: int) -> None:
    """Check free space before work starts (local stores only).

    Raises: ArtifactError with both figures.
    """
    if store.local_root is None:
        return
    existing = next(p for p in (store.local_root, *store.local_root.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < bytes_wanted:
        raise ArtifactError(
            f"store {store.uri}: want {bytes_wanted / 1e9:.2f} GB free, got {free / 1e9:.2f} GB "
            "— free some space or give another --store"
        )


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    """What this process has of remote stores: removed when it ends, or when the run does."""
    return tempfile.TemporaryDirectory(prefix="pd-", ignore_cleanup_errors=True)


def _temporary() -> Path:
    return Path(tempfile.mkdtemp(dir=_scratch().name))


def _joined(path: str, attempt: str | None) -> str:
    return path if attempt is None else f"{path}/{attempt}"


def _require_size(where: str, wanted: int, there: int | None) -> None:
    if there != wanted:
        raise ArtifactError(f"store {where}: want {wanted} bytes, got {there or 0} {CUT_OFF}")


def _packages() -> dict[str, str]:
    names = ("ray", "torch", "diffusers", "transformers", "pyarrow", "numpy")
    return {name: importlib.metadata.version(name) for name in names}


def _git_commit() -> str | None:
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return None
    return answer.stdout.strip() or None
