from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import config
from pipeline.generators import autoencoder, denoiser, folder, text

# diffusers calls numpy.array on a tensor in DPMSolverMultistepScheduler.set_timesteps.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS = ["man", "woman, left effusion"]


def saved(path: Path, kind: str = "pixart") -> config.Generator:
    """An untrained generator of 16 px images in a folder."""
    cfg = config.Generator.model_validate(
        {
            "autoencoder": {
                "kind": "patch_pca" if kind == "pixart" else "pixel",
                "patch_px": 4,
                "latent_channels": 4,
            },
            "text": {"width": 8, "heads": 2, "max_tokens": 6},
            "denoiser": {"kind": kind, "width": 16, "layers": 2, "heads": 2, "patch": 2},
        }
    )
    data = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 1), np.uint8)
    tokenizer = text.train_tokenizer(PROMPTS, cfg.text.max_tokens)
    encoder = text.build_encoder(cfg.text, tokenizer, cfg.denoiser.kind, seed=0)
    channels, px = autoencoder.latent_shape(cfg.autoencoder, 1, 16)
    network = denoiser.build(cfg.denoiser, channels, px, text.width(encoder), seed=0)
    folder.save(path, autoencoder.build(cfg.autoencoder, data, seed=0), tokenizer, encoder, network, cfg)
    return cfg


@pytest.mark.parametrize("kind", ["pixart", "unet"])
def test_loading_gives_the_classes_that_were_saved_and_says_nothing(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path, kind)
    pipeline = folder.load(tmp_path)
    assert type(pipeline).__name__ == {"pixart": "PixArtAlphaPipeline", "unet": "StableDiffusionPipeline"}[kind]
    assert pipeline.tokenizer.model_max_length == 6
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert capfd.readouterr() == ("", "")


def test_nothing_but_safetensors_and_names_that_every_version_knows_are_saved(tmp_path: Path) -> None:
    saved(tmp_path)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}
    assert json.loads((tmp_path / "model_index.json").read_text())["tokenizer"][1] == "PreTrainedTokenizerFast"
    assert not any("TokenizersBackend" in path.read_text() for path in tmp_path.rglob("*.json"))


def test_a_part_that_was_loaded_from_a_folder_does_not_carry_its_path(tmp_path: Path) -> None:
    cfg = saved(tmp_path / "first")
    parts = folder.load(tmp_path / "first")
    vae = autoencoder.load(tmp_path / "first" / "vae")
    folder.save(tmp_path / "second", vae, parts.tokenizer, parts.text_encoder, parts.transformer, cfg)
    assert not [path for path in (tmp_path / "second").rglob("*.json") if str(tmp_path) in path.read_text()]
    assert folder.load(tmp_path / "second").vae.config.latent_channels == 4


def test_loggers_speak_again_after_a_quiet_block() -> None:
    logger = logging.getLogger(folder.CHATTY_LOGGERS[0])
    level = logger.level
    with folder.quiet():
        assert not logger.isEnabledFor(logging.WARNING)
    assert logger.level == level


@pytest.mark.parametrize("name", ["unet.bin", "text_encoder/weights.pt", "pipeline.py", "vae/state.pkl"])
def test_a_file_that_could_run_code_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "PixArtAlphaPipeline"}')
    folder.inspect(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(folder.UnsafeFolderError, match=f"{name}: want only"):
        folder.load(tmp_path)


@pytest.mark.parametrize(
    ("index", "complaint"),
    [
        ({"_class_name": ["my_pipeline", "Mine"]}, r"got \['my_pipeline'"),
        ({"_class_name": "PixArtAlphaPipeline", "vae": ["my_models", "Mine"]}, "vae: want a class of diffusers"),
        ({"_class_name": "PixArtAlphaPipeline", "auto_map": {}}, "no custom code"),
        ({"vae": ["diffusers", "AutoencoderKL"]}, "got None"),
    ],
)
def test_an_index_that_names_other_code_is_refused(index: dict, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(folder.UnsafeFolderError, match=complaint):
        folder.load(tmp_path)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text('{"_class_name": "PixArtAlphaPipeline"}')
    (tmp_path / "model" / "vae.json").symlink_to("../elsewhere.json")
    with pytest.raises(folder.UnsafeFolderError, match=r"vae\.json"):
        folder.inspect(tmp_path / "model")


def test_a_folder_without_a_pipeline_is_named(tmp_path: Path) -> None:
    with pytest.raises(folder.UnsafeFolderError, match="no model_index"):
        folder.load(tmp_path)


def test_the_cards_four_lines_make_an_image_without_this_project(tmp_path: Path) -> None:
    cfg = saved(tmp_path / "model")
    code = folder.snippet("model", PROMPTS[1], config.Sample(steps=2), cfg)
    assert len(code.splitlines()) == 4
    (tmp_path / "card.py").write_text(code)
    subprocess.run([sys.executable, "-I", "card.py"], cwd=tmp_path, check=True, capture_output=True, timeout=120)
    with Image.open(tmp_path / "image.png") as image:
        assert image.size == (16, 16)


def test_the_cards_four_lines_fit_a_unet_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = saved(tmp_path / "model", "unet")
    monkeypatch.chdir(tmp_path)
    exec(folder.snippet("model", PROMPTS[1], config.Sample(steps=2, guidance_scale=2.0), cfg), {})
    with Image.open("image.png") as image:
        assert image.size == (16, 16)
