"""Folders of models from outside: data is let in, and whatever a loader could unpickle or run is refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from pipeline.artifact import folder_digest
from pipeline.inspection import UnsafeFolderError, require_plain


class Bomb:
    """What a pickle can do: it runs a command when it is loaded."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch exploded",)


def model(folder: Path) -> Path:
    """What is let in: weights, settings, a vocabulary and a word to the reader, in folders."""
    (folder / "text_encoder").mkdir(parents=True)
    save_file({"weight": np.zeros((2, 2), np.float32)}, folder / "text_encoder" / "model.safetensors")
    (folder / "text_encoder" / "config.json").write_text('{"_class_name": "Encoder", "trust_remote_code": false}')
    (folder / "merges.txt").write_text("a b\n")
    (folder / "spiece.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>")
    (folder / "README.md").write_text("# A model")
    return folder


def archive() -> bytes:
    held = io.BytesIO()
    torch.save({"weight": torch.zeros(2)}, held)
    assert zipfile.is_zipfile(held)
    return held.getvalue()


def old_pickle(protocol: int) -> bytes:
    return pickle.dumps(Bomb(), protocol)


REFUSED_NAMES = (
    "pytorch_model.bin",
    "model.pt",
    "model.pth",
    "last.ckpt",
    "weights.pkl",
    "weights.pickle",
    "x.npy",
    "x.npz",
    "model.h5",
    "model.msgpack",
    "modeling.py",
    "run.sh",
    "lib.so",
    "x.zip",
    "noname",
)
REFUSED_CONTENT = {
    "pickle 2": lambda: old_pickle(2),
    "pickle 4": lambda: old_pickle(4),
    "pickle 5": lambda: old_pickle(5),
    "torch archive": archive,
    "array of objects": lambda: b"\x93NUMPY\x01\x00",
}
REFUSED_FIELDS = (
    {"auto_map": {"AutoModel": "modeling.Mine"}},
    {"auto_map": {}},
    {"nested": [{"deep": {"auto_map": {"AutoModel": "x.Y"}}}]},
    {"custom_pipeline": "someone/pipeline"},
    {"custom_pipelines": {"mine": {"impl": "mine.Pipe"}}},
    {"trust_remote_code": True},
    {"_class_name": ["mine", "Model"]},
    {"vae": {"_class_name": ["mine", "Model"]}},
)


def test_data_is_let_in(tmp_path: Path) -> None:
    require_plain(model(tmp_path / "model"))


@pytest.mark.parametrize("name", REFUSED_NAMES)
def test_a_file_of_another_kind_is_refused_wherever_it_lies(name: str, tmp_path: Path) -> None:
    for place in (".", "text_encoder"):
        folder = model(tmp_path / place / "m")
        (folder / place / name).touch()
        with pytest.raises(UnsafeFolderError, match=rf"{name}: want only .* files, got {name} — convert"):
            require_plain(folder)


@pytest.mark.parametrize("suffix", [".safetensors", ".json", ".txt", ".md", ".model"])
@pytest.mark.parametrize("content", REFUSED_CONTENT.values(), ids=REFUSED_CONTENT)
def test_a_pickle_under_another_name_is_refused(content: Callable[[], bytes], suffix: str, tmp_path: Path) -> None:
    folder = model(tmp_path)
    (folder / f"weights{suffix}").write_bytes(content())
    with pytest.raises(UnsafeFolderError, match=rf"weights\{suffix}: want .* inside, got a pickle — "):
        require_plain(folder)


@pytest.mark.parametrize("protocol", [0, 1])
def test_an_early_pickle_is_refused_as_it_is_neither_json_nor_safetensors(protocol: int, tmp_path: Path) -> None:
    for suffix in (".json", ".safetensors"):
        folder = model(tmp_path / suffix)
        (folder / f"weights{suffix}").write_bytes(old_pickle(protocol))
        with pytest.raises(UnsafeFolderError, match="got something else"):
            require_plain(folder)


@pytest.mark.parametrize("cut", [0, 4, 8, 9, 60])
def test_weights_that_were_cut_are_refused(cut: int, tmp_path: Path) -> None:
    path = model(tmp_path) / "text_encoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UnsafeFolderError, match="want safetensors inside, got something else"):
        require_plain(tmp_path)


@pytest.mark.parametrize("content", REFUSED_FIELDS, ids=[json.dumps(content) for content in REFUSED_FIELDS])
def test_a_field_that_names_code_is_refused_at_any_depth(content: dict, tmp_path: Path) -> None:
    (model(tmp_path) / "text_encoder" / "config.json").write_text(json.dumps(content))
    with pytest.raises(UnsafeFolderError, match=r"config\.json: want (no custom code|the name of one class)"):
        require_plain(tmp_path)


@pytest.mark.parametrize("target", ["../secret.json", "/etc/hostname", "merges.txt", "gone"])
def test_a_link_is_refused_wherever_it_leads(target: str, tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    (tmp_path / "secret.json").write_text("{}")
    (folder / "config.json").symlink_to(target)
    with pytest.raises(UnsafeFolderError, match=r"config\.json: want files of its own, got a link to"):
        require_plain(folder)


def test_a_linked_folder_and_a_pipe_are_refused(tmp_path: Path) -> None:
    first, second = model(tmp_path / "first"), model(tmp_path / "second")
    (first / "vae").symlink_to(second)
    os.mkfifo(second / "config.json")
    for folder in (first, second):
        with pytest.raises(UnsafeFolderError):
            require_plain(folder)


def test_a_folder_that_a_recipe_names_is_inspected_when_the_run_is_planned(tmp_path: Path) -> None:
    (model(tmp_path) / "pytorch_model.bin").write_bytes(archive())
    with pytest.raises(UnsafeFolderError, match=r"pytorch_model\.bin"):
        folder_digest(tmp_path)


def test_the_control_would_have_run_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(old_pickle(2))
    assert (tmp_path / "exploded").exists()
