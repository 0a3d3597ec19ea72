"""filter: which samples are kept, why the others are not, and what crosses into `releasable/`.

Decisions stay private, as they stand beside scores. What crosses has new names, prompts that k patients share, and
neither scores nor nearest records.
"""

# pyarrow.compute makes its functions at import, out of pyright's sight.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import records
from pipeline.config import Recipe, Sample
from pipeline.estimate import too_small
from pipeline.privacy import rules
from pipeline.seeds import numpy_generator, row_seed
from pipeline.tables import KEPT, SCORES
from pipeline.task import Made, Task, Work, rounds_of

VERSION = 7


class NothingKeptError(RuntimeError):
    """The rule drops every image, so there is nothing to distil."""


def round_tasks(recipe: Recipe, last: int) -> list[Task]:
    """`filter/<last>`: what is kept of all rounds so far."""
    config: dict[str, Any] = {
        "filter": _rule_in_use(recipe),
        "want_images": recipe.sample.want_images,
        "class_quota": recipe.sample.class_quota,
    }
    inputs = ("ingest", "score/gallery", "score/unseen", *_rounds("sample", last), *_rounds("score", last))
    return [
        Task(f"filter/{last}", make, config, inputs, version=VERSION, slots=2, about=f"rule {recipe.filter.rule}")
    ]


def tasks(recipe: Recipe, n_rounds: int) -> list[Task]:
    """`filter`: the kept images, releasable."""
    last = n_rounds - 1
    inputs = ("ingest", f"filter/{last}", *_rounds("sample", last))
    return [
        Task("filter", make_kept, {"seed": recipe.seed}, inputs, "releasable", VERSION, slots=2, about="the kept set")
    ]


def make(work: Work) -> Made:
    """Apply the rule to all rounds so far."""
    ingest, sampled, scored = work.inputs["ingest"], rounds_of(work.inputs, "sample"), rounds_of(work.inputs, "score")
    scores = pa.concat_tables([artifact.table(columns=SCORES.names) for artifact in scored])
    unseen = work.inputs["score/unseen"].table(columns=["row_id", "reid_score"])
    control_films = ingest.table("records", ["row_id", "patient_id"], pc.field("split") == "control")
    control = records.among(unseen, control_films["row_id"])
    control_films = records.among(control_films, control["row_id"])
    same_patient = work.inputs["score/gallery"].table("same_patient")
    plan = pa.concat_tables([artifact.table("plan") for artifact in sampled]).sort_by("row_id")
    labels = records.label_matrix(plan)
    table, decision = rules.filter_table(
        _of_all(plan, scores),
        work.recipe.filter,
        control=control["reid_score"].to_numpy(),
        control_patients=control_films["patient_id"].to_pylist(),
        same_patient=same_patient["filter_network"].to_numpy(),
        same_patients=same_patient["patient_id"].to_pylist(),
        shown=labels,
        chooser=numpy_generator(work.origin, "calibration"),
        decoys=decoys_in_use(work.recipe, ingest.facts),
    )
    work.draft.write_table(table)
    keep = table["keep"].to_numpy(zero_copy_only=False)
    findings = ingest.facts["findings"]
    kept_by_class = {
        name: [int(column.sum()), int(column[keep].sum())]
        for name, column in zip(findings, (labels == 1).T, strict=True)
    }
    shortfall = _shortfall(kept_by_class, work.recipe.sample)
    facts = {
        "rule": work.recipe.filter.rule,
        "threshold": decision.threshold,
        "guarantee": decision.guarantee,
        "calibration_n": decision.n,
        "reasons": dict(Counter(table["reason"].to_pylist())),
        "n_kept": int(keep.sum()),
        "decoys": decoys_in_use(work.recipe, ingest.facts) and decision.threshold is not None,
        "kept_by_class": kept_by_class,
        "shortfall": shortfall,
        "enough": bool(keep.sum() >= work.recipe.sample.want_images and not shortfall),
    }
    return Made(facts, len(table))


def decoys_in_use(recipe: Recipe, ingest: Mapping[str, Any]) -> bool:
    """Whether unseen patients stand beside the gallery: as the recipe says, or where they are enough to hide in."""
    patients = ingest["patients_by_split"]
    wanted = recipe.filter.decoys
    return patients["control"] >= patients["train"] if wanted is None else wanted


def make_kept(work: Work) -> Made:
    """Rename the kept images in an order of their own and give each a prompt that k patients share."""
    (decided,) = rounds_of(work.inputs, "filter")
    kept_ids = decided.table(columns=["row_id"], where=pc.field("keep"))["row_id"]
    if not len(kept_ids):
        raise NothingKeptError(
            f"filter: want kept images, got 0 of {decided.manifest['rows']} under rule {decided.facts['rule']!r} "
            f"({', '.join(f'{n} {reason}' for reason, n in decided.facts['reasons'].items())}) "
            "— loosen the rule, train the teacher for less (teach.n_images), or sample more (sample.n_images)"
        )
    parts = [records.synthetic(artifact, artifact, kept_ids) for artifact in rounds_of(work.inputs, "sample")]
    plan = pa.concat_tables([part.table for part in parts])
    pixels = np.concatenate([part.images for part in parts])
    # Their order must not tell which record a prompt came from.
    order = np.argsort([row_seed(work.origin, "kept", row_id) for row_id in plan["row_id"].to_pylist()])
    crossing = records.crossing(work.inputs["ingest"])
    shared = dict(zip(crossing["row_id"].to_pylist(), crossing["prompt"].to_pylist(), strict=True))
    table = pa.table(
        [
            pa.array([f"synthetic-{position:06d}" for position in range(len(order))]),
            pa.array([shared[row_id] for row_id in plan["prompt_row_id"].take(order).to_pylist()]),
            records.label_lists(records.label_matrix(plan)[order]),
        ],
        schema=KEPT,
    )
    work.draft.write_table(table.append_column("image", records.image_column(pixels[order])), "kept")
    facts = {
        "findings": work.inputs["ingest"].facts["findings"],
        "prompt_levels": _told_levels(work.inputs["ingest"].facts, work.recipe.ingest.k_anonymity),
        "k_anonymity": work.recipe.ingest.k_anonymity,
        "guarantee": decided.facts["guarantee"],
        "threshold": decided.facts["threshold"],
        "rule": decided.facts["rule"],
        "decoys": decided.facts["decoys"],
        "reasons": decided.facts["reasons"],
        "n_sampled": decided.manifest["rows"],
        "kept_by_class": decided.facts["kept_by_class"],
        "shortfall": decided.facts["shortfall"],
    }
    return Made(facts, len(table))


def _told_levels(ingest: Mapping[str, Any], k: int) -> dict[str, int]:
    """Percent of training records by the detail of them that crosses; levels that too few patients have are one.

    How many records there are would tell who was drawn to train, where one patient has very many.
    """
    levels: dict[str, int] = ingest["prompt_levels"]
    merged = too_small(ingest["prompt_level_patients"], k)
    told = {level: n for level, n in levels.items() if level not in merged}
    told |= {"one of: " + "; ".join(sorted(merged)): sum(levels[level] for level in merged)} if merged else {}
    return {level: round(100 * n / sum(levels.values())) for level, n in told.items()}


def _of_all(plan: pa.Table, scores: pa.Table) -> pa.Table:
    """A row for every image, without a score where scoring set it aside."""
    missing = pc.invert(pc.is_in(plan["row_id"], scores["row_id"].combine_chunks()))
    names = plan["row_id"].filter(missing)
    nan = np.full(len(names), np.nan)
    unscored = {"row_id": names, "pixel_copy": np.zeros(len(names), bool)}
    unscored |= dict.fromkeys(("reid_score", "decoy_score"), nan)
    columns = [unscored.get(field.name, pa.nulls(len(names), field.type)) for field in SCORES]
    return pa.concat_tables([scores, pa.table(columns, names=SCORES.names).cast(SCORES)]).sort_by("row_id")


def _rule_in_use(recipe: Recipe) -> dict[str, Any]:
    rule = recipe.filter.rule
    cap = recipe.filter.max_per_class
    told = {"rule": rule} | ({} if rule == "none" else getattr(recipe.filter, rule).model_dump())
    told |= {"decoys": recipe.filter.decoys, "seed": recipe.seed}
    return told | ({} if cap is None else {"max_per_class": cap})


def _rounds(word: str, last: int) -> Sequence[str]:
    return [f"{word}/{number}" for number in range(last + 1)]


def _shortfall(kept_by_class: dict[str, list[int]], sample: Sample) -> dict[str, int]:
    missing = {name: wanted - kept_by_class.get(name, [0, 0])[1] for name, wanted in sample.class_quota.items()}
    return {name: n for name, n in missing.items() if n > 0}
