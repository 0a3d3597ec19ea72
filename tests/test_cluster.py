"""The Ray that a run starts for itself: who reaches it, who is let in, who may read what it puts on disk."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from listening import listeners
from running import ROOT

from pipeline.cluster import ClusterError, _own_folder, _take_token

# A run with a training and more objects than memory; it says where it is, and ends as a failed run does.
RUN = """
import sys
import numpy as np, ray, torch
from ray import train
from ray.train.torch import TorchTrainer
from jobs.command import _end
from pipeline.cluster import connect, worker
from pipeline.config import Recipe, changed
from pipeline.loopback import Loopback

def loop():
    both = torch.full((3,), 1.0 + train.get_context().get_world_rank())
    torch.distributed.all_reduce(both)
    return float(both[0])

with connect(changed(Recipe(), {"cluster.object_store_gb": 0.1})):
    node = worker._global_node
    print("ADDRESS", node.address_info["gcs_address"], flush=True)
    print("DASHBOARD", node.address_info["webui_url"] or "none", flush=True)
    print("FOLDER", node.get_session_dir_path(), flush=True)
    more_than_fits = [ray.put(np.zeros(30_000_000, np.uint8)) for _ in range(5)]
    found = TorchTrainer(loop, torch_config=Loopback(), scaling_config=train.ScalingConfig(num_workers=2,
        resources_per_worker={"CPU": 1}), run_config=train.RunConfig(storage_path=sys.argv[1])).fit()
    print("TRAINED", found.return_value, flush=True)
    sys.stdin.readline()
    _end(1)
"""
GCS = """
import sys
from ray._raylet import GcsClient
print(len(GcsClient(address=sys.argv[1]).get_all_node_info()))
"""
TOKEN_NAMES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS")


class Running(NamedTuple):
    """A run that waits, what it said of itself, and all that it listened on."""

    process: subprocess.Popen[str]
    said: Mapping[str, str]
    home: Path


def environment_of(home: Path, **more: str) -> dict[str, str]:
    """Of a user with an empty home folder."""
    clean = {name: value for name, value in os.environ.items() if name not in TOKEN_NAMES}
    return clean | {"HOME": str(home), "OMP_NUM_THREADS": "1"} | more


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    home = tmp_path_factory.mktemp("home")
    command = [sys.executable, "-c", RUN, str(tmp_path_factory.mktemp("trained"))]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment_of(home),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    said: dict[str, str] = {}
    assert process.stdout
    for line in process.stdout:
        word, _, rest = line.strip().partition(" ")
        said[word] = rest
        if word == "TRAINED":
            break
    assert "TRAINED" in said, said
    yield Running(process, said, home)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def asked(running: Running, **environment: str) -> subprocess.CompletedProcess[str]:
    """What another program gets that asks the run's Ray."""
    command = [sys.executable, "-c", GCS, running.said["ADDRESS"]]
    return subprocess.run(
        command,
        env=environment_of(running.home, **environment),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def token_of(running: Running) -> str:
    """The run's token, as only its own user can read it."""
    names = {Path(f"/proc/{child}/environ") for child in children_of(running.process.pid)}
    for path in names:
        variables = dict(pair.split("=", 1) for pair in path.read_text().split("\0") if "=" in pair)
        if "RAY_AUTH_TOKEN" in variables:
            return variables["RAY_AUTH_TOKEN"]
    raise AssertionError("no process of the run has a token")


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.mark.slow
def test_two_workers_of_one_machine_train_together(running: Running) -> None:
    assert running.said["TRAINED"] == "3.0"


@pytest.mark.slow
def test_nothing_that_a_run_starts_listens_beyond_loopback(running: Running) -> None:
    found = listeners(running.process.pid)
    assert {"gcs_server", "raylet"} <= {one.name for one in found}
    assert [one for one in found if not one.is_loopback] == []
    assert running.said["DASHBOARD"] == "none"


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [{}, {"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}],
    ids=["unset", "no token", "another token"],
)
def test_who_has_not_the_runs_token_is_refused(running: Running, environment: dict[str, str]) -> None:
    answer = asked(running, **environment)
    assert answer.returncode != 0 and answer.stdout == ""
    assert "AuthenticationError" in answer.stderr


@pytest.mark.slow
def test_who_has_the_runs_token_is_let_in(running: Running) -> None:
    answer = asked(running, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token_of(running))
    assert (answer.returncode, answer.stdout) == (0, "1\n"), answer.stderr


@pytest.mark.slow
def test_the_token_stands_in_no_file_and_on_no_command_line(running: Running) -> None:
    token = token_of(running).encode()
    commands = [Path(f"/proc/{child}/cmdline").read_bytes() for child in children_of(running.process.pid)]
    assert len(token) == 64 and not [command for command in commands if token in command]
    logs = [path for path in Path(running.said["FOLDER"]).rglob("*") if path.is_file() and not path.is_symlink()]
    assert logs and not [path for path in logs if token in path.read_bytes()]
    assert list(running.home.rglob("auth_token")) == []


@pytest.mark.slow
def test_spilled_objects_are_out_of_others_sight_and_do_not_outlive_a_failed_run(running: Running) -> None:
    session = Path(running.said["FOLDER"])
    assert [path for path in session.glob("ray_spilled_objects_*/*") if path.stat().st_size > 1_000_000]
    assert session.parents[1].stat().st_mode & 0o077 == 0
    running.process.communicate("go\n", timeout=60)
    assert running.process.returncode == 1
    assert list(session.glob("ray_spilled_objects_*")) == []


def test_a_token_of_the_environment_is_respected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the user's own")
    _take_token()
    assert os.environ["RAY_AUTH_TOKEN"] == "the user's own"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    _take_token()
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_each_run_has_a_token_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = set()
    for _ in range(3):
        for name in TOKEN_NAMES:
            monkeypatch.delenv(name, raising=False)
        _take_token()
        taken.add(os.environ["RAY_AUTH_TOKEN"])
        monkeypatch.setenv("RAY_AUTH_TOKEN", "")  # so that what was there before comes back
    assert len(taken) == 3


@pytest.mark.parametrize("spoil", ["open to others", "a link"])
def test_a_folder_that_others_may_enter_is_not_used_for_sessions(
    spoil: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = Path(tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.setattr("tempfile.tempdir", str(short))
    folder = short / f"pd-{os.geteuid()}"
    assert _own_folder() == folder and folder.stat().st_mode & 0o777 == 0o700
    if spoil == "a link":
        folder.rmdir()
        folder.symlink_to(tmp_path)
    else:
        folder.chmod(0o755)
    with pytest.raises(ClusterError, match=r"only this user may enter, got .* — remove it, or set TMPDIR"):
        _own_folder()
    shutil.rmtree(short)


def test_a_listener_on_all_interfaces_is_seen(tmp_path: Path) -> None:
    with socket.create_server(("0.0.0.0", 0)) as everywhere, socket.create_server(("127.0.0.1", 0)) as here:
        found = {one.port: one.is_loopback for one in listeners(os.getsid(0))}
        assert found[everywhere.getsockname()[1]] is False
        assert found[here.getsockname()[1]] is True
