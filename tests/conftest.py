"""What all tests share: one thread, a local Ray for steps, and one finished run of the shrunk recipe."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "jobs" / "recipes" / "phantom_tiny.yaml"

# Two cores run two processes better than one with two threads.
torch.set_num_threads(1)


def run_job(word: str, store: Path, *options: str, recipe: Path = RECIPE) -> subprocess.CompletedProcess[str]:
    """Run a job as a user does."""
    command = [sys.executable, "-m", f"jobs.{word}", str(recipe), "--store", str(store), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=540, check=False
    )


@pytest.fixture(scope="session")
def finished_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store on which the shrunk recipe ran undisturbed."""
    store = tmp_path_factory.mktemp("finished")
    answer = run_job("all", store)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return store


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One Ray for all tests that start tasks themselves."""
    from pipeline.cluster import connect
    from pipeline.config import Recipe

    with connect(Recipe()):
        yield
