"""The leak scan: planted copies and secrets are found wherever they hide, look-alikes and counts are not."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter, uniform_filter

from pipeline import images, seeds
from pipeline.privacy import leaks
from pipeline.privacy.leaks import Kind, Originals, perceptual_hash, scan_files, scan_images

NIH = Path(__file__).resolve().parents[3] / "shared" / "data" / "nih_cxr14"
ID, ROW, SOURCE, PHRASE = "00012345", "nih-00000017", "images/00012345_003.png", "ribbon-like lower lobe scar"
SECRETS: Mapping[Kind, tuple[str, ...]] = {
    "patient id": (ID, "a3f09c5e7d12b846", "5", "1500"),
    "row id": (ROW,),
    "path": (SOURCE, "/srv/hospital/cohort"),
    "phrase": (PHRASE, "sarcoma"),
}


def smooth_images(n: int, name: str, sigma_px: float = 3.0) -> np.ndarray:
    """Random smooth images: as unlike as two films of strangers, and steady under noise as films are."""
    noise = seeds.numpy_generator(0, name).normal(size=(n, 48, 48))
    smooth = gaussian_filter(noise, (0, sigma_px, sigma_px))
    smooth = smooth / np.abs(smooth).max((1, 2), keepdims=True)
    return np.round(127.5 + 110 * smooth).astype(np.uint8)[..., None]


def with_noise(films: np.ndarray, sd: float) -> np.ndarray:
    noise = seeds.numpy_generator(0, "noise").normal(0, sd, films.shape)
    return np.clip(np.round(films + noise), 0, 255).astype(np.uint8)


def scan(released: np.ndarray, gallery: np.ndarray) -> list[leaks.ImageLeak]:
    return scan_images(released, Originals.of(gallery))


def test_a_planted_copy_is_found_with_its_original() -> None:
    gallery, released = smooth_images(50, "gallery"), smooth_images(6, "released")
    released[4] = gallery[31]
    assert scan(released, gallery) == [(4, 31, "same pixels")]


@pytest.mark.parametrize(
    "altered",
    [
        lambda films: with_noise(films, 5),
        lambda films: np.clip(films * 1.06 - 4, 0, 255).astype(np.uint8),
        lambda films: uniform_filter(films, (0, 3, 3, 0)),
        lambda films: films + np.uint8(1),
    ],
    ids=["noise", "gain and offset", "blur", "one grey level"],
)
def test_an_altered_copy_is_found_with_its_original(altered) -> None:
    gallery = smooth_images(60, "gallery")
    found = scan(altered(gallery[10:30]), gallery)
    assert found == [(i, i + 10, "nearly the same pixels") for i in range(20)]


def test_exact_and_near_copies_are_pixel_copies_and_strangers_are_not() -> None:
    gallery, strangers = smooth_images(50, "gallery"), smooth_images(4, "released")
    films = np.concatenate([strangers, gallery[7:8], with_noise(gallery[20:22], 5), strangers[:1]])
    assert Originals.of(gallery).copies(films).tolist() == [False] * 4 + [True] * 3 + [False]


def test_without_images_on_either_side_there_is_no_pixel_copy() -> None:
    films = smooth_images(3, "films")
    assert Originals.of(films[:0]).copies(films).tolist() == [False] * 3
    assert Originals.of(films).copies(films[:0]).tolist() == []


def test_blocks_of_the_gallery_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = smooth_images(40, "gallery")
    released = np.concatenate([with_noise(gallery[35:], 5), smooth_images(5, "released")])
    whole = scan(released, gallery)
    monkeypatch.setattr(leaks, "BLOCK_IMAGES", 7)
    assert scan(released, gallery) == whole != []


def test_strangers_and_blank_images_are_no_leak() -> None:
    gallery = smooth_images(200, "gallery")
    blank = np.full((1, 48, 48, 1), 90, np.uint8)
    assert scan(np.concatenate([smooth_images(100, "released"), blank]), np.concatenate([gallery, blank + 1])) == []


def test_nothing_released_and_nothing_real_are_no_leak() -> None:
    films = smooth_images(3, "films")
    assert scan(films[:0], films) == [] == scan(films, films[:0])


def test_the_hash_is_that_of_the_textbook() -> None:
    # A horizontal cosine of frequency 3 has one coefficient, (0, 3); its bit is set and what is at the median is not.
    wave = np.cos(np.pi * 3 * (2 * np.arange(32) + 1) / 64)
    hashed = perceptual_hash(np.tile(wave, (1, 32, 1)).round(6))
    bits = np.unpackbits(hashed.view(np.uint8))
    assert bits[3] == 1
    assert perceptual_hash(np.tile(wave, (1, 32, 1)).round(6) * 0.5) == hashed  # contrast does not count


def test_real_films_of_strangers_are_no_leak_and_their_copies_are() -> None:
    if not NIH.is_dir():
        pytest.skip("the NIH sample is not on this machine")
    paths = sorted((NIH / "images").iterdir())
    films = np.stack([images.decode(path, 48, 1) for path in paths])
    patients = np.array([int(path.name.split("_")[0]) for path in paths])
    is_released = patients >= np.median(patients)
    released, gallery = films[is_released], films[~is_released]
    assert len(released) > 300 and len(gallery) > 300
    assert scan(released, gallery) == []
    n_found = len(scan(with_noise(gallery[:200], 5), gallery))
    assert n_found >= 198


def write_parquet(path: Path, **columns: object) -> None:
    pq.write_table(pa.table(columns), path)


def found(folder: Path, *shared_texts: str) -> list[tuple[str, str]]:
    return [(leak.kind, leak.secret) for leak in scan_files(folder, SECRETS, shared_texts)]


@pytest.mark.parametrize(
    ("text", "leak"),
    [
        ("see patient 00012345.", ("patient id", ID)),
        ("PATIENT00012345_v2", ("patient id", ID)),
        ("hash a3f09c5e7d12b846", ("patient id", "a3f09c5e7d12b846")),
        ("from NIH_00000017", ("row id", ROW)),
        ("00012345_003 looks odd", ("path", SOURCE)),
        ("read from /srv/hospital/cohort/x", ("path", "/srv/hospital/cohort")),
        ("There is a Ribbon-like\nlower-lobe scar.", ("phrase", PHRASE)),
    ],
)
@pytest.mark.parametrize("kind", ["README.md", "settings.json", "images.parquet", "index.csv", "weights.bin"])
def test_a_secret_is_found_in_any_kind_of_file(tmp_path: Path, kind: str, text: str, leak: tuple[str, str]) -> None:
    path = tmp_path / kind
    if kind == "settings.json":
        path.write_text(json.dumps({"a": [{"b": text}]}))
    elif kind == "images.parquet":
        write_parquet(path, image=pa.array([{"bytes": b"\x00", "path": text}]))
    elif kind == "weights.bin":
        path.write_bytes(b"\xff\xfe\x00" + text.replace("\n", " ").encode() + b"\x00\xff")
    else:
        path.write_text(f'"{text}"\n' if kind == "index.csv" else text)
    assert leak in found(tmp_path)


def test_a_secret_is_found_in_file_names_keys_and_metadata(tmp_path: Path) -> None:
    (tmp_path / ID).mkdir()
    (tmp_path / ID / "a.txt").write_text("fine")
    (tmp_path / "b.json").write_text(json.dumps({ID: 1}))
    save_file({"w": torch.zeros(1)}, tmp_path / "c.safetensors", metadata={"trained_on": ID})
    table = pa.table({"prompt": ["fine"]}).replace_schema_metadata({"source": ID})
    pq.write_table(table, tmp_path / "d.parquet")
    write_parquet(tmp_path / "e.parquet", subject=pa.array([12_345_678]))
    (tmp_path / "f.json").write_text(json.dumps({"subject": 12_345_678}))
    leaking = scan_files(tmp_path, {"patient id": [ID, "12345678"]})
    assert [leak.file for leak in leaking] == [
        f"{ID}/a.txt", "b.json", "c.safetensors", "d.parquet", "e.parquet", "f.json",
    ]  # fmt: skip


def test_a_short_id_is_found_as_a_whole_value_only(tmp_path: Path) -> None:
    (tmp_path / "card.md").write_text("5 epochs on 1500 images")
    (tmp_path / "metrics.json").write_text(json.dumps({"n": 1500, "low": 5, "text": "5 of 1500"}))
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"5": 0, "1500": 1}}}))
    write_parquet(tmp_path / "t.parquet", prompt=["grade 5"], labels=pa.array([[5, 1500]]), seed=[1500])
    assert found(tmp_path) == []
    write_parquet(tmp_path / "t.parquet", patient=["5", "7"])
    assert found(tmp_path) == [("patient id", "5")]


def test_a_rare_word_is_found_in_tables_and_vocabularies_but_not_in_prose(tmp_path: Path) -> None:
    (tmp_path / "card.md").write_text("Not for the study of sarcoma.")
    assert found(tmp_path) == []
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordLevel", "vocab": {"sarcoma": 7}}}))
    assert found(tmp_path) == [("phrase", "sarcoma")]
    (tmp_path / "tokenizer.json").unlink()
    write_parquet(tmp_path / "t.parquet", prompt=["man, sarcoma"])
    assert found(tmp_path) == [("phrase", "sarcoma")]


def test_what_is_shared_is_no_secret_unless_it_is_an_id(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"{PHRASE}, {ID}")
    assert found(tmp_path, f"old {PHRASE} on the left, {ID}") == [("patient id", ID)]


def test_image_bytes_raise_no_false_alarm(tmp_path: Path) -> None:
    png = images.png(smooth_images(1, "png")[0])
    rows = [{"bytes": png + ID.encode(), "path": "000.png"}]
    write_parquet(tmp_path / "t.parquet", image=pa.array(rows), pixels=images.column(smooth_images(1, "pixels")))
    assert found(tmp_path) == []


def test_a_longer_number_that_holds_an_id_is_another_number(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("seed 9000123451 and 0.00012345678")
    assert found(tmp_path) == []


def test_a_secret_is_reported_once_per_file(tmp_path: Path) -> None:
    write_parquet(tmp_path / "t.parquet", prompt=[PHRASE] * 100, image=[f"{i}_{ID}.png" for i in range(100)])
    assert found(tmp_path) == [("patient id", ID), ("phrase", PHRASE)]


def test_a_hundred_thousand_secrets_cost_seconds(tmp_path: Path) -> None:
    random = seeds.numpy_generator(0, "words")
    words = np.array([f"w{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(500)])
    phrases = [" ".join(random.choice(words, 6)) for _ in range(50_000)]
    write_parquet(tmp_path / "t.parquet", prompt=[" ".join(random.choice(words, 24)) for _ in range(2_000)])
    (tmp_path / "planted.txt").write_text(f"so {phrases[777]} it is")
    start_s = time.process_time()
    leaking = scan_files(tmp_path, {"phrase": phrases, "patient id": [f"{i:010d}" for i in range(50_000)]})
    assert leaking == [("planted.txt", "phrase", phrases[777])]
    assert time.process_time() - start_s < 20
