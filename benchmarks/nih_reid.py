"""Does the filter network recognise patients on real X-rays that it has never seen, and better than pixels do?

    python -m benchmarks.nih_reid ../shared/data/nih_cxr14                    # two to four minutes on one core
    python -m benchmarks.nih_reid ../shared/data/nih_cxr14 --seconds 240      # longer training is a failure

Trains the `identify.filter_network` of a recipe on 81 patients of the NIH sample with two images or more, with the
128 patients of one image as further negatives, and judges it on the other 55. Prints JSON, {"params", "metrics",
"failures"}, and ends with 1 if a floor of `floors.yaml` is missed. Not here: round trips through an autoencoder
(`round_trip_frac` has no effect), and the thresholds of the filter.
Settings are to be chosen on folds of the 81, never on the 55. These were looked at for three settings so far: plain,
warm-started from the phantom, averaged over shifts; and in part under an earlier split of the same 136 patients.
Axis letters: n images.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from jaxtyping import Float, Int, UInt8

from pipeline import config, images
from pipeline.estimate import Estimate
from pipeline.privacy import networks, training
from pipeline.privacy.risk import clustered
from pipeline.privacy.verification import weighted_auc
from pipeline.seeds import numpy_generator

HERE = Path(__file__).parent
RECIPE = HERE.parent / "jobs" / "recipes" / "nih_sample.yaml"
N_TRAIN = 81
# The published split of 81 and 55 patients is not known. Of the salts 0 to 3,999 this one was taken because its 55
# patients have 299 images too, on which pixels do about as well (AUC .677, rank-1 .478; published .676, .472). No
# network had a part in that choice.
SALT = 1980
N_RESAMPLES = 1_000
EMBED_ROWS = 64


class Cohort(NamedTuple):
    """Films and their patients."""

    images: UInt8[np.ndarray, "n h w c"]
    patients: Int[np.ndarray, " n"]


def main(data_dir: Path, recipe: config.Recipe, seconds: float | None) -> dict[str, Any]:
    """Settings, measures and missed floors; what was known before an error is kept, with the error as a failure."""
    network, augment = recipe.identify.filter_network, recipe.identify.augment
    params = {
        "network": network.model_dump(mode="json"),
        "augment": augment.model_dump(mode="json"),
        "seed": recipe.seed,
        "salt": SALT,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
    }
    result: dict[str, Any] = {"params": params, "metrics": {}, "failures": []}
    try:
        train, test = split(cohort(data_dir, recipe.ingest.image_px))
        result["metrics"] |= sizes(train, test)
        result["metrics"] |= measured(train, test, network, augment, recipe.seed)
        floors = yaml.safe_load((HERE / "floors.yaml").read_text())["nih_reid"]
        if seconds is not None:
            floors["train_cpu_s"] = {"max_value": seconds}
        result["failures"] += failures(result["metrics"], floors)
    except Exception as error:  # the JSON is written whatever happened, and says so
        result["failures"].append(f"{type(error).__name__}: {error}")
    return result


def cohort(data_dir: Path, image_px: int) -> Cohort:
    """All films of the sample, grey, in the order of its table."""
    with (data_dir / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    films = [images.decode(data_dir / row["image"], image_px, channels=1) for row in rows]
    return Cohort(np.stack(films), np.array([int(row["patient_id"]) for row in rows]))


def split(films: Cohort) -> tuple[Cohort, Cohort]:
    """Films to train on, those of single-film patients among them, and films of the patients that judge.

    The first `N_TRAIN` patients with two films or more, in the order of a hash, are trained on.
    """
    n_films = Counter(films.patients.tolist())
    several = sorted((patient for patient, n in n_films.items() if n > 1), key=_place)
    judging = np.isin(films.patients, several[N_TRAIN:])
    return (
        Cohort(films.images[~judging], films.patients[~judging]),
        Cohort(films.images[judging], films.patients[judging]),
    )


def _place(patient: int) -> str:
    return hashlib.sha256(f"{SALT}/{patient}".encode()).hexdigest()


def sizes(train: Cohort, test: Cohort) -> dict[str, int]:
    """Patients and films on both sides; single-film patients, which are negatives only, are counted apart."""
    counts = np.unique(train.patients, return_counts=True)[1]
    return {
        "n_train_patients": int((counts > 1).sum()),
        "n_train_singles": int((counts == 1).sum()),
        "n_train_images": len(train.images),
        "n_test_patients": len(np.unique(test.patients)),
        "n_test_images": len(test.images),
    }


def measured(
    train: Cohort, test: Cohort, network: config.Network, augment: config.Augment, seed: int
) -> dict[str, Any]:
    """AUC and rank-1 of the network and of pixel correlation on the same films, and what training cost."""
    wall, cpu = time.perf_counter(), time.process_time()
    model = training.fit(network, augment, *train, seed=seed)
    cost = {"train_wall_s": time.perf_counter() - wall, "train_cpu_s": time.process_time() - cpu}
    with torch.inference_mode():
        vectors = networks.embeddings(model, test.images, EMBED_ROWS)
        by_network = model.pairwise_logits(vectors, vectors).numpy()
    by_pixels = np.corrcoef(test.images.reshape(len(test.images), -1).astype(float))
    found = {
        f"{name}_{measure}": estimate
        for name, similarity in (("network", by_network), ("pixels", by_pixels))
        for measure, estimate in (
            ("auc", verification_auc(similarity, test.patients, seed)),
            ("rank1", rank1(similarity, test.patients)),
        )
    }
    gains = {
        f"{name}_above_pixels": found[f"network_{name}"].value - found[f"pixels_{name}"].value
        for name in ("auc", "rank1")
    }
    return cost | {name: estimate.as_dict() for name, estimate in found.items()} | gains


def verification_auc(similarity: Float[np.ndarray, "n n"], patients: Int[np.ndarray, " n"], seed: int) -> Estimate:
    """Chance that a same-patient pair is more similar than a different-patient pair, over all pairs of films.

    The interval is a 95 % percentile bootstrap over patients: a patient drawn k times weighs k in pairs of its own,
    and a pair of two patients weighs the product of theirs.
    Source: Field & Welsh, J. R. Stat. Soc. B 69:369 (2007), doi:10.1111/j.1467-9868.2007.00593.x.
    """
    codes = np.unique(patients, return_inverse=True)[1]
    first, second = np.triu_indices(len(codes), 1)
    scores, same = similarity[first, second], codes[first] == codes[second]

    def auc(n_drawn: Int[np.ndarray, " patients"]) -> float:
        own, cross = n_drawn[codes[first[same]]], n_drawn[codes[first[~same]]] * n_drawn[codes[second[~same]]]
        return weighted_auc(scores[same], scores[~same], own, cross)

    n_patients = codes.max() + 1
    generator = numpy_generator(seed, "nih_reid", "bootstrap")
    draws = generator.multinomial(n_patients, np.full(n_patients, 1 / n_patients), N_RESAMPLES)
    low, high = np.percentile([auc(drawn) for drawn in draws], (2.5, 97.5))
    return Estimate(auc(np.ones(n_patients, int)), float(low), float(high), len(scores))


def rank1(similarity: Float[np.ndarray, "n n"], patients: Int[np.ndarray, " n"]) -> Estimate:
    """Share of films whose most similar other film shows the same patient; 95 % interval over patients."""
    others = similarity.copy()
    np.fill_diagonal(others, -np.inf)
    return clustered(patients[others.argmax(1)] == patients, patients)


def failures(metrics: Mapping[str, Any], floors: Mapping[str, Mapping[str, float]]) -> list[str]:
    """One line for each floor that is missed."""
    lines = []
    for name, floor in floors.items():
        ((rule, bound),) = floor.items()
        got = metrics[name]["value"] if isinstance(metrics[name], Mapping) else metrics[name]
        met = {"min_value": got >= bound, "max_value": got <= bound, "exact_value": got == bound}[rule]
        if not met:
            lines.append(f"{name}: want {rule} {bound:g}, got {got:g}")
    return lines


def _arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=Path, help="folder with metadata.csv and images/")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="recipe whose identify section is measured")
    parser.add_argument("--seconds", type=float, help="most CPU seconds that training may take")
    return parser.parse_args(words)


if __name__ == "__main__":
    arguments = _arguments()
    torch.set_num_threads(1)
    outcome = main(arguments.data_dir, config.read(arguments.recipe), arguments.seconds)
    print(json.dumps(outcome, indent=2))
    sys.exit(bool(outcome["failures"]))
