"""The store on S3: a real server in its own process, one that fails and hangs, and two writers at once."""

from __future__ import annotations

import json
import os
import pickle
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import object_store
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from object_store import KEYS, Fault, Faults
from ray import cloudpickle
from running import RECIPE, ROOT
from test_system import artifacts_of, assert_same

from pipeline import fit, storage
from pipeline.artifact import Artifact, ArtifactError, Draft, Key, Store
from pipeline.config import read
from pipeline.progress import Bar, Board
from pipeline.rows import Pool, append_columns
from pipeline.storage import Patience, StorageError, explained_storage

pytestmark = pytest.mark.usefixtures("store_keys")
KEY = Key("private", "teach", "0123456789abcdef")
IMPATIENT = Patience(connect_s=1.0, answer_s=1.0, attempts=2)
N_ROWS = 100
SECRETS = [KEYS["AWS_ACCESS_KEY_ID"], KEYS["AWS_SECRET_ACCESS_KEY"]]

# Run in processes of their own: waits for all others, then makes the same artifact as they, and a secret.
WRITES = """
import sys, time
from pathlib import Path
import pyarrow as pa
from pipeline import fit, storage
from pipeline.artifact import Key, Store

address, mark, gate = sys.argv[1], sys.argv[2], Path(sys.argv[3])
store = Store(address)
(gate / mark).touch()
while len(list(gate.iterdir())) < 2:
    time.sleep(0.005)
print(store.secret("private/secret.key").hex())
(gate / f"{mark} again").touch()
while len(list(gate.iterdir())) < 4:
    time.sleep(0.005)
for number in range(4):
    draft = store.draft(Key("private", "teach", str(number)), resumable=True)
    draft.write_table(pa.table({"row_id": [f"{i:03d}" for i in range(100)], "writer": [mark] * 100}))
    (draft.folder / f"only of {mark}.txt").write_text(mark)
    made = store.commit(draft, {"writer": mark})
    winners = sorted({*made.table()["writer"].to_pylist()})
    files = sorted(path.name for path in made.local().iterdir())
    assert winners == [made.facts["writer"]] and files == [f"only of {winners[0]}.txt", "rows.parquet"]
"""


@pytest.fixture(scope="module")
def server(store_keys: None) -> Iterator[int]:
    with object_store.served() as port:
        yield port


@pytest.fixture
def faults(server: int) -> Iterator[Faults]:
    with object_store.spoiled(server) as faults:
        yield faults


@pytest.fixture
def address(faults: Faults) -> str:
    """A prefix that no other test uses."""
    return f"s3://bucket/{secrets.token_hex(4)}?endpoint_override=127.0.0.1:{faults.port}&scheme=http"


def drafted(store: Store, key: Key = KEY) -> Draft:
    draft = store.draft(key)
    draft.write_table(pa.table({"row_id": ["b", "a"], "value": [2, 1]}))
    (draft.folder / "network").mkdir()
    (draft.folder / "network" / "weights").write_bytes(bytes(1000))
    return draft


def made(store: Store, key: Key = KEY) -> Artifact:
    return store.commit(drafted(store, key), {"n": 2}, rows=2)


def objects(address: str) -> dict[str, bytes]:
    """Every file of a store, by its path below it."""
    store, found = Store(address), {}
    for info in store.fs.get_file_info(pafs.FileSelector(store.root, recursive=True)):
        if info.type == pafs.FileType.File:
            with store.fs.open_input_stream(info.path) as stream:
                found[info.path.removeprefix(f"{store.root}/")] = stream.read()
    return found


def test_a_finished_artifact_is_found_with_what_was_written(address: str) -> None:
    made(Store(address))
    found = Store(address).find(KEY)
    assert found is not None and found.facts == {"n": 2}
    assert found.table().to_pydict() == {"row_id": ["a", "b"], "value": [1, 2]}
    assert (found.local() / "network" / "weights").read_bytes() == bytes(1000)
    assert [other.key for other in Store(address).others(Key("private", "teach", "ff"))] == [KEY]


def test_a_draft_is_not_found_before_it_is_committed(address: str) -> None:
    drafted(Store(address))
    assert Store(address).find(KEY) is None


def test_what_was_fetched_from_the_store_is_removed_when_the_run_ends(address: str) -> None:
    store = Store(address)
    with store.exclusive():
        folder = made(store).local()
        assert (folder / "rows.parquet").exists()
    assert not folder.exists()


@pytest.mark.parametrize(
    "address",
    [
        "s3://AKIAX:abc@bucket/runs",
        "s3://AKIAX:a/bc@bucket/runs",
        "s3://AKIAX:abc/bucket/runs",
        "s3://bucket/runs?secret_key=abc",
        "s3://bucket/runs?region=us-east-1&access_key=abc",
    ],
)
def test_credentials_in_an_address_are_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(StorageError, match=r"credentials .* AWS_ACCESS_KEY_ID") as refused:
        Store(address)
    assert "AKIAX" not in str(refused.value) and "bc" not in str(refused.value)


@pytest.mark.parametrize(("address", "told"), [("s3://bucket/runs?regoin=x", "regoin"), ("s3:///runs", "no bucket")])
def test_a_misspelt_address_is_told(address: str, told: str) -> None:
    with pytest.raises(StorageError, match=f"want s3://bucket/prefix, .* got {told}"):
        Store(address)


def test_the_environment_says_where_the_store_is(
    address: str, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(Store(address))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{faults.port}")
    assert Store(address.partition("?")[0]).find(KEY) is not None


def test_what_another_process_is_sent_holds_no_credentials_and_is_as_patient(address: str) -> None:
    store = Store(address, IMPATIENT)
    for sent in (store, store.fs, made(store)):
        assert not [secret for secret in SECRETS if secret.encode() in pickle.dumps(sent)]
    assert pickle.loads(pickle.dumps(store.fs)).__reduce__()[1][1] == IMPATIENT


def test_a_bucket_that_is_not_there_is_told_before_any_work(faults: Faults) -> None:
    store = Store(f"s3://nobody/runs?endpoint_override=127.0.0.1:{faults.port}&scheme=http")
    with pytest.raises(ArtifactError, match="want a bucket, got none named nobody — make it"), store.exclusive():
        pytest.fail("there is no bucket")


def test_who_may_not_read_private_makes_and_finds_what_is_releasable(address: str, faults: Faults) -> None:
    kept, student = Key("releasable", "filter", "aa"), Key("releasable", "distill", "bb")
    made(Store(address), kept)
    made(Store(address))
    prefix = address.removeprefix("s3:/").partition("?")[0]
    faults.add(Fault("403", rf"^(PUT|DELETE) (?!{prefix}/releasable/)|^\w+ {prefix}/private/"))
    store = Store(address)
    assert store.find(KEY) is None and store.find(kept) is not None
    assert made(store, student).table().num_rows == 2
    with (
        pytest.raises(StorageError, match=r"got ACCESS_DENIED .* see the AWS_\* credentials"),
        explained_storage("it"),
    ):
        made(store, Key("private", "teach", "cc"))


@pytest.mark.parametrize(
    "fault",
    [
        Fault("500", "PUT", 1),
        Fault("500", "GET", 1),
        Fault("503", "", 2),
        Fault("503", "PUT .*manifest", 1),
        Fault("cut", "PUT .*weights", 1),
        Fault("cut", "PUT .*manifest", 1),
        Fault("slow", "", 1),
    ],
    ids=lambda fault: f"{fault.kind} {fault.of}",
)
def test_an_error_that_passes_is_retried_and_the_run_ends_right(address: str, faults: Faults, fault: Fault) -> None:
    faults.add(fault)
    made(Store(address))
    found = Store(address).find(KEY)
    assert fault.hits == fault.times
    assert found is not None and found.table().num_rows == 2


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (Fault("500", "PUT .*weights"), "got INTERNAL_FAILURE"),
        (Fault("503", "PUT .*manifest"), "got SLOW_DOWN"),
        (Fault("cut", "PUT .*rows"), "got NETWORK_CONNECTION"),
        (Fault("hang", "PUT .*rows"), "got NETWORK_CONNECTION"),
    ],
    ids=lambda value: f"{value.kind} {value.of}" if isinstance(value, Fault) else "",
)
def test_an_error_that_stays_ends_in_one_sentence_soon_and_nothing_half_written_is_found(
    address: str, faults: Faults, fault: Fault, told: str
) -> None:
    draft = drafted(Store(address, IMPATIENT))
    faults.add(fault)
    started = time.monotonic()
    with pytest.raises(StorageError, match=told) as ended, explained_storage("s3://bucket/runs"):
        draft.store.commit(draft, {})
    assert time.monotonic() - started < 40  # seconds; a PUT waits some more than its limit
    assert "what is finished is kept" in str(ended.value) and "\n" not in str(ended.value)
    faults.on.clear()
    assert Store(address).find(KEY) is None
    assert made(Store(address)).table().num_rows == 2


def test_a_download_that_fails_is_an_error_and_leaves_nothing_that_is_taken_for_the_artifact(
    address: str, faults: Faults
) -> None:
    made(Store(address))
    found = Store(address, IMPATIENT).find(KEY)
    assert found is not None
    faults.add(Fault("500", "GET .*weights"))
    with pytest.raises(StorageError, match="got INTERNAL_FAILURE"), explained_storage("it"):
        found.local()
    faults.on.clear()
    assert (found.local() / "network" / "weights").stat().st_size == 1000


def test_a_server_that_is_gone_ends_in_one_sentence() -> None:
    store = Store("s3://bucket/runs?endpoint_override=127.0.0.1:9&scheme=http", IMPATIENT)
    with pytest.raises(StorageError, match="see that it runs"), explained_storage("it"):
        store.find(KEY)


@pytest.mark.parametrize("of", ["rows", "weights", "manifest"])
def test_an_upload_that_arrives_as_half_is_detected_and_not_found(address: str, faults: Faults, of: str) -> None:
    faults.add(Fault("shorten", f"PUT .*{of}", 1))
    with pytest.raises(ArtifactError, match=rf"{of}.*: want \d+ bytes, got .* — run again"):
        made(Store(address))
    assert Store(address).find(KEY) is None
    assert made(Store(address)).table().num_rows == 2


def test_two_writers_at_once_end_with_one_artifact_of_one_of_them_and_one_secret(
    address: str, tmp_path: Path, server: int
) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITES, address, mark, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for mark in ("A", "B, whose manifest is longer")
    ]
    (secret, said), (other, also) = [writer.communicate(timeout=90) for writer in writers]
    # Each goes on with one writer's whole work, never with a mixture.
    assert [writer.returncode for writer in writers] == [0, 0], said + also
    assert secret == other != ""
    for artifact in Store(address).others(Key("private", "teach", "none")):
        assert {*artifact.table()["writer"].to_pylist()} == {artifact.facts["writer"]}
        assert len(artifact.table()) == 100


def test_a_manifest_that_was_put_anew_while_it_was_read_is_read_again(address: str) -> None:
    artifact = made(Store(address))
    longer = json.dumps(artifact.manifest | {"facts": {"writer": "x" * 1000}}).encode()

    class Anew:
        """Puts the longer one between the question for the size and the one for the bytes."""

        def __init__(self, fs: pafs.FileSystem):
            self._fs = fs

        def get_file_info(self, path: str) -> pafs.FileInfo:
            return self._fs.get_file_info(path)

        def open_input_stream(self, path: str) -> pa.NativeFile:
            stream = self._fs.open_input_stream(path)
            with self._fs.open_output_stream(path) as put:
                put.write(longer)
            return stream

    reader = Store(address)
    reader.fs = Anew(reader.fs)  # type: ignore[assignment]
    found = reader.find(KEY)
    assert found is not None and found.facts == {"writer": "x" * 1000}


def test_the_second_of_two_writers_drops_its_own_and_goes_on_with_the_first_ones(address: str) -> None:
    first, second = Store(address), Store(address)
    slow = drafted(second)
    winner = made(first)
    assert second.commit(slow, {"n": 0}).path == winner.path
    names = [*objects(address)]
    assert {name.split("/")[3] for name in names} == {"manifest.json", winner.path.split("/")[-1]}


def test_a_leftover_is_kept_while_somebody_may_write_to_it_and_removed_after_a_week(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(address)
    dead = store.draft(KEY)
    with store.fs.open_output_stream(f"{dead.path}/rows/0.parquet") as stream:
        stream.write(b"half")
    assert store.draft(KEY, resumable=True).leftovers == [dead.attempt]
    assert store.draft(KEY).leftovers == ()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 8 * 24 * 3600)
    assert store.draft(KEY, resumable=True).leftovers == []
    assert store.fs.get_file_info(f"{dead.path}/rows/0.parquet").type == pafs.FileType.NotFound


class Square:
    """Adds the square of `number`."""

    reads = pa.schema([("row_id", pa.string()), ("number", pa.int64())])
    adds = pa.schema([("square", pa.int64())])

    def __init__(self, log: Path | None = None):
        self._log = log

    def __call__(self, batch: pa.Table) -> pa.Table:
        if self._log is not None:
            with self._log.open("a") as log:
                log.write("".join(f"{row_id}\n" for row_id in batch["row_id"].to_pylist()))
        return pa.table({"square": pa.array([n * n for n in batch["number"].to_pylist()], pa.int64())})


def squared(source: Path, draft: Draft, **arguments: Any) -> int:
    """Rows that one actor wrote to the draft's table `rows`."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # what this file imports is not on workers' path
    return append_columns(
        str(source),
        Square,
        arguments,
        draft.uri_of("rows"),
        work_uri=draft.work_uri,
        leftovers=draft.leftover_uris("rows"),
        pool=Pool(1, batch_rows=8, block_rows=16),
        bar=Bar(Board.remote(), "test"),
    ).rows


@pytest.fixture
def source(tmp_path: Path) -> Path:
    names = [f"row-{i:03d}" for i in range(N_ROWS)]
    pq.write_table(pa.table({"row_id": names, "number": list(range(N_ROWS))}), tmp_path / "source.parquet")
    return tmp_path / "source.parquet"


@pytest.mark.usefixtures("local_ray")
def test_a_row_step_that_was_killed_goes_on_from_copies_and_loses_and_doubles_nothing(
    address: str, faults: Faults, source: Path, tmp_path: Path
) -> None:
    store, log, n_done = Store(address), tmp_path / "log", 40
    first = store.draft(KEY, resumable=True)
    pq.write_table(pq.read_table(source).slice(0, n_done), tmp_path / "start.parquet")
    squared(tmp_path / "start.parquet", first)
    faults.add(Fault("503", "(PUT|GET) .*parquet", 3))
    second = store.draft(KEY, resumable=True)
    assert second.attempt != first.attempt
    assert squared(source, second, log=log) == N_ROWS
    rows = store.commit(second, {}, N_ROWS).table()
    assert rows.to_pylist() == [{"row_id": f"row-{i:03d}", "square": i * i} for i in range(N_ROWS)]
    assert len(log.read_text().splitlines()) == N_ROWS - n_done


@pytest.mark.usefixtures("local_ray")
def test_a_file_of_another_attempt_that_was_cut_off_is_not_taken_over(address: str, source: Path) -> None:
    store = Store(address)
    dead = store.draft(KEY)
    with store.fs.open_output_stream(f"{dead.path}/rows/0.parquet") as stream:
        stream.write(source.read_bytes()[:200])
    pq.write_table(
        pa.table({"row_id": ["row-003"], "square": [9]}), f"{dead.path}/rows/1.parquet", filesystem=store.fs
    )
    draft = store.draft(KEY, resumable=True)
    assert squared(source, draft) == N_ROWS
    assert store.commit(draft, {}).table()["square"].to_pylist() == [i * i for i in range(N_ROWS)]


def test_training_goes_on_from_a_copy_of_the_latest_state_of_another_attempt(address: str) -> None:
    store = Store(address)
    dead = store.draft(KEY)
    for number in (1, 2):
        with store.fs.open_output_stream(
            f"{store.root}/{dead.work_path}/train/checkpoint_{number}/{fit.STATE}"
        ) as out:
            out.write(f"state {number}".encode())
        time.sleep(1.1)  # the store's clock ticks in seconds
    draft = store.draft(KEY, resumable=True)
    taken = fit.taken_over(draft.leftover_work_uris, store.fs, f"{store.root}/{draft.work_path}")
    assert taken is not None and taken[1].startswith(f"{store.root}/{draft.work_path}/")
    assert store.fs.open_input_stream(taken[1]).read() == b"state 2"
    assert fit.taken_over([], store.fs, f"{store.root}/{draft.work_path}") is None


@pytest.mark.parametrize("lost", ["weights", fit.SIZES])
def test_a_checkpoint_of_which_a_part_did_not_arrive_is_not_taken_for_the_result(tmp_path: Path, lost: str) -> None:
    (tmp_path / "weights").write_bytes(bytes(10))
    (tmp_path / fit.SIZES).write_text(json.dumps(storage.sizes(tmp_path)))
    fit.require_whole(tmp_path, "bucket/work")
    (tmp_path / lost).unlink()
    with pytest.raises(ArtifactError, match="bucket/work: want the last checkpoint whole"):
        fit.require_whole(tmp_path, "bucket/work")


def jobs(word: str, address: str, n: int) -> list[str]:
    """What each of several jobs at once wrote to its log."""
    command = [sys.executable, "-m", f"jobs.{word}", str(RECIPE), "--store", address]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(n)
    ]
    told = [job.communicate(timeout=1500)[0] for job in running]
    assert [job.returncode for job in running] == [0] * n, told
    return told


@pytest.mark.slow
def test_two_jobs_of_one_recipe_on_one_store_both_end_with_the_same_artifact(address: str) -> None:
    jobs("ingest", address, 2)
    (artifact,) = Store(address).others(Key("private", "ingest", "none"))
    table = artifact.table("records")
    assert len(table) == artifact.manifest["rows"] == len({*table["row_id"].to_pylist()})
    images = artifact.table("images", ["row_id"])["row_id"].to_pylist()
    assert len(images) == len({*images}) >= len(table)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_recipe_on_s3_makes_the_same_artifacts_as_on_a_folder_and_leaks_no_credentials(
    address: str, finished_store: Path
) -> None:
    store, recipe = Store(address), read(RECIPE)
    with store.fs.open_output_stream(f"{store.root}/private/secret.key") as stream:
        stream.write((finished_store / "private" / "secret.key").read_bytes())
    (log,) = jobs("all", address, 1)
    assert_same(artifacts_of(address, recipe), artifacts_of(finished_store, recipe))
    kept = objects(address)
    assert json.loads(kept["summary.json"])["metrics"] and all(kept.values())
    for secret in SECRETS:
        assert secret not in log
        assert not [name for name, body in kept.items() if secret.encode() in body]
        assert not [name for name in kept if secret in name]
