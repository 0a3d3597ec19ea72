"""The explorer of a study, filled from its artifacts and its answer. Not here: how the page looks (`explorer`)."""

# pyarrow.compute makes its functions at import, out of pyright's sight.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import datetime
from collections.abc import Mapping

import numpy as np
import pyarrow.compute as pc
from jaxtyping import Float

from pipeline import config, explorer, images, records
from pipeline.artifact import Artifact
from pipeline.config import Filter, Recipe, Rule
from pipeline.estimate import Estimate
from pipeline.explorer import Explorer, Private, RuleAsSet, Scored, Trial
from pipeline.outcomes import PARAMETERS
from pipeline.privacy import rules
from pipeline.privacy.risk import ratio_over_control
from pipeline.seeds import numpy_generator
from pipeline.steps import judge
from pipeline.tune_report import Answer, Tried, parameter

VIEWS: Mapping[explorer.View, tuple[config.Split, config.Split, str, str]] = {
    "validation": ("control", "test", "tune/unseen", judge.COLUMN),
    "test": ("test", "control", "score/unseen", "audit_score"),
}
"""Whose scores set the threshold, whose are counted, and by which network: the judge where it chose, the auditor
where it was held out."""
RUNGS = ("the kept set alone", "a short student", "several full students")
SAMPLES = "samples"
SHOWN_IMAGES = 240


def explorer_of(recipe: Recipe, inputs: Mapping[str, Artifact], found: Answer, started_at: float) -> Explorer:
    """The page's data without anything private."""
    ingest = inputs["ingest"]
    scores = inputs["score/0"].table(columns=["row_id", "reid_score", "pixel_copy"])
    values = scores["reid_score"].to_numpy().astype(np.float64)
    copies = scores["pixel_copy"].to_numpy(zero_copy_only=False)
    control = _strangers(inputs, "control", "score/unseen", "reid_score")[0]
    same = inputs["score/gallery"].table("same_patient")["filter_network"].to_numpy()
    as_set = _as_set(recipe.filter, values, copies, control, same)
    thresholds = [one.kept.get("threshold") for one in found.tried] + [rule.threshold for rule in as_set]
    edges = explorer.score_edges([values, control, same], thresholds)
    findings = ingest.facts["findings"]
    shown = records.label_matrix(records.among(inputs["sample/0"].table("plan"), scores["row_id"])) == 1
    return Explorer(
        name=recipe.name,
        seed=recipe.seed,
        date=datetime.date.fromtimestamp(started_at).isoformat(),
        answer=found.sentence,
        constraint=f"The study's judge must flag at most {recipe.tune.max_ratio:.1%} of a student's images, with "
        "95 % confidence.",
        recommended=found.recommended,
        trials=[_trial(one, found) for one in found.tried] + _without_student(found),
        rung_names=RUNGS,
        findings=findings,
        edges=edges,
        samples={SAMPLES: explorer.samples(values, shown, findings, edges, pixel_copy=copies, rules=as_set)},
        control=explorer.binned(control, edges).counts,
        same_patient=explorer.binned(same, edges).counts,
        recall_confidence=recipe.filter.recall.confidence,
        control_ratio=_control_ratios(recipe, inputs),
        caveats=_caveats(recipe, found),
    )


def private_part(inputs: Mapping[str, Artifact]) -> Private:
    """Raw samples with their scores, spread over the scores."""
    scores = inputs["score/0"].table(columns=["row_id", "reid_score"])
    order = np.argsort(scores["reid_score"].to_numpy(), kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(SHOWN_IMAGES, len(order))).astype(int)]
    some = scores.take(np.sort(chosen))
    pixels = records.images_of(inputs["sample/0"], some["row_id"], "rows")
    pairs = zip(pixels, some["reid_score"].to_pylist(), strict=True)
    return Private(images={SAMPLES: [Scored(image, score) for image, score in pairs]})


def kept_images(kept: Artifact, n_images: int = 24) -> np.ndarray:
    """Some images that a setting keeps."""
    pixels = images.array(kept.table("kept", ["image"])["image"])
    return pixels[np.sort(numpy_generator(0, "grid").permutation(len(pixels))[:n_images])]


def _trial(one: Tried, found: Answer) -> Trial:
    return Trial(
        number=one.number,
        rule=one.settings["filter.rule"],
        parameter=parameter(one.settings),
        settings={key: str(value) for key, value in one.settings.items() if key not in PARAMETERS.values()},
        samples=SAMPLES,
        threshold=one.kept.get("threshold"),
        n_sampled=one.kept.get("n_sampled", 0),
        n_kept=one.kept.get("n_kept", 0),
        kept_by_class={name: (n[0], n[1]) for name, n in one.kept.get("kept_by_class", {}).items()},
        rung=one.rung,
        validation=one.validation,
        test=one.test,
        on_front=one.number in found.on_front,
        ablation="no filter" if one.settings["filter.rule"] == "none" else "",
        failed="" if one.validation else one.failed,
    )


def _without_student(found: Answer) -> list[Trial]:
    """The recommended setting's kept set as it is: what would be released without a student."""
    if (one := found.chosen) is None:
        return []
    return [
        Trial(
            number=len(found.tried),
            rule=one.settings["filter.rule"],
            parameter=parameter(one.settings),
            samples=SAMPLES,
            threshold=one.kept["threshold"],
            n_sampled=one.kept["n_sampled"],
            n_kept=one.kept["n_kept"],
            kept_by_class={name: (n[0], n[1]) for name, n in one.kept["kept_by_class"].items()},
            validation=one.kept_set,
            ablation="no student",
        )
    ]


def _as_set(
    section: Filter, values: np.ndarray, copies: np.ndarray, control: np.ndarray, same: np.ndarray
) -> list[RuleAsSet]:
    """Every rule at the parameter that the recipe has for it; one that cannot be calibrated is left out."""
    found = []
    listed: tuple[Rule, ...] = ("none", "fixed", "percentile", "recall", "fdr")
    for rule in listed:
        own = Filter.model_validate(section.model_dump() | {"rule": rule})
        try:
            limit = rules.threshold(own, values[~np.isnan(values)], control=control, same_patient=same).threshold
        except rules.ConfigError:
            continue
        dropped = np.isnan(values) | (values >= (np.inf if limit is None else limit)) | (copies & (rule != "none"))
        settings = {"filter.rule": rule}
        if rule != "none":
            key = PARAMETERS[rule]
            settings[key] = getattr(getattr(section, rule), key.rsplit(".", 1)[1])
        found.append(RuleAsSet(rule, parameter(settings), limit, int(dropped.sum())))
    return found


def _strangers(
    inputs: Mapping[str, Artifact], split: str, scored: str, column: str
) -> tuple[Float[np.ndarray, " n"], list[str]]:
    """Scores of unseen patients' images, and whose they are."""
    known = inputs["ingest"].table("records", ["row_id", "patient_id"], pc.field("split") == split)
    patient_of = dict(zip(known["row_id"].to_pylist(), known["patient_id"].to_pylist(), strict=True))
    within = pc.field("row_id").isin(known["row_id"].combine_chunks())
    scores = inputs[scored].table(columns=["row_id", column], where=within)
    return scores[column].to_numpy(), [patient_of[row_id] for row_id in scores["row_id"].to_pylist()]


def _control_ratios(recipe: Recipe, inputs: Mapping[str, Artifact]) -> dict[explorer.View, Estimate]:
    """What each view's network flags of unseen patients who did not set its threshold: those of the other split."""
    found = {}
    for view, (calibrated_on, counted_on, scored, column) in VIEWS.items():
        control, control_patients = _strangers(inputs, calibrated_on, scored, column)
        scores, patients = _strangers(inputs, counted_on, scored, column)
        found[view] = ratio_over_control(
            scores,
            control,
            recipe.evaluate.control_percentile,
            clusters=patients,
            control_clusters=control_patients,
        )
    return found


def _caveats(recipe: Recipe, found: Answer) -> list[str]:
    n_seeds = recipe.tune.student_seeds
    said = [
        f"Intervals of the front say where one more student lands, from {n_seeds} of each setting that differ in "
        "their seed alone, their spread taken over all settings; those of the other settings say how well one "
        "student was measured. Those of ratios hold the error of the threshold too, which is estimated from a "
        "limited number of unseen patients.",
        "The setting was chosen by the study's own judge. The auditor, by whom the gate decides, was held out: what "
        "it says is about new images of the same students, none of which was trained anew for it.",
        "The kept set of a strict rule is measured on fewer images, and its student learns from fewer.",
    ]
    if recipe.tune.guidance_scale:
        said.append("Histogram and counts are those of the recipe's own guidance scale.")
    n_failed = sum(not one.validation for one in found.tried)
    return said + ([f"{n_failed} settings could not be measured; each says why."] if n_failed else [])
