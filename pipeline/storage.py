"""Where artifacts are kept: a folder, or an object store through pyarrow; its patience, its errors as sentences.

Credentials come from the environment of each process: AWS_ACCESS_KEY_ID and its like, a profile, the machine's role.
No address holds one, and what is sent to another process holds none either. Not here: what is kept (`artifact`).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import pyarrow.fs as pafs

OPTIONS = ("endpoint_override", "region", "scheme")
ADVICE = {
    "NETWORK_CONNECTION": "see that it runs, and that address and AWS_ENDPOINT_URL are right",
    "NO_SUCH_BUCKET": "make the bucket first, or correct its name",
    "ACCESS_DENIED": "see the AWS_* credentials and what the bucket's policy allows them",
    "INVALID_ACCESS_KEY_ID": "correct AWS_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH": "correct AWS_SECRET_ACCESS_KEY",
}


class StorageError(RuntimeError):
    """An object store does not answer, refuses, or has a wrong address; the message says which and what to do."""


class Patience(NamedTuple):
    """How long an object store may take before an operation ends with an error.

    With these, one that takes the connection and then says nothing is given up after two to three minutes: every
    attempt waits `answer_s` or some more, and between them the AWS library waits too.
    """

    connect_s: float = 5.0
    answer_s: float = 20.0
    """Without a byte. pyarrow's documentation calls it ignored on Linux; measured, it is not."""
    attempts: int = 6


class S3(pafs.S3FileSystem):
    """S3 that another process makes anew, with its own credentials and the same patience (pyarrow's forgets that)."""

    def __init__(self, options: Mapping[str, Any], patience: Patience):
        self._made_of = (dict(options), patience)
        super().__init__(
            **options,
            connect_timeout=patience.connect_s,
            request_timeout=patience.answer_s,
            # A role that may write below a prefix may not make the folders above it.
            check_directory_existence_before_creation=True,
            allow_delayed_open=True,  # a small file is one PUT, not three requests
            retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=patience.attempts),
        )

    def __reduce__(self) -> tuple[type[S3], tuple[Any, ...]]:
        return S3, self._made_of


def located(address: str, patience: Patience | None = None) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a path or address, and the path within it.

    Raises: StorageError for an S3 address with credentials or an unknown option; whatever pyarrow does for others.
    """
    if "://" not in address:
        return pafs.LocalFileSystem(), address
    if not address.startswith("s3://"):
        return pafs.FileSystem.from_uri(address)
    path, _, query = address.removeprefix("s3://").partition("?")
    options = dict(parse_qsl(query))
    bucket = path.split("/")[0]
    if "@" in path or ":" in bucket or re.search("key|secret|token", query, re.IGNORECASE):
        # The address is not repeated: what is told goes into logs.
        raise StorageError(
            "store: want s3://bucket/prefix, got an address with credentials in it — give them in the environment, "
            "as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if not bucket or not options.keys() <= {*OPTIONS}:
        raise StorageError(
            f"store {address}: want s3://bucket/prefix, perhaps with ?endpoint_override=, region= and scheme=, "
            f"got {', '.join(sorted(options.keys() - {*OPTIONS})) or 'no bucket'} — correct the address"
        )
    # pyarrow heeds this variable in an address, but then takes no time-outs.
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        options.setdefault("endpoint_override", endpoint)
    if not options.keys() & {"endpoint_override", "region"} and not {"AWS_REGION", "AWS_DEFAULT_REGION"} & {
        *os.environ
    }:
        options["region"] = pafs.resolve_s3_region(bucket)
    return S3(options, patience or Patience()), path.rstrip("/")


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file of a local folder, by its path below it."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def is_denied(error: OSError) -> bool:
    """Whether the store says that this user may not."""
    return isinstance(error, PermissionError) or "AWS Error ACCESS_DENIED" in str(error)


@contextlib.contextmanager
def explained_storage(address: str) -> Iterator[None]:
    """Turn an error of the object store, whoever meets it, into a sentence without anything that it answered."""
    try:
        yield
    except Exception as error:  # pyarrow's, Ray's or a loader's own: known by its words
        found = re.search(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))? during (\w+)", str(error))
        if found is None:
            raise
        name, status, operation = found.groups()
        raise StorageError(
            f"store {address}: want an answer to {operation}, got {name}{f' ({status})' if status else ''} after "
            f"several attempts — {ADVICE.get(name, 'run the same command again later')}; what is finished is kept"
        ) from error
