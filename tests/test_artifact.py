"""Artifacts: done means the manifest is there, whatever was killed, full or forbidden; the same on a store by URI."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from pipeline.artifact import (
    MANIFEST,
    ArtifactError,
    Key,
    Store,
    explained_disk,
    explained_full_disk,
    fingerprint,
    folder_digest,
    require_space,
)

KEY = Key("private", "teach", "0123456789abcdef")
ROWS = pa.table({"row_id": ["c", "a", "b"], "value": [3, 1, 2]})
FULL = Path("/dev/full")  # takes no byte: what a full disk answers, from the kernel

# Run in a process of its own: dies while the manifest is put together, when all else is on disk.
KILLED = """
import os, signal, sys
import pyarrow as pa
from pipeline.artifact import Key, Store

class Dies:
    def keys(self):
        os.kill(os.getpid(), signal.SIGKILL)

store = Store(sys.argv[1])
draft = store.draft(Key("private", "teach", "0123456789abcdef"))
draft.write_table(pa.table({"row_id": ["a"]}))
(draft.folder / "leftover.txt").write_text("of the first attempt")
store.commit(draft, Dies())
"""
HOLDS = """
import fcntl, sys
with open(sys.argv[1], "a+") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["folder", "uri"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A store on a path, and one on an address as if it were remote."""
    return Store(tmp_path / "store" if request.param == "folder" else (tmp_path / "store").as_uri())


def folder_of(store: Store, key: Key = KEY) -> Path:
    return Path(store.path_of(key))


def test_a_fingerprint_is_the_same_on_every_machine() -> None:
    assert fingerprint("teach", 1, {"lr": 0.1}, {"ingest": "ab"}) == "47522f51d3617235"


CONFIGS = st.dictionaries(st.text(max_size=3), st.integers() | st.dictionaries(st.text(max_size=2), st.booleans()))


@given(CONFIGS, st.dictionaries(st.sampled_from(["ingest", "teach", "score/0"]), st.text("0123456789abcdef")))
def test_the_order_of_keys_and_inputs_does_not_count(config: dict, inputs: dict) -> None:
    backwards = dict(reversed(config.items())), dict(reversed(inputs.items()))
    assert fingerprint("teach", 1, *backwards) == fingerprint("teach", 1, config, inputs)


def test_whatever_decides_the_content_counts() -> None:
    variants = [
        ("teach", 1, {"lr": 0.1}, {"ingest": "ab"}),
        ("distill", 1, {"lr": 0.1}, {"ingest": "ab"}),
        ("teach", 2, {"lr": 0.1}, {"ingest": "ab"}),
        ("teach", 1, {"lr": 0.2}, {"ingest": "ab"}),
        ("teach", 1, {"lr": "0.1"}, {"ingest": "ab"}),
        ("teach", 1, {"lr": 0.1}, {"ingest": "cd"}),
        ("teach", 1, {"lr": 0.1}, {"ingests": "ab"}),
        ("teach", 1, {"lr": 0.1}, {}),
    ]
    assert len({fingerprint(*variant) for variant in variants}) == len(variants)


def test_a_finished_artifact_is_found_with_what_was_written(store: Store) -> None:
    draft = store.draft(KEY)
    draft.config, draft.inputs, draft.version = {"lr": 0.1}, {"ingest": "ab"}, 3
    draft.write_table(ROWS)
    store.commit(draft, {"n": 3}, rows=3)
    found = Store(store.uri).find(KEY)
    assert found is not None
    assert found.facts == {"n": 3}
    told = {name: found.manifest[name] for name in ("name", "class", "fingerprint", "version", "rows")}
    assert told == {"name": "teach", "class": "private", "fingerprint": KEY.fingerprint, "version": 3, "rows": 3}
    assert found.manifest["config"] == {"lr": 0.1} and found.manifest["inputs"] == {"ingest": "ab"}
    assert pq.read_table(found.local() / "rows.parquet").equals(ROWS)


def test_a_draft_is_not_found_before_it_is_committed(store: Store) -> None:
    store.draft(KEY).write_table(ROWS)
    assert store.find(KEY) is None


def test_the_private_part_is_for_this_user_alone_unless_it_was_there_before(tmp_path: Path) -> None:
    usual = os.umask(0o022)
    try:
        for kind in ("private", "releasable"):
            Store(tmp_path / "new").draft(Key(kind, "thing", "ab"))
        (tmp_path / "shared" / "private").mkdir(parents=True)
        Store(tmp_path / "shared").draft(Key("private", "thing", "ab"))
    finally:
        os.umask(usual)
    modes = {
        name: (tmp_path / name).stat().st_mode & 0o777 for name in ("new/private", "new/releasable", "shared/private")
    }
    assert modes == {"new/private": 0o700, "new/releasable": 0o755, "shared/private": 0o755}


def test_rows_come_back_in_the_order_of_row_id_whatever_files_hold_them(store: Store) -> None:
    draft = store.draft(KEY)
    (draft.folder / "rows").mkdir()
    for name, part in (("1.parquet", ROWS.slice(0, 1)), ("0.parquet", ROWS.slice(1))):
        pq.write_table(part, draft.folder / "rows" / name)
    draft.write_table(ROWS, "single")
    draft.write_table(ROWS.select(["value"]), "nameless")
    artifact = store.commit(draft, {})
    for name in ("rows", "single"):
        assert artifact.table(name).to_pydict() == {"row_id": ["a", "b", "c"], "value": [1, 2, 3]}
        assert artifact.table(name, ["value"]).to_pydict() == {"value": [1, 2, 3]}
        assert artifact.table(name, ["value"], pc.field("row_id") != "b").to_pydict() == {"value": [1, 3]}
    assert artifact.table("nameless").to_pydict() == {"value": [3, 1, 2]}


@pytest.mark.parametrize("resumable", [False, True])
def test_a_commit_that_is_killed_leaves_nothing_found(store: Store, resumable: bool) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, store.uri], check=False)
    assert killed.returncode == -9
    assert list(folder_of(store).rglob("leftover.txt"))
    assert store.find(KEY) is None
    draft = store.draft(KEY, resumable=resumable)
    draft.write_table(ROWS)
    artifact = store.commit(draft, {})
    assert artifact.table()["row_id"].to_pylist() == ["a", "b", "c"]
    # On a remote store, rows and checkpoints are copied from leftovers, and nothing else.
    assert (artifact.local() / "leftover.txt").exists() == (resumable and store.local_root is not None)


def test_facts_that_json_cannot_say_are_refused_and_leave_nothing_found(store: Store) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.commit(store.draft(KEY), {"auc": math.nan})
    assert store.find(KEY) is None


def test_checkpoints_are_removed_by_the_commit_and_those_of_others_are_not(store: Store) -> None:
    draft, other = store.draft(KEY), store.draft(Key("private", "teach/latents", "ab"))
    works = [Path(one.work_uri.removeprefix("file://")) for one in (draft, other)]
    for work in works:
        (work / "checkpoint").mkdir(parents=True)
    store.commit(draft, {})
    assert [work.exists() for work in works] == [False, True]


def test_only_finished_artifacts_of_the_same_name_are_others(store: Store) -> None:
    for key in (
        KEY,
        Key("private", "teach", "aa"),
        Key("private", "teach", "bb"),
        Key("private", "teach/latents", "cc"),
    ):
        store.commit(store.draft(key), {})
    store.draft(Key("private", "teach", "dd"))
    assert [other.key.fingerprint for other in store.others(KEY)] == ["aa", "bb"]
    assert store.others(Key("private", "score/0", "aa")) == []


def test_a_store_with_a_slash_at_its_end_is_the_same_store(store: Store) -> None:
    made = store.commit(store.draft(KEY), {})
    found = Store(f"{store.uri}/").find(KEY)
    assert found is not None and found.uri == made.uri


def test_an_address_with_options_keeps_them_at_its_end() -> None:
    remote = Store("s3://bucket/runs?endpoint_override=localhost:9000&scheme=http")
    assert remote.path_of(KEY) == f"bucket/runs/{KEY.path}"
    address, _, options = remote.uri_of(KEY).partition("?")
    assert address.endswith(f"bucket/runs/{KEY.path}") and "endpoint_override" in options


def test_a_store_secret_is_made_once_and_is_its_own(store: Store, tmp_path: Path) -> None:
    secret = store.secret("private/secret.key")
    assert len(secret) == 32
    assert Store(store.uri).secret("private/secret.key") == secret
    assert Store(tmp_path / "other").secret("private/secret.key") != secret


def test_only_its_owner_may_read_the_key_of_the_patients(tmp_path: Path) -> None:
    Store(tmp_path).secret("private/secret.key")
    assert (tmp_path / "private" / "secret.key").stat().st_mode & 0o077 == 0


@contextlib.contextmanager
def another_run(folder: Path) -> Iterator[None]:
    folder.mkdir()
    arguments = [sys.executable, "-c", HOLDS, str(folder / ".lock")]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield
        process.kill()


def test_two_runs_at_once_on_a_store_are_refused_until_the_first_ends(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with (
        another_run(tmp_path / "store"),
        pytest.raises(ArtifactError, match=r"got another run .* --store"),
        store.exclusive(),
    ):
        pytest.fail("two runs at once")
    with store.exclusive(), Store(tmp_path / "other").exclusive():
        pass


def test_a_full_disk_is_told_in_a_sentence_for_tables_and_manifests(tmp_path: Path) -> None:
    if not FULL.exists():
        pytest.skip("there is no /dev/full on this system")
    store = Store(tmp_path)
    draft = store.draft(KEY)
    (draft.folder / "rows.parquet").symlink_to(FULL)
    with pytest.raises(ArtifactError, match="got a full disk — free some and run again"):
        draft.write_table(ROWS)
    (draft.folder / f"{MANIFEST}.part").symlink_to(FULL)
    with pytest.raises(ArtifactError, match="full disk"):
        store.commit(draft, {})
    assert store.find(KEY) is None


def test_a_full_disk_is_known_by_its_words_when_a_library_says_nothing_else() -> None:
    with pytest.raises(ArtifactError, match="full disk"), explained_full_disk("runs/demo"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(KeyError), explained_full_disk("runs/demo"):
        raise KeyError("weight")


def test_the_folder_of_a_model_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"want the folder of a saved model, got nothing at .*gone"):
        folder_digest(tmp_path / "gone")
    assert folder_digest(None) is None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_used_up_quota_is_a_full_disk_too(number: int) -> None:
    with pytest.raises(ArtifactError, match="free some"), explained_disk("runs/demo"):
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_folder_that_may_not_be_written_is_told_in_a_sentence(number: int) -> None:
    with (
        pytest.raises(ArtifactError, match="store runs/demo: want a folder to write to"),
        explained_disk("runs/demo"),
    ):
        raise OSError(number, os.strerror(number))


def test_a_folder_without_permission_is_told_in_a_sentence(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(ArtifactError, match="want a folder to write to"):
        Store(tmp_path / "store").draft(KEY)


@pytest.mark.parametrize("below", ["", "store"])
def test_a_store_on_a_file_is_told_in_a_sentence(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="want a folder"), Store(tmp_path / "file" / below).exclusive():
        pytest.fail("a file is no store")


@pytest.mark.parametrize("address", ["gopher://host/runs", "file:///a folder with blanks"])
def test_an_address_that_cannot_be_understood_is_told_in_a_sentence(address: str) -> None:
    with pytest.raises(ArtifactError, match="store"):
        Store(address)


def test_other_errors_of_the_disk_pass_through() -> None:
    with pytest.raises(FileNotFoundError), explained_disk("runs/demo"):
        raise FileNotFoundError(errno.ENOENT, "gone")


def test_too_little_space_is_told_with_both_figures_before_anything_is_made(tmp_path: Path) -> None:
    store = Store(tmp_path / "not" / "made" / "yet")
    with pytest.raises(ArtifactError, match=r"want 1000000\.00 GB free, got \d+\.\d\d GB"):
        require_space(store, 10**15)
    require_space(store, 1)
    assert not (tmp_path / "not").exists()


def test_space_on_a_remote_store_is_not_asked_for(tmp_path: Path) -> None:
    require_space(Store((tmp_path / "store").as_uri()), 10**15)


def test_the_manifest_is_json_that_any_reader_takes(store: Store) -> None:
    store.commit(store.draft(KEY), {"name": "ü", "n": 1.5})
    assert json.loads((folder_of(store) / MANIFEST).read_bytes())["facts"] == {"name": "ü", "n": 1.5}
