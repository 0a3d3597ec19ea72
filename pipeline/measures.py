"""From arms to metrics: keys `group/subject/name`, each with value, interval and n (design section 8).

Joins what `privacy` and `utility` compute to the arms of a run; knows neither Ray nor files.
"""

# pyarrow.compute makes its functions at import, out of pyright's sight.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int8, Int64, UInt8

from pipeline.cohorts.splits import STRATA
from pipeline.config import Evaluate
from pipeline.estimate import Estimate, is_small, recall_name, too_small
from pipeline.privacy import membership as tests
from pipeline.privacy import risk, rules
from pipeline.privacy.leaning import MANY_FILMS
from pipeline.records import Records, Synthetic
from pipeline.seeds import Origin, numpy_generator
from pipeline.utility import auroc, classifier, similarity
from pipeline.utility import fidelity as distances

ARMS = ("real", "teacher", "filtered", "student", "student_large")
RATIOS = {
    "filter_network": ("reid_score", "reid_ratio", "excess"),
    "auditor": ("audit_score", "audit_ratio", "audit_excess"),
}
SIZES = ((1, "1"), (3, "2-3"), (12, "4-12"), (29, "13-29"), (np.inf, "30+"))
IMAGES_PER_PROMPT = 4
NO_FINDING = "none"
PLANTED = "planted-"
DISTANCE, STUDENT_DISTANCE = "distance", "student_distance"
"""Columns of `gaps`: from a film to the nearest few kept images, and to the nearest few of the student's."""
EXACT_COPY, NEAR_COPY = f"{PLANTED}exact-", f"{PLANTED}near-"
"""What the names of planted copies begin with."""
ATTACKS = {
    "teacher/membership": ("membership_teacher", "loss"),
    "student/membership": ("membership_student", "loss"),
    "filtered/gap": ("gaps", "filter_network"),
    "filtered/gap_audit": ("gaps", "auditor"),
    "filtered/nearness": ("gaps", DISTANCE),
    "student/nearness": ("gaps", STUDENT_DISTANCE),
}
"""What members are told by: the table of `probes` and its column, in which a member has the lower value."""
POSITIVE_CONTROL = "teacher/membership"
OF_MANY = ("student/membership", "filtered/nearness", "student/nearness")
"""Attacks on people with many films for themselves, whom a figure of all hides: they are few, and learned best."""
MANY_STRATUM, FEWEST_MANY = int(np.digitize(MANY_FILMS, STRATA)), 10
"""Fewer of them say nothing."""
STRICT_PERCENTILE = 99.0
"""Of control scores: what only one in a hundred strangers' images reaches."""

Metrics = dict[str, Estimate]
Encoder = Callable[[UInt8[np.ndarray, "n h w c"]], Float[np.ndarray, "n d"]]
"""Images to the features that likeness is measured by."""


class Risk(NamedTuple):
    """Scores of every subject: tables with row_id, reid_score, nearest_row_id, margin, audit_score."""

    control: pa.Table
    """Unseen patients who calibrate the thresholds."""
    control_patients: Int64[np.ndarray, " n"]
    """Patients of `control`, in the order of row_id."""
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
    """Changed copies of training images: kind, factor of the demanded strength, patient, and a score per network."""
    planted: pa.Table
    """Copies of training images that were scored among the student's."""
    baseline: Mapping[str, Float[np.ndarray, " n"]]
    """Scores of random pairs, by network."""
    train: pa.Table
    """row_id and patient_id of the gallery."""
    shown: Mapping[str, Int8[np.ndarray, "n k"]]
    """By subject (control, teacher, student): labels of a film, or those that a synthetic image's prompt asks for."""
    findings: Sequence[str]
    percentile: float
    k: int
    """A figure about fewer patients than this is not told."""


def privacy(scores: Risk, filter_threshold: float | None) -> Metrics:
    """Ratios by both networks with control, baseline and excess; what was learned by heart; how far the judges see.

    Every ratio's interval holds the error of the control percentile that it counts from.
    """
    return (
        _ratios(scores)
        | _of_nobody(scores)
        | _by_images(scores)
        | _by_finding(scores)
        | _learned(scores)
        | _recall(scores, filter_threshold)
        | _planted(scores)
        | _near_copies(scores)
    )


def _ratios(scores: Risk) -> Metrics:
    """By both networks; and the kept set's excess at a strict percentile, for near copies that slip by."""
    found: Metrics = {}
    subjects = {
        "teacher": scores.teacher,
        "filtered": scores.kept,
        "student": scores.student,
        "student_private_prompts": scores.student_private,
    }
    patients: dict[str, Any] = {"control_clusters": scores.control_patients, "test_clusters": scores.test_patients}
    for column, ratio, excess in RATIOS.values():
        control, test = _values(scores.control, column), _values(scores.test, column)
        found[f"privacy/control/{ratio}"] = _ratio(scores, column, test, scores.test_patients)
        for subject, table in subjects.items():
            judged = _values(table, column)
            found[f"privacy/{subject}/{ratio}"] = _ratio(scores, column, judged)
            found[f"privacy/{subject}/{excess}"] = risk.excess_over_control(
                judged, test, control, scores.percentile, **patients
            )
    for network, baseline in scores.baseline.items():
        column, ratio, _ = RATIOS[network]
        found[f"privacy/baseline/{ratio}"] = _ratio(scores, column, baseline)
    column, _, excess = RATIOS["auditor"]
    subject = {"filtered": scores.kept, "student": scores.student}
    for name, table in subject.items():
        found[f"privacy/{name}/{excess}_strict"] = risk.excess_over_control(
            _values(table, column),
            _values(scores.test, column),
            _values(scores.control, column),
            STRICT_PERCENTILE,
            **patients,
        )
    return found


def _of_nobody(scores: Risk) -> Metrics:
    """How often images resemble decoys, whom nobody was trained on, at the threshold of the filter's network.

    A picture of nobody that looks like everybody is flagged against any people. A teacher that met films moved by two
    pixels was flagged 35 %, and 31 % against decoys: it had learned the borders of moved films, not patients.
    """
    subjects = {"control": scores.test, "teacher": scores.teacher, "filtered": scores.kept, "student": scores.student}
    return {
        f"privacy/{subject}/decoy_ratio": _ratio(
            scores,
            "reid_score",
            _values(table, "decoy_score"),
            scores.test_patients if subject == "control" else None,
        )
        for subject, table in subjects.items()
    }


def _ratio(
    scores: Risk, column: str, judged: Float[np.ndarray, " n"], clusters: Int64[np.ndarray, " n"] | None = None
) -> Estimate:
    """Share of images over the control threshold of a column, with that threshold's own error."""
    return risk.ratio_over_control(
        judged,
        _values(scores.control, column),
        scores.percentile,
        clusters=clusters,
        control_clusters=scores.control_patients,
    )


def _by_images(scores: Risk) -> Metrics:
    """The ratio by how many real images the patient behind the prompt has."""
    patients = _patient_of(scores.train)
    sizes = Counter(patients.values())
    band_of = {patient: next(name for largest, name in SIZES if n <= largest) for patient, n in sizes.items()}
    hidden = too_small(Counter(band_of.values()), scores.k)
    found: Metrics = {}
    for subject, table in (("teacher", scores.teacher), ("student_private_prompts", scores.student_private)):
        bands = np.array([band_of[patients[row_id]] for row_id in table["prompt_row_id"].to_pylist()])
        for _, name in SIZES:
            if name in bands and name not in hidden:
                ratio = _ratio(scores, "reid_score", _values(table, "reid_score")[bands == name])
                found[f"privacy/{subject}/reid_ratio_images_{name}"] = ratio
    return found


def _by_finding(scores: Risk) -> Metrics:
    """The ratio of the images that show a finding, and of those that show none."""
    found: Metrics = {}
    for subject, table in {"control": scores.test, "teacher": scores.teacher, "student": scores.student}.items():
        labels, judged = scores.shown[subject], _values(table, "reid_score")
        groups = dict(zip(scores.findings, (labels == 1).T, strict=True)) | {NO_FINDING: rules.none_shown(labels)}
        for name, group in groups.items():
            clusters = scores.test_patients[group] if subject == "control" else None
            found[f"privacy/{subject}/reid_ratio_finding_{name}"] = _ratio(
                scores, "reid_score", judged[group], clusters
            )
    return found


def _learned(scores: Risk) -> Metrics:
    """Learned rate and most frequent neighbour, of as many images of each subject.

    The rate is of patients, whose number the shares of the splits decide: the number of images would tell who was
    drawn to train.
    """
    subjects = {
        "control": scores.test,
        "teacher": scores.teacher,
        "filtered": scores.kept,
        "student": scores.student,
    }
    n = min(len(table) for table in subjects.values())
    patient_of = _patient_of(scores.train)
    n_patients = len(set(patient_of.values()))
    found: Metrics = {}
    for subject, table in subjects.items():
        # Rows stand in the order of the records that prompted them: the first n would be the first records' only.
        chosen = np.sort(numpy_generator(0, "learned", subject).permutation(len(table))[:n])
        nearest = table["nearest_row_id"].take(chosen).to_pylist()
        found[f"privacy/{subject}/learned_rate"] = risk.learned_rate(
            [patient_of[row_id] for row_id in nearest], n_patients
        )
        neighbour = risk.most_frequent_neighbour(nearest)
        if neighbour is not None:
            found[f"privacy/{subject}/most_frequent_neighbour"] = neighbour.share
    return found


def _recall(scores: Risk, filter_threshold: float | None) -> Metrics:
    """Share of changed copies of training images that are flagged, by kind of change and by strength.

    By the filter's network at the filter's threshold, which is what drops images; and by the auditor at its control
    threshold, with that one's error, as it stands for all unseen patients'. A copy without a score was not found.
    """
    limit = np.inf if filter_threshold is None else filter_threshold
    kinds, factors = _values(scores.changed, "kind"), _values(scores.changed, "factor")
    patients = _values(scores.changed, "patient")
    found: Metrics = {}
    by_filter, by_auditor = (_found(_values(scores.changed, network)) for network in RATIOS)
    for kind in np.unique(kinds):
        for factor in np.unique(factors[kinds == kind]):
            group, name = (kinds == kind) & (factors == factor), recall_name(kind, factor)
            found[f"privacy/filter_network/{name}"] = risk.clustered(by_filter[group] >= limit, patients[group])
            found[f"privacy/auditor/{name}"] = _ratio(scores, "audit_score", by_auditor[group], patients[group])
    return found


def _found(scores: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Scores of copies that are to be found: one without a score was not."""
    return np.where(np.isnan(scores), -np.inf, scores)


def _planted(scores: Risk) -> Metrics:
    """Share of the planted copies that each network flags, where they were judged among the student's images."""
    found: Metrics = {}
    names = scores.planted["row_id"]
    for network, (column, _, _) in RATIOS.items():
        for kind, mark in (("exact", EXACT_COPY), ("near", NEAR_COPY)):
            rows = pc.starts_with(names, mark).to_numpy(zero_copy_only=False)
            judged = _found(_values(scores.planted, column)[rows])
            found[f"privacy/{network}/planted_{kind}"] = _ratio(scores, column, judged)
    return found


def _near_copies(scores: Risk) -> Metrics:
    """Share of the student's images that nearly equal a real one pixel by pixel, and of strangers' films that do."""
    tables = {"student": (scores.student, scores.student_private), "control": (scores.control, scores.test)}
    flags = {name: np.concatenate([_values(some, "pixel_copy") for some in both]) for name, both in tables.items()}
    shares = {name: risk.wilson(int(found.sum()), len(found)) for name, found in flags.items()}
    found = {f"privacy/{name}/near_copies": share for name, share in shares.items()}
    return found | {"privacy/student/near_copies_excess": risk.difference(shares["student"], shares["control"])}


def membership(attacks: Mapping[str, pa.Table], origin: Origin) -> Metrics:
    """What an attacker learns of who was trained on: AUC by loss, gaps and nearness, with null and positive control.

    `attacks` are the tables of `probes`: `membership_teacher` and `membership_student` hold losses, `gaps` how near
    the closest kept image is, and how far the nearest few are. The null compares two groups of strangers.
    """
    found: Metrics = {}
    for attack, (source, column) in ATTACKS.items():
        table, name = attacks[source], f"privacy/{attack}"
        if column not in table.column_names:
            continue
        found |= _told_apart(table, column, name, origin, is_folded=attack != POSITIVE_CONTROL)
        if source == "gaps":
            # Control patients are the decoys, if there are any: a gap around one looks like a gap around a member.
            found[f"{name}_control_auc"] = _auc(table, column, "control", "stranger", origin)
            found[f"{name}_among_control_auc"] = _auc(table, column, "member", "control", origin)
        else:
            found[f"{name}_null_auc"] = _auc(table, column, "control", "stranger", origin)
        if attack in OF_MANY:
            found |= _of_many(table, column, name, origin)
    return found


def _of_many(table: pa.Table, column: str, name: str, origin: Origin) -> Metrics:
    """The AUC among people with many films; none if no member has, one that was not measured if too few have."""
    many = table.filter(pc.greater_equal(table["stratum"], MANY_STRATUM))
    n_members = len(many.filter(pc.equal(many["part"], "member")))
    if not n_members:
        return {}
    told = many if n_members >= FEWEST_MANY else many.slice(0, 0)
    return {f"{name}_many_auc": _auc(told, column, "member", "stranger", origin)}


def is_membership(key: str) -> bool:
    """Whether a metric says how well members are told from strangers."""
    return any(key.startswith(f"privacy/{attack}") for attack in ATTACKS)


def _told_apart(table: pa.Table, column: str, name: str, origin: Origin, *, is_folded: bool) -> Metrics:
    """A member's value is the lower one: a smaller loss, no kept image near, or a smaller distance to several.

    Where it is the higher one, an attacker who has members of his own sees that: both figures read it that way then.
    A positive control is not folded: it is read as the attack reads it, and backwards it did not work.
    """
    members, strangers, *strata = _compared(table, column, "member", "stranger")
    auc = tests.membership_auc(members, strangers, strata[0], strata[1], origin)
    sign = -1 if auc.value < tests.CHANCE else 1
    attack = tests.true_positive_rate(
        sign * members, sign * strangers, strata[0], strata[1], generator=numpy_generator(origin, name, "halves")
    )
    return {
        f"{name}_auc": tests.folded(auc) if is_folded else auc,
        f"{name}_tpr": attack.true_positive_rate,
        f"{name}_fpr": attack.false_positive_rate,
    }


def _auc(table: pa.Table, column: str, first: str, second: str, origin: Origin) -> Estimate:
    return tests.folded(tests.membership_auc(*_compared(table, column, first, second), origin))


def _compared(
    table: pa.Table, column: str, first: str, second: str
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " s"], Int64[np.ndarray, " m"], Int64[np.ndarray, " s"]]:
    """Scores of two parts, higher for who seems a member, and their strata."""
    parts = [table.filter(pc.equal(table["part"], part)) for part in (first, second)]
    scores = [-_values(part, column) for part in parts]
    strata = [_values(part, "stratum") for part in parts]
    return scores[0], scores[1], strata[0], strata[1]


def utility(
    test: Records,
    probabilities: Mapping[str, Float[np.ndarray, "n k"]],
    findings: Sequence[str],
    section: Evaluate,
    seed: Origin,
) -> Metrics:
    """AUROC on real test images of classifiers trained on each arm, and the student's retention."""
    found: Metrics = {}
    for arm, scores in probabilities.items():
        estimates = auroc.bootstrap_auroc(
            test.labels, scores, test.patients, findings, n_resamples=section.bootstrap, seed=seed
        )
        found |= {f"utility/{arm}/{auroc_name(name)}": estimate for name, estimate in estimates.items()}
    for reference in ("real", "teacher"):
        for name, above_chance in (("retention", False), ("retention_above_chance", True)):
            ratio = auroc.retention(
                test.labels,
                probabilities["student"],
                probabilities[reference],
                test.patients,
                n_resamples=section.bootstrap,
                seed=seed,
                above_chance=above_chance,
            )
            if ratio is not None:
                found[f"utility/student/{name}_{reference}"] = ratio
    return found


def adherence(
    judge: classifier.FindingsClassifier,
    synthetic: Mapping[str, Synthetic],
    findings: Sequence[str],
    section: Evaluate,
    seed: Origin,
) -> Metrics:
    """AUROC of a classifier on synthetic images against the labels that prompts asked for.

    `judge` learned from real images of other patients than the teacher did: the teacher's own would praise it.
    """
    found: Metrics = {}
    for subject, made in synthetic.items():
        scores = classifier.predict(judge, made.images)
        clusters = np.unique(made.table["prompt"].to_pylist(), return_inverse=True)[1]
        estimates = auroc.bootstrap_auroc(
            made.labels, scores, clusters, findings, n_resamples=section.bootstrap, seed=seed
        )
        found |= {f"adherence/{subject}/{auroc_name(name)}": estimate for name, estimate in estimates.items()}
    return found


def fidelity(
    features_of: Encoder,
    test: Records,
    control: Records,
    synthetic: Mapping[str, Synthetic],
    section: Evaluate,
    seed: Origin,
) -> Metrics:
    """FID, KID, precision, recall, density and coverage against real test images, and MS-SSIM.

    Subject `control` is other real images: what a perfect generator would reach at that n.
    """
    reference = features_of(test.images)
    subjects = {"control": control.images} | {subject: made.images for subject, made in synthetic.items()}
    n = min(len(pixels) for pixels in subjects.values())
    found: Metrics = {}
    for subject, pixels in subjects.items():
        features = features_of(pixels[np.sort(numpy_generator(seed, "fid").permutation(len(pixels))[:n])])
        found[f"fidelity/{subject}/fid"] = distances.fid(reference, features, seed=seed)
        found[f"fidelity/{subject}/kid"] = distances.kid(reference, features, seed=seed)
        shares = distances.manifold(reference, features, neighbours=section.neighbours)
        found |= {f"fidelity/{subject}/{name}": share for name, share in shares._asdict().items()}
        found[f"fidelity/{subject}/coverage_relative"] = distances.relative_coverage(
            shares.coverage, found["fidelity/control/coverage"], n
        )
    for subject, made in synthetic.items():
        found |= _diversity(subject, made, section.ssim_prompts, seed)
    return found


def _diversity(subject: str, made: Synthetic, n_prompts: int, seed: Origin) -> Metrics:
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


def without_rare(test: Records, k: int) -> Records:
    """The records with findings unknown that fewer than k patients have or are known to lack: neither a mean over
    findings nor what is left of all images may tell of these.
    """
    rare = [_is_rare(column, test.patients, k) for column in test.labels.T]
    return test._replace(labels=np.where(np.array(rare, bool), np.int8(-1), test.labels))


def without_small_cells(metrics: Metrics, test: Records, findings: Sequence[str], k: int) -> Metrics:
    """The metrics without those that are about fewer than k people.

    A finding that fewer than k test patients have, or that fewer than k are known to lack, is left out by name: its n
    and its figures would tell of single persons. So is what those show who show none.
    """
    columns = dict(zip(findings, test.labels.T, strict=True)) | {NO_FINDING: rules.none_shown(test.labels)}
    rare = {name for name, column in columns.items() if _is_rare(column, test.patients, k)}
    return {key: found for key, found in metrics.items() if _finding_of(key) not in rare and not is_small(found.n, k)}


def _is_rare(labels: Int8[np.ndarray, " n"], patients: Int64[np.ndarray, " n"], k: int) -> bool:
    return any(len(np.unique(patients[labels == value])) < k for value in (0, 1))


def _finding_of(key: str) -> str:
    name = key.rsplit("/", 1)[1]
    return name.removeprefix("reid_ratio_finding_").removeprefix("auroc_")


def _patient_of(train: pa.Table) -> dict[str, str]:
    return dict(zip(train["row_id"].to_pylist(), train["patient_id"].to_pylist(), strict=True))


def _values(table: pa.Table, column: str) -> np.ndarray:
    return table[column].to_numpy(zero_copy_only=False)
