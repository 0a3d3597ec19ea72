"""Ray clusters of processes of this machine, each with its own token, ports and temporary folder."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

RAY = (sys.executable, "-m", "ray.scripts.scripts")
START_S = 60.0


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A temporary folder whose path is short, as Ray's sockets lie below it."""
    with tempfile.TemporaryDirectory(prefix="pd-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def with_token() -> dict[str, str]:
    """This process's environment, with a new token that every process of a cluster must show."""
    return os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "OMP_NUM_THREADS": "1"}


def head(port: int, folder: Path, *options: str) -> list[str]:
    """The command that starts a head on loopback."""
    start = [
        "start",
        "--head",
        "--block",
        f"--port={port}",
        "--node-ip-address=127.0.0.1",
        f"--temp-dir={folder}/ray",
    ]
    return [*RAY, *start, "--object-store-memory=300000000", *options]


@contextlib.contextmanager
def started(command: Sequence[str], environment: Mapping[str, str], log: Path, cwd: Path) -> Iterator[int]:
    """The session of a node that has started; all its processes are killed at the end."""
    with log.open("w") as out:
        node = subprocess.Popen(command, env=environment, cwd=cwd, stdout=out, stderr=out, start_new_session=True)
    try:
        give_up_at = time.monotonic() + START_S
        while "Ray runtime started" not in log.read_text():
            assert node.poll() is None and time.monotonic() < give_up_at, log.read_text()
            time.sleep(0.1)
        yield node.pid
    finally:
        end(node.pid)
        node.wait()


def end(session: int) -> None:
    """Kill every process of a node, as a machine that loses its power does."""
    while pids := [*members(session)]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def members(session: int, title: str = "") -> dict[int, str]:
    """Processes with such a title of the node that began in this session; a driver that it started has its own."""
    everybody = processes()
    sessions = {session}
    while True:
        mine = {pid for pid, process in everybody.items() if process.session in sessions}
        more = {process.session for process in everybody.values() if process.parent in mine} - sessions
        if not more:
            return {pid: everybody[pid].title for pid in mine if title in everybody[pid].title}
        sessions |= more


class Process(NamedTuple):
    """A live process."""

    parent: int
    session: int
    title: str
    """Command line, or what it calls itself."""


def lose(raylet: int) -> None:
    """Kill a raylet and all that it started, as a machine goes that shares a session with others."""
    everybody, lost = processes(), [raylet]
    for pid in lost:
        lost += [child for child, process in everybody.items() if process.parent == pid]
    for pid in lost:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def processes() -> dict[int, Process]:
    """Of the whole machine."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            stat = (path / "stat").read_text()
            state, parent, _, session = stat[stat.rindex(")") + 2 :].split()[:4]
            if state != "Z":
                title = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found[int(path.name)] = Process(int(parent), int(session), title)
    return found
