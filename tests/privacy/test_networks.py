import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from running import ROOT

from pipeline import config
from pipeline.images import to_torch
from pipeline.privacy.networks import SiameseNetwork, embeddings, load, standardised


def small(backbone: str = "conv", image_px: int = 32, channels: int = 1) -> SiameseNetwork:
    torch.manual_seed(0)
    network = config.Network.model_validate({"backbone": backbone, "width": 4, "embedding": 8})
    return SiameseNetwork(network, image_px, channels).eval()


def films(n: int, image_px: int = 32, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, image_px, image_px, channels), np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("backbone", "image_px"),
    [("conv", 16), ("conv", 48), ("conv", 64), ("resnet", 32), ("resnet", 48), ("resnet50", 64)],
)
def test_every_backbone_embeds_grey_and_colour_into_the_unit_cube(
    backbone: str, image_px: int, channels: int
) -> None:
    model = small(backbone, image_px, channels)
    vectors = embeddings(model, films(2, image_px, channels), batch_size=2)
    assert vectors.shape == (2, 8)
    assert ((vectors > 0) & (vectors < 1)).all()
    assert not torch.equal(vectors[0], vectors[1])


def test_the_two_small_backbones_are_different_architectures() -> None:
    kinds = [{type(part).__name__ for part in small(name).modules()} for name in ("conv", "resnet")]
    assert "ResNetBasicLayer" in kinds[1] - kinds[0]


TRAINED = """
import numpy as np, torch
from pipeline import config
from pipeline.privacy.training import fit
torch.set_num_threads(1)
network = config.Network(backbone="resnet", width={width}, embedding=8, steps=3, patients_per_batch=8)
images = np.random.default_rng(0).integers(0, 256, (16, 256, 256, 1), np.uint8)
fit(network, config.Augment(), images, np.arange(16) // 2, seed=0)
"""


@pytest.mark.parametrize("width", [4, 8])
def test_a_narrow_residual_network_is_trained_on_large_films(width: int) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", TRAINED.format(width=width)], cwd=ROOT, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr  # the heap was overwritten, so that the process ended by a signal


@torch.no_grad()
@pytest.mark.parametrize("image_px", [64, 48, 40])
def test_a_narrow_residual_network_picks_the_pixels_that_its_strides_pick(image_px: int) -> None:
    trunk = small("resnet", image_px).backbone
    strided, n_changed = copy.deepcopy(trunk), 0
    for part in strided.modules():
        if isinstance(part, torch.nn.Conv2d) and part._forward_pre_hooks:
            part._forward_pre_hooks.clear()
            part.stride, n_changed = (2, 2), n_changed + 1
    images = standardised(to_torch(films(3, image_px)))
    torch.testing.assert_close(trunk(images), strided(images), rtol=1e-5, atol=1e-5)
    assert n_changed == 2


def test_a_residual_network_of_usual_width_is_left_as_it_is() -> None:
    network = config.Network(backbone="resnet", width=16)
    assert not any(part._forward_pre_hooks for part in SiameseNetwork(network, 32, 1).modules())


def test_the_head_weighs_absolute_differences() -> None:
    model = small()
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor([[-1.0, 2.0, 0, 0, 0, 0, 0, 0]]))
        model.head.bias.fill_(0.5)
    first, second = torch.zeros(1, 8), torch.zeros(1, 8)
    first[0, :3], second[0, :3] = torch.tensor([0.2, 0.9, 0.4]), torch.tensor([0.6, 0.8, 0.0])
    expected = 0.5 - 0.4 + 2 * 0.1
    assert model.pair_logit(first, second).item() == pytest.approx(expected, abs=1e-6)
    assert model.pairwise_logits(first, second).item() == pytest.approx(expected, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), signs=st.sampled_from(["mixed", "negative", "positive", "zero"]))
def test_scaled_distances_equal_the_head_on_every_pair_whatever_the_signs(seed: int, signs: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = small()
    weight = torch.randn(1, 8, generator=generator)
    chosen = {"mixed": weight, "negative": -weight.abs(), "positive": weight.abs(), "zero": weight * 0}[signs]
    with torch.no_grad():
        model.head.weight.copy_(chosen)
    queries, gallery = torch.rand(5, 8, generator=generator), torch.rand(7, 8, generator=generator)
    expected = model.pair_logit(queries[:, None].expand(5, 7, 8), gallery.expand(5, 7, 8))
    torch.testing.assert_close(model.pairwise_logits(queries, gallery), expected, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_scaled_distances_is_that_of_the_head() -> None:
    model = small()
    torch.nn.init.normal_(model.head.weight)
    queries, gallery = torch.rand(3, 8), torch.rand(4, 8)
    gradients = []
    for logits in (
        model.pairwise_logits(queries, gallery),
        model.pair_logit(queries[:, None].expand(3, 4, 8), gallery.expand(3, 4, 8)),
    ):
        model.zero_grad()
        logits.square().sum().backward()
        assert model.head.weight.grad is not None
        gradients.append(model.head.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_an_embedding_does_not_depend_on_the_images_beside_it() -> None:
    model, images = small("resnet", 48), films(11, 48)
    together = embeddings(model, images, batch_size=4)
    alone = torch.cat([embeddings(model, images[i : i + 1], batch_size=4) for i in range(11)])
    assert torch.equal(together, alone)


def test_no_images_give_no_embeddings() -> None:
    assert embeddings(small(), films(0), batch_size=4).shape == (0, 8)


def test_exposure_of_a_whole_film_does_not_count_and_an_empty_film_stays_empty() -> None:
    images = torch.rand(2, 1, 32, 32) - 0.5
    torch.testing.assert_close(standardised(images * 0.7 + 0.1), standardised(images), rtol=0, atol=0.05)
    assert standardised(torch.full((1, 1, 8, 8), 0.3)).abs().max() < 1e-5


@pytest.mark.parametrize("backbone", ["conv", "resnet"])
def test_a_saved_network_gives_the_same_embeddings(tmp_path, backbone: str) -> None:
    model = small(backbone, 32, 3)
    model.save(tmp_path / "network")
    again = load(tmp_path / "network")
    images = films(4, 32, 3)
    assert torch.equal(embeddings(again, images, 4), embeddings(model, images, 4))
    assert sorted(path.name for path in (tmp_path / "network").iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((tmp_path / "network" / "config.json").read_text())["network"]["backbone"] == backbone


@pytest.mark.parametrize("fault", ["missing folder", "missing weights", "a pickle beside"])
def test_a_folder_with_anything_but_the_two_files_is_refused(tmp_path, fault: str) -> None:
    folder = tmp_path / "network"
    if fault != "missing folder":
        small().save(folder)
    if fault == "missing weights":
        (folder / "model.safetensors").unlink()
    if fault == "a pickle beside":
        (folder / "model.pt").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match=r"want config.json and model.safetensors only, got"):
        load(folder)


def test_a_trained_network_averages_over_shifted_copies_and_training_does_not() -> None:
    plain, averaging = small(), small()
    averaging.settings["network"]["averaged_shift_px"] = 2
    images = to_torch(films(3))
    # The border is continued outwards, so a shift by whole pixels is a slice of the padded image.
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2), mode="replicate")
    offsets = [(2, 2), (0, 2), (4, 2), (2, 0), (2, 4)]
    views = [padded[:, :, row : row + 32, column : column + 32] for row, column in offsets]
    with torch.inference_mode():
        expected = torch.stack([plain.embed(view) for view in views]).mean(0)
        torch.testing.assert_close(averaging.embed(images), expected, rtol=0, atol=1e-4)
        assert not torch.allclose(expected, plain.embed(images), rtol=0, atol=1e-3)
        # In train mode dropout and batch statistics apply; they are the same for the same random state.
        in_training = []
        for model in (plain.train(), averaging.train()):
            torch.manual_seed(0)
            in_training.append(model.embed(images))
    assert torch.equal(*in_training)


def test_averaging_over_shifts_is_saved_with_the_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = config.Network(width=4, embedding=8, averaged_shift_px=2)
    model = SiameseNetwork(network, 32, 1).eval()
    model.save(tmp_path / "network")
    images = films(3)
    assert torch.equal(embeddings(load(tmp_path / "network"), images, 4), embeddings(model, images, 4))
