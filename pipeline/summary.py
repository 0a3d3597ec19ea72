"""What a run leaves at the top of its store: report.html, summary.json and release/; and the closing table."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import TypeGuard

import pyarrow.fs as pafs
from rich.table import Table

from pipeline.artifact import Store
from pipeline.plan import Line

SUBJECTS = ("control", "teacher", "filtered", "student")
ARMS = ("real", "teacher", "filtered", "student")
Metrics = Mapping[str, Mapping[str, float | None]]


def publish(lines: Sequence[Line], store: Store) -> Metrics:
    """Copy the custodian's report and the package to the top of the store and write summary.json; the metrics."""
    artifacts = {line.task.name: line.artifact for line in lines if line.artifact is not None}
    metrics: Metrics = json.loads((artifacts["evaluate"].local() / "metrics.json").read_text())
    summary = {
        "artifacts": {name: artifact.uri for name, artifact in artifacts.items()},
        "metrics": metrics,
        "cleared": artifacts["release"].facts["cleared"],
        "verdicts": artifacts["release"].facts["verdicts"],
    }
    with store.fs.open_output_stream(f"{store.root}/summary.json") as stream:
        stream.write(json.dumps(summary, indent=1).encode())
    store.copy_for_custodian(f"{artifacts['report/custodian'].path}/report.html", "report.html")
    release = f"{store.root}/release"
    if store.fs.get_file_info(release).type == pafs.FileType.Directory:
        with contextlib.suppress(FileNotFoundError):  # another run on the same bucket was quicker
            store.fs.delete_dir(release)
    if artifacts["release"].facts["written"]:
        package = f"{artifacts['release'].path}/package"
        pafs.copy_files(package, release, source_filesystem=store.fs, destination_filesystem=store.fs)
        store.fs.copy_file(f"{artifacts['report'].path}/report.html", f"{release}/report.html")
    return metrics


def publish_study(lines: Sequence[Line], store: Store) -> str:
    """Copy a study's pages, answer and recipe to `tune/` at the top of the store; its address."""
    artifacts = {line.task.name: line.artifact for line in lines if line.artifact is not None}
    public, private = (artifacts[name].path for name in ("tune", "tune/custodian"))
    folder = f"{store.root}/tune"
    store.fs.create_dir(folder, recursive=True)
    for source, name in (
        (f"{private}/explorer.html", "explorer.html"),
        (f"{private}/recommended.yaml", "recommended.yaml"),
        (f"{public}/explorer.html", "explorer_public.html"),
        (f"{public}/summary.json", "summary.json"),
    ):
        if store.fs.get_file_info(source).type == pafs.FileType.File:
            if source.startswith(f"{private}/"):
                store.copy_for_custodian(source, f"tune/{name}")
            else:
                store.fs.copy_file(source, f"{folder}/{name}")
        elif store.fs.get_file_info(f"{folder}/{name}").type == pafs.FileType.File:
            store.fs.delete_file(f"{folder}/{name}")  # of an earlier study
    return f"{store.uri}/tune"


def closing_table(metrics: Metrics, n_released: int) -> Table:
    """Re-identification ratios by both networks and AUROC, with intervals, for the terminal."""
    table = Table(title=f"images in the kept set: {n_released:,}", title_justify="left", box=None, padding=(0, 2))
    table.add_column("", no_wrap=True)
    for heading in ("filter's network", "auditor", "macro AUROC"):
        table.add_column(heading, justify="right", no_wrap=True)
    for subject in dict.fromkeys([*SUBJECTS, *ARMS]):
        ratios = [_percent(metrics.get(f"privacy/{subject}/{name}")) for name in ("reid_ratio", "audit_ratio")]
        table.add_row(subject, *ratios, _number(metrics.get(f"utility/{subject}/macro_auroc")))
    return table


def _percent(found: Mapping[str, float | None] | None) -> str:
    return f"{found['value']:.1%} [{found['low']:.1%}, {found['high']:.1%}]" if _is_measured(found) else ""


def _number(found: Mapping[str, float | None] | None) -> str:
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]" if _is_measured(found) else ""


def _is_measured(found: Mapping[str, float | None] | None) -> TypeGuard[Mapping[str, float]]:
    return found is not None and found["value"] is not None
