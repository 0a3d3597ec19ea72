"""The package that leaves the building: what is in it, and how it is written.

    README.md      what is here and whether it is cleared
    student/       the diffusers pipeline, with its model card
    dataset/       kept images as Parquet, with their data card
    metrics.json   every measured number
    lineage.json   what was made from what

Pure functions of what is releasable: the same contents give the same bytes, without clock or network. Not here:
whether the package may leave (`privacy.gate`) and the search for leaks (`privacy.leaks`). The prose is in the
templates beside this file. Axis letters: n images, h height, w width, c channels, k findings.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCardData, EvalResult, ModelCardData
from jaxtyping import UInt8
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from pipeline import images
from pipeline.config import Recipe, canonical
from pipeline.estimate import Estimate, fewer_than, recalls
from pipeline.generators import folder as pipeline_folder
from pipeline.privacy.gate import Verdict
from pipeline.records import label_matrix
from pipeline.tables import KEPT, require

TEMPLATES = Path(__file__).parent
# What `datasets` writes at most into a file; a PNG is hardly larger than its pixels.
SHARD_BYTES = 500_000_000
# What `datasets` uses for images, so that a viewer need not fetch a whole file.
GROUP_ROWS = 100
N_EXAMPLES = 5
TAGS = ("medical", "synthetic", "privacy", "privacy-distillation")
SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B")
# Figures of the model card's header, which model hubs list beside other models'.
HEADLINE = {
    "privacy/student/audit_ratio": "share of images flagged by the auditor",
    "privacy/control/audit_ratio": "the same of unseen patients' real images",
    "utility/student/macro_auroc": "macro AUROC on real images, trained on the student's",
    "fidelity/student/fid": "FID on a domain encoder",
    "fidelity/student/coverage": "coverage of real images",
}
# All that is told of an artifact. Times differ between equal runs, a config can hold paths, and a fingerprint hashes
# the private table too: whoever knows that table but for one patient could try it with and without them.
LINEAGE = ("name", "inputs", "version", "packages", "git_commit")
# ASCII punctuation that starts markup in Markdown or HTML; an underscore does only at a word's edge.
MARKUP = re.compile(r"[\\`*\[\]<>|#~&$]|(?<!\w)_|_(?!\w)")


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What the package is made of; all of it comes from releasable artifacts."""

    recipe: Recipe
    kept: pa.Table
    """Columns of `tables.KEPT` and `image`, in an order that tells nothing; the first rows are released."""
    findings: Sequence[str]
    """Names of the labels, in order."""
    student: Path
    """A diffusers pipeline folder."""
    metrics: Mapping[str, Estimate]
    """Keys `group/subject/name` (design section 8); any may be missing."""
    facts: Mapping[str, Any]
    """Facts of the artifacts `filter` and `evaluate`."""
    verdicts: Sequence[Verdict]
    """One for each condition of the gate; empty before it has judged."""
    cleared: bool
    lineage: Sequence[Mapping[str, Any]]
    """The releasable artifacts that it was made from: at least the keys of `LINEAGE`."""


class Finding(NamedTuple):
    """One label: its column, and images that show it at each stage."""

    name: str
    column: str
    n_sampled: int
    n_kept: int
    n_released: int
    n_short: int
    """Kept images that the recipe wanted in addition."""


def write(folder: Path, contents: Contents) -> None:
    """Write the package into a folder that holds none yet.

    Raises: SchemaError if `kept` is not a table of kept images, UnsafeFolderError if the student's folder holds more
        than JSON, text and safetensors.
    """
    require(contents.kept, KEPT, "release input")
    pipeline_folder.inspect(contents.student)
    shutil.copytree(contents.student, folder / "student")
    released = contents.kept.slice(0, contents.recipe.release.n_images)
    columns = column_names(contents.findings)
    _write_shards(folder / "dataset" / "data", released, columns)
    said = _said(contents, released, columns)
    header, body = _model_header(contents), _render("model_card.md.j2", said)
    _write_text(folder / "student" / "README.md", f"---\n{header.to_yaml()}\n---\n\n{body}")
    header, body = _dataset_header(contents, len(released)), _render("data_card.md.j2", said)
    _write_text(folder / "dataset" / "README.md", f"---\n{header.to_yaml()}\n---\n\n{body}")
    _write_text(folder / "README.md", _render("release_readme.md.j2", said))
    metrics = {key: estimate.as_dict() for key, estimate in sorted(contents.metrics.items())}
    _write_text(folder / "metrics.json", json.dumps(metrics, indent=1, allow_nan=False))
    _write_text(folder / "lineage.json", json.dumps(_lineage(contents), indent=1))


def read_images(dataset: Path) -> UInt8[np.ndarray, "n h w c"]:
    """The released images as any reader decodes them, in the order of the shards."""
    shards = sorted((dataset / "data").glob("*.parquet"))
    encoded = pa.concat_tables([pq.read_table(shard, columns=["image"]) for shard in shards])["image"].to_pylist()
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(image["bytes"]))) for image in encoded])
    return pixels.reshape(*pixels.shape[:3], -1)


def read_rows(dataset: Path) -> pa.Table:
    """The released rows, in the order of the shards."""
    return pa.concat_tables([pq.read_table(shard) for shard in sorted((dataset / "data").glob("*.parquet"))])


def templates() -> list[str]:
    """The prose that every package has, so that the leak scan does not take it for somebody's report."""
    return [path.read_text(encoding="utf-8") for path in sorted(TEMPLATES.glob("*.md.j2"))]


def column_names(findings: Sequence[str]) -> list[str]:
    """A column for each finding: lower-case words joined by `_`, numbered where two would have one name."""
    taken = ["id", "image", "prompt"]
    for finding in findings:
        stem = re.sub(r"\W+", "_", finding.casefold()).strip("_") or "finding"
        names = chain([stem], (f"{stem}_{number}" for number in count(2)))
        taken.append(next(name for name in names if name not in taken))
    return taken[3:]


def markdown(text: object) -> str:
    """Free text on one line that no reader of Markdown or HTML takes for markup."""
    return MARKUP.sub(r"\\\g<0>", " ".join(str(text).split()))


def share(metrics: Mapping[str, Estimate], key: str) -> str:
    """`4.3% [3.4%, 5.4%], n 1,500`."""
    return _text(metrics.get(key), "{:.1%}")


def points(metrics: Mapping[str, Estimate], key: str) -> str:
    """A difference of shares in percentage points: `+0.7 [-0.7, +2.1], n 1,500`."""
    return _text(metrics.get(key), "{:+.1f}", 100.0)


def decimal(metrics: Mapping[str, Estimate], key: str) -> str:
    """`0.893 [0.871, 0.912], n 1,000`."""
    return _text(metrics.get(key), "{:.3f}")


def worst(metrics: Mapping[str, Estimate], network: str) -> str:
    """A network's recall on the kind of changed copies that it finds worst, at the demanded strength, and which."""
    kinds = {
        kind: series[1.0] for kind, series in recalls(metrics, network).items() if 1.0 in series and series[1.0].n
    }
    if not kinds:
        return "not measured"
    kind = min(kinds, key=lambda name: kinds[name].value)
    return f"{_text(kinds[kind], '{:.1%}')} ({kind.replace('_', ' ')})"


def figure(metrics: Mapping[str, Estimate], key: str) -> str:
    """Any metric, whatever its unit: `12.34 [10.2, 15], n 900`."""
    return _text(metrics.get(key), "{:.4g}")


def _text(estimate: Estimate | None, form: str, scale: float = 1.0) -> str:
    if estimate is None or not _is_measured(estimate):
        return "not measured"
    value, low, high = (form.format(scale * number) for number in estimate[:3])
    return f"{value} [{low}, {high}], n {estimate.n:,}"


def _is_measured(estimate: Estimate) -> bool:
    return estimate.n > 0 and bool(np.isfinite(estimate[:3]).all())


def _write_shards(folder: Path, released: pa.Table, columns: Sequence[str]) -> None:
    pixels, labels = images.array(released["image"]), label_matrix(released)
    rows_per_shard = max(1, SHARD_BYTES // math.prod(pixels.shape[1:]))
    n_shards = math.ceil(len(released) / rows_per_shard)
    folder.mkdir(parents=True)
    for shard in range(n_shards):
        part = slice(shard * rows_per_shard, (shard + 1) * rows_per_shard)
        names = released["row_id"].to_pylist()[part]
        encoded = [
            {"bytes": images.png(image), "path": f"{name}.png"}
            for name, image in zip(names, pixels[part], strict=True)
        ]
        arrays = [names, encoded, released["prompt"].to_pylist()[part], *labels[part].T]
        pq.write_table(
            pa.table(dict(zip(_schema(columns).names, arrays, strict=True)), schema=_schema(columns)),
            folder / f"train-{shard:05d}-of-{n_shards:05d}.parquet",
            row_group_size=GROUP_ROWS,
            compression="zstd",
        )


def _schema(columns: Sequence[str]) -> pa.Schema:
    """Columns of the released set; the metadata is how `datasets` knows that a struct is an image."""
    encoded = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = [("id", pa.string()), ("image", encoded), ("prompt", pa.string())]
    fields += [(name, pa.int8()) for name in columns]
    features = {name: {"dtype": str(kind), "_type": "Value"} for name, kind in fields} | {"image": {"_type": "Image"}}
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def _render(template: str, said: Mapping[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update({"md": markdown, "count": "{:,}".format})
    environment.filters.update(
        share=share, points=points, decimal=decimal, figure=figure, worst=worst, few=fewer_than
    )
    return environment.get_template(template).render(said)


def _said(contents: Contents, released: pa.Table, columns: Sequence[str]) -> dict[str, Any]:
    """What the templates read."""
    recipe = contents.recipe
    prompts = Counter(released["prompt"].to_pylist())
    examples = sorted(prompts, key=lambda prompt: (-prompts[prompt], prompt))[:N_EXAMPLES]
    return {
        "recipe": recipe,
        "metrics": contents.metrics,
        "facts": contents.facts,
        "verdicts": contents.verdicts,
        "cleared": contents.cleared,
        "findings": _findings(contents, released, columns),
        "n_kept": len(contents.kept),
        "n_released": len(released),
        "n_prompts": len(prompts),
        "levels": contents.facts["prompt_levels"],
        "examples": examples,
        "snippet": pipeline_folder.snippet("student", examples[0], recipe.student_sample, recipe.distill),
        # A ready-made text encoder's words come from elsewhere and are too many to list.
        "vocabulary": _vocabulary(contents.student) if recipe.distill.text.folder is None else (),
    }


def _findings(contents: Contents, released: pa.Table, columns: Sequence[str]) -> list[Finding]:
    n_released = (label_matrix(released) == 1).sum(0).tolist()
    by_class, short = contents.facts["kept_by_class"], contents.facts["shortfall"]
    return [
        Finding(name, column, by_class[name][0], by_class[name][1], n, short.get(name, 0))
        for name, column, n in zip(contents.findings, columns, n_released, strict=True)
    ]


def _vocabulary(student: Path) -> list[str]:
    """The words of a word-level tokenizer, without its special tokens."""
    saved = json.loads((student / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["content"] for token in saved["added_tokens"]}
    return sorted(saved["model"]["vocab"].keys() - special)


def _model_header(contents: Contents) -> ModelCardData:
    results = [
        EvalResult(
            task_type="text-to-image",
            dataset_type="private",
            dataset_name="Real images of the data provider, not released",
            metric_type=key,
            metric_name=name,
            metric_value=round(estimate.value, 4),
            metric_args={"low": round(estimate.low, 4), "high": round(estimate.high, 4), "n": estimate.n},
        )
        for key, name in HEADLINE.items()
        if (estimate := contents.metrics.get(key)) is not None and _is_measured(estimate)
    ]
    return ModelCardData(
        license=contents.recipe.release.licence,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=_tags(contents),
        model_name=contents.recipe.release.title,
        eval_results=results or None,
    )


def _dataset_header(contents: Contents, n_released: int) -> DatasetCardData:
    return DatasetCardData(
        license=contents.recipe.release.licence,
        pretty_name=contents.recipe.release.title,
        annotations_creators=["machine-generated"],
        language_creators=["machine-generated"],
        size_categories=[size_category(n_released)],
        task_categories=["image-classification", "text-to-image"],
        tags=_tags(contents),
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
    )


def _tags(contents: Contents) -> list[str]:
    return [*TAGS, *([] if contents.cleared else ["not-cleared"])]


def size_category(n: int) -> str:
    """The hub's name for a number of rows, by powers of ten."""
    low = len(str(n)) - 4
    return "n<1K" if low < 0 else f"{SIZES[low]}<n<{SIZES[low + 1]}"


def _lineage(contents: Contents) -> dict[str, Any]:
    """Steps, versions and inputs by name; the recipe's hash tells equal settings, as no data go into it."""
    elsewhere = {"cluster": True, "ingest": {"root", "key_file"}}
    settings = canonical(contents.recipe.model_dump(mode="json", exclude=elsewhere))
    steps = [{key: artifact[key] for key in LINEAGE} for artifact in contents.lineage]
    return {"recipe_sha256": hashlib.sha256(settings.encode()).hexdigest(), "steps": steps}


def _write_text(path: Path, text: str) -> None:
    path.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8", newline="\n")
