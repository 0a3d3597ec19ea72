"""A cluster whose machines share no disk: what the driver writes on its own does not exist where the work is done.

Head and node are Ray processes of this machine; the node has an empty folder in the place of the head's temporary one
(a mount of its own, which takes root), and the store is a bucket.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import object_store
import pyarrow.fs as pafs
import pytest
from clusters import RAY, free_port, head, short_folder, started, with_token
from running import RECIPE, ROOT
from test_system import artifacts_of, assert_same

from pipeline.config import read
from pipeline.storage import located

CAN_HIDE = shutil.which("unshare") and not subprocess.run(["unshare", "--mount", "true"], check=False).returncode
pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.skipif(not CAN_HIDE, reason="hiding a folder from a process takes root"),
]
REMADE = {"identify/filter_network", "score/gallery", "sample/0", "distill", "evaluate/changed", "report"}
"""What the test makes, the rest is there: a step of every kind (rows, fit, folders that travel), the short ones."""


@pytest.fixture
def hidden() -> Iterator[Path]:
    """The head's temporary folder."""
    with short_folder() as folder:
        yield folder


@pytest.fixture
def environment(hidden: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What driver and nodes share: credentials, token, nothing on disk but the program."""
    for name, value in object_store.KEYS.items():
        monkeypatch.setenv(name, value)
    return with_token() | {"TMPDIR": str(hidden), "PYTHONPATH": str(ROOT)}


@pytest.fixture
def address(environment: dict[str, str], hidden: Path, tmp_path: Path) -> Iterator[str]:
    """A head that runs no task, and a node that cannot see the head's temporary folder."""
    port = free_port()
    node = [
        *RAY,
        "start",
        f"--address=127.0.0.1:{port}",
        "--num-cpus=4",
        "--block",
        "--object-store-memory=300000000",
    ]
    apart = ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs none {hidden} && exec {shlex.join(node)}"]
    with (
        started(head(port, hidden, "--num-cpus=0"), environment, tmp_path / "head.log", ROOT),
        started(apart, environment, tmp_path / "node.log", ROOT) as pid,
    ):
        (hidden / "of the head").touch()
        assert not Path(f"/proc/{pid}/root{hidden}/of the head").exists(), "the node sees the head's disk"
        yield f"127.0.0.1:{port}"


def test_a_cluster_that_shares_no_disk_makes_what_one_machine_makes(
    address: str, environment: dict[str, str], finished_store: Path
) -> None:
    recipe = read(RECIPE)
    undisturbed = artifacts_of(finished_store, recipe)
    with object_store.served() as port:
        store = f"s3://bucket/run?scheme=http&endpoint_override=127.0.0.1:{port}"
        fs, root = located(store)
        key = (finished_store / "private" / "secret.key").read_bytes()
        object_store.request(port, "PUT", "/bucket/run/private/secret.key", key)
        for task, artifact in undisturbed.items():
            if task not in REMADE:
                pafs.copy_files(str(artifact.local()), f"{root}/{artifact.key.path}", destination_filesystem=fs)
        command = [sys.executable, "-m", "jobs.all", str(RECIPE), "--store", store, "--cluster.address", address]
        answer = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        made = artifacts_of(store, recipe)
        assert {task for task, artifact in made.items() if "attempt" in artifact.manifest} == REMADE
        assert_same(made, undisturbed)
