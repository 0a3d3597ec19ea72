"""From arms to metrics: keys `group/subject/name`, each with value, interval and n (design section 8).

Joins what `privacy` and `utility` compute to the arms of a run; knows neither Ray nor files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int8, Int64, Shaped

from pipeline.config import Evaluate
from pipeline.estimate import Estimate
from pipeline.privacy import risk
from pipeline.records import Records, Synthetic
from pipeline.seeds import numpy_generator
from pipeline.utility import auroc, classifier, similarity
from pipeline.utility import fidelity as distances

ARMS = ("real", "teacher", "filtered", "student", "student_large")
RATIOS = {
    "filter_network": ("reid_score", "reid_ratio", "excess"),
    "auditor": ("audit_score", "audit_ratio", "audit_excess"),
}
SIZES = ((1, "1"), (3, "2-3"), (12, "4-12"), (29, "13-29"), (np.inf, "30+"))
IMAGES_PER_PROMPT = 4
NEAR = "near_duplicate"
NO_FINDING = "none"

Metrics = dict[str, Estimate]


class Risk(NamedTuple):
    """Scores of every subject: tables with row_id, reid_score, nearest_row_id, margin, audit_score."""

    control: pa.Table
    """Unseen patients who calibrate the thresholds."""
    test: pa.Table
    """Other unseen patients: what the ratios are compared with."""
    test_patients: Int64[np.ndarray, " n"]
    """Patients of `test`, in the order of row_id."""
    teacher: pa.Table
    """All samples, with `prompt_row_id`."""
    kept: pa.Table
    student: pa.Table
    student_private: pa.Table
    """The student under the private set's prompts, in their shared form; with `prompt_row_id`."""
    changed: pa.Table
    """Changed copies of training images: kind, patient, and a score per network."""
    baseline: Mapping[str, Float[np.ndarray, " n"]]
    """Scores of random pairs, by network."""
    train: pa.Table
    """row_id and patient_id of the gallery."""
    shown: Mapping[str, Int8[np.ndarray, "n k"]]
    """By subject (control, teacher, student): labels of a film, or those that a synthetic image's prompt asks for."""
    findings: Sequence[str]
    percentile: float


def privacy(scores: Risk, filter_threshold: float | None) -> Metrics:
    """Ratios by both networks with control, baseline and excess; what was learned by heart; the filter's recall."""
    found: Metrics = {}
    subjects = {
        "teacher": scores.teacher,
        "filtered": scores.kept,
        "student": scores.student,
        "student_private_prompts": scores.student_private,
    }
    for network, (column, ratio, excess) in RATIOS.items():
        threshold = control_threshold(_values(scores.control, column), scores.percentile)
        control = risk.clustered(_values(scores.test, column) >= threshold, scores.test_patients)
        found[f"privacy/control/{ratio}"] = control
        found[f"privacy/baseline/{ratio}"] = _share(scores.baseline[network] >= threshold)
        for subject, table in subjects.items():
            found[f"privacy/{subject}/{ratio}"] = _share(_values(table, column) >= threshold)
            found[f"privacy/{subject}/{excess}"] = risk.difference(found[f"privacy/{subject}/{ratio}"], control)
    return found | _by_images(scores) | _by_finding(scores) | _learned(scores) | _recall(scores, filter_threshold)


def control_threshold(control: Float[np.ndarray, " n"], percentile: float) -> float:
    """The score from which a ratio counts an image: a percentile of unseen patients' scores, rounded up."""
    return float(np.percentile(control, percentile, method="higher"))


def _by_images(scores: Risk) -> Metrics:
    """The ratio by how many real images the patient behind the prompt has."""
    patients = dict(zip(scores.train["row_id"].to_pylist(), scores.train["patient_id"].to_pylist(), strict=True))
    sizes = dict(zip(*np.unique(list(patients.values()), return_counts=True), strict=True))
    threshold = control_threshold(_values(scores.control, "reid_score"), scores.percentile)
    found: Metrics = {}
    for subject, table in (("teacher", scores.teacher), ("student_private_prompts", scores.student_private)):
        n_images = [sizes[patients[row_id]] for row_id in table["prompt_row_id"].to_pylist()]
        bands = [next(name for largest, name in SIZES if n <= largest) for n in n_images]
        ratios = risk.ratio_by_group(_values(table, "reid_score") >= threshold, bands)
        found |= {f"privacy/{subject}/reid_ratio_images_{name}": ratios[name] for _, name in SIZES if name in ratios}
    return found


def _by_finding(scores: Risk) -> Metrics:
    """The ratio of the images that show a finding, and of those that show none."""
    threshold = control_threshold(_values(scores.control, "reid_score"), scores.percentile)
    found: Metrics = {}
    for subject, table in {"control": scores.test, "teacher": scores.teacher, "student": scores.student}.items():
        flags, present = _values(table, "reid_score") >= threshold, scores.shown[subject] == 1
        groups = dict(zip(scores.findings, present.T, strict=True)) | {NO_FINDING: ~present.any(1)}
        for name, group in groups.items():
            clusters = scores.test_patients[group] if subject == "control" else np.arange(group.sum())
            found[f"privacy/{subject}/reid_ratio_finding_{name}"] = risk.clustered(flags[group], clusters)
    return found


def _learned(scores: Risk) -> Metrics:
    """Learned rate and most frequent neighbour, of as many images of each subject."""
    subjects = {
        "control": scores.test,
        "teacher": scores.teacher,
        "filtered": scores.kept,
        "student": scores.student,
    }
    n = min(len(table) for table in subjects.values())
    found: Metrics = {}
    for subject, table in subjects.items():
        # Rows stand in the order of the records that prompted them: the first n would be the first records' only.
        chosen = np.sort(numpy_generator(0, "learned", subject).permutation(len(table))[:n])
        nearest = table["nearest_row_id"].take(chosen).to_pylist()
        found[f"privacy/{subject}/learned_rate"] = risk.learned_rate(nearest, len(scores.train))
        neighbour = risk.most_frequent_neighbour(nearest)
        if neighbour is not None:
            found[f"privacy/{subject}/most_frequent_neighbour"] = neighbour.share
    return found


def _recall(scores: Risk, filter_threshold: float | None) -> Metrics:
    """Share of changed copies of training images that are flagged, perturbed ones by kind and in all.

    By the filter's network at the filter's threshold, and by the auditor at its control threshold.
    """
    thresholds = {
        "filter_network": np.inf if filter_threshold is None else filter_threshold,
        "auditor": control_threshold(_values(scores.control, "audit_score"), scores.percentile),
    }
    kinds, patients = np.asarray(scores.changed["kind"].to_pylist()), _values(scores.changed, "patient")
    groups = {f"perturbed_recall_{kind}": kinds == kind for kind in np.unique(kinds) if kind != NEAR}
    groups |= {"perturbed_recall": kinds != NEAR, "near_duplicate_recall": kinds == NEAR}
    found: Metrics = {}
    for network, threshold in thresholds.items():
        flags = _values(scores.changed, network) >= threshold
        for name, group in groups.items():
            found[f"privacy/{network}/{name}"] = risk.clustered(flags[group], patients[group])
    return found


def utility(
    test: Records,
    probabilities: Mapping[str, Float[np.ndarray, "n k"]],
    findings: Sequence[str],
    section: Evaluate,
    seed: int,
) -> Metrics:
    """AUROC on real test images of classifiers trained on each arm, and the student's retention."""
    found: Metrics = {}
    for arm, scores in probabilities.items():
        estimates = auroc.bootstrap_auroc(
            test.labels, scores, test.patients, findings, n_resamples=section.bootstrap, seed=seed
        )
        found |= {f"utility/{arm}/{auroc_name(name)}": estimate for name, estimate in estimates.items()}
    for reference in ("real", "teacher"):
        ratio = auroc.retention(
            test.labels,
            probabilities["student"],
            probabilities[reference],
            test.patients,
            n_resamples=section.bootstrap,
            seed=seed,
        )
        if ratio is not None:
            found[f"utility/student/retention_{reference}"] = ratio
    return found


def adherence(
    real_classifier: classifier.FindingsClassifier,
    synthetic: Mapping[str, Synthetic],
    findings: Sequence[str],
    section: Evaluate,
    seed: int,
) -> Metrics:
    """AUROC of a classifier trained on real images, on synthetic ones against the labels that prompts asked for."""
    found: Metrics = {}
    for subject, made in synthetic.items():
        scores = classifier.predict(real_classifier, made.images)
        clusters = np.unique(made.table["prompt"].to_pylist(), return_inverse=True)[1]
        estimates = auroc.bootstrap_auroc(
            made.labels, scores, clusters, findings, n_resamples=section.bootstrap, seed=seed
        )
        found |= {f"adherence/{subject}/{auroc_name(name)}": estimate for name, estimate in estimates.items()}
    return found


def fidelity(
    encoder: classifier.FindingsClassifier,
    test: Records,
    control: Records,
    synthetic: Mapping[str, Synthetic],
    section: Evaluate,
    seed: int,
) -> Metrics:
    """FID, KID, precision, recall, density and coverage against real test images, and MS-SSIM.

    Subject `control` is other real images: what a perfect generator would reach at that n.
    """
    reference = classifier.features(encoder, test.images)
    subjects = {"control": control.images} | {subject: made.images for subject, made in synthetic.items()}
    n = min(len(pixels) for pixels in subjects.values())
    found: Metrics = {}
    for subject, pixels in subjects.items():
        features = classifier.features(
            encoder, pixels[np.sort(numpy_generator(seed, "fid").permutation(len(pixels))[:n])]
        )
        found[f"fidelity/{subject}/fid"] = distances.fid(reference, features, seed=seed)
        found[f"fidelity/{subject}/kid"] = distances.kid(reference, features, seed=seed)
        shares = distances.manifold(reference, features, neighbours=section.neighbours)
        found |= {f"fidelity/{subject}/{name}": share for name, share in shares._asdict().items()}
    for subject, made in synthetic.items():
        found |= _diversity(subject, made, section.ssim_prompts, seed)
    return found


def _diversity(subject: str, made: Synthetic, n_prompts: int, seed: int) -> Metrics:
    rows_of: dict[str, list[int]] = {}
    for row, prompt in enumerate(made.table["prompt"].to_pylist()):
        rows_of.setdefault(prompt, []).append(row)
    several = sorted(prompt for prompt, rows in rows_of.items() if len(rows) > 1)
    chosen = numpy_generator(seed, "ssim").permutation(several)[:n_prompts]
    rows = [row for prompt in chosen for row in rows_of[prompt][:IMAGES_PER_PROMPT]]
    if not rows:
        return {}
    prompts = [made.table["prompt"][row].as_py() for row in rows]
    pairs = similarity.diversity(made.images[rows], prompts, seed=seed)._asdict()
    return {f"fidelity/{subject}/ms_ssim_{name}": value for name, value in pairs.items() if value is not None}


def auroc_name(name: str) -> str:
    """The metric's name of a finding's AUROC, or of `macro` or `micro`."""
    return f"{name}_auroc" if name in ("macro", "micro") else f"auroc_{name}"


def _share(flags: Shaped[np.ndarray, " n"]) -> Estimate:
    return risk.wilson(int(flags.sum()), len(flags))


def _values(table: pa.Table, column: str) -> np.ndarray:
    return table[column].to_numpy()
