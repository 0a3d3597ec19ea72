"""Black and white of a cohort: observed on all of it or given, never by image, and told."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from image_writing import png_16_bit, tiff

from pipeline import images
from pipeline.cohorts import greys
from pipeline.cohorts.greys import Greys
from pipeline.cohorts.table import CohortError
from pipeline.image_files import ImageError


def cohort(folder: Path, *files: bytes) -> tuple[str, ...]:
    for number, file in enumerate(files):
        (folder / f"{number:04d}").write_bytes(file)
    return tuple(sorted(path.name for path in folder.iterdir()))


def flat(value: int) -> bytes:
    return png_16_bit(np.full((4, 4, 1), value))


def found(folder: Path, *files: bytes, declared: tuple[int, int] | None = None) -> Greys:
    return greys.greys(folder, cohort(folder, *files), declared)


@pytest.mark.parametrize(
    ("largest", "white"),
    [(0, 255), (255, 255), (256, 1023), (1023, 1023), (1024, 4095), (4095, 4095), (4096, 16383), (16384, 65535)],
)
def test_white_is_the_end_of_the_fewest_bits_that_hold_the_largest_value_of_all(
    tmp_path: Path, largest: int, white: int
) -> None:
    seen = found(tmp_path, flat(0), flat(largest), flat(largest // 2))
    assert seen.grey_range == (0, white)
    assert seen.facts | {"n_deep": 3, "observed_on": 3, "largest": largest, "range": [0, white]} == seen.facts


def test_a_given_range_is_taken_and_told_without_a_look_at_pixels(tmp_path: Path) -> None:
    cut = flat(5)[:45]  # its header can be read
    seen = found(tmp_path, cut, declared=(4095, 0))
    assert seen.grey_range == (4095, 0) and "observed_on" not in seen.facts
    assert seen.line is not None and "black is 4095 and white 0 in images of more than 8 bits, as ing" in seen.line


@pytest.mark.parametrize("values", [(-1, 3071), (0, 65536)])
def test_values_outside_sixteen_bits_need_a_given_range(tmp_path: Path, values: tuple[int, int]) -> None:
    file = tiff(np.array(values * 8, "<i4").reshape(4, 4, 1))
    with pytest.raises(
        CohortError, match=rf"grey_range: want .* values from {values[0]} to {values[1]} \(1 looked at"
    ):
        found(tmp_path, file)
    assert greys.greys(tmp_path, ("0000",), values).grey_range == values


@pytest.mark.parametrize(("n_low", "n_high"), [(17, 3), (10, 10), (3, 17)])
def test_images_of_several_depths_are_refused_unless_a_range_is_given(
    tmp_path: Path, n_low: int, n_high: int
) -> None:
    files = [*[flat(4095)] * n_low, *[flat(65535)] * n_high]
    with pytest.raises(
        CohortError, match=rf"{n_low} of 20 looked at have no value over 4095, but 00\d\d reaches 65535"
    ):
        found(tmp_path, *files)
    assert found(tmp_path, *files, declared=(0, 4095)).grey_range == (0, 4095)


@pytest.mark.parametrize(("low", "high"), [(1023, 4095), (4095, 16383), (16383, 65535), (255, 65535)])
def test_half_of_the_images_at_another_depth_are_refused(tmp_path: Path, low: int, high: int) -> None:
    with pytest.raises(CohortError, match=f"40 of 80 looked at have no value over {low}"):
        found(tmp_path, *[flat(low)] * 40, *[flat(high)] * 40)


def test_a_few_dark_images_and_black_ones_do_not_move_the_range_and_have_their_turn(tmp_path: Path) -> None:
    seen = found(tmp_path, flat(100), *[flat(0)] * 9, *[flat(4095)] * 20)
    assert (seen.grey_range, seen.least_value) == ((0, 4095), 1024)
    read = partial(images.decode, image_px=4, channels=1, grey_range=seen.grey_range, least_value=seen.least_value)
    assert (read(flat(0)) == 0).all() and (read(flat(1025)) == 64).all()
    with pytest.raises(ImageError, match="of fewer bits than the cohort's other images, or nearly black"):
        read(flat(100))


def test_a_few_images_beyond_the_white_of_all_others_do_not_move_it_and_are_rejected(tmp_path: Path) -> None:
    seen = found(tmp_path, *[flat(4095)] * 39, flat(4200))
    assert seen.grey_range == (0, 4095)
    with pytest.raises(ImageError, match="values outside the grey range 0 to 4095"):
        images.decode(flat(4200), 4, 1, grey_range=seen.grey_range, least_value=seen.least_value)


def test_a_cohort_of_eight_bits_has_no_range_and_no_line_unless_one_was_given(tmp_path: Path) -> None:
    seen = found(tmp_path, tiff(np.zeros((4, 4, 1), np.uint8)))
    assert seen.grey_range is seen.line is None and seen.facts["n_8bit"] == 1
    given = found(tmp_path, declared=(0, 4095))
    assert given.line is not None and "have 8 bits, to which ingest.grey_range says nothing" in given.line


def test_broken_files_are_left_to_their_turn(tmp_path: Path) -> None:
    seen = found(tmp_path, b"", flat(5)[:45], flat(1000), b"text")
    assert seen.grey_range == (0, 1023) and seen.facts["looked_at"] == 2 and seen.facts["observed_on"] == 1
    (tmp_path / "0002").unlink()
    assert greys.greys(tmp_path, ("0000", "0001"), None).grey_range is None


def test_images_that_say_that_their_lowest_value_is_white_are_counted(tmp_path: Path) -> None:
    values = np.full((4, 4, 1), 4000, "<u2")
    seen = found(tmp_path, tiff(values, photometric=0), tiff(values))
    assert seen.line is not None and "1 of which say that their lowest value is white" in seen.line


def test_of_many_images_a_few_hundred_spread_over_all_are_looked_at(tmp_path: Path) -> None:
    chosen = greys.evenly([f"{i}" for i in range(100_000)], 512)
    assert len(chosen) == 512 and chosen[0] == "0" and chosen[-1] == "99999"
    assert np.ptp(np.diff([int(name) for name in chosen])) <= 1
    assert greys.evenly(["a", "b"], 512) == ["a", "b"] and greys.evenly([], 512) == []


def test_of_large_images_fewer_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greys, "MOST_PIXELS", 64)  # four of these
    seen = found(tmp_path, *[flat(900)] * 8)
    assert seen.facts["n_deep"] == 8 and seen.facts["observed_on"] == 4


def summary(values: np.ndarray, n_deep: int = 0) -> tuple[dict, list[str]]:
    return greys.summary(values.astype(np.uint8)[..., None], np.arange(len(values)) < n_deep)


def test_greys_of_a_cohort_with_contrast_are_facts_and_no_remark() -> None:
    facts, remarks = summary(np.arange(1024).reshape(4, 16, 16) % 256)
    assert facts == {"n": 4, "mean": 127.5, "levels": 256, "percentiles": {"1": 2, "50": 127, "99": 253}}
    assert remarks == []


def test_a_dark_cohort_and_one_of_few_greys_are_told() -> None:
    ramp = np.arange(1024).reshape(4, 16, 16)
    for values, told in ((ramp % 60, "use 60 of 256"), (ramp % 16 * 16, "use 16 of 256")):
        (remark,) = summary(values)[1]
        assert told in remark and "set ingest.grey_range" in remark


def test_both_depths_in_one_cohort_are_told_with_their_mean_greys() -> None:
    ramp = np.arange(1024).reshape(4, 16, 16) % 256
    facts, (remark,) = summary(np.concatenate([ramp // 2, ramp[:1]]), n_deep=4)
    assert (facts["mean_deep"], facts["mean_8bit"]) == (63.5, 127.5)
    assert (
        "8 bits are taken as they are and have a mean grey of 127.5 (1 looked at), those of more bits 63.5" in remark
    )


def test_nothing_has_no_greys() -> None:
    assert summary(np.zeros((0, 4, 4))) == ({}, [])
