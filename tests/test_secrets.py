"""No credential, key or name of a patient or machine stands where it must not, in what a whole run leaves.

The run of `finished_store` has credentials in its environment that nobody else has, so that each would be noticed.
Addresses of this machine's folders are let be in `private/` and at the top of the store, which stay here.
"""

from __future__ import annotations

import getpass
import socket
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from running import CREDENTIALS, ROOT
from sweep import SHAPES, contents, spellings, sweep

from pipeline.artifact import Key, Store

IDENTITIES = "private/ingest/*/identities*"
KEY = "private/secret.key"
PLANTED = {
    "AWS access key": b"AKIAIOSFODNN7EXAMPLE",
    "password in an address": b"https://user:correct-horse@mlflow.example.org",
    "private key": b"-----BEGIN RSA PRIVATE KEY-----",
    "bearer token": b"Authorization: Bearer 0123456789abcdef0123456789abcdef",
    "token of a hub": b"hf_abcdefghijklmnopqrstuvwxyzABCDEFGH",
    "key of Google": b"AIza" + b"0123456789abcdefghijklmnopqrstuvwxy",
}


def machine() -> set[bytes]:
    """What would tell where a run took place; names of a few letters stand in words, too."""
    names = {name for name in (socket.gethostname(), getpass.getuser()) if len(name) > 5}
    folders = {str(ROOT), str(Path.home()) + "/"}
    return {name.encode() for name in names | folders}


def forbidden(store: Path) -> dict[str, set[bytes]]:
    """By kind, what must stand nowhere."""
    key = (store / KEY).read_bytes()
    return {
        **{f"value of {name}": {value.encode()} for name, value in CREDENTIALS.items()},
        "key of the pseudonyms": spellings(key),
        "patient": {patient.encode() for patient in patients(store)},
    }


def patients(store: Path) -> list[str]:
    (folder,) = (store / "private" / "ingest").iterdir()
    artifact = Store(store).find(Key("private", "ingest", folder.name))
    assert artifact is not None
    return artifact.table("identities")["patient"].unique().to_pylist()


@pytest.mark.slow
def test_a_whole_run_writes_no_credential_no_key_and_no_patient(finished_store: Path) -> None:
    wanted = forbidden(finished_store)
    assert len(wanted["patient"]) > 100
    assert sweep(finished_store, wanted, leave_out=[KEY, IDENTITIES, f"{IDENTITIES}/*"]) == []
    assert sweep(finished_store.with_suffix(".log"), wanted) == []


@pytest.mark.slow
def test_what_may_leave_does_not_tell_where_it_was_made(finished_store: Path) -> None:
    wanted = {"machine": machine() | {str(finished_store).encode()}}
    for part in ("releasable", "release"):
        assert sweep(finished_store / part, wanted) == []


@pytest.mark.slow
def test_the_sweep_of_that_run_would_have_found_each(finished_store: Path, tmp_path: Path) -> None:
    wanted = forbidden(finished_store) | {"machine": machine() | {str(finished_store).encode()}}
    for number, values in enumerate(wanted.values()):
        for spelling, value in enumerate(sorted(values)[:5]):
            (tmp_path / f"{number}-{spelling}.json").write_bytes(b'{"x": "' + value + b'"}')
    found = {find.kind for find in sweep(tmp_path, wanted)}
    assert found >= set(wanted)
    assert {find.kind for find in sweep(finished_store, wanted)} >= {"key of the pseudonyms", "patient", "machine"}


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("place", ["text", "name of a file", "table", "list in a table", "struct in a table"])
def test_a_planted_credential_is_found_by_its_shape(kind: str, place: str, tmp_path: Path) -> None:
    text = PLANTED[kind].decode()
    cells: Mapping[str, object] = {
        "table": text,
        "list in a table": ["a", text],
        "struct in a table": {"path": text, "n": 1},
    }
    if place == "text":
        (tmp_path / "log.txt").write_text(f"connecting with {text} now")
    elif place == "name of a file":
        if "/" in text:
            pytest.skip("no name of a file holds a slash")
        (tmp_path / text).touch()
    else:
        pq.write_table(
            pa.table({"n": [1, 2], "c": [cells[place]] * 2}), tmp_path / "rows.parquet", compression="zstd"
        )
    assert kind in {find.kind for find in sweep(tmp_path, {})}


@pytest.mark.parametrize("spelling", sorted(spellings(bytes(range(32)))), ids=lambda text: f"{len(text)} bytes")
def test_a_key_is_found_however_it_is_spelt(spelling: bytes, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_bytes(b"the key is " + spelling)
    assert [find.kind for find in sweep(tmp_path, {"key": spellings(bytes(range(32)))})] == ["key"]


def test_what_is_harmless_is_not_reported(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"uri": "https://arxiv.org/abs/2306.01322", "sha256": "' + "ab" * 32 + '"}')
    (tmp_path / "b.md").write_text("mail: somebody@example.org, s3://bucket/prefix?endpoint_override=localhost:9000")
    assert sweep(tmp_path, {}) == []


def test_text_that_compression_hides_is_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"c": ["a secret word"] * 1000}), tmp_path / "rows.parquet", compression="zstd")
    assert any(b"a secret word" in part for part in contents(tmp_path / "rows.parquet"))
