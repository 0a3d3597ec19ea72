"""Does a release deserve the word? The attacks of a finished store, for a provider before a release.

    python -m benchmarks.attacks jobs/recipes/phantom.yaml --store runs/demo [--guesses 20] [--section.key value ...]

The recipe and its overrides are those of the run: with another seed or key file there is no such run in the store.

Tries to trace released images, order and membership to private rows with everything that is public (program,
recipe, seed) and with other guesses of the seed; the store's secret is the positive control: with it, all must be
found. Takes for every released image the film of the hospital that it resembles most, and counts how often that is of
the patient behind it. Counts released rows that fewer than k patients share, and repeats what the run itself
measured: who is told to be a member, how far the judges see, and what the gate said. Prints JSON, and a table on
stderr. Reads `private/`: it is for the custodian.
"""

# pyarrow.compute makes its functions at import, out of pyright's sight.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import UInt8
from rich.console import Console
from rich.table import Table

from jobs.command import fail, options
from jobs.run import EXPLAINED
from pipeline import images, measures, package, plan, records, secret
from pipeline.artifact import Artifact, ArtifactError, Store
from pipeline.cohorts import splits
from pipeline.config import ConfigError, Recipe
from pipeline.estimate import Estimate, recalls
from pipeline.generators import autoencoder, folder
from pipeline.privacy import matching, membership, networks, risk, tracing
from pipeline.privacy.eigenfilms import EigenFilms
from pipeline.scan import rows_below_k
from pipeline.seeds import Origin, numpy_generator, row_seed
from pipeline.workers import NETWORKS

EIGENFILMS = 128
MOST_FILMS = 20_000
MOST_ALIKE = 20
N_GUESSES = 20
"""Seeds of the first 2^32 that are tried beside the published one."""


class Truth(NamedTuple):
    """What only the custodian knows of a store."""

    recipe: Recipe
    made: Mapping[str, Artifact]
    rows: list[str]
    """Names of all sampled rows, in the order of the plan."""
    kept: np.ndarray
    """Position in `rows` of each image of the kept set, in its order."""
    released: UInt8[np.ndarray, "n h w c"]
    latents: torch.Tensor
    """Of the released images, by the released autoencoder."""


def main(recipe: Recipe, store: Store, n_guesses: int = N_GUESSES) -> dict[str, Any]:
    """Every attack with its control; raises ArtifactError if the store lacks this recipe's finished run."""
    lines = plan.plan(recipe, store)
    missing = [f"{line.task.name} ({line.why})" for line in lines if line.artifact is None]
    if missing:
        raise ArtifactError(
            f"{store.uri}: want a finished run of this recipe by this version of the program, got {len(missing)} of "
            f"{len(lines)} artifacts missing, such as {missing[0]} — run it with this --store first"
        )
    made = {line.task.name: line.artifact for line in lines if line.artifact is not None}
    truth = _truth(recipe, made, store)
    own, published = secret.run_origin(recipe, store), recipe.seed
    drawn = numpy_generator(0, "guesses").integers(0, 2**32, n_guesses).tolist()
    guesses: dict[str, list[Origin]] = {"secret": [own], "published seed": [published], "other seeds": drawn}
    attacks = {
        name: {who: _most(attack(truth, guess) for guess in origins) for who, origins in guesses.items()}
        for name, attack in (("noise", _by_noise), ("order", _by_order), ("split", _by_split))
    }
    metrics = json.loads((made["evaluate"].local() / "metrics.json").read_text())
    return {
        "chance": {"noise": 1 / len(truth.rows), "order": 1 / len(truth.kept), "split": _train_share(truth)},
        "attacks": attacks,
        "content": {name: found.as_dict() for name, found in _by_content(truth)._asdict().items()},
        "rows_below_k": rows_below_k(recipe, made, made["release/candidate"].local() / "package"),
        "opinions": _by_opinions(truth),
        "likeness": _by_likeness(truth),
        "membership": {key: value for key, value in metrics.items() if measures.is_membership(key)},
        "judges": {network: _worst(metrics, network) for network in ("filter_network", "auditor")},
        "verdicts": made["release"].facts["verdicts"],
        "cleared": made["release"].facts["cleared"],
    }


def _truth(recipe: Recipe, made: Mapping[str, Artifact], store: Store) -> Truth:
    rounds = [made[name] for name in sorted(made) if name.startswith("sample/")]
    rows = pa.concat_tables([artifact.table("plan", ["row_id"]) for artifact in rounds])["row_id"].to_pylist()
    (decided,) = [made[name] for name in made if name == f"filter/{len(rounds) - 1}"]
    chosen = set(decided.table(columns=["row_id"], where=pc.field("keep"))["row_id"].to_pylist())
    kept = [position for position, name in enumerate(rows) if name in chosen]
    released = made["release/candidate"].local() / "package"
    with folder.quiet():
        vae = autoencoder.load(released / "student" / "vae")
    pixels = package.read_images(released / "dataset")
    latents = autoencoder.encode(vae, images.to_torch(pixels))
    return Truth(recipe, made, rows, _laid_out(rows, kept, secret.run_origin(recipe, store)), pixels, latents)


def _laid_out(rows: Sequence[str], kept: Sequence[int], origin: Origin) -> np.ndarray:
    """The kept rows in the order that an origin gives them."""
    return np.array(kept)[np.argsort([row_seed(origin, "kept", rows[position]) for position in kept])]


def _by_noise(truth: Truth, origin: Origin) -> Estimate:
    """Released images against the noise of every row, seen through the released autoencoder."""
    seeds = [row_seed(origin, "sample", name) for name in truth.rows]
    latents = truth.latents.double().numpy()
    return tracing.traced(latents, seeds, truth.kept[: len(latents)]).first


def _by_order(truth: Truth, origin: Origin) -> Estimate:
    return tracing.order_agreement(_laid_out(truth.rows, np.sort(truth.kept).tolist(), origin), truth.kept)


def _by_split(truth: Truth, origin: Origin) -> Estimate:
    """From a list of patients with their numbers of images: who was trained on?"""
    ingest = truth.recipe.ingest
    everybody = truth.made["ingest"].table("records", ["patient_id", "patient_images", "split"])
    n_images = dict(zip(everybody["patient_id"].to_pylist(), everybody["patient_images"].to_pylist(), strict=True))
    names = _names(truth)
    patients = [names[patient] for patient, n in n_images.items() for _ in range(n)]
    guess = splits.assign(patients, ingest.splits, origin, {})
    train = pc.equal(everybody["split"], "train")
    members = {names[patient] for patient in everybody.filter(train)["patient_id"].to_pylist()}
    return tracing.split_agreement({name for name, split in guess.items() if split == "train"}, members)


def _by_content(truth: Truth) -> tracing.Recognised:
    """Released images against films of everybody, as an insider has them."""
    everybody = truth.made["ingest"].table("records", ["row_id", "patient_id"])
    patient_of = dict(zip(everybody["row_id"].to_pylist(), everybody["patient_id"].to_pylist(), strict=True))
    rounds = [artifact for name, artifact in truth.made.items() if name.startswith("sample/")]
    plans = pa.concat_tables([artifact.table("plan", ["row_id", "prompt_row_id"]) for artifact in rounds])
    asked = dict(zip(plans["row_id"].to_pylist(), plans["prompt_row_id"].to_pylist(), strict=True))
    behind = [patient_of[asked[truth.rows[position]]] for position in truth.kept[: len(truth.released)]]
    generator = numpy_generator(0, "films")
    chosen = np.sort(generator.permutation(len(everybody))[:MOST_FILMS])
    films = records.images_of(truth.made["ingest"], everybody["row_id"].take(chosen))
    there = networks.standardised(images.to_torch(films))
    eigenfilms = EigenFilms.of(there, EIGENFILMS)
    released = eigenfilms(networks.standardised(images.to_torch(truth.released)))
    patients = everybody["patient_id"].take(chosen).to_numpy()
    return tracing.recognised(
        released.numpy(), eigenfilms(there).numpy(), patients, np.array(behind), numpy_generator(0, "dealt")
    )


def _by_opinions(truth: Truth) -> dict[str, dict[str, dict[str, Any]]]:
    """Re-identification ratios by what each network's features say alone and by what places say alone: the larger of
    both, which is what the gate judges, has more false alarms, and might hide behind them.
    """
    gallery = truth.made["score/gallery"].local()
    unseen = {split: records.of_split(truth.made["ingest"], split) for split in ("control", "test")}
    pixels = {split: films.images for split, films in unseen.items()} | _synthetic(truth)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name in NETWORKS:
        model, real = networks.load(gallery / name), matching.Gallery.load(gallery / f"{name}_embeddings.parquet")
        score = truth.recipe.score
        embedded = {who: networks.embeddings(model, some, score.batch_size) for who, some in pixels.items()}
        for opinion in ("features", "places") if model.eigenfilms.n_components else ():
            judge = _alone(model, opinion)
            logits = {
                who: matching.best_matches(judge, some, real, score.gallery_block).logit.numpy()
                for who, some in embedded.items()
            }
            found[f"{name}, {opinion} alone"] = {
                who: risk.ratio_over_control(
                    values,
                    logits["control"],
                    truth.recipe.evaluate.control_percentile,
                    control_clusters=unseen["control"].patients,
                    clusters=unseen["test"].patients if who == "test" else None,
                ).as_dict()
                for who, values in logits.items()
                if who != "control"
            }
    return found


def _by_likeness(truth: Truth) -> dict[str, dict[str, dict[str, Any]]]:
    """AUC of the mean likeness of a person's film to the few images that are most like it, by each network.

    What is balanced and judged is nearness among eigenfilms; an eye of another kind should see no more than that one.
    """
    people = truth.made["evaluate/gaps"].table(columns=["row_id", "part", "stratum"]).sort_by("row_id")
    films = records.images_of(truth.made["ingest"], people["row_id"])
    parts, strata = people["part"].to_numpy(), people["stratum"].to_numpy()
    synthetic, n_rows = _synthetic(truth), truth.recipe.score.batch_size
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name in NETWORKS:
        model = networks.load(truth.made["score/gallery"].local() / name)
        own = networks.embeddings(model, films, n_rows)
        found[name] = {}
        for who, pixels in synthetic.items():
            there = networks.embeddings(model, pixels, n_rows)
            with torch.inference_mode():
                blocks = [
                    model.pairwise_logits(some, there).topk(min(MOST_ALIKE, len(there)), 1)
                    for some in own.split(n_rows)
                ]
            likeness = torch.cat([block.values.mean(1) for block in blocks]).numpy()
            sides = [(likeness[parts == part], strata[parts == part]) for part in ("member", "stranger")]
            (members, of_members), (strangers, of_strangers) = sides
            auc = membership.membership_auc(members, strangers, of_members, of_strangers, 0)
            found[name][who] = membership.folded(auc).as_dict()
    return found


def _synthetic(truth: Truth) -> dict[str, UInt8[np.ndarray, "n h w c"]]:
    student = truth.made["evaluate/student_images"].table(
        "rows", ["image"], pc.starts_with(pc.field("row_id"), "kept-")
    )
    return {"released": truth.released, "student": images.array(student["image"])}


def _alone(model: networks.SiameseNetwork, opinion: str) -> networks.SiameseNetwork:
    """The network that says but one of the two things that make up its logit."""
    alone = copy.deepcopy(model)
    if opinion == "features":
        alone.eigenfilms = EigenFilms(model.settings["image_px"], 0)
        return alone
    with torch.no_grad():
        alone.head.weight.zero_()
        alone.head.bias.fill_(-2.0)  # below any cosine
        alone.eigenfilms.line = torch.tensor([0.0, 1.0, -1.0])
    return alone


def _names(truth: Truth) -> dict[str, str]:
    """Pseudonym -> the patient's name in the hospital's table."""
    ingest = truth.made["ingest"]
    hashed = ingest.table("records", ["row_id", "patient_id"])
    named = ingest.table("identities", ["row_id", "patient"])
    assert hashed["row_id"].equals(named["row_id"])
    return dict(zip(hashed["patient_id"].to_pylist(), named["patient"].to_pylist(), strict=True))


def _train_share(truth: Truth) -> float:
    return truth.recipe.ingest.splits.train


def _most(found: Any) -> dict[str, Any]:
    """The most successful of several guesses."""
    return max(found, key=lambda estimate: estimate.value).as_dict()


def _worst(metrics: Mapping[str, Any], network: str) -> dict[str, Any]:
    estimates = {key: Estimate.from_dict(value) for key, value in metrics.items()}
    at_demanded = {kind: series[1.0] for kind, series in recalls(estimates, network).items() if 1.0 in series}
    return {kind: found.as_dict() for kind, found in sorted(at_demanded.items(), key=lambda item: item[1].value)}


def _table(result: Mapping[str, Any]) -> Table:
    table = Table("attack", "who guesses", "found", "by chance", box=None, padding=(0, 2))
    for column in table.columns:
        column.no_wrap = True
    for name, by_origin in result["attacks"].items():
        for who, found in by_origin.items():
            share = f"{found['value']:.2%} [{found['low']:.2%}, {found['high']:.2%}], n {found['n']:,}"
            table.add_row(name, who, share, f"{result['chance'][name]:.2%}")
    content = result["content"]
    for name in ("first", "surest"):
        found, by_chance = content[name], content["by_chance"]
        share = f"{found['value']:.2%} [{found['low']:.2%}, {found['high']:.2%}], n {found['n']:,}"
        table.add_row(f"content, {name}", "all films", share, f"{by_chance['value']:.2%}")
    for key, found in result["membership"].items():
        if key.endswith("_auc") and found["value"] is not None:
            table.add_row(key, "", f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]", "0.50")
    for judge, by_set in result["likeness"].items():
        for who, found in by_set.items():
            told = f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
            table.add_row(f"likeness to {who}", f"by the {judge}", told, "0.50")
    for judge, ratios in result["opinions"].items():
        for who in ("released", "student"):
            found, strangers = ratios[who], ratios["test"]
            share = f"{found['value']:.2%} [{found['low']:.2%}, {found['high']:.2%}], n {found['n']:,}"
            table.add_row(f"{judge}", who, share, f"{strangers['value']:.2%}")
    table.add_row("rows below k", "", f"{result['rows_below_k']:,}", "")
    return table


def _number(text: str) -> int:
    if not text.isdecimal():
        raise ConfigError(f"--guesses: want a number, got {text} — such as {N_GUESSES}")
    return int(text)


if __name__ == "__main__":
    try:
        given = options(sys.argv[1:], "benchmarks.attacks", ("--guesses",))
        outcome = main(given.recipe, Store(given.store), _number(given.more.get("--guesses", str(N_GUESSES))))
    except EXPLAINED as error:
        fail(str(error))
    Console(stderr=True, width=120).print(_table(outcome))
    print(json.dumps(outcome, indent=1))
