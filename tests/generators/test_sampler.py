from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import config
from pipeline.generators import autoencoder, denoiser, folder, text
from pipeline.generators.sampler import Sampler

# diffusers calls numpy.array on a tensor in DPMSolverMultistepScheduler.set_timesteps.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS = ["man", "woman, left effusion", "", "man, pacemaker", "woman"]
SEEDS = [7, 8, 9, 2**62, 11]
DATA = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 1), np.uint8)
CFG = config.Sample(steps=3, batch_size=4)


def saved(path: Path, kind: str, autoencoder_kind: str) -> Path:
    """A generator of 16 px images whose random weights make images that depend on prompt and seed."""
    cfg = config.Generator.model_validate(
        {
            "autoencoder": {"kind": autoencoder_kind, "patch_px": 4, "latent_channels": 4, "width": 8},
            "text": {"width": 8, "heads": 2, "max_tokens": 6},
            "denoiser": {"kind": kind, "width": 16, "layers": 2, "heads": 2, "patch": 2},
        }
    )
    tokenizer = text.train_tokenizer(PROMPTS, cfg.text.max_tokens)
    encoder = text.build_encoder(cfg.text, tokenizer, cfg.denoiser.kind, seed=0)
    channels, px = autoencoder.latent_shape(cfg.autoencoder, 1, 16)
    network = denoiser.build(cfg.denoiser, channels, px, text.width(encoder), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    vae = autoencoder.fit_scale(autoencoder.build(cfg.autoencoder, DATA, seed=0), DATA)
    folder.save(path, vae, tokenizer, encoder, network, cfg)
    return path


@pytest.fixture(scope="module")
def pixart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("pixart"), "pixart", "patch_pca")


def test_a_row_is_bit_identical_whatever_its_neighbours_and_position(pixart: Path) -> None:
    sampler = Sampler(pixart, CFG)
    together = sampler(PROMPTS, SEEDS)
    assert together.shape == (5, 16, 16, 1)
    assert len(np.unique(together.reshape(5, -1), axis=0)) == 5
    backwards = sampler(PROMPTS[::-1], SEEDS[::-1])[::-1]
    alone = np.concatenate([sampler([prompt], [seed]) for prompt, seed in zip(PROMPTS, SEEDS, strict=True)])
    assert (together == backwards).all()
    assert (together == alone).all()


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
@pytest.mark.parametrize(
    ("kind", "autoencoder_kind"), [("pixart", "patch_pca"), ("pixart", "kl"), ("unet", "kl"), ("unet", "pixel")]
)
def test_rows_are_what_the_folders_own_pipeline_makes(
    kind: str, autoencoder_kind: str, guidance_scale: float, tmp_path: Path
) -> None:
    saved(tmp_path, kind, autoencoder_kind)
    rows = Sampler(tmp_path, CFG.model_copy(update={"guidance_scale": guidance_scale}))(PROMPTS[:4], SEEDS[:4])
    options = {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 6}
    expected = folder.load(tmp_path)(
        PROMPTS[:4],
        num_inference_steps=CFG.steps,
        guidance_scale=guidance_scale,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS[:4]],
        output_type="np",
        **(options if kind == "pixart" else {}),
    ).images
    # Grey values that lie between two levels may be rounded either way.
    assert np.abs(rows - 255 * expected.reshape(rows.shape)).max() <= 0.51


def test_prompt_and_seed_decide_the_image(pixart: Path) -> None:
    first, again, other_prompt, other_seed = Sampler(pixart, CFG)(["man", "man", "woman", "man"], [1, 1, 1, 2])
    assert (first == again).all()
    assert (first != other_prompt).any()
    assert (first != other_seed).any()


def test_a_prompt_that_is_too_long_is_refused_and_not_cut(pixart: Path) -> None:
    with pytest.raises(ValueError, match="want at most 6 tokens, got 1 of 1 prompts with up to 7"):
        Sampler(pixart, CFG)(["man " * 6], [0])


def test_an_image_that_is_noised_less_comes_back_nearer(pixart: Path) -> None:
    sampler = Sampler(pixart, config.Sample(steps=10, batch_size=4))
    rebuilt = autoencoder.encode(sampler.autoencoder, torch.from_numpy(DATA[:4]).movedim(-1, 1) / 127.5 - 1)
    reference = autoencoder.decode(sampler.autoencoder, rebuilt).movedim(1, -1).add(1).mul(127.5).numpy()
    distances = [
        np.abs(sampler.partial_denoise(DATA[:4], PROMPTS[:4], SEEDS[:4], frac) - reference).mean()
        for frac in (0.1, 0.4, 0.9)
    ]
    assert distances == sorted(distances)
    assert distances[0] < 0.5 * distances[-1]


def test_near_duplicates_do_not_depend_on_their_neighbours(pixart: Path) -> None:
    sampler = Sampler(pixart, CFG)
    together = sampler.partial_denoise(DATA[:5], PROMPTS, SEEDS, 0.5)
    alone = [sampler.partial_denoise(DATA[i : i + 1], PROMPTS[i : i + 1], SEEDS[i : i + 1], 0.5) for i in range(5)]
    assert (together == np.concatenate(alone)).all()
