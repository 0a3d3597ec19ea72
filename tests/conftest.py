"""What all tests share: one thread, a local Ray for steps, and one finished run of the shrunk recipe."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import object_store
import pytest
import torch
from browsing import start
from filelock import FileLock
from running import CREDENTIALS, run_job
from selenium import webdriver

from pipeline import secret

# Two cores run two processes better than one with two threads.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def finished_store(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A store on which the shrunk recipe ran undisturbed, and beside it what the run told, as `.log`.

    It is made by the first of pytest's processes that needs it.
    """
    folder = tmp_path_factory.getbasetemp()
    store = (folder if worker_id == "master" else folder.parent) / "finished"
    with FileLock(store.with_suffix(".lock")):
        if not store.with_suffix(".log").exists():
            # Its secret is the same in every run of the suite, so that who is where is no matter of luck.
            (store / "private").mkdir(mode=0o700, parents=True)
            (store / secret.PATH).touch(0o600)
            (store / secret.PATH).write_bytes(hashlib.sha256(b"suite 0").digest())
            answer = run_job("all", store, **CREDENTIALS)
            assert answer.returncode == 0, answer.stdout + answer.stderr
            store.with_suffix(".log").write_text(answer.stdout + answer.stderr)
    return store


@pytest.fixture(scope="session")
def store_keys() -> None:
    """Credentials of the S3 server that only tests know; Ray's workers take over the environment at their start."""
    os.environ.update(object_store.KEYS)


@pytest.fixture(scope="session")
def local_ray(store_keys: None) -> Iterator[None]:
    """One Ray for all tests that start tasks themselves."""
    from pipeline.cluster import connect
    from pipeline.config import Recipe

    with connect(Recipe()):
        yield


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """One browser without a window for all pages."""
    chrome = start(tmp_path_factory.mktemp("profile"))
    yield chrome
    chrome.quit()
