"""A folder with a table: what each cell means, which rows are set aside, and which tables are refused."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import config, tables
from pipeline.cohorts.table import CohortError, listing, read_images, source_digest

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"
COLUMNS = ("image", "patient_id", "text", "labels", "age", "sex", "view", "date")
MAPPING = config.Table(age="age", sex="sex", view="view", date="date")

needs_real_data = pytest.mark.skipif(not REAL.is_dir(), reason="the real X-rays are not here (../shared/data)")


def write(root: Path, *rows: dict[str, str], columns: tuple[str, ...] = COLUMNS, name: str = "metadata.csv") -> Path:
    """A cohort in `root`: these cells, blank where not given, and an empty file for each image named `*.png`."""
    for row in rows:
        if row.get("image", "").startswith("images/"):
            (root / "images").mkdir(exist_ok=True)
            (root / row["image"]).touch()
    cells = {column: [row.get(column, "") for row in rows] for column in columns}
    pa.csv.write_csv(pa.table({column: pa.array(c, pa.string()) for column, c in cells.items()}), root / name)
    return root


def row(image: str = "a", patient: str = "1", labels: str = "Effusion", **cells: str) -> dict[str, str]:
    return {"image": f"images/{image}.png", "patient_id": patient, "labels": labels, **cells}


def only(root: Path, mapping: config.Table = MAPPING, k: int = 1) -> dict:
    (listed,) = listing(mapping, root, k).rows.to_pylist()
    return listed


def test_a_row_becomes_a_record_and_identities_keep_their_zeros(tmp_path):
    write(tmp_path, row(patient="00000001", text="Effusion, left.", age="57", sex="F", view="PA", date="2014-02-03"))
    listed = listing(MAPPING, tmp_path, k_anonymity=1)
    assert listed.rows.schema == tables.LISTING
    assert listed.findings == ("Effusion",)
    assert listed.rows.to_pylist() == [
        {
            "row_id": "row-000001",
            "patient": "00000001",
            "source": "images/a.png",
            "order": 0,
            "text": "Effusion, left.",
            "labels": [1],
            "age": 57.0,
            "sex": "F",
            "view": "PA",
            "boxes": None,
        }
    ]


@pytest.mark.parametrize(
    ("cell", "years"),
    [("58", 58), ("58.0", 58), ("058Y", 58), ("0", None), ("", None), ("121", None), ("411", None), ("006M", None)],
)
def test_ages_are_read_in_years_and_impossible_ones_are_unknown(tmp_path, cell, years):
    assert only(write(tmp_path, row(age=cell)))["age"] == years


@pytest.mark.parametrize(("cell", "sex"), [("M", "M"), ("female", "F"), ("Male", "M"), ("U", None), ("", None)])
def test_sexes_are_normalised(tmp_path, cell, sex):
    assert only(write(tmp_path, row(sex=cell)))["sex"] == sex


@pytest.mark.parametrize(
    ("cells", "policy", "expected"),
    [
        (("1", "0"), {}, [1, 0]),
        (("1.0", "0.0"), {}, [1, 0]),
        (("-1", ""), {}, [1, 0]),
        (("-1.0", ""), {"uncertain": "negative"}, [0, 0]),
        (("-1", ""), {"uncertain": "ignore", "blank": "ignore"}, [-1, -1]),
    ],
)
def test_a_column_per_finding_follows_the_policies(tmp_path, cells, policy, expected):
    write(tmp_path, row(Edema=cells[0], Mass=cells[1]), columns=("image", "patient_id", "text", "Edema", "Mass"))
    mapping = config.Table(labels=("Edema", "Mass"), findings=("Edema", "Mass"), **policy)
    assert only(tmp_path, mapping)["labels"] == expected


def test_joined_labels_are_read_name_by_name(tmp_path):
    cells = ("Mass|Edema", "No Finding", "", " Edema | Hernia ")
    write(tmp_path, *[row(str(i), str(i), cell) for i, cell in enumerate(cells)])
    listed = listing(config.Table(findings=("Edema", "Mass"), blank="ignore"), tmp_path, 5)
    assert listed.rows["labels"].to_pylist() == [[1, 1], [0, 0], [-1, -1], [1, 0]]


def test_without_a_choice_findings_of_at_least_k_patients_are_taken(tmp_path):
    write(tmp_path, row("a", "1", "Mass|Edema"), row("b", "1", "Mass"), row("c", "2", "Edema"))
    assert listing(MAPPING, tmp_path, k_anonymity=2).findings == ("Edema",)


@pytest.mark.parametrize("dates", [("2014-03-01", "2014-01-09", ""), ("20140301", "20140109", ""), ("7", "-12", "")])
def test_images_of_a_patient_are_ordered_by_date_and_undated_ones_come_last(tmp_path, dates):
    write(tmp_path, row("z", "2"), *[row(str(i), "1", date=date) for i, date in enumerate(dates)])
    assert listing(MAPPING, tmp_path, 1).rows["order"].to_pylist() == [0, 1, 0, 2]


def test_unusable_rows_are_rejected_with_their_reason(tmp_path):
    rows = [
        row("good", "1", view="PA"),
        row("side", "1", view="LATERAL"),
        row("nobody", "", view="PA"),
        {"patient_id": "1", "view": "PA"},
        {"image": "../secret.png", "patient_id": "1", "view": "PA"},
        {"image": "/etc/hostname", "patient_id": "1", "view": "PA"},
        {"image": "gone/away.png", "patient_id": "1", "view": "PA"},
        row("shared", "1", view="PA"),
        {**row("shared", "2", view="PA"), "image": "images/../images/shared.png"},
        {**row("good", "1", view="PA"), "image": "./images//good.png"},
    ]
    (tmp_path.parent / "secret.png").touch()
    listed = listing(MAPPING.model_copy(update={"keep": {"view": ("PA", "AP")}}), write(tmp_path, *rows), 1)
    assert listed.rows["row_id"].to_pylist() == ["row-000001"]
    assert [(r["row_id"][-2:], r["reason"]) for r in listed.rejects.to_pylist()] == [
        ("02", "view is not one of PA, AP"),
        ("03", "no patient id"),
        ("04", "no image path"),
        ("05", "image path outside the root"),
        ("06", "image path outside the root"),
        ("07", "image file missing"),
        ("08", "one image under two patients"),
        ("09", "one image under two patients"),
        ("10", "duplicate image"),
    ]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["images/a.png", "images/b.png", "images/../b", "x\0", "", "é"]), st.sampled_from("12 ")
        ),
        min_size=1,
        max_size=12,
    )
)
def test_every_row_is_listed_or_rejected(tmp_path_factory, drawn):
    rows = [{"image": image, "patient_id": patient, "labels": "Mass"} for image, patient in drawn]
    root = write(tmp_path_factory.mktemp("cohort"), row("sure", "3", "Mass"), *rows)
    listed = listing(MAPPING, root, 1)
    ids = listed.rows["row_id"].to_pylist() + listed.rejects["row_id"].to_pylist()
    assert sorted(ids) == [f"row-{i:06d}" for i in range(1, len(rows) + 2)]
    assert None not in listed.rejects["reason"].to_pylist()


def test_text_with_commas_quotes_and_lines_is_one_cell(tmp_path):
    text = 'Effusion, "small",\nleft.'
    assert only(write(tmp_path, row(text=text)))["text"] == text


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_typed_tables_are_read_like_csv(tmp_path, suffix):
    from_csv = only(write(tmp_path, row(age="57", Mass="1"), columns=(*COLUMNS, "Mass")), MAPPING)
    if suffix == "jsonl":
        line = (
            '{"image": "images/a.png", "patient_id": 1, "text": null, "Mass": 1.0, "labels": "Effusion", "age": 57.0}'
        )
        (tmp_path / "metadata.jsonl").write_text(line)
    else:
        typed = {"image": ["images/a.png"], "patient_id": [1], "text": [None], "labels": ["Effusion"], "age": [57.0]}
        pa.parquet.write_table(pa.table(typed | {"Mass": [True]}), tmp_path / "metadata.parquet")
    mapping = config.Table(file=f"metadata.{suffix}", age="age")
    assert only(tmp_path, mapping) == from_csv
    assert only(tmp_path, mapping.model_copy(update={"labels": ("Mass",)}))["labels"] == [1]


REFUSED = {
    "a missing folder": ({}, lambda root: root / "nowhere", "ingest.root: want a folder"),
    "a missing table": ({"file": "metdata.csv"}, None, "did you mean 'metadata.csv'"),
    "a table of another kind": ({"file": "notes.txt"}, None, "want .csv, .jsonl or .parquet"),
    "a missing column": ({"patient": "patientid"}, None, "column 'patientid'.*did you mean 'patient_id'"),
    "a column to keep by that is missing": ({"keep": {"projection": ("PA",)}}, None, "set ingest.table.keep"),
    "an unknown label value": (
        {"labels": ("age",)},
        None,
        "row-000002, column 'age': want 1, 0, -1 or blank, got '57'",
    ),
    "an unknown finding": ({"findings": ("Efusion",)}, None, "'Efusion' — did you mean 'Effusion'"),
    "no usable row": ({"image": "text"}, None, "none of 2 .*image file missing: 1.*check ingest.root"),
    "dates of another kind": ({"date": "view"}, None, "column 'view': want ISO dates"),
    "an empty table": ({"file": "empty.csv"}, None, "empty.csv: want a row per image, got none"),
    "a file without a header": ({"file": "blank.csv"}, None, "blank.csv: want a readable .csv"),
    "text that is no UTF-8": ({"file": "latin.csv"}, None, "latin.csv: want a readable .csv"),
}


@pytest.mark.parametrize(("mapping", "where", "message"), REFUSED.values(), ids=REFUSED)
def test_a_table_that_cannot_be_meant_is_refused(tmp_path, mapping, where, message):
    write(tmp_path, row("a", "1", age="1", view="PA"), row("b", "2", age="57", view="AP", text="Text"))
    write(tmp_path, name="empty.csv")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "blank.csv").touch()
    (tmp_path / "latin.csv").write_bytes("image,patient_id,text,labels\na,1,Röntgen,Mass\n".encode("latin-1"))
    with pytest.raises(CohortError, match=message):
        listing(config.Table(**mapping), where(tmp_path) if where else tmp_path, 1)


def test_a_ragged_row_is_named_and_not_quoted(tmp_path):
    (tmp_path / "metadata.csv").write_text("image,patient_id,text,labels\na.png,1,x,Mass\nb.png,Jane Doe,x\n")
    with pytest.raises(CohortError, match="want 4 cells per row, got 3 in line 3") as refused:
        listing(config.Table(), tmp_path, 1)
    assert "Jane" not in str(refused.value)


def test_bad_images_are_set_aside_and_good_ones_are_read(tmp_path):
    grey = np.random.default_rng(0).integers(0, 65536, (40, 40))
    Image.fromarray((grey % 256).astype(np.uint8)).save(tmp_path / "good.png")
    Image.fromarray(grey.astype(np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.zeros((8, 40), np.uint8)).save(tmp_path / "small.png")
    Image.fromarray(np.zeros((40, 40), np.float32)).save(tmp_path / "float.tiff")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:300])
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "again.png").write_bytes((tmp_path / "good.png").read_bytes())
    names = ["good.png", "deep.png", "small.png", "float.tiff", "cut.png", "text.png", "gone.png", "again.png"]
    pixels, reasons, digests = read_images(tmp_path, names, 16, 1, min_source_px=16, grey_range=(0, 65535))
    assert pixels.shape == (8, 16, 16, 1)
    assert [reason and reason.split(":")[0] for reason in reasons] == [
        None, None, "too small", "unsupported mode", *["unreadable image"] * 3, None,
    ]  # fmt: skip
    assert pixels[0].any() and pixels[1].any() and not pixels[2:7].any()
    assert [digest is None for digest in digests] == [reason is not None for reason in reasons]
    assert digests[0] == digests[7] != digests[1]


def test_the_digest_changes_with_the_table_and_with_an_image_but_not_with_other_files(tmp_path):
    write(tmp_path, row("a", "1"), row("b", "2"))
    before = source_digest(MAPPING, tmp_path)
    (tmp_path / "images" / "unlisted.png").touch()
    assert source_digest(MAPPING, tmp_path) == before
    os.utime(tmp_path / "images" / "a.png", ns=(1, 1))
    touched = source_digest(MAPPING, tmp_path)
    write(tmp_path, row("a", "1"), row("b", "3"))
    os.utime(tmp_path / "images" / "a.png", ns=(1, 1))
    assert len({before, touched, source_digest(MAPPING, tmp_path)}) == 3


@needs_real_data
def test_the_nih_sample_is_listed_whole():
    mapping = config.Table(age="age", sex="sex", view="view", date="follow_up")
    listed = listing(mapping, REAL / "nih_cxr14", k_anonymity=5)
    effusion = listed.findings.index("Effusion")
    assert (len(listed.rows), len(listed.rejects)) == (1000, 0)
    assert Counter(listed.rows["patient"].to_pylist())["00000181"] == 66
    assert sum(labels[effusion] for labels in listed.rows["labels"].to_pylist()) == 170
    assert Counter(listed.rows["sex"].to_pylist()) == {"F": 509, "M": 491}


@needs_real_data
def test_the_original_nih_table_with_its_broken_header_says_the_same():
    columns = {"image": "Image Index", "patient": "Patient ID", "labels": "Finding Labels", "age": "Patient Age"}
    neat = listing(config.Table(age="age"), REAL / "nih_cxr14", 5)
    raw = listing(config.Table(file="../Data_Entry_2017.csv", text=None, **columns), REAL / "nih_cxr14/images", 5)
    facts = [
        {Path(r["source"]).name: (int(r["patient"]), r["labels"], r["age"]) for r in listed.rows.to_pylist()}
        for listed in (neat, raw)
    ]
    assert raw.findings == neat.findings
    assert facts[0] == facts[1]


@needs_real_data
def test_covid_images_of_other_views_are_counted_as_rejected():
    mapping = config.Table(labels="findings", blank="ignore", view="view", age="age", keep={"view": ("PA", "AP")})
    listed = listing(mapping, REAL / "covid-chestxray", 5)
    assert (len(listed.rows), len(listed.rejects)) == (231, 72)
    assert set(listed.rejects["reason"].to_pylist()) == {"view is not one of PA, AP"}
    assert [-1] * len(listed.findings) in listed.rows["labels"].to_pylist()


@pytest.mark.parametrize(
    ("cell", "view"),
    [
        ("PA", "PA"),
        ("AP supine (portable)", "AP supine (portable)"),
        ("Körperstamm", "Körperstamm"),
        ("=1+1", None),
        ("<b>PA</b>", None),
        ("P\u202eA", None),
        ("PA\nAP", None),
        ("x" * 41, None),
    ],
)
def test_a_view_that_is_no_name_is_unknown(tmp_path, cell, view):
    assert only(write(tmp_path, row(view=cell)))["view"] == view
