"""The classifier learns findings from any arm, leaves unknown labels out, and is the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline import config
from pipeline.utility import classifier
from pipeline.utility.auroc import auroc, macro_auroc

CFG = config.Classifier(steps=40, batch_size=32, width=8, lr=5e-3)


def squares(n: int, seed: int, image_px: int = 32, channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Noise images with a bright square (finding 0), a dark one (finding 1), both or none, anywhere."""
    rng = np.random.default_rng(seed)
    images = rng.normal(128, 20, (n, image_px, image_px, channels))
    labels = rng.integers(0, 2, (n, 2)).astype(np.int8)
    side = image_px // 4
    for image, findings in zip(images, labels, strict=True):
        for present, grey in zip(findings, (90, -90), strict=True):
            top, left = rng.integers(0, image_px - side, 2)
            image[top : top + side, left : left + side] += present * grey
    return images.clip(0, 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def model() -> classifier.FindingsClassifier:
    return classifier.fit(CFG, *squares(300, 0), seed=0)


def test_it_tells_findings_on_images_it_has_not_seen(model):
    images, labels = squares(300, 1)
    assert macro_auroc(labels, classifier.predict(model, images)) > 0.9


def test_unknown_labels_are_not_taken_as_absent():
    images, labels = squares(300, 0)
    hidden = labels.copy()
    hidden[labels[:, 1] == 0, 1] = -1  # only present ones are known
    trained = classifier.fit(CFG, images, hidden, seed=0)
    unseen, truth = squares(300, 1)
    predicted = classifier.predict(trained, unseen)
    assert auroc(truth, predicted)[0] > 0.9
    assert predicted[:, 1].min() > 0.5  # taken as absent, the unknown ones would have pulled it down


def test_labels_that_are_all_unknown_train_nothing_and_break_nothing():
    images, labels = squares(40, 0)
    trained = classifier.fit(CFG, images, np.full_like(labels, -1), seed=0)
    assert np.isfinite(classifier.predict(trained, images)).all()


def test_the_same_seed_gives_the_same_weights_and_the_global_generator_is_left_alone():
    images, labels = squares(50, 0)
    short = CFG.model_copy(update={"steps": 3})
    torch.manual_seed(1)
    first = classifier.fit(short, images, labels, seed=7)
    torch.manual_seed(2)
    again = classifier.fit(short, images, labels, seed=7)
    other = classifier.fit(short, images, labels, seed=8)
    assert classifier.name(first) == classifier.name(again)
    assert classifier.name(first) != classifier.name(other)


def test_every_image_is_seen_once_before_any_is_seen_twice():
    batches = classifier._batches(10, 4, 5, torch.Generator().manual_seed(0))
    seen = torch.cat(batches).tolist()
    assert [len(batch) for batch in batches] == [4] * 5
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


def test_a_set_smaller_than_a_batch_still_trains():
    images, labels = squares(5, 0)
    trained = classifier.fit(CFG.model_copy(update={"steps": 2}), images, labels, seed=0)
    assert classifier.predict(trained, images).shape == (5, 2)


def test_progress_counts_every_step_to_the_total():
    images, labels = squares(40, 0)
    counted = []
    cfg = CFG.model_copy(update={"steps": 3})
    classifier.fit(cfg, images, labels, seed=0, on_step=lambda done, total: counted.append((done, total)))
    assert counted == [(1, 3), (2, 3), (3, 3)]


def test_no_images_is_an_error_that_points_at_the_filter():
    with pytest.raises(ValueError, match=r"want images to train on, got none"):
        classifier.fit(CFG, np.zeros((0, 32, 32, 1), np.uint8), np.zeros((0, 2), np.int8), seed=0)


def test_a_saved_classifier_is_the_same_when_loaded(model, tmp_path):
    model.save(tmp_path / "classifier")
    loaded = classifier.load(tmp_path / "classifier")
    images, _ = squares(20, 1)
    assert sorted(path.name for path in (tmp_path / "classifier").iterdir()) == ["config.json", "model.safetensors"]
    assert classifier.name(loaded) == classifier.name(model)
    np.testing.assert_array_equal(classifier.predict(loaded, images), classifier.predict(model, images))


def test_a_folder_without_a_classifier_is_named_in_the_error(tmp_path):
    with pytest.raises(ValueError, match=r"want config.json and model.safetensors"):
        classifier.load(tmp_path / "nowhere")


@pytest.mark.parametrize(("image_px", "channels"), [(32, 1), (48, 3), (64, 1), (256, 1)])
def test_features_have_the_same_length_for_every_image_size(image_px, channels):
    images, labels = squares(4, 0, image_px, channels)
    cfg = config.Classifier(steps=1, batch_size=4, width=8)
    assert classifier.features(classifier.fit(cfg, images, labels, seed=0), images).shape == (4, 32)


def test_predictions_do_not_depend_on_the_images_beside_them(model):
    images, _ = squares(300, 1)  # more than one block
    alone = np.concatenate([classifier.predict(model, images[i : i + 1]) for i in (0, 260, 299)])
    np.testing.assert_allclose(classifier.predict(model, images)[[0, 260, 299]], alone, atol=1e-6)


def test_a_shift_moves_the_picture_by_at_most_the_given_pixels():
    images = torch.zeros(64, 1, 9, 9)
    images[:, :, 4, 4] = 1.0
    shifted = classifier._shift(images, 2, torch.Generator().manual_seed(0))
    places = shifted.flatten(1).argmax(dim=1)
    rows, columns = places // 9 - 4, places % 9 - 4
    assert shifted.flatten(1).sum(dim=1).tolist() == [1.0] * 64
    assert set(rows.tolist()) == set(columns.tolist()) == {-2, -1, 0, 1, 2}


def test_the_blur_is_the_mean_of_three_by_three_pixels():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    assert classifier._box_blur(image)[0, 0, 1, 1] == pytest.approx(5.0)  # its neighbours are symmetric around 5
    assert classifier._box_blur(image)[0, 0, 0, 0] == pytest.approx((4 * 0 + 2 * 1 + 2 * 4 + 5) / 9)  # edge repeated
