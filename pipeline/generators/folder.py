"""A generator on disk: a diffusers pipeline folder that any installation of diffusers loads.

Weights are safetensors only, and a folder is looked through before it is loaded, so that nothing is unpickled and
no code comes from it. Not here: model cards' prose and release rules.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import config
from pipeline.generators.denoiser import BETA_SCHEDULE, TIMESTEPS
from pipeline.inspection import UnsafeFolderError, require_plain

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pipeline.generators.autoencoder import Autoencoder
    from pipeline.generators.denoiser import Denoiser

PIPELINES = {"PixArtAlphaPipeline", "StableDiffusionPipeline"}
LIBRARIES = {"diffusers", "transformers"}

# How a reader of the model card makes an image, without this project. Filled by `snippet`.
SNIPPET = """\
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({folder!r})
image = pipe({prompt!r}, num_inference_steps={steps}, guidance_scale={guidance_scale}{options}).images[0]
image.save("image.png")
"""
PIXART_OPTIONS = ", use_resolution_binning=False, clean_caption=False, max_sequence_length={max_tokens}"

# What these say while a folder loads is expected here: no accelerate, an AutoencoderDC where PixArt's pipeline
# names AutoencoderKL, a safety checker that is left out, and `block_out_channels` in AutoencoderDC's config.
CHATTY_LOGGERS = (
    "diffusers.configuration_utils",
    "diffusers.models.modeling_utils",
    "diffusers.pipelines.pipeline_loading_utils",
    "diffusers.pipelines.pipeline_utils",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
)


def save(
    folder: Path,
    autoencoder: Autoencoder,
    tokenizer: PreTrainedTokenizerBase,
    text_encoder: PreTrainedModel,
    denoiser: Denoiser,
    cfg: config.Generator,
) -> None:
    """Write the pipeline: about 20 MB for a generator of 5 M weights."""
    parts: dict[str, Any] = {
        "transformer" if cfg.denoiser.kind == "pixart" else "unet": denoiser,
        "vae": autoencoder,
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "scheduler": _solver(cfg),
    }
    with quiet():
        if cfg.denoiser.kind == "pixart":
            from diffusers import PixArtAlphaPipeline

            pipeline = PixArtAlphaPipeline(**parts)
        else:
            from diffusers import StableDiffusionPipeline

            parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
            pipeline = StableDiffusionPipeline(**parts)
        pipeline.save_pretrained(folder, safe_serialization=True)
    _name_tokenizer_class(folder)
    _forget_origins(folder)


def load(folder: Path, device: str = "cpu") -> DiffusionPipeline:
    """The pipeline in a folder, after `inspect`; its progress bar is off.

    Raises: UnsafeFolderError.
    """
    inspect(folder)
    from diffusers import DiffusionPipeline

    with quiet():
        pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def inspect(folder: Path) -> None:
    """Refuse a folder that could make a loader unpickle or run something.

    Raises: UnsafeFolderError for anything that is not data, and for a class that is neither one of the two pipelines
        nor from diffusers or transformers.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        raise UnsafeFolderError(f"model {folder}: want a diffusers pipeline, got no model_index.json — was it saved?")
    require_plain(folder)
    parts = json.loads(index.read_text(encoding="utf-8"))
    if not isinstance(parts, dict) or parts.get("_class_name") not in sorted(PIPELINES):
        got = parts.get("_class_name") if isinstance(parts, dict) else parts
        raise UnsafeFolderError(
            f"model {folder}: model_index.json: want one of {', '.join(sorted(PIPELINES))} as _class_name, "
            f"got {got!r} — give a pipeline that this project saved"
        )
    for name, value in parts.items():
        if isinstance(value, list) and (len(value) != 2 or value[0] not in (*LIBRARIES, None)):
            raise UnsafeFolderError(
                f"model {folder}: model_index.json: {name}: want a class of diffusers or transformers, got {value!r} "
                "— give a pipeline without custom code"
            )


def snippet(folder: str, prompt: str, sample: config.Solver, cfg: config.Generator) -> str:
    """Four lines of Python that make `image.png` with nothing but diffusers and transformers."""
    options = PIXART_OPTIONS.format(max_tokens=cfg.text.max_tokens) if cfg.denoiser.kind == "pixart" else ""
    return SNIPPET.format(
        folder=folder,
        prompt=prompt,
        steps=sample.steps,
        guidance_scale=sample.guidance_scale,
        options=options,
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Errors only from the loggers that comment on every load, and no loading bars, until the block ends."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    loggers = [logging.getLogger(name) for name in CHATTY_LOGGERS]
    levels = [logger.level for logger in loggers]
    bars = [module for module in (diffusers_logging, transformers_logging) if module.is_progress_bar_enabled()]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    for module in bars:
        module.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for module in bars:
            module.enable_progress_bar()


def _solver(cfg: config.Generator) -> Any:
    """DPM-Solver++ (arXiv 2211.01095) from the last timestep on (trailing, arXiv 2305.08891, table 2)."""
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(
        num_train_timesteps=TIMESTEPS,
        beta_schedule=BETA_SCHEDULE,
        prediction_type=cfg.prediction,
        timestep_spacing="trailing",
        # Without effect on trailing timesteps, but StableDiffusionPipeline warns of any other value.
        steps_offset=1,
        # At the cosine schedule's end a noise prediction says nothing about the image: x0 would be divided by 5e-5.
        lambda_min_clipped=-float("inf") if cfg.prediction == "v_prediction" else -5.1,
    )


def _forget_origins(folder: Path) -> None:
    """Take out the folder that a part was loaded from: it names this machine, and differs between equal runs."""
    for path in folder.rglob("*.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(config, dict) and config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _name_tokenizer_class(folder: Path) -> None:
    """transformers 5 saves fast tokenizers under a class name that other versions do not know."""
    for path in (folder / "model_index.json", folder / "tokenizer" / "tokenizer_config.json"):
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace('"TokenizersBackend"', '"PreTrainedTokenizerFast"'), encoding="utf-8")
