"""Nothing in a release can be traced to the row it came from with all that is public and any guess of the rest.

Each attack has its positive control: with the store's secret it finds everything.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from running import RECIPE

from benchmarks import attacks
from pipeline.artifact import ArtifactError, Store
from pipeline.config import read
from pipeline.privacy import tracing
from pipeline.seeds import row_seed

SHAPE = (4, 6, 6)


@pytest.fixture(scope="module")
def attacked(finished_store: Path) -> dict[str, Any]:
    return attacks.main(read(RECIPE), Store(finished_store), n_guesses=8)


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["noise", "order", "split"])
def test_with_the_secret_every_released_row_and_member_is_found(attacked: dict[str, Any], attack: str) -> None:
    assert attacked["attacks"][attack]["secret"]["value"] > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("who", ["published seed", "other seeds"])
@pytest.mark.parametrize("attack", ["noise", "order", "split"])
def test_without_it_nobody_is_found_more_often_than_by_chance(
    attacked: dict[str, Any], attack: str, who: str
) -> None:
    found = attacked["attacks"][attack][who]
    # The best of eight guesses may stand a little over chance; a single real lead finds nearly all.
    allowed = attacked["chance"][attack] + 4 * np.sqrt(attacked["chance"][attack] / found["n"])
    assert found["value"] <= allowed, f"{attack} by {who}: {found}"


@pytest.mark.slow
def test_no_released_row_tells_what_fewer_than_k_patients_share(attacked: dict[str, Any]) -> None:
    assert attacked["rows_below_k"] == 0


@pytest.mark.slow
def test_how_often_content_names_the_patient_is_told_with_its_chance(attacked: dict[str, Any]) -> None:
    content = attacked["content"]
    assert content["first"]["n"] == content["by_chance"]["n"] > content["surest"]["n"] > 0


@pytest.mark.slow
def test_who_is_told_by_likeness_in_another_eye_than_the_balances_is_told_for_both_sets(
    attacked: dict[str, Any],
) -> None:
    for by_set in attacked["likeness"].values():
        assert {who: found["n"] > 0 and 0.5 <= found["value"] <= 1 for who, found in by_set.items()} == {
            "released": True,
            "student": True,
        }


@pytest.mark.slow
def test_a_store_without_this_recipes_run_is_an_error_that_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"want a finished run .* artifacts missing, such as ingest"):
        attacks.main(read(RECIPE), Store(tmp_path))


def test_an_image_is_recognised_by_the_film_it_resembles_and_one_of_nobody_by_chance() -> None:
    generator = np.random.default_rng(0)

    def rows(values: np.ndarray) -> np.ndarray:
        return values / np.linalg.norm(values, axis=1, keepdims=True)

    films = rows(generator.normal(size=(500, 40)))
    patients = np.array([f"patient {i // 2}" for i in range(500)])
    behind = generator.integers(0, 500, 300)
    alike = rows(films[behind] + 0.1 * generator.normal(size=(300, 40)))
    found = tracing.recognised(alike, films, patients, patients[behind], generator)
    assert found.first.value > 0.9 and found.surest.value == 1 and found.by_chance.value < 0.05
    nobody = tracing.recognised(rows(generator.normal(size=(300, 40))), films, patients, patients[behind], generator)
    assert nobody.first.value < 0.05


def test_an_image_that_remembers_a_little_of_its_noise_is_traced_among_thousands_by_whoever_has_the_seeds() -> None:
    seeds = [row_seed(7, "sample", position) for position in range(2_000)]
    truth = np.random.default_rng(0).permutation(2_000)[:100]
    noise = torch.stack([torch.randn(SHAPE, generator=torch.Generator().manual_seed(seeds[i])) for i in truth])
    other = torch.randn(noise.shape, generator=torch.Generator().manual_seed(1))
    # What all images share, and axes that the released autoencoder turned round, hide it from a plain correlation.
    shared = 5 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
    turned = torch.tensor([1.0, -1.0]).repeat(SHAPE[0])[: SHAPE[0], None, None]
    latents = (turned * (noise + other) + shared).double().numpy()
    assert tracing.traced(latents, seeds, truth).first.value > 0.9
    wrong = [row_seed(8, "sample", position) for position in range(2_000)]
    assert tracing.traced(latents, wrong, truth).first.value < 0.05
