"""The Siamese network that says how likely two films show the same patient.

An image becomes an embedding: d features in [0, 1], and k coordinates among eigenfilms. A pair becomes a logit, the
larger of what the features say, `bias + sum_j weight_j |a_j - g_j|`, and of what the angle between the coordinates
says: the first finds a patient in another pose, the second a film that was redrawn in its place. Not here: training
(`training`) and the search through a gallery (`matching`).
Axis letters: n images or queries, m gallery images, c channels, h height, w width, e = d + k embedding.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline import config
from pipeline.images import to_torch
from pipeline.privacy.augment import moved
from pipeline.privacy.eigenfilms import EigenFilms

WEIGHTS, SETTINGS = "model.safetensors", "config.json"
REGISTER_CHANNELS = 16
"""Float channels in the widest register of a CPU."""


class SiameseNetwork(nn.Module):
    """Backbone to sigmoid features, and one linear layer on the absolute difference of those of two films.

    A network that is not trained yet has no eigenfilms, and its embedding is its features.
    Source: Packhäuser et al., Sci. Rep. 12:14851 (2022).
    """

    def __init__(self, network: config.Network, image_px: int, channels: int) -> None:
        super().__init__()
        architecture = network.model_dump(include={"backbone", "width", "embedding", "averaged_shift_px", "dropout"})
        self.settings = {"image_px": image_px, "channels": channels, "network": architecture}
        self.eigenfilms = EigenFilms(image_px, 0)
        self.backbone, n_features = _backbone(network, image_px, channels)
        self.projection = nn.Sequential(
            nn.Flatten(), nn.Dropout(network.dropout), nn.Linear(n_features, network.embedding), nn.Sigmoid()
        )
        self.head = nn.Linear(network.embedding, 1)
        # Identical embeddings start at probability sigmoid(4) = 0.98; a difference can only lower it.
        nn.init.constant_(self.head.weight, -0.3)
        nn.init.constant_(self.head.bias, 4.0)
        for parameter in self.parameters():
            if parameter.ndim == 4:  # 1.4 times as fast as n c h w on a CPU
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    @property
    def embedding(self) -> int:
        """Length of an embedding, e."""
        return self.head.in_features + self.eigenfilms.n_components

    def embed(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n e"]:
        """Embeddings of images in [-1, 1]; brightness and contrast of a whole film do not count."""
        return torch.cat([self._features(images), self.eigenfilms(standardised(images))], 1)

    def _features(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """In eval mode the mean over the film as it is and shifted to four sides by `averaged_shift_px`."""
        distance = self.settings["network"]["averaged_shift_px"]
        if self.training or not distance:
            return self._features_of_one(images)
        views = [images, *(moved(images, shift, shift.new_zeros(len(images))) for shift in _shifts(images, distance))]
        return torch.stack([self._features_of_one(view) for view in views]).mean(0)

    def _features_of_one(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        return self.projection(self.backbone(standardised(images).contiguous(memory_format=torch.channels_last)))

    def pair_logit(self, first: Float[Tensor, "*n e"], second: Float[Tensor, "*n e"]) -> Float[Tensor, " *n"]:
        """Logit that the two images of each pair show one patient."""
        by_features, cosine = self.opinions(first, second)
        return torch.maximum(by_features, self.eigenfilms.logits(cosine)) if self._sees_places else by_features

    def opinions(
        self, first: Float[Tensor, "*n e"], second: Float[Tensor, "*n e"]
    ) -> tuple[Float[Tensor, " *n"], Float[Tensor, " *n"]]:
        """What makes up a pair's logit: the head's logit of the features, and the cosine among eigenfilms."""
        d = self.head.in_features
        by_features = self.head((first[..., :d] - second[..., :d]).abs()).squeeze(-1)
        return by_features, (first[..., d:].double() * second[..., d:].double()).sum(-1).float()

    def pairwise_logits(self, queries: Float[Tensor, "n e"], gallery: Float[Tensor, "m e"]) -> Float[Tensor, "n m"]:
        """`pair_logit` of every query with every gallery image, without an n x m x e array.

        Scaled by |weight|, the weighted sum is an L1 distance; dimensions whose weight is positive are added and
        those whose weight is negative are subtracted, so it is exact whatever the signs. Cosines are products in
        double precision, whose last bits depend on the number of rows, but not once they are rounded.
        """
        d, weight = self.head.in_features, self.head.weight[0]
        features, others = queries[:, :d] * weight.abs(), gallery[:, :d] * weight.abs()
        logits = self.head.bias.expand(len(queries), len(gallery))
        for side, sign in ((weight < 0, -1.0), (weight > 0, 1.0)):
            if side.any():
                logits = logits + sign * torch.cdist(features[:, side], others[:, side], p=1.0)
        if not self._sees_places:
            return logits
        cosines = (queries[:, d:].double() @ gallery[:, d:].double().T).float()
        return torch.maximum(logits, self.eigenfilms.logits(cosines))

    @property
    def _sees_places(self) -> bool:
        return self.eigenfilms.n_components > 0

    def save(self, folder: Path) -> None:
        """Write weights (safetensors) and settings (JSON) into the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / WEIGHTS)
        settings = self.settings | {"eigenfilms": self.eigenfilms.n_components}
        (folder / SETTINGS).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def load(folder: Path) -> SiameseNetwork:
    """The network in a folder, ready to embed (eval mode, CPU).

    Raises: ConfigError if the folder holds anything but the two files of `save`.
    """
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if found != sorted((WEIGHTS, SETTINGS)):
        got = ", ".join(found) or "nothing"
        raise config.ConfigError(
            f"network {folder}: want {SETTINGS} and {WEIGHTS} only, got {got} — run identify again"
        )
    settings = json.loads((folder / SETTINGS).read_text())
    network = config.Network.model_validate(settings["network"])
    model = SiameseNetwork(network, settings["image_px"], settings["channels"])
    model.eigenfilms = EigenFilms(settings["image_px"], settings["eigenfilms"])
    model.load_state_dict(load_file(folder / WEIGHTS))
    return model.eval()


@torch.inference_mode()
def embeddings(model: SiameseNetwork, images: UInt8[np.ndarray, "n h w c"], batch_size: int) -> Float[Tensor, "n e"]:
    """Embeddings on the CPU, a function of each image alone.

    Every batch is padded to the same shape: convolutions pick their algorithm by shape, so a row would
    otherwise depend in the last bits on how many neighbours it has.
    """
    vectors = torch.empty(len(images), model.embedding)
    for start in range(0, len(images), batch_size):
        pixels = to_torch(images[start : start + batch_size])
        padded = torch.cat([pixels, pixels.new_zeros(batch_size - len(pixels), *pixels.shape[1:])])
        found = model.embed(padded.to(model.head.weight.device)).cpu()
        vectors[start : start + batch_size] = found[: len(pixels)]
    return vectors


def standardised(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Each image with mean 0 and standard deviation 1 over its own pixels and channels."""
    centred = images - images.mean((1, 2, 3), keepdim=True)
    # 0.05 is far below the spread of any film; it keeps an empty image from becoming amplified noise.
    return centred / (centred.square().mean((1, 2, 3), keepdim=True) + 0.05**2).sqrt()


def _shifts(images: Float[Tensor, "n c h w"], distance: int) -> Float[Tensor, "4 n 2"]:
    """For every image the shift right, left, down and up by this many pixels."""
    directions = images.new_tensor([[1, 0], [-1, 0], [0, 1], [0, -1]])
    return (distance * directions)[:, None].expand(-1, len(images), -1)


def _backbone(network: config.Network, image_px: int, channels: int) -> tuple[nn.Module, int]:
    """The trunk and the number of features that it gives."""
    width = network.width
    if network.backbone == "conv":
        grid = min(image_px // 8, 8)
        return _conv(width, channels, grid), 4 * width * grid**2
    if network.backbone == "resnet":
        grid = min(image_px // 16, 4)
        trunk = _ResNet(
            grid,
            num_channels=channels,
            embedding_size=width,
            hidden_sizes=[width, 2 * width, 4 * width],
            depths=[1, 1, 1],
            layer_type="basic",
        )
        return trunk, 4 * width * grid**2
    return _ResNet(grid=1, num_channels=channels), 2048


def _conv(width: int, channels: int, grid: int) -> nn.Sequential:
    """Three convolutions on 2x2 pixel blocks; anatomy is a matter of place, so the last grid is kept."""
    pools = (nn.MaxPool2d(2), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(grid))
    widths = (4 * channels, width, 2 * width, 4 * width)
    stages: list[nn.Module] = [nn.PixelUnshuffle(2)]
    for n_in, n_out, pool in zip(widths[:-1], widths[1:], pools, strict=True):
        # Pooled before they are normalised: a quarter of that work.
        stages += [nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), pool, nn.BatchNorm2d(n_out), nn.ReLU()]
    return nn.Sequential(*stages)


class _ResNet(nn.Module):
    """transformers' residual network with random weights, pooled to grid x grid; settings as in ResNetConfig."""

    def __init__(self, grid: int, **settings: Any) -> None:
        from transformers import ResNetConfig, ResNetModel  # takes seconds, and `conv` does without

        super().__init__()
        self.trunk = ResNetModel(ResNetConfig(**settings))
        self.pool = nn.AdaptiveAvgPool2d(grid)
        _keep_within_workspace(self.trunk)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k g g"]:
        return self.pool(self.trunk(images).last_hidden_state)


def _keep_within_workspace(trunk: nn.Module) -> None:
    """Let convolutions that only pick pixels pick them beforehand, where oneDNN would write past its workspace.

    oneDNN#6035 (in torch 2.13 still): for the weights' gradient of a 1x1 convolution with a stride over few channels,
    channels last, it counts a register of channels per pixel where it has room for those that there are. The heap is
    overwritten; with several threads it may also be only the gradient that is wrong.
    """
    for part in trunk.modules():
        if isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1) and part.in_channels < REGISTER_CHANNELS:
            part.register_forward_pre_hook(partial(_picked, stride=part.stride))
            part.stride = (1, 1)


def _picked(
    _: nn.Module, images: tuple[Float[Tensor, "n c h w"]], stride: tuple[int, ...]
) -> Float[Tensor, "n c _ _"]:
    """The pixels that a 1x1 convolution with this stride sees."""
    return images[0][..., :: stride[0], :: stride[1]]
