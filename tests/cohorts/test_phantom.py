"""The phantom cohort: who is in it, what their reports say, and whether the drawing shows what the labels claim."""

from __future__ import annotations

import json
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import config, tables
from pipeline.cohorts import phantom
from pipeline.cohorts.phantom_anatomy import Film, Finding

IMAGE_PX = 48
SHAPES = st.builds(Finding, st.sampled_from((-1, 1)), st.floats(0, 1), st.floats(0, 1))


@pytest.fixture(scope="module")
def listing():
    return phantom.listing(config.Phantom(n_patients=1500), seed=3)


@pytest.fixture(scope="module")
def phrases(listing) -> dict[str, set[str]]:
    """Phrase of an impression -> patients whose reports have it."""
    patients = defaultdict(set)
    for patient, text in zip(listing["patient"].to_pylist(), listing["text"].to_pylist(), strict=True):
        for phrase in text.split("IMPRESSION: ")[1].rstrip(".").split(", "):
            patients[phrase].add(patient)
    return patients


def _film(view: str = "PA", patient: int = 7, **findings: Finding) -> Film:
    return Film(seed=0, patient=patient, image=0, sex="F", view=view, device="none", findings=findings)


def _difference(film: Film) -> np.ndarray:
    """Change of grey values that the film's findings make; pose and noise are the same in both."""
    bare = Film(**vars(film) | {"findings": {}})
    with_findings, without = phantom.draw([film.source(), bare.source()], IMAGE_PX)[..., 0].astype(float)
    return with_findings - without


def _inside(box: dict) -> np.ndarray:
    centres = (np.arange(IMAGE_PX) + 0.5) / IMAGE_PX
    across = (centres >= box["x"]) & (centres <= box["x"] + box["w"])
    down = (centres >= box["y"]) & (centres <= box["y"] + box["h"])
    return down[:, None] & across[None, :]


def test_the_listing_has_the_schema_of_every_cohort(listing):
    assert listing.schema.equals(tables.LISTING)
    assert len(set(listing["row_id"].to_pylist())) == listing.num_rows
    assert all(column.null_count == 0 for column in listing.columns)


def test_the_same_seed_gives_the_same_cohort_and_another_seed_another():
    cohort = config.Phantom(n_patients=20)
    assert phantom.listing(cohort, 1).equals(phantom.listing(cohort, 1))
    assert not phantom.listing(cohort, 1)["text"].equals(phantom.listing(cohort, 2)["text"])


def test_more_patients_leave_the_first_ones_as_they_are():
    few, many = (phantom.listing(config.Phantom(n_patients=n), 1) for n in (20, 40))
    assert many.slice(0, few.num_rows).equals(few)


def test_an_image_does_not_depend_on_batch_or_order(listing):
    sources = listing["source"].to_pylist()[:12]
    together = phantom.draw(sources, IMAGE_PX)
    alone = np.concatenate([phantom.draw([source], IMAGE_PX) for source in sources])
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(together[::-1], phantom.draw(sources[::-1], IMAGE_PX))


@pytest.mark.parametrize("image_px", [32, 48, 64])
def test_a_film_looks_alike_at_every_side(listing, image_px):
    sources = listing["source"].to_pylist()[:8]
    fine = phantom.draw(sources, 4 * image_px)[..., 0].astype(float)
    averaged = fine.reshape(8, image_px, 4, image_px, 4).mean((2, 4))
    drawn = phantom.draw(sources, image_px)[..., 0].astype(float)
    assert drawn.shape == (8, image_px, image_px)
    # Noise of sd 0.022 x 255 is in both, in the averaged one a quarter of it.
    assert np.sqrt(np.mean((drawn - averaged) ** 2)) < 1.6 * 0.022 * 255


def test_no_sources_give_no_images():
    assert phantom.draw([], IMAGE_PX).shape == (0, IMAGE_PX, IMAGE_PX, 1)


def test_lungs_are_dark_but_never_clipped_and_lie_beside_a_bright_heart(listing):
    images = phantom.draw(listing["source"].to_pylist()[:200], IMAGE_PX)[..., 0].mean(0)
    right_lung, left_lung, heart = images[18:24, 11:15], images[16:20, 33:37], images[26:30, 23:28]
    assert images[:3, :6].max() < 40 < right_lung.min()
    assert max(right_lung.max(), left_lung.max()) < 0.7 * heart.min()


def test_a_few_patients_have_very_many_images(listing):
    images = Counter(listing["patient"].to_pylist())
    counts = np.array(list(images.values()))
    assert len(images) == 1500
    assert 0.018 < np.mean(counts >= 30) < 0.048 and counts.max() <= 100
    assert 0.06 < np.mean((counts >= 4) & (counts <= 12)) < 0.10
    assert np.sum(counts[counts >= 30]) > 0.3 * counts.sum()


def test_the_share_of_heavy_patients_and_of_repeats_are_the_recipes():
    cohort = config.Phantom(n_patients=30, heavy_patient_frac=1.0, repeat_frac=1.0)
    rows = phantom.listing(cohort, 0).to_pylist()
    states = defaultdict(set)
    for row in rows:
        states[row["patient"]].add(json.dumps(json.loads(row["source"])["findings"]))
    assert min(Counter(row["patient"] for row in rows).values()) >= 30
    assert all(len(shown) == 1 for shown in states.values())


def test_follow_ups_are_in_time_order_and_age_drifts_slowly(listing):
    films = defaultdict(list)
    for row in listing.select(["patient", "order", "age", "sex"]).to_pylist():
        films[row["patient"]].append(row)
    for rows in films.values():
        assert [row["order"] for row in rows] == list(range(len(rows)))
        assert len({row["sex"] for row in rows}) == 1
        assert np.all(np.diff([row["age"] for row in rows]) >= 0)
        assert rows[-1]["age"] - rows[0]["age"] < 25


def test_every_finding_is_common_enough_to_be_learnt(listing):
    prevalence = np.array(listing["labels"].to_pylist()).mean(0)
    assert len(phantom.FINDINGS) >= 6
    assert np.all((prevalence > 0.1) & (prevalence < 0.5))


def test_labels_boxes_and_impression_name_the_same_findings(listing):
    words = {"edema": "pulmonary edema"}
    for row in listing.slice(0, 500).to_pylist():
        present = [name for name, label in zip(phantom.FINDINGS, row["labels"], strict=True) if label]
        impression = row["text"].split("IMPRESSION: ")[1]
        assert [box["finding"] for box in row["boxes"]] == present
        assert [name for name in phantom.FINDINGS if words.get(name, name) in impression] == present
        assert ("no acute findings" in impression) == (not present)


def test_boxes_lie_inside_the_image(listing):
    boxes = [box for row in listing["boxes"].to_pylist() for box in row]
    x, y, w, h = (np.array([box[key] for box in boxes]) for key in "xywh")
    assert min(x.min(), y.min()) >= 0 and max((x + w).max(), (y + h).max()) <= 1 + 1e-6
    assert min(w.min(), h.min()) > 0.05


@settings(max_examples=15, deadline=None)
@given(shape=SHAPES, patient=st.integers(0, 500), view=st.sampled_from(("PA", "AP")))
@pytest.mark.parametrize("name", phantom.FINDINGS)
def test_a_finding_changes_the_image_inside_its_box_and_hardly_outside(name, shape, patient, view):
    film = _film(view, patient, **{name: shape})
    change = np.abs(_difference(film))
    (box,) = phantom._boxes(film)
    inside = _inside(box)
    assert change[inside].max() > 12
    assert change[inside].mean() > 4 * change[~inside].mean()


@settings(max_examples=15, deadline=None)
@given(shape=SHAPES, patient=st.integers(0, 500))
@pytest.mark.parametrize("name, sign", [("pneumothorax", -1), ("effusion", 1), ("consolidation", 1), ("edema", 1)])
def test_air_darkens_and_fluid_brightens(name, sign, shape, patient):
    change = sign * _difference(_film(patient=patient, **{name: shape}))
    assert np.sum(change > 10) > 15


def test_a_film_survives_its_source():
    film = _film(effusion=Finding(-1, 0.25, 0.5))
    assert Film.parse(film.source()) == film


def test_films_of_one_patient_are_more_alike_than_films_of_two(listing):
    rows = defaultdict(list)
    for patient, source in zip(listing["patient"].to_pylist(), listing["source"].to_pylist(), strict=True):
        film = Film.parse(source)
        rows[patient].append(Film(**vars(film) | {"findings": {}}).source())
    pairs = [sources[:2] for sources in rows.values() if len(sources) > 1][:100]
    first, second = (phantom.draw(list(films), 24).reshape(len(pairs), -1) for films in zip(*pairs, strict=True))
    correlation = np.corrcoef(first, second)[: len(pairs), len(pairs) :]
    assert np.mean(correlation.argmax(1) == np.arange(len(pairs))) > 0.5


def test_some_phrases_stand_in_one_patients_reports_only_but_their_words_are_common(listing, phrases):
    words = defaultdict(set)
    for phrase, patients in phrases.items():
        for word in phrase.split():
            words[word] |= patients
    own = {phrase: next(iter(patients)) for phrase, patients in phrases.items() if len(patients) == 1}
    assert 0.01 * 1500 < len(own) < 0.04 * 1500
    assert len(set(own.values())) == len(own)
    assert all(len(words[word]) >= 5 for phrase in own for word in phrase.split())


def test_a_patients_own_phrase_stands_in_each_of_their_reports(listing, phrases):
    own = {next(iter(patients)): phrase for phrase, patients in phrases.items() if len(patients) == 1}
    reports = zip(listing["patient"].to_pylist(), listing["text"].to_pylist(), strict=True)
    assert all(own[patient] in text for patient, text in reports if patient in own)


def test_most_heavy_patients_have_a_phrase_of_their_own_and_few_others(listing, phrases):
    images = Counter(listing["patient"].to_pylist())
    own = {next(iter(patients)) for patients in phrases.values() if len(patients) == 1}
    heavy = {patient for patient, n in images.items() if n >= 30}
    assert len(own & heavy) > 0.4 * len(heavy)
    assert 0 < len(own - heavy) < 0.015 * len(images)


def test_phrases_of_the_impression_are_short(phrases):
    assert max(len(phrase.split()) for phrase in phrases) <= 4


def test_a_report_never_names_its_patient(listing):
    assert not any(
        patient in text or str(int(patient[1:])) in text.split("FINDINGS:")[1]
        for patient, text in zip(listing["patient"].to_pylist(), listing["text"].to_pylist(), strict=True)
    )
