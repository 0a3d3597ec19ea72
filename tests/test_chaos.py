"""Chaos: a process is killed at a random moment, and what comes out is what an undisturbed run makes.

`make chaos` runs all of it and tells the work that each fault cost; `make test` runs one kill of each kind. Moments
are drawn from a seed, so that a failure can be seen again.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from clusters import end, members
from running import GIVE_UP_S, RECIPE, ROOT, run_job, until
from test_system import artifacts_of, assert_same

from pipeline.config import read

pytestmark = pytest.mark.slow
N_MOMENTS = 4


class Fault(NamedTuple):
    """Who is killed while which word runs, and whether Ray makes up for it without another command."""

    victim: str
    word: str
    within_s: float
    """The kill comes at most so long after the victim was first seen."""
    heals: bool


FAULTS = {
    "a sampling actor": Fault("ray::MapWorker(MapBatches(SampleImages))", "sample", 6.0, True),
    "a scoring actor": Fault("ray::MapWorker(MapBatches(ScoreImages))", "score", 6.0, True),
    "a training worker": Fault("ray::RayTrainWorker", "teach", 8.0, True),
    "the node": Fault("/raylet/raylet ", "sample", 12.0, False),
    "the driver": Fault(" -m jobs.", "teach", 15.0, False),
}
MOMENTS = [
    pytest.param(name, moment, marks=[pytest.mark.chaos] if moment else [], id=f"{name}, {moment}")
    for name in FAULTS
    for moment in range(N_MOMENTS)
]


def killed(fault: Fault, store: Path, log: Path, delay_s: float) -> int | None:
    """The status of a job whose victim was killed so long after it was seen; none if it had ended by then."""
    command = [sys.executable, "-m", f"jobs.{fault.word}", str(RECIPE), "--store", str(store)]
    with log.open("w") as out:
        job = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, start_new_session=True)
    until(lambda: members(job.pid, fault.victim) or job.poll() is not None, log)
    time.sleep(delay_s)
    victims = members(job.pid, fault.victim)
    if victims:
        os.kill(min(victims), signal.SIGKILL)
    status = job.wait(GIVE_UP_S)
    end(job.pid)  # a driver that was killed could not end its Ray
    return status if victims else None


def forget(store: Path, word: str) -> None:
    """Remove what the word makes, but for what it makes in seconds."""
    for manifest in list((store / "private" / word).rglob("manifest.json")):
        if manifest.parent.parent.name in (word, "0"):
            shutil.rmtree(manifest.parent)


@pytest.mark.parametrize(("name", "moment"), MOMENTS)
def test_killed_at_any_moment_it_ends_with_what_an_undisturbed_run_makes(
    name: str, moment: int, finished_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fault, recipe = FAULTS[name], read(RECIPE)
    undisturbed = artifacts_of(finished_store, recipe)
    generator = np.random.default_rng([moment, *name.encode()])
    delay_s = float(generator.uniform(0, fault.within_s))
    status = None
    while status is None:
        store = shutil.copytree(finished_store, tmp_path / f"{delay_s:.3f}")
        forget(store, fault.word)
        began = time.monotonic()
        status = killed(fault, store, tmp_path / "log", delay_s)
        if status is None:
            delay_s /= 2
    healed = status == 0
    if fault.heals:
        assert healed, (tmp_path / "log").read_text()
    else:
        assert not healed
    again = run_job("all", store)
    assert again.returncode == 0, again.stdout + again.stderr
    took_s = time.monotonic() - began
    assert_same(artifacts_of(store, recipe), undisturbed)
    if moment:
        lost_s = took_s - seconds_undisturbed(fault.word, finished_store)
        how = "went on by itself" if healed else "went on when run again"
        with capsys.disabled():
            print(f"\n{name} killed after {delay_s:.1f} s of work: {how}, {lost_s:.0f} s lost", end=" ")


@functools.cache
def seconds_undisturbed(word: str, finished_store: Path) -> float:
    """What the same two commands take when nothing is killed."""
    with tempfile.TemporaryDirectory() as folder:
        store = shutil.copytree(finished_store, Path(folder) / "store")
        forget(store, word)
        began = time.monotonic()
        for command in (word, "all"):
            assert run_job(command, store).returncode == 0
        return time.monotonic() - began
