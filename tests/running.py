"""Run jobs as a user does, and wait for what they do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
GIVE_UP_S = 300.0
RECIPE = ROOT / "jobs" / "recipes" / "phantom_tiny.yaml"

# What a run could find in its environment; no two are alike, and nobody else has them.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "canary-access-3f9a61c2",
    "AWS_SECRET_ACCESS_KEY": "canary-secret-b81d07e4",
    "AWS_SESSION_TOKEN": "canary-session-5cc0f2d9",
    "RAY_AUTH_TOKEN": "ca7a2b" * 10 + "e55e",
    "MLFLOW_TRACKING_PASSWORD": "canary-mlflow-77ab90e1",
    "HF_TOKEN": "canary-hub-0d4e8f3b",
}


def run_job(
    word: str, store: Path, *options: str, recipe: Path = RECIPE, **variables: str
) -> subprocess.CompletedProcess[str]:
    """The finished process of `python -m jobs.<word> RECIPE --store STORE ...`."""
    command = [sys.executable, "-m", f"jobs.{word}", str(recipe), "--store", str(store), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=540, check=False
    )


def until(condition: Callable[[], object], log: Path) -> float:
    """Wait; when it came true."""
    give_up_at = time.monotonic() + GIVE_UP_S
    while not condition():
        assert time.monotonic() < give_up_at, log.read_text()
        time.sleep(0.02)
    return time.monotonic()


def without(finished_store: Path, task: str, store: Path) -> Path:
    """A copy of the finished store that lacks what one task made."""
    shutil.copytree(finished_store, store)
    (folder,) = store.glob(f"*/{task}/*/manifest.json")
    shutil.rmtree(folder.parent)
    return store
