"""What a released folder holds, and what its cards say."""

from __future__ import annotations

import dataclasses
import filecmp
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline import config, images, package, records
from pipeline.estimate import Estimate
from pipeline.generators import autoencoder, denoiser, folder, text
from pipeline.privacy.gate import FAIL, PASS, UNSURE, Verdict
from pipeline.privacy.risk import difference, wilson
from pipeline.tables import KEPT, SchemaError

PX, N_KEPT, N_RELEASED = 16, 30, 24
FINDINGS = ("Pleural Effusion", "pleural effusion", "Devices | <b>wires</b>")
PROMPTS = ["60s, woman, effusion", "60s, woman, effusion", "man", "woman, wires"]
TINY = {
    "autoencoder": {"patch_px": 4, "latent_channels": 4},
    "text": {"width": 16, "heads": 2, "max_tokens": 8},
    "denoiser": {"width": 32, "layers": 1, "heads": 2, "patch": 2},
}
RECIPE = config.Recipe.model_validate(
    {
        "ingest": {"image_px": PX},
        "sample": {"steps": 2, "want_images": 40, "class_quota": {"Pleural Effusion": 20}},
        "teach": TINY,
        "distill": TINY,
        "release": {"n_images": N_RELEASED, "title": "Films *of* <script> | hospital"},
    }
)
PASSED = [
    Verdict("student over control", PASS, "0.7% [-0.7%, 2.1%], n 1,500", "at most 5.0%", "flagged as strangers are"),
    Verdict("leak scan", PASS, "nothing found", "nothing found", "no real image may leave"),
]
OPEN = [
    Verdict("coverage", FAIL, "21.0% [18.6%, 23.6%], n 1,000", "at least 30.0%", "a collapse only looks private"),
    Verdict("control size", UNSURE, "180 images", "at least 1,000 images", "thresholds rest on it"),
]


def kept_table() -> pa.Table:
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 2, (N_KEPT, len(FINDINGS))).astype(np.int8)
    names = [f"synthetic-{i:06d}" for i in range(N_KEPT)]
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(N_KEPT)]
    table = pa.table([pa.array(names), pa.array(prompts), records.label_lists(labels)], schema=KEPT)
    return table.append_column("image", images.column(rng.integers(0, 256, (N_KEPT, PX, PX, 1)).astype(np.uint8)))


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real pipeline folder with untrained weights."""
    path, cfg = tmp_path_factory.mktemp("student"), RECIPE.distill
    vae = autoencoder.build(cfg.autoencoder, images.array(kept_table()["image"]), seed=0)
    tokenizer = text.train_tokenizer(PROMPTS, cfg.text.max_tokens)
    encoder = text.build_encoder(cfg.text, tokenizer, cfg.denoiser.kind, seed=0)
    network = denoiser.build(cfg.denoiser, cfg.autoencoder.latent_channels, PX // 4, text.width(encoder), seed=0)
    folder.save(path, vae, tokenizer, encoder, network, cfg)
    return path


def metrics() -> dict[str, Estimate]:
    """Numbers of which no two have the same n, as the prototype measured them."""
    found = {}
    sizes = iter(range(1_001, 2_000))
    ratios = {"control": 0.05, "baseline": 0.05, "teacher": 0.45, "filtered": 0.06, "student": 0.06}
    for subject, ratio in ratios.items():
        for name in ("reid_ratio", "audit_ratio"):
            n = next(sizes)
            found[f"privacy/{subject}/{name}"] = wilson(round(ratio * n), n)
    for subject in ("teacher", "filtered", "student"):
        excess = difference(found[f"privacy/{subject}/audit_ratio"], found["privacy/control/audit_ratio"])
        found[f"privacy/{subject}/audit_excess"] = excess._replace(n=next(sizes))
    for key, value in {
        "privacy/filter_network/verification_auc": 0.993,
        "privacy/auditor/verification_auc": 0.991,
        "privacy/filter_network/recall_blur_x1": 0.982,
        "privacy/filter_network/recall_zoom_in_x1": 0.951,
        "privacy/filter_network/recall_crop_x1.5": 0.41,
        "privacy/student/membership_auc": 0.56,
        "privacy/student/membership_null_auc": 0.51,
        "privacy/teacher/membership_auc": 0.83,
        "utility/real/macro_auroc": 0.963,
        "utility/filtered/macro_auroc": 0.933,
        "utility/student/macro_auroc": 0.893,
        "utility/student/retention_real": 0.927,
        "fidelity/student/fid": 41.2,
        "fidelity/student/coverage": 0.61,
    }.items():
        found[key] = Estimate(value, 0.98 * value, 1.02 * value, next(sizes))
    return found | {"adherence/student/macro_auroc": Estimate(math.nan, math.nan, math.nan, 0)}


def artifact(name: str, inputs: list[str]) -> dict[str, object]:
    return {
        "name": name,
        "version": 1,
        "fingerprint": "f1a90c0ffee0dead",
        "inputs": inputs,
        "config": {"folder": "/home/doctor/films"},
        "packages": {"torch": "2.13.0"},
        "git_commit": "2487b5500000",
        "seconds": 61.7,
        "started_at": 1.7e9,
    }


def contents(student: Path, **changes: object) -> package.Contents:
    given = package.Contents(
        recipe=RECIPE,
        kept=kept_table(),
        findings=FINDINGS,
        student=student,
        metrics=metrics(),
        facts={
            "rule": "percentile",
            "guarantee": "Drops scores from 0.93, percentile 80 of 1,200 images of unseen patients.",
            "reasons": {"kept": N_KEPT, "over the threshold": 44, "no score": 1},
            "prompt_levels": {"unchanged": 1021, "no age": 39},
            "k_anonymity": 5,
            "decoys": False,
            "n_sampled": 75,
            "kept_by_class": {name: [40 + i, 14 + i] for i, name in enumerate(FINDINGS)},
            "shortfall": {"Pleural Effusion": 6},
            "encoder": "domain-encoder v1 5e884898",
            "n_train": {"real": 900, "teacher": 900, "filtered": N_KEPT, "student": 900},
            "n_train_patients": 260,
        },
        verdicts=PASSED,
        cleared=True,
        lineage=[artifact("filter", ["ingest"]), artifact("distill", ["filter"])],
    )
    return dataclasses.replace(given, **changes)


@pytest.fixture(scope="module")
def released(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("release") / "package"
    package.write(path, contents(student))
    return path


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' solver with numpy 2
def test_the_snippet_in_the_model_card_makes_an_image(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = re.findall(r"```python\n(.*?)```", text_of(released / "student" / "README.md"), re.DOTALL)[0]
    assert len(code.splitlines()) == 4
    (tmp_path / "student").symlink_to(released / "student")
    monkeypatch.chdir(tmp_path)
    with folder.quiet():
        exec(compile(code, "snippet", "exec"), {})
    with Image.open("image.png") as image:
        assert image.size == (PX, PX)


def test_datasets_decodes_the_images_with_and_without_the_card(released: Path, tmp_path: Path) -> None:
    code = """
import datasets, sys
by_card = datasets.load_dataset("dataset", split="train", cache_dir=sys.argv[1])
by_file = datasets.load_dataset("parquet", data_files="dataset/data/*.parquet", split="train", cache_dir=sys.argv[1])
for found in (by_card, by_file):
    assert isinstance(found.features["image"], datasets.Image), found.features
    image = found[5]["image"]
    print(found.num_rows, found.column_names, image.size, image.mode, list(image.tobytes()[:16]))
"""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "cache")],
        cwd=released,
        env=os.environ | offline,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    pixels = images.array(kept_table()["image"])[5, 0, :, 0].tolist()
    columns = ["id", "image", "prompt", *package.column_names(FINDINGS)]
    assert ran.stdout.splitlines() == [f"{N_RELEASED} {columns} {(PX, PX)} L {pixels}"] * 2


def test_plain_pyarrow_finds_the_released_rows_unchanged(released: Path) -> None:
    table, kept = pq.read_table(released / "dataset" / "data"), kept_table().slice(0, N_RELEASED)
    assert table["id"].to_pylist() == kept["row_id"].to_pylist()
    assert table["prompt"].to_pylist() == kept["prompt"].to_pylist()
    labels = np.column_stack([table[name] for name in package.column_names(FINDINGS)])
    assert np.array_equal(labels, records.label_matrix(kept))
    assert table["image"][3]["bytes"].as_py().startswith(b"\x89PNG")
    assert table["image"][3]["path"].as_py() == "synthetic-000003.png"
    assert np.array_equal(package.read_images(released / "dataset"), images.array(kept["image"]))


def test_a_large_set_is_split_into_files_that_keep_its_order(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "SHARD_BYTES", 10 * PX * PX)
    package.write(tmp_path / "package", contents(student))
    names = [path.name for path in sorted((tmp_path / "package" / "dataset" / "data").iterdir())]
    assert names == [f"train-{i:05d}-of-00003.parquet" for i in range(3)]
    expected = images.array(kept_table()["image"])[:N_RELEASED]
    assert np.array_equal(package.read_images(tmp_path / "package" / "dataset"), expected)


def test_the_same_contents_give_the_same_bytes(released: Path, student: Path, tmp_path: Path) -> None:
    package.write(tmp_path / "again", contents(student))
    files = sorted(str(path.relative_to(released)) for path in released.rglob("*") if path.is_file())
    assert len(files) == sum(path.is_file() for path in (tmp_path / "again").rglob("*"))
    assert filecmp.cmpfiles(released, tmp_path / "again", files, shallow=False)[0] == files


def test_the_headers_of_both_cards_parse(released: Path) -> None:
    model = ModelCard(text_of(released / "student" / "README.md")).data
    assert model.library_name == "diffusers"
    assert model.pipeline_tag == "text-to-image"
    assert {result.metric_type for result in model.eval_results} <= metrics().keys()
    data = DatasetCard(text_of(released / "dataset" / "README.md")).data
    assert data.size_categories == ["n<1K"]
    for path in ("student", "dataset"):
        header = yaml.safe_load(text_of(released / path / "README.md").split("---\n")[1])
        assert RECIPE.release.title in (header.get("pretty_name"), header.get("model-index", [{}])[0].get("name"))


def test_every_metric_stands_in_the_model_card_with_its_n(released: Path) -> None:
    rows = dict(re.findall(r"^\| (\S+) \| (.*) \|$", text_of(released / "student" / "README.md"), re.MULTILINE))
    for key, estimate in metrics().items():
        said = f", n {estimate.n:,}" if estimate.n else "not measured"
        assert rows[key].endswith(said), key


@pytest.mark.parametrize("path", ["README.md", "student/README.md", "dataset/README.md"])
def test_a_package_that_is_not_cleared_says_so_first_and_why(path: str, student: Path, tmp_path: Path) -> None:
    package.write(tmp_path / "package", contents(student, verdicts=PASSED + OPEN, cleared=False))
    banner = text_of(tmp_path / "package" / path).split("\n# ")[-1].split("\n\n")[1]
    assert banner.startswith("> **NOT CLEARED")
    assert [verdict.name in banner for verdict in (*PASSED, *OPEN)] == [False, False, True, True]
    header = text_of(tmp_path / "package" / path).split("\n# ")[0]
    assert ("- not-cleared" in header) == (path != "README.md")


@pytest.mark.parametrize("path", ["README.md", "student/README.md", "dataset/README.md"])
def test_a_cleared_package_shows_no_banner(path: str, released: Path) -> None:
    assert "NOT CLEARED" not in text_of(released / path)


def test_what_was_not_measured_is_said_to_be_so(student: Path, tmp_path: Path) -> None:
    package.write(tmp_path / "package", contents(student, metrics={}, verdicts=(), cleared=False))
    row = re.search(
        r"^\| Student's images \(.*$", text_of(tmp_path / "package" / "student" / "README.md"), re.MULTILINE
    )
    assert row is not None
    assert row.group().count("not measured") == 3
    assert "model-index" not in text_of(tmp_path / "package" / "student" / "README.md")


def test_the_data_card_counts_each_finding_at_each_stage(released: Path) -> None:
    card = text_of(released / "dataset" / "README.md")
    n_released = (records.label_matrix(kept_table().slice(0, N_RELEASED)) == 1).sum(0)
    assert f"| Pleural Effusion | 40 | 14 | {n_released[0]} | 6 |" in card
    assert f"| pleural effusion | 41 | 15 | {n_released[1]} | none wanted |" in card


def test_the_cards_tell_recall_of_the_kind_of_change_that_is_found_worst_at_the_strength_that_is_demanded(
    released: Path,
) -> None:
    for path in ("student", "dataset"):
        card = text_of(released / path / "README.md")
        assert re.search(r"the worst kind of change \| 95\.1% \[.*\], n [\d,]+ \(zoom in\) \|", card)
        assert re.search(r"^\| Auditor: the same \| not measured \|$", card, re.MULTILINE)


def test_the_cards_tell_whether_members_can_be_told(released: Path) -> None:
    for path in ("student", "dataset"):
        card = text_of(released / path / "README.md")
        assert re.search(r"^\| The student's error .* \| 0\.560 \[.*\| 0\.510 \[", card, re.MULTILINE)
        assert re.search(r"^\| The same with the teacher.* \| 0\.830 \[", card, re.MULTILINE)
    assert "0.560" in text_of(released / "README.md")


def test_decoys_are_told_of_only_where_there_were_some(student: Path, released: Path, tmp_path: Path) -> None:
    package.write(tmp_path / "package", contents(student, facts=contents(student).facts | {"decoys": True}))
    told = "Images too much like people who were never used were dropped as well"
    for path in ("student/README.md", "dataset/README.md"):
        assert told in text_of(tmp_path / "package" / path)
        assert told not in text_of(released / path)


def test_no_card_tells_how_many_where_fewer_than_k_are_meant(student: Path, tmp_path: Path) -> None:
    facts = contents(student).facts | {
        "kept_by_class": {name: [3, 2] for name in FINDINGS},
    }
    package.write(tmp_path / "package", contents(student, facts=facts))
    card = text_of(tmp_path / "package" / "dataset" / "README.md")
    assert "| Pleural Effusion | fewer than 5 | fewer than 5 |" in card


def test_the_worst_kind_of_change_is_named_and_other_strengths_do_not_count() -> None:
    known = metrics()
    assert package.worst(known, "filter_network").startswith("95.1%")
    assert package.worst(known, "filter_network").endswith("(zoom in)")
    assert package.worst(known, "auditor") == "not measured"


def test_without_a_filter_no_text_claims_that_images_were_dropped(student: Path, tmp_path: Path) -> None:
    facts = contents(student).facts | {"rule": "none", "guarantee": "Keeps every image that has a score."}
    package.write(tmp_path / "package", contents(student, facts=facts))
    for path in ("student", "dataset"):
        assert "that look too much like one patient" not in text_of(tmp_path / "package" / path / "README.md")


def test_the_words_that_the_student_knows_are_listed_and_no_special_token(released: Path) -> None:
    assert "\n    60s effusion man wires woman\n" in text_of(released / "student" / "README.md")


def test_lineage_tells_steps_and_versions_and_nothing_that_private_data_were_hashed_into(released: Path) -> None:
    lineage = text_of(released / "lineage.json")
    assert json.loads(lineage)["steps"][1] == {
        "name": "distill",
        "version": 1,
        "packages": {"torch": "2.13.0"},
        "git_commit": "2487b5500000",
        "inputs": ["filter"],
    }
    assert not re.search("f1a90c0ffee0dead|doctor|61.7", lineage)


def test_the_hash_of_the_recipe_does_not_depend_on_where_it_ran(student: Path, tmp_path: Path) -> None:
    elsewhere = config.changed(RECIPE, {"ingest.root": "/data/films", "cluster.parallel_tasks": 7})
    other_seed = config.changed(RECIPE, {"seed": 1})
    hashes = []
    for i, recipe in enumerate((RECIPE, elsewhere, other_seed)):
        package.write(tmp_path / str(i), contents(student, recipe=recipe))
        hashes.append(json.loads(text_of(tmp_path / str(i) / "lineage.json"))["recipe_sha256"])
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_title_cannot_become_markup(released: Path) -> None:
    assert r"# Films \*of\* \<script\> \| hospital" in text_of(released / "README.md")
    assert r"| Devices \| \<b\>wires\</b\> |" in text_of(released / "dataset" / "README.md")


@given(st.text(max_size=40))
def test_escaped_text_stays_on_one_line_and_in_one_cell(free: str) -> None:
    escaped = package.markdown(free)
    assert "\n" not in escaped
    assert not re.search(r"(?<!\\)(?:\\\\)*[|<`*\[]", escaped)
    assert re.sub(r"\\(\W|_)", r"\1", escaped) == " ".join(free.split())


@given(st.lists(st.text(max_size=8), max_size=8))
def test_each_finding_has_a_column_of_its_own_that_any_reader_can_name(findings: list[str]) -> None:
    names = package.column_names(findings)
    assert len({"id", "image", "prompt", *names}) == 3 + len(findings)
    assert all(re.fullmatch(r"\w+", name) for name in names)


@pytest.mark.parametrize(
    ("n", "category"), [(999, "n<1K"), (1_000, "1K<n<10K"), (9_999, "1K<n<10K"), (250_000, "100K<n<1M")]
)
def test_the_size_category_is_one_of_the_hubs(n: int, category: str) -> None:
    assert package.size_category(n) == category


def test_a_student_that_could_run_code_is_refused(student: Path, tmp_path: Path) -> None:
    bad = tmp_path / "student"
    bad.mkdir()
    (bad / "model_index.json").write_text(text_of(student / "model_index.json"))
    (bad / "weights.bin").write_bytes(b"")
    with pytest.raises(folder.UnsafeFolderError):
        package.write(tmp_path / "package", contents(bad))
    assert not (tmp_path / "package").exists()


def test_a_table_that_is_not_the_kept_set_is_refused(student: Path, tmp_path: Path) -> None:
    with pytest.raises(SchemaError):
        package.write(tmp_path / "package", contents(student, kept=kept_table().drop_columns(["prompt"])))
