"""The downstream task: a small network that tells which findings an image shows.

Trained on any arm (real, teacher, filtered, student) and tested on real images it says what the arm is worth; trained
on the `identify` patients, whom no generator sees, its features are the domain encoder of FID and KID. Not here: how
good it is (`auroc`), and training at hospital scale, where a pre-trained backbone does better.
Axis letters: n images, k findings, d features, c channels, h height, w width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int8, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline import config
from pipeline.images import to_torch
from pipeline.seeds import torch_generator

WEIGHTS, SETTINGS = "model.safetensors", "config.json"
VERSION = 1  # of the architecture and its training; part of the encoder's name
WEIGHT_DECAY = 1e-2
NOISE_SD = 0.08  # largest, on the scale [-1, 1]
GAIN, OFFSET = 0.06, 0.06  # largest change of contrast (relative) and brightness
BLOCK_IMAGES = 256


class FindingsClassifier(nn.Module):
    """Convolutions at half resolution and below, mean pooling, one logit per finding."""

    def __init__(self, width: int, image_px: int, channels: int, n_findings: int) -> None:
        super().__init__()
        self.settings = {"width": width, "image_px": image_px, "channels": channels, "n_findings": n_findings}
        widths = [width, 2 * width, 2 * width, 4 * width]
        while image_px // 2 ** len(widths) > 8:  # larger images: more stages, until the last map is 8 px or less
            widths.append(4 * width)
        inputs = [4 * channels, *widths]
        stages = [_stage(inputs[i], widths[i], halve=i < len(widths) - 1) for i in range(len(widths))]
        self.stages = nn.Sequential(nn.PixelUnshuffle(2), *stages)
        self.head = nn.Linear(widths[-1], n_findings)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # 1.4 times as fast on CPU

    def features(self, pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """What the last layer sees: the mean of each of the last stage's maps, 0 or more."""
        return self.stages(pixels).mean(dim=(2, 3))

    def forward(self, pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        return self.head(self.features(pixels))

    def save(self, folder: Path) -> None:
        """Write weights (safetensors) and settings (JSON) into the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in self.state_dict().items()}, folder / WEIGHTS)
        (folder / SETTINGS).write_text(json.dumps(self.settings, indent=2, sort_keys=True) + "\n")


def load(folder: Path) -> FindingsClassifier:
    """The classifier in a folder, ready to predict (eval mode, CPU).

    Raises: ConfigError if weights or settings are missing.
    """
    if not (folder / WEIGHTS).is_file() or not (folder / SETTINGS).is_file():
        raise config.ConfigError(
            f"classifier {folder}: want {SETTINGS} and {WEIGHTS}, got no such files — give its folder"
        )
    model = FindingsClassifier(**json.loads((folder / SETTINGS).read_text()))
    model.load_state_dict(load_file(folder / WEIGHTS))
    return model.eval()


def name(model: FindingsClassifier) -> str:
    """What reports call it as an encoder, e.g. `domain-encoder v1 5e884898`: the same name means the same weights."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode() + value.cpu().contiguous().numpy().tobytes())
    return f"domain-encoder v{VERSION} {digest.hexdigest()[:8]}"


def fit(
    cfg: config.Classifier,
    images: UInt8[np.ndarray, "n h w c"],
    labels: Int8[np.ndarray, "n k"],
    *,
    seed: int,
    on_step: Callable[[int, int], object] | None = None,
    device: str = "cpu",
) -> FindingsClassifier:
    """A classifier trained on these images; the same seed gives the same weights on one kind of hardware.

    Labels are 1, 0 or -1 (unknown: no loss). `on_step` gets the steps done and in all. Classes are not weighted, as
    AUROC gains nothing by it (phantom, macro: .982 weighted, .984 not).
    Cost: about 20 ms per step of 64 images of 48 px on one CPU thread.
    Raises: ValueError if there are no images.
    """
    if not len(images):
        raise ValueError("classifier: want images to train on, got none — did the filter keep any?")
    generator = torch_generator(seed, "classifier")
    model = FindingsClassifier(cfg.width, images.shape[1], images.shape[3], labels.shape[1])
    _initialise(model, generator)
    model.to(device).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=cfg.lr, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, cfg.steps)
    targets = torch.from_numpy(labels.astype(np.float32))
    batches = _batches(len(images), cfg.batch_size, cfg.steps, generator)
    for step, rows in enumerate(batches, 1):
        pixels = _augment(to_torch(images[rows.numpy()]), cfg.shift_px, generator)
        loss = _masked_loss(model(pixels.to(device)), targets[rows].to(device))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if on_step is not None:
            on_step(step, cfg.steps)
    return model.eval()


def predict(model: FindingsClassifier, images: UInt8[np.ndarray, "n h w c"]) -> Float32[np.ndarray, "n k"]:
    """The probability of each finding in each image."""
    return _in_blocks(lambda pixels: model(pixels).sigmoid(), model, images)


def features(model: FindingsClassifier, images: UInt8[np.ndarray, "n h w c"]) -> Float32[np.ndarray, "n d"]:
    """The penultimate features of each image, for `fidelity`."""
    return _in_blocks(model.features, model, images)


def _in_blocks(
    function: Callable[[Tensor], Tensor], model: FindingsClassifier, images: UInt8[np.ndarray, "n h w c"]
) -> Float32[np.ndarray, "n _"]:
    device = model.head.weight.device
    with torch.inference_mode():
        blocks = [
            function(to_torch(images[start : start + BLOCK_IMAGES]).to(device)).cpu()
            for start in range(0, len(images), BLOCK_IMAGES)
        ]
    return torch.cat(blocks).numpy()


def _stage(n_inputs: int, n_outputs: int, *, halve: bool) -> nn.Sequential:
    # Pooling comes before normalisation, which then has a quarter of the work: a third of a step's time saved.
    pool = [nn.MaxPool2d(2)] if halve else []
    convolution = nn.Conv2d(n_inputs, n_outputs, 3, padding=1, bias=False)
    return nn.Sequential(convolution, *pool, nn.BatchNorm2d(n_outputs), nn.ReLU(inplace=True))


def _initialise(model: FindingsClassifier, generator: torch.Generator) -> None:
    """torch's default weights, drawn from the generator in place of the global one.

    The small scale matters, as 300 steps are few: Kaiming's for ReLU cost .03 macro AUROC, a head of zeros .03 too.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(module.weight, a=5**0.5, generator=generator)
    bound = model.head.in_features**-0.5
    nn.init.uniform_(model.head.bias, -bound, bound, generator=generator)


def _batches(n: int, batch_size: int, steps: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """The rows of each step: one shuffled pass over the images after the other."""
    n_passes = -(-steps * batch_size // n)
    order = torch.cat([torch.randperm(n, generator=generator) for _ in range(n_passes)])
    return order[: steps * batch_size].split(batch_size)


def _masked_loss(logits: Float[Tensor, "n k"], targets: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    known = targets >= 0
    losses = F.binary_cross_entropy_with_logits(logits, targets.clamp(min=0), reduction="none")
    return (losses * known).sum() / known.sum().clamp(min=1)


def _augment(pixels: Float[Tensor, "n c h w"], shift_px: int, generator: torch.Generator) -> Float[Tensor, "n c h w"]:
    """Each image shifted, half of them blurred, with other contrast and brightness and with noise.

    Blur and noise matter most: generated images are smoother than real ones, and a classifier must not learn that.
    """
    blurred, noise, gain, offset = torch.rand((4, len(pixels), 1, 1, 1), generator=generator)
    pixels = _shift(pixels, shift_px, generator)
    pixels = torch.where(blurred < 0.5, _box_blur(pixels), pixels)
    pixels = pixels * (1 + GAIN * (2 * gain - 1)) + OFFSET * (2 * offset - 1)
    return pixels + NOISE_SD * noise * torch.randn(pixels.shape, generator=generator)


def _shift(pixels: Float[Tensor, "n c h w"], shift_px: int, generator: torch.Generator) -> Float[Tensor, "n c h w"]:
    n, channels, height, width = pixels.shape
    padded = F.pad(pixels, (shift_px,) * 4, mode="replicate")
    down, right = torch.randint(0, 2 * shift_px + 1, (2, n, 1), generator=generator)
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    places = (rows[:, :, None] * padded.shape[-1] + columns[:, None, :]).view(n, 1, -1).expand(n, channels, -1)
    return padded.flatten(2).gather(2, places).view(pixels.shape)


def _box_blur(pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Mean over 3 x 3 pixels, as sums along one axis after the other (avg_pool2d takes six times as long on CPU)."""
    padded = F.pad(pixels, (1, 1, 1, 1), mode="replicate")
    columns = padded[:, :, :-2] + padded[:, :, 1:-1] + padded[:, :, 2:]
    return (columns[..., :-2] + columns[..., 1:-1] + columns[..., 2:]) / 9
