import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy import ndimage

from pipeline import config
from pipeline.privacy.networks import SiameseNetwork, embeddings
from pipeline.privacy.training import drawn_batches, fit, pair_loss
from pipeline.privacy.verification import verification

TINY = config.Network(width=8, embedding=16, steps=60, patients_per_batch=30, lr=5e-3)
SHORT = config.Network(width=4, embedding=8, steps=3, patients_per_batch=6)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Many small steps: two threads on a busy machine wait for each other and take several times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def cohort(n_patients: int, films_each: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A fine pattern per patient under a coarse one per film, which an untrained network cannot tell apart."""
    rng = np.random.default_rng(seed)

    def smooth(n: int, sigma: float) -> np.ndarray:
        noise = ndimage.gaussian_filter(rng.standard_normal((n, 32, 32)), (0, sigma, sigma), mode="wrap")
        return noise / noise.std()

    patients = np.repeat(np.arange(n_patients), films_each)
    noise = 0.3 * rng.standard_normal((len(patients), 32, 32))
    films = smooth(n_patients, 2)[patients] + smooth(len(patients), 6) + noise
    return np.clip(films * 25 + 128, 0, 255).astype(np.uint8)[..., None], patients


@pytest.mark.parametrize("backbone", ["conv", "resnet"])
def test_a_trained_network_recognises_patients_that_it_has_never_seen(backbone: str) -> None:
    network = TINY.model_copy(update={"backbone": backbone})
    gently = config.Augment(shift_frac=0.03, rotation_deg=2, zoom=0, gain=0.06, offset=0.06)  # it has few steps
    model = fit(network, gently, *cohort(150, 3), seed=0)
    torch.manual_seed(0)
    untrained = SiameseNetwork(network, 32, 1).eval()
    unseen = cohort(40, 3, seed=1)
    after, before = (
        verification(net, *unseen, seed=0, operating_recall=0.95, batch_size=40, n_resamples=20).auc.value
        for net in (model, untrained)
    )
    assert after > 0.85
    assert after > before + 0.1


def test_training_is_a_function_of_the_seed_whatever_the_global_generator_did() -> None:
    images, patients = cohort(8, 2)
    models = []
    for seed, disturbance in ((1, 0), (1, 7), (2, 0)):
        torch.rand(disturbance)
        models.append(fit(SHORT, config.Augment(), images, patients, seed=seed, round_trip=lambda some: some / 2))
    first, again, other = (embeddings(model, images, 16) for model in models)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_fit_draws_nothing_from_the_global_generator() -> None:
    images, patients = cohort(8, 2)
    before = torch.get_rng_state()
    fit(SHORT, config.Augment(), images, patients, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_progress_is_told_after_every_step() -> None:
    told: list[tuple[int, int]] = []
    fit(SHORT, config.Augment(), *cohort(4, 2), seed=0, on_step=lambda *step: told.append(step))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_warm_start_continues_from_the_given_weights_without_changing_them() -> None:
    images, patients = cohort(8, 2)
    initial = fit(SHORT, config.Augment(), images, patients, seed=0)
    kept = {name: value.clone() for name, value in initial.state_dict().items()}
    slow = SHORT.model_copy(update={"lr": 1e-9, "weight_decay": 0.0})
    model = fit(slow, config.Augment(), images, patients, seed=9, initial=initial)
    torch.testing.assert_close(model.head.weight, initial.head.weight, rtol=0, atol=1e-6)
    assert all(torch.equal(value, kept[name]) for name, value in initial.state_dict().items())


def test_a_warm_start_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="warm start: want a network like"):
        fit(SHORT, config.Augment(), *cohort(4, 2), seed=0, initial=SiameseNetwork(SHORT, 48, 1))


def test_a_batch_holds_two_different_films_of_each_patient_and_no_patient_twice() -> None:
    patients = np.repeat(np.arange(10), 3)
    for batch in itertools.islice(drawn_batches(patients, 4, np.random.default_rng(0)), 10):
        assert batch.pairs.shape == (4, 2)
        assert (batch.pairs[:, 0] != batch.pairs[:, 1]).all()
        assert (patients[batch.pairs[:, 0]] == patients[batch.pairs[:, 1]]).all()
        assert len(set(patients[batch.pairs[:, 0]])) == 4


def test_patients_with_one_film_fill_a_batch_as_negatives_only() -> None:
    patients = np.array([0, 0, 1, 1, 1, 2, 3, 4, 5])
    batch = next(drawn_batches(patients, 5, np.random.default_rng(0)))
    assert len(batch.pairs) == 2
    assert len(set(patients[batch.singles])) == 3
    assert set(patients[batch.singles]) <= {2, 3, 4, 5}


def test_every_patient_with_two_films_is_drawn_once_in_an_epoch() -> None:
    patients = np.repeat(np.arange(12), 2)
    epoch = itertools.islice(drawn_batches(patients, 4, np.random.default_rng(0)), 3)
    assert sorted(patients[np.concatenate([batch.pairs[:, 0] for batch in epoch])]) == list(range(12))


@pytest.mark.parametrize("patients", [[0, 1, 2, 3], [0, 0, 1, 2]])
def test_fewer_than_two_patients_with_two_films_is_an_error(patients: list[int]) -> None:
    with pytest.raises(ValueError, match="want 2 patients with 2 images or more, got"):
        drawn_batches(np.array(patients), 4, np.random.default_rng(0))


def test_the_loss_worked_out_by_hand() -> None:
    # Two films of A, two of B in the order A1 B1 A2 B2, and one single film.
    same, different = 2.0, -1.0
    logits = torch.full((5, 5), different)
    for first, second in ((0, 2), (1, 3)):
        logits[first, second] = logits[second, first] = same
    info_nce = math.log(1 + 3 * math.exp(different - same))
    bce = (math.log1p(math.exp(-same)) + math.log1p(math.exp(different))) / 2
    assert pair_loss(logits, 2, 0.0).item() == pytest.approx(0.5 * bce, rel=1e-5)
    assert pair_loss(logits, 2, 3.0).item() == pytest.approx(3 * info_nce + 0.5 * bce, rel=1e-5)


def test_the_hardest_negative_carries_the_gradient() -> None:
    logits = torch.zeros(4, 4)
    logits[0, 1], logits[0, 3] = 3.0, -3.0
    logits.requires_grad_()
    pair_loss(logits, 2, 1.0).backward()
    assert logits.grad is not None
    assert logits.grad[0, 1] > 10 * logits.grad[0, 3] > 0
    assert logits.grad[0, 2] < 0
