from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline import config, images
from pipeline.generators import autoencoder, denoiser, text, training

N_ROWS = 10
LATENTS = torch.randn(N_ROWS, 2, 4, 4, generator=torch.Generator().manual_seed(0))
PROMPTS = ["man", "left effusion", "right effusion", "woman, pacemaker", "man, left pneumothorax"] * 2
TOKENIZER = text.train_tokenizer(PROMPTS, max_tokens=6)
IDS, MASK = text.token_ids(TOKENIZER, PROMPTS, 6)
NULL = tuple(part[0] for part in text.token_ids(TOKENIZER, [""], 6))


def generator(**changes: object) -> config.Generator:
    shape = {
        "text": {"width": 8, "heads": 2, "max_tokens": 6},
        "denoiser": {"width": 16, "layers": 1, "heads": 2, "patch": 2},
        "batch_size": 4,
        "n_images": 400,
        "warmup_images": 8,
    }
    return config.Generator.model_validate(shape | changes)


def begin(cfg: config.Generator, rank: int = 0, of: int = 1) -> training.Training:
    encoder = text.build_encoder(cfg.text, TOKENIZER, cfg.denoiser.kind, seed=0)
    network = denoiser.build(cfg.denoiser, 2, 4, text.width(encoder), seed=0)
    return training.Training(cfg, network, encoder, NULL, seed=0, rank=rank, of=of)


def advance(run: training.Training, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        rows = run.rows(N_ROWS)
        losses.append(run.step(LATENTS[rows], IDS[rows], MASK[rows]).item())
    return losses


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 5))
def test_every_image_is_seen_once_per_epoch(n_rows: int, batch_size: int, seed: int) -> None:
    starts = range(0, 2 * n_rows * batch_size, batch_size)
    order = np.concatenate([training.batch_rows(seed, start, batch_size, n_rows) for start in starts])
    for epoch in order.reshape(-1, n_rows):
        assert sorted(epoch) == list(range(n_rows))


def test_a_run_that_is_stopped_and_resumed_is_the_undisturbed_run(tmp_path: Path) -> None:
    undisturbed = begin(generator())
    advance(undisturbed, 9)
    stopped = begin(generator())
    advance(stopped, 6)
    save_file(stopped.state(), tmp_path / "state.safetensors")
    resumed = begin(generator())
    resumed.load_state(load_file(tmp_path / "state.safetensors"))
    advance(resumed, 3)
    expected, got = undisturbed.state(), resumed.state()
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_two_workers_see_what_one_sees() -> None:
    alone = begin(generator())
    pair = [begin(generator(), rank, of=2) for rank in (0, 1)]
    rows = alone.rows(N_ROWS)
    assert [*pair[0].rows(N_ROWS), *pair[1].rows(N_ROWS)] == list(rows)
    for images_seen in (0, 8):
        whole = alone.loss(LATENTS[rows], IDS[rows], MASK[rows], images_seen)
        halves = [
            worker.loss(LATENTS[part], IDS[part], MASK[part], images_seen)
            for worker, part in zip(pair, (rows[:2], rows[2:]), strict=True)
        ]
        torch.testing.assert_close((halves[0] + halves[1]) / 2, whole)


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
@pytest.mark.parametrize("kind", ["pixart", "unet"])
def test_the_loss_falls(kind: str, prediction: str) -> None:
    shape = {"kind": kind, "width": 16, "layers": 1, "heads": 2, "patch": 2}
    run = begin(generator(denoiser=shape, prediction=prediction, batch_size=16, lr=1e-2))
    one_image = [tensor[:1].expand(16, *tensor.shape[1:]) for tensor in (LATENTS, IDS, MASK)]
    losses = [run.step(*one_image).item() for _ in range(25)]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_dropped_prompts_leave_only_the_empty_one() -> None:
    run = begin(generator(prompt_drop=1.0))
    rows = run.rows(N_ROWS)
    with torch.no_grad():
        for parameter in run.parameters.values():
            parameter.add_(0.1)
        losses = [run.loss(LATENTS[rows], IDS[prompts], MASK[prompts], 0) for prompts in (rows, rows[::-1].copy())]
    assert torch.equal(losses[0], losses[1])


def test_timesteps_cover_the_schedule_evenly() -> None:
    run = begin(generator(batch_size=10))
    _, timesteps, _ = run._draws(LATENTS, images_seen=0)
    assert sorted((timesteps // 100).tolist()) == list(range(10))


def test_stored_embeddings_of_a_frozen_encoder_train_like_its_prompts() -> None:
    cfg = generator()
    encoder = text.build_encoder(cfg.text, TOKENIZER, "pixart", seed=0).requires_grad_(False)
    runs = []
    for text_encoder in (encoder, None):
        network = denoiser.build(cfg.denoiser, 2, 4, 8, seed=0)
        null = NULL if text_encoder else (text.embed(encoder, NULL[0][None], NULL[1][None], "pixart")[0], NULL[1])
        runs.append(training.Training(cfg, network, text_encoder, null, seed=0))
    stored = text.embed(encoder, IDS, MASK, "pixart")
    for _ in range(5):
        rows = runs[0].rows(N_ROWS)
        by_prompt = runs[0].step(LATENTS[rows], IDS[rows], MASK[rows])
        by_embedding = runs[1].step(LATENTS[rows], stored[rows], MASK[rows])
        torch.testing.assert_close(by_prompt, by_embedding)
    assert runs[0].averages.keys() == runs[1].averages.keys()


def test_the_saved_average_follows_the_weights_of_every_fourth_step() -> None:
    run = begin(generator(ema_decay=0.5))
    expected = {name: weight.detach().clone() for name, weight in run.parameters.items()}
    for step in range(1, 9):
        advance(run, 1)
        if step % 4 == 0:
            # min(0.5, (1 + 4) / (10 + 4)) = 5/14 after four steps, 0.5 after eight.
            decay = {4: 5 / 14, 8: 0.5}[step] ** 4
            expected = {name: decay * expected[name] + (1 - decay) * run.parameters[name] for name in expected}
    saved = run.averaged()
    for name, weight in [*saved["denoiser"].named_parameters(prefix="denoiser")]:
        torch.testing.assert_close(weight, expected[name])


def test_warm_up_is_linear_and_decay_a_cosine() -> None:
    factors = [training.learning_rate_factor(seen, n_images=100, warmup_images=20) for seen in (5, 20, 60, 100, 120)]
    assert factors == pytest.approx([0.25, 1.0, 0.5, 0.0, 0.0])


def test_min_snr_weights_at_noise_ratios_worked_by_hand() -> None:
    snr = denoiser.schedule("v_prediction").alphas_cumprod.double()
    snr = snr / (1 - snr)
    for gamma, prediction, at_high_snr in [
        (5.0, "epsilon", lambda s: 5 / s),
        (5.0, "v_prediction", lambda s: 5 / (s + 1)),
    ]:
        weights = training.min_snr_weights(generator(snr_gamma=gamma, prediction=prediction)).double()
        torch.testing.assert_close(weights[0], at_high_snr(snr[0]), rtol=1e-3, atol=0)
    assert weights[-1] == pytest.approx(snr[-1].item(), abs=1e-6)
    assert training.min_snr_weights(generator(snr_gamma=None)).unique().tolist() == [1.0]


def test_a_gradient_that_is_not_finite_stops_the_run() -> None:
    run, rows = begin(generator()), np.arange(4)
    with pytest.raises(RuntimeError, match="non-finite"):
        run.step(LATENTS[rows] * torch.nan, IDS[rows], MASK[rows])


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_wrapped_network_trains_to_the_same_weights(process_group: None) -> None:
    cfg = generator()
    plain = begin(cfg)
    wrapped = training.Training(
        cfg,
        nn.parallel.DistributedDataParallel(denoiser.build(cfg.denoiser, 2, 4, 8, seed=0)),
        nn.parallel.DistributedDataParallel(text.build_encoder(cfg.text, TOKENIZER, "pixart", seed=0)),
        NULL,
        seed=0,
    )
    assert advance(plain, 3) == advance(wrapped, 3)
    expected, got = plain.state(), wrapped.state()
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_an_autoencoder_learns_and_resumes_exactly() -> None:
    shape = {"kind": "kl", "patch_px": 2, "latent_channels": 2, "width": 8, "lr": 3e-3, "n_images": 160}
    cfg = generator(autoencoder=shape)
    ramp = np.linspace(0, 255, 8)[:, None] * np.linspace(0, 1, N_ROWS)[:, None, None]
    data = np.repeat(ramp[..., None], 8, 2).astype(np.uint8)
    pixels = images.to_torch(data)

    def fresh() -> training.AutoencoderTraining:
        model = autoencoder.variational(cfg.autoencoder, 1, 8, seed=0)
        return training.AutoencoderTraining(cfg, autoencoder.Objective(cfg.autoencoder, model), latent_px=4, seed=0)

    run, state, losses = fresh(), {}, []
    while not run.done:
        losses.append(run.step(pixels[run.rows(N_ROWS)]).item())
        if len(losses) == 36:
            state = run.state()
    assert losses[-1] < 0.5 * losses[0]
    resumed = fresh()
    resumed.load_state(state)
    while not resumed.done:
        resumed.step(pixels[resumed.rows(N_ROWS)])
    assert all(torch.equal(tensor, resumed.state()[name]) for name, tensor in run.state().items())
    expected = dict(run.trained().named_parameters())
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.trained().named_parameters())
