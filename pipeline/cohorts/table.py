"""A folder of images and a table with one row per image, as a cohort listing.

For any set that comes as CSV, JSONL or Parquet; the recipe's `ingest.table` maps its columns. Whatever is wrong with
the table as a whole is an error before work starts; whatever is wrong with one row rejects that row with a reason.
Not here: splits, text hygiene, and what to do with equal pixels under two patients (they show only once decoded).

Axis letters: n rows, f findings, h height, w width, c channels.
"""

# pyarrow.compute makes its functions at import, out of pyright's sight.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import difflib
import hashlib
import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from jaxtyping import Int8, Int64, UInt8

from pipeline import config, images, tables
from pipeline.image_files import GreyRange, ImageError

MAX_AGE_YEARS = 120
LABEL_CELLS = {"1": 1, "1.0": 1, "0": 0, "0.0": 0, "-1": -1, "-1.0": -1}
# Names from the table that prompts, cards and pages repeat. None can be markup, a formula of a spreadsheet, a path or
# text that runs backwards; `/` parts the names of metrics.
FINDING_NAME = re.compile(r"[^\W_][\w .,()&%+'-]{0,79}")
VIEW_NAME = r"^[\pL\pN][\pL\pN_ .,()/-]{0,39}$"
SEXES = {"m": "M", "male": "M", "f": "F", "female": "F"}


class CohortError(ValueError):
    """The folder or the table cannot be read as the recipe says; the message says where, want, got and do."""


class Listing(NamedTuple):
    """A cohort before its pixels are read; every row of the table is in `rows` or in `rejects`."""

    rows: pa.Table
    """Schema `tables.LISTING`, in table order."""
    rejects: pa.Table
    """Schema `tables.REJECTS`."""
    findings: tuple[str, ...]
    """Names of the positions of `labels`."""


class Decoded(NamedTuple):
    """Pixels of some rows, and what went wrong."""

    pixels: UInt8[np.ndarray, "n h w c"]
    """Zeros where an image could not be used."""
    reasons: list[str | None]
    """Why an image could not be used."""
    digests: list[str | None]
    """SHA-256 of the decoded pixels in hex; equal digests are equal pixels."""


def listing(table: config.Table, root: Path, k_anonymity: int) -> Listing:
    """The rows of the table that can be used, and the others with a reason.

    A `row_id` is the row's position in the table, from 1. If the recipe names no findings, those that are positive in
    at least `k_anonymity` patients are taken. Costs one scan of each folder that holds a listed image.
    Raises: CohortError if the folder, the table, a column or every row is missing, or a label cannot be understood.
    """
    cells = _read(table, root)
    numbers = pc.utf8_lpad(pa.array(range(1, len(cells) + 1)).cast(pa.string()), 6, "0")
    cells = cells.append_column("row_id", pc.binary_join_element_wise("row", numbers, "-"))
    cells = cells.append_column("source", _normalised_paths(cells[table.image]))
    reasons = _reject_reasons(cells, table, root)
    rejected = pc.is_valid(reasons)
    rejects = pa.table([cells["row_id"], reasons], schema=tables.REJECTS).filter(rejected)
    cells = cells.filter(pc.invert(rejected))
    if not len(cells):
        counts = ", ".join(f"{c['values']}: {c['counts']}" for c in pc.value_counts(rejects["reason"]).to_pylist())
        raise CohortError(
            f"table {table.file}: want rows that can be used, got none of {len(rejects)} ({counts}) "
            "— check ingest.root, ingest.table.image and ingest.table.keep"
        )
    findings, labels = _labels(cells, table, k_anonymity)
    flat = pa.array(labels.reshape(-1))
    offsets = pa.array(np.arange(len(cells) + 1, dtype=np.int32) * len(findings))
    columns = {
        "row_id": cells["row_id"],
        "patient": cells[table.patient],
        "source": cells["source"],
        "order": pa.array(_order(cells, table)),
        "text": _optional(cells, table.text),
        "labels": pa.ListArray.from_arrays(offsets, flat, type=tables.LABELS),
        "age": _ages(_optional(cells, table.age)),
        "sex": _sexes(_optional(cells, table.sex)),
        "view": _views(_optional(cells, table.view)),
        "boxes": pa.nulls(len(cells), tables.BOXES),
    }
    return Listing(pa.table(columns, schema=tables.LISTING).combine_chunks(), rejects, findings)


def read_images(
    root: Path,
    sources: Sequence[str],
    image_px: int,
    channels: int,
    min_source_px: int,
    grey_range: GreyRange | None = None,
    least_value: int = 0,
) -> Decoded:
    """The images at these paths below `root`; one that cannot be used gives zeros and a reason and never raises."""
    pixels = np.zeros((len(sources), image_px, image_px, channels), np.uint8)
    reasons: list[str | None] = [None] * len(sources)
    digests: list[str | None] = [None] * len(sources)
    for i, source in enumerate(sources):
        try:
            pixels[i] = images.decode(root / source, image_px, channels, min_source_px, grey_range, least_value)
            digests[i] = hashlib.sha256(pixels[i].tobytes()).hexdigest()
        except ImageError as error:
            reasons[i] = str(error)
    return Decoded(pixels, reasons, digests)


def source_digest(table: config.Table, root: Path) -> str:
    """SHA-256 over the table's bytes and the path, size and modification time of each listed image.

    Cheap, as no image is opened: an image replaced by another of its size and time goes unnoticed.
    Raises: CohortError as `listing`.
    """
    paths = _normalised_paths(_read(table, root)[table.image]).drop_null().unique().to_pylist()
    digest = hashlib.sha256((root / table.file).read_bytes())
    for path, stat in sorted(_files(root, paths).items()):
        digest.update(f"\x1e{path}\x1f{stat.st_size}\x1f{stat.st_mtime_ns}".encode())
    return digest.hexdigest()


def _read(table: config.Table, root: Path) -> pa.Table:
    """The columns that the recipe names, as trimmed text; a blank cell is null."""
    if not root.is_dir():
        raise CohortError(f"ingest.root: want a folder, got nothing at {root} — give the folder of the images")
    path = root / table.file
    if not path.is_file():
        hint = _nearest(table.file, [p.name for p in root.iterdir()], "give ingest.table.file")
        raise CohortError(f"ingest.table.file: want a table in {root}, got no {table.file} — {hint}")
    content = _content(path)
    if not len(content):
        raise CohortError(f"table {table.file}: want a row per image, got none — give a table with rows")
    return pa.table({name: _text(content, name, key, table.file) for key, name in _wanted(table)})


def _content(path: Path) -> pa.Table:
    ragged: list[pa.csv.InvalidRow] = []

    def remember(row: pa.csv.InvalidRow) -> str:
        ragged.append(row)
        return "error"

    try:
        match path.suffix:
            case ".csv":
                parse = pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=remember)
                read = pa.csv.ReadOptions(use_threads=False)  # else a ragged row has no number
                with pa.csv.open_csv(path, read, parse) as reader:
                    as_text = pa.csv.ConvertOptions(column_types=dict.fromkeys(reader.schema.names, pa.string()))
                return pa.csv.read_csv(path, read, parse, as_text)
            case ".jsonl":
                return pa.json.read_json(path)
            case ".parquet":
                return pa.parquet.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        # Arrow's own message on a ragged row quotes it, with the patient in it.
        got = f"{ragged[0].actual_columns} in line {ragged[0].number}" if ragged else str(error)
        want = f"{ragged[0].expected_columns} cells per row" if ragged else f"a readable {path.suffix}"
        raise CohortError(f"table {path.name}: want {want}, got {got} — repair the table") from None
    raise CohortError(f"ingest.table.file: want .csv, .jsonl or .parquet, got {path.name} — convert the table")


def _wanted(table: config.Table) -> list[tuple[str, str]]:
    """(recipe key, column) for each column that is read, without repeats."""
    single = {"image", "patient", "text", "view", "sex", "age", "date"}
    wanted = [(key, getattr(table, key)) for key in sorted(single)]
    labels = (table.labels,) if isinstance(table.labels, str) else table.labels or ()
    wanted += [("labels", name) for name in labels]
    wanted += [("keep", name) for name in table.keep]
    return list({name: (key, name) for key, name in wanted if name is not None}.values())


def _text(content: pa.Table, name: str, key: str, file: str) -> pa.ChunkedArray:
    where = f"table {file}: column {name!r}"
    if (count := content.column_names.count(name)) != 1:
        hint = _nearest(name, content.column_names, f"set ingest.table.{key}")
        raise CohortError(f"{where}: want it once for ingest.table.{key}, got it {count} times — {hint}")
    column = content[name]
    if pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
        raise CohortError(f"{where}: want text or numbers, got {column.type} — flatten it, or set ingest.table.{key}")
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    trimmed = pc.utf8_trim_whitespace(column.cast(pa.string()))
    return pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)


def _nearest(name: str, names: Sequence[str], otherwise: str) -> str:
    near = difflib.get_close_matches(name, names, 1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near and near[0] != name else otherwise


def _normalised_paths(paths: pa.ChunkedArray) -> pa.ChunkedArray:
    """One spelling per file, so that `a/b.png` and `./a//b.png` are seen to be the same."""
    slashed = pc.replace_substring(paths, "\\", "/").to_pylist()
    return pa.chunked_array([[p and posixpath.normpath(p) for p in slashed]], pa.string())


def _files(root: Path, paths: Iterable[str]) -> dict[str, os.stat_result]:
    """Size and time of those paths below `root` that are files; a link counts if it does not lead out of `root`."""
    inside = root.resolve()
    names: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        folder, name = posixpath.split(path)
        names[folder].add(name)
    found = {}
    for folder, wanted in names.items():
        try:
            if not (root / folder).resolve().is_relative_to(inside):
                continue
            with os.scandir(root / folder) as entries:
                files = [
                    entry
                    for entry in entries
                    if entry.name in wanted
                    and entry.is_file()
                    and (not entry.is_symlink() or Path(entry.path).resolve().is_relative_to(inside))
                ]
                found |= {posixpath.join(folder, entry.name): entry.stat() for entry in files}
        except (OSError, ValueError):  # no such folder, or a name that no folder can have: its images are missing
            continue
    return found


def _leads_out(root: Path, path: str) -> bool:
    """Whether a file is there, but by a link to somewhere outside `root`."""
    try:
        return (root / path).is_file() and not (root / path).resolve().is_relative_to(root.resolve())
    except (OSError, ValueError):  # a name that no file can have
        return False


def _reject_reasons(cells: pa.Table, table: config.Table, root: Path) -> pa.ChunkedArray:
    """Why each row is rejected; null where it is not. The first reason that holds is given."""
    source, patient = cells["source"], cells[table.patient]
    outside = pc.fill_null(pc.match_substring_regex(source, r"^(/|\.\.(/|$))"), False)
    inside = source.filter(pc.invert(outside)).drop_null().unique().to_pylist()
    found = pa.array(list(_files(root, inside)), pa.string())
    linked_out = pa.array(
        [path for path in set(inside) - set(found.to_pylist()) if _leads_out(root, path)], pa.string()
    )
    owners = (
        pa.table({"source": source, "patient": patient}).group_by("source").aggregate([("patient", "count_distinct")])
    )
    shared = owners.filter(pc.greater(owners["patient_count_distinct"], 1))["source"]
    rejected = {
        f"{column} is not one of {', '.join(values)}": pc.invert(pc.is_in(cells[column], pa.array(values)))
        for column, values in table.keep.items()
    } | {
        "no patient id": pc.is_null(patient),
        "no image path": pc.is_null(source),
        "image path outside the root": outside,
        "image path outside the root, by a link": pc.is_in(source, linked_out),
        "image file missing": pc.invert(pc.is_in(source, found)),
        "one image under two patients": pc.is_in(source, shared.drop_null()),
    }
    reasons = pc.case_when(pc.make_struct(*rejected.values()), *[pa.scalar(reason) for reason in rejected])
    positions = pa.table({"source": source, "position": np.arange(len(cells))}).filter(pc.is_null(reasons))
    firsts = positions.group_by("source").aggregate([("position", "min")])["position_min"]
    repeated = pc.invert(pc.is_in(pa.array(np.arange(len(cells))), firsts))
    return pc.coalesce(reasons, pc.if_else(repeated, "duplicate image", pa.scalar(None, pa.string())))


def _labels(cells: pa.Table, table: config.Table, k: int) -> tuple[tuple[str, ...], Int8[np.ndarray, "n f"]]:
    """The findings and, per row, 1 present, 0 absent, -1 unknown; none where there is no label at all."""
    if not table.findings and not _any_label(cells, table):
        return (), np.zeros((len(cells), 0), np.int8)
    if table.labels is None:
        raise CohortError(
            "ingest.table.findings: want none without labels, got some — give ingest.table.labels, or leave them out"
        )
    if isinstance(table.labels, str):
        return _labels_joined(cells, table, table.labels, k)
    names = [name for name in table.labels if name not in table.negative]
    labels = np.stack([_label_column(cells, table, name) for name in names], axis=1)
    patients = np.asarray(cells[table.patient].combine_chunks().dictionary_encode().indices)
    n_patients = {name: len(np.unique(patients[labels[:, i] == 1])) for i, name in enumerate(names)}
    findings = _findings(table, n_patients, k)
    return findings, np.ascontiguousarray(labels[:, [names.index(name) for name in findings]])


def _any_label(cells: pa.Table, table: config.Table) -> bool:
    """Whether the columns of labels hold anything."""
    columns = (table.labels,) if isinstance(table.labels, str) else table.labels or ()
    return any(cells[name].null_count < len(cells) for name in columns)


def _label_column(cells: pa.Table, table: config.Table, name: str) -> Int8[np.ndarray, " n"]:
    column = cells[name]
    index = pc.index_in(column, pa.array(list(LABEL_CELLS)))
    unknown = pc.and_(pc.is_valid(column), pc.is_null(index))
    if pc.any(unknown).as_py():
        row, value = (cells.select(["row_id", name]).filter(unknown)[c][0].as_py() for c in (0, 1))
        raise CohortError(
            f"table {table.file}, {row}, column {name!r}: want 1, 0, -1 or blank, got {value!r} — correct the table, "
            "or give ingest.table.labels one column of joined names"
        )
    uncertain = {"positive": 1, "negative": 0, "ignore": -1}[table.uncertain]
    meaning = [uncertain if value == -1 else value for value in LABEL_CELLS.values()]
    blank = {"negative": 0, "ignore": -1}[table.blank]
    return np.asarray(pc.fill_null(pa.array(meaning, pa.int8()).take(index.combine_chunks()), blank))


def _labels_joined(
    cells: pa.Table, table: config.Table, column: str, k: int
) -> tuple[tuple[str, ...], Int8[np.ndarray, "n f"]]:
    names = pc.split_pattern(cells[column], table.label_separator).combine_chunks()
    rows = pc.list_parent_indices(names)
    pairs = pa.table({"row": rows, "name": pc.utf8_trim_whitespace(pc.list_flatten(names))})
    pairs = pairs.filter(pc.invert(pc.is_in(pairs["name"], pa.array([*table.negative, ""]))))
    pairs = pairs.append_column("patient", cells[table.patient].take(pairs["row"]))
    counts = pairs.group_by("name").aggregate([("patient", "count_distinct")]).sort_by("name")
    n_patients = dict(zip(counts["name"].to_pylist(), counts["patient_count_distinct"].to_pylist(), strict=True))
    findings = _findings(table, n_patients, k)
    labels = np.zeros((len(cells), len(findings)), np.int8)
    if table.blank == "ignore":
        labels[np.asarray(pc.is_null(cells[column]))] = -1
    codes = pc.index_in(pairs["name"], pa.array(findings))
    chosen = pc.is_valid(codes)
    labels[np.asarray(pairs["row"].filter(chosen)), np.asarray(codes.filter(chosen))] = 1
    return findings, labels


def _findings(table: config.Table, n_patients: dict[str, int], k: int) -> tuple[str, ...]:
    """The findings that the recipe names, else those that are positive in at least k patients."""
    for name in table.findings:
        if name not in n_patients:
            hint = _nearest(name, list(n_patients), f"the labels are {', '.join(n_patients)}")
            raise CohortError(f"ingest.table.findings: want names that stand in the labels, got {name!r} — {hint}")
    findings = table.findings or tuple(name for name, n in n_patients.items() if n >= k)
    for name in findings:
        if not FINDING_NAME.fullmatch(name):
            raise CohortError(
                f"table {table.file}: finding {name[:40]!r}: want a name of up to 80 letters, digits, blanks and "
                ".,()&%+'-_ that starts with a letter or digit, got something else — rename it in the table"
            )
    if not findings:
        raise CohortError(
            f"table {table.file}: want a finding in at least {k} patients, got none "
            "— check ingest.table.labels and label_separator, or name the findings in ingest.table.findings; "
            "with ingest.table.labels: null it runs without labels"
        )
    return findings


def _order(cells: pa.Table, table: config.Table) -> Int64[np.ndarray, " n"]:
    """Position of each image among its patient's images: by date, undated last, then by position in the table."""
    patients = np.asarray(cells[table.patient].combine_chunks().dictionary_encode().indices)
    days = _days(cells, table) if table.date is not None else np.zeros(len(cells))
    by_patient = np.lexsort((days, patients))
    starts = np.r_[True, np.diff(patients[by_patient]) != 0]
    first = np.maximum.accumulate(np.where(starts, np.arange(len(cells)), 0))
    order = np.empty(len(cells), np.int64)
    order[by_patient] = np.arange(len(cells)) - first
    return order


def _days(cells: pa.Table, table: config.Table) -> np.ndarray:
    """Something that grows with the date; infinite where there is none."""
    dates = cells[table.date]
    if _all(pc.match_substring_regex(dates, r"^\d{4}-\d{2}-\d{2}")):
        numbers = pc.replace_substring_regex(dates, r"^(\d{4})-(\d{2})-(\d{2}).*", r"\1\2\3")
    elif _all(pc.match_substring_regex(dates, r"^[+-]?\d+(\.\d+)?$")):
        numbers = dates
    else:
        raise CohortError(
            f"table {table.file}, column {table.date!r}: want ISO dates, YYYYMMDD or day offsets in every row, "
            "got something else — convert the dates, or set ingest.table.date to null"
        )
    return np.asarray(pc.fill_null(numbers.cast(pa.float64()), np.inf))


def _all(mask: pa.ChunkedArray) -> bool:
    return pc.all(mask, min_count=0).as_py()


def _optional(cells: pa.Table, name: str | None) -> pa.ChunkedArray | pa.Array:
    return pa.nulls(len(cells), pa.string()) if name is None else cells[name]


def _views(cells: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Views as they are named; what is no name is unknown."""
    return pc.if_else(pc.match_substring_regex(cells, VIEW_NAME), cells, None)


def _ages(cells: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Years from `58`, `58.0` or `058Y` (DICOM age string); 0 means unknown in CheXpert, and is null here too."""
    digits = pc.struct_field(pc.extract_regex(cells, r"^(?P<years>\d{1,4}(?:\.\d+)?) ?[Yy]?$"), "years")
    years = digits.cast(pa.float32())
    return pc.if_else(pc.and_(pc.greater(years, 0), pc.less_equal(years, MAX_AGE_YEARS)), years, None)


def _sexes(cells: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    index = pc.index_in(pc.utf8_lower(cells), pa.array(list(SEXES)))
    return pc.take(pa.array(list(SEXES.values())), index)
