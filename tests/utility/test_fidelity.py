"""Fidelity against torchmetrics, scikit-learn, closed forms and hand-drawn sets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torchmetrics import Metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from pipeline.estimate import Estimate
from pipeline.report import relative_reduction
from pipeline.utility.fidelity import fid, kid, manifold, relative_coverage


def gaussian(n: int, seed: int, mean: float = 0.0, sd: float = 1.0, d: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, sd, (n, d)).astype(np.float32)


class Identity(torch.nn.Module):
    """Features in place of images, so that torchmetrics' own feature network is not needed."""

    num_features = 8

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def by_torchmetrics(metric: Metric, real: np.ndarray, synthetic: np.ndarray) -> torch.Tensor:
    metric.set_dtype(torch.float64)
    metric.update(torch.from_numpy(real).double(), real=True)
    metric.update(torch.from_numpy(synthetic).double(), real=False)
    return metric.compute()


def test_fid_equals_torchmetrics():
    real, synthetic = gaussian(300, 0) @ np.triu(np.ones((8, 8), np.float32)), gaussian(200, 1, 0.3, 1.5)
    wanted = by_torchmetrics(FrechetInceptionDistance(feature=Identity()), real, synthetic)
    assert fid(real, synthetic, seed=0).value == pytest.approx(wanted.item(), rel=1e-5)


def test_fid_of_large_samples_is_the_distance_of_their_gaussians():
    # Closed form for independent axes: d x ((0.5)² + (2 - 1)²)
    estimate = fid(gaussian(20_000, 0), gaussian(20_000, 1, 0.5, 2.0), seed=0)
    assert estimate.value == pytest.approx(8 * 1.25, rel=0.02)
    assert estimate.low < 10.0 < estimate.high


def test_fid_of_a_set_with_itself_is_zero_even_with_fewer_images_than_features():
    few = gaussian(5, 0)
    assert fid(few, few, seed=0).value == pytest.approx(0.0, abs=1e-6)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save all:UserWarning")
def test_kid_equals_torchmetrics_on_one_subset_of_all_images():
    real, synthetic = gaussian(120, 0), gaussian(120, 1, 0.3)
    metric = KernelInceptionDistance(feature=Identity(), subsets=1, subset_size=120)
    wanted, _ = by_torchmetrics(metric, real, synthetic)
    assert kid(real, synthetic, seed=0).value == pytest.approx(wanted.item(), rel=1e-5)


def test_kid_is_unbiased_where_fid_is_not():
    pairs = [(gaussian(60, 2 * seed), gaussian(60, 2 * seed + 1)) for seed in range(60)]
    kids = [kid(*pair, seed=0) for pair in pairs]
    values = np.array([estimate.value for estimate in kids])
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(len(values))
    assert np.mean([estimate.low <= 0 <= estimate.high for estimate in kids]) >= 0.9
    assert min(fid(*pair, seed=0).value for pair in pairs[:5]) > 0.1


def test_a_distribution_that_is_off_is_worse_than_the_control():
    real, unseen, off = gaussian(400, 0), gaussian(400, 1), gaussian(400, 2, 0.5)
    for measure in (fid, kid):
        assert measure(real, off, seed=0).low > measure(real, unseen, seed=0).high


def on_a_line(*positions: float) -> np.ndarray:
    return np.array(positions, np.float64)[:, None]


def test_manifold_of_points_on_a_line_is_as_counted_by_hand():
    # k = 1: every real ball has radius 1; the synthetic balls have radii 1, 1 and 8.
    real, synthetic = on_a_line(0.0, 1.0, 5.0, 6.0), on_a_line(0.5, 1.5, 9.5)
    precision, recall, density, coverage = manifold(real, synthetic, neighbours=1)
    assert (precision.value, precision.n) == (pytest.approx(2 / 3), 3)  # 9.5 is in no real ball
    assert (recall.value, recall.n) == (1.0, 4)  # the wide ball of 9.5 reaches down to 1.5
    assert density.value == pytest.approx((2 + 1 + 0) / 3)
    assert (coverage.value, coverage.n) == (0.5, 4)  # 5 and 6 have no synthetic neighbour


def test_manifold_equals_its_definitions_spelt_out():
    real, synthetic, k = gaussian(700, 0, d=3), gaussian(600, 1, 0.7, d=3), 5  # more than one block
    radii = [NearestNeighbors(n_neighbors=k).fit(x).kneighbors()[0][:, -1] for x in (real, synthetic)]
    distances = np.linalg.norm(real[:, None].astype(float) - synthetic[None], axis=-1)
    in_real, in_synthetic = distances <= radii[0][:, None], distances <= radii[1]
    got = [estimate.value for estimate in manifold(real, synthetic, neighbours=k)]
    wanted = [in_real.any(0).mean(), in_synthetic.any(1).mean(), in_real.sum(0).mean() / k, in_real.any(1).mean()]
    assert got == pytest.approx(wanted, abs=2e-3)  # scikit-learn's radii are float32


def test_a_collapsed_generator_is_precise_but_covers_nothing():
    real = gaussian(300, 0)
    collapsed = real[:1] + 1e-3 * gaussian(300, 1)
    measures = manifold(real, collapsed, neighbours=5)
    assert measures.precision.value == 1.0
    assert measures.recall.high < 0.05
    assert measures.coverage.high < 0.2


def test_too_few_images_for_the_neighbourhood_are_refused():
    with pytest.raises(ValueError, match="want more than neighbours = 5 images, got 5"):
        manifold(gaussian(5, 0), gaussian(50, 1), neighbours=5)


def test_estimates_depend_on_the_seed_only_through_their_interval():
    real, synthetic = gaussian(100, 0), gaussian(100, 1)
    assert kid(real, synthetic, seed=1) == kid(real, synthetic, seed=1)
    assert fid(real, synthetic, seed=1).value == fid(real, synthetic, seed=2).value
    assert fid(real, synthetic, seed=1).low != fid(real, synthetic, seed=2).low


def test_relative_coverage_is_the_ratio_with_the_interval_of_the_reports_reduction():
    synthetic, control = Estimate(0.6, 0.5, 0.7, 100), Estimate(0.8, 0.7, 0.9, 100)
    ratio, reduction = relative_coverage(synthetic, control), relative_reduction(control, synthetic)
    assert (ratio.value, ratio.n) == (pytest.approx(0.75), 100)
    assert (ratio.low, ratio.high) == pytest.approx((1 - reduction.high, 1 - reduction.low))


def test_no_coverage_at_all_is_none_of_the_controls():
    ratio = relative_coverage(Estimate(0.0, 0.0, 0.04, 100), Estimate(0.8, 0.7, 0.9, 100))
    assert ratio[:2] == (0.0, 0.0)
    assert 0.04 < ratio.high < 0.06


def test_relative_coverage_of_a_control_that_covers_nothing_is_not_measured():
    ratio = relative_coverage(Estimate(0.5, 0.4, 0.6, 100), Estimate(0.0, 0.0, 0.1, 100))
    assert np.isnan(ratio[:3]).all() and ratio.n == 0


def test_coverages_of_different_real_images_are_refused():
    with pytest.raises(ValueError, match="got 100 and 99"):
        relative_coverage(Estimate(0.5, 0.4, 0.6, 100), Estimate(0.5, 0.4, 0.6, 99))


@pytest.mark.parametrize(("n_images", "repeats"), [(60, 40), (300, 20), (1000, 10)])
def test_relative_coverage_of_real_images_is_one_at_any_number_of_them(n_images: int, repeats: int):
    real = gaussian(500, 0)
    ratios = []
    for seed in range(repeats):
        other, unseen = (gaussian(n_images, 1 + 2 * seed + i) for i in (0, 1))
        shares = [manifold(real, images, neighbours=5).coverage for images in (other, unseen)]
        ratios.append(relative_coverage(*shares, n_images))
    assert np.mean([ratio.value for ratio in ratios]) == pytest.approx(1.0, abs=0.03)
    assert np.mean([ratio.low <= 1 <= ratio.high for ratio in ratios]) >= 0.85
