"""Run jobs as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "jobs" / "recipes" / "phantom_tiny.yaml"


def run_job(word: str, store: Path, *options: str, recipe: Path = RECIPE) -> subprocess.CompletedProcess[str]:
    """The finished process of `python -m jobs.<word> RECIPE --store STORE ...`."""
    command = [sys.executable, "-m", f"jobs.{word}", str(recipe), "--store", str(store), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=540, check=False
    )
