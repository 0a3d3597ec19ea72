"""judge: the network that a study chooses by, so that the gate's auditor stays untouched by the choice.

Whatever number sixteen settings are compared by, the best of them looks better by it than it is. Were it the
auditor's, nobody could speak for the gate afterwards. So a study trains a third network, scores with it what trials
measure, and leaves the auditor for the end. Not here: what is measured with the scores (`trial`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline import config, fit, records
from pipeline.artifact import Artifact
from pipeline.config import Recipe
from pipeline.privacy import matching, networks
from pipeline.records import Records
from pipeline.seeds import row_seed
from pipeline.steps import identify, score
from pipeline.task import Made, Task, Work
from pipeline.workers import Searched, match_rows

VERSION = 1
NETWORK = "judge"
COLUMN = "judge_score"
"""0-1, higher = more re-identifiable: the study's own column, as `reid_score` is the filter's."""
ARCHITECTURE_OF, PATIENTS_OF = "auditor", "filter_network"
"""There are patients for two networks only; those of control and test are the ones by whom everything is measured. So
the judge takes one thing of each of the other two, beside a seed of its own: from the filter's network it differs in
architecture, which decides what a network is blind to, and from the auditor in all that it was taught. With the
auditor's patients and architecture only a seed would stand between the two, and what was chosen by the one would not
be news to the other."""
NAMES = ("tune/judge", "tune/gallery", "tune/unseen", "tune/scores")


def tasks(recipe: Recipe) -> list[Task]:
    """The judge, its gallery, and its scores of unseen patients and of the samples."""
    compared = recipe.score.model_dump(include={"batch_size", "gallery_block"})
    posed = recipe.score.model_dump(include={"batch_size", "poses"})
    trained = identify.settings(recipe, network_of(recipe))

    def task(name: str, make: Any, told: dict[str, Any], inputs: tuple[str, ...], about: str, **more: Any) -> Task:
        return Task(f"tune/{name}", make, told, inputs, version=VERSION, about=about, **more)

    learned_from = identify.SPLIT_OF[PATIENTS_OF]
    return [
        task("judge", make, trained, ("ingest",), f"the study's own network, trained on split {learned_from}"),
        task("gallery", make_gallery, {"score": posed}, ("ingest", "tune/judge"), "real images, embedded by it"),
        task("unseen", make_unseen, {"score": compared}, ("ingest", "tune/gallery"), "its scores of unseen patients"),
        task(
            "scores",
            make_scores,
            {"score": compared},
            ("tune/gallery", "sample/0"),
            "its scores of the samples",
            slots=2,
            resumable=True,
        ),
    ]


def network_of(recipe: Recipe) -> config.Network:
    """The judge's architecture and training."""
    return getattr(recipe.identify, ARCHITECTURE_OF)


def make(work: Work) -> Made:
    """Train the judge and verify it on the patients of the network whose patients it did not learn from."""
    network = network_of(work.recipe)
    seed = row_seed(work.origin, "tune", NETWORK, network.seed_offset)
    learned_from, verified_on = (identify.SPLIT_OF[name] for name in (PATIENTS_OF, ARCHITECTURE_OF))
    return identify.trained(
        work, network, seed, learned_from, verified_on, work.draft.key.name, "a study that chooses by it"
    )


def make_gallery(work: Work) -> Made:
    """Embed all training images by the judge, as `score/gallery` has them by the other two networks."""
    train = records.of_split(work.inputs["ingest"], "train")
    section, group = work.recipe.score, fit.Group(cpus=work.recipe.score.cpus_per_actor)
    fit.small(_gallery, train, work.inputs["tune/judge"], section, out=work.draft.folder, group=group)
    return Made({}, len(train.images))


def _gallery(train: Records, trained: Artifact, section: config.Score, out: Path) -> None:
    model = networks.load(trained.local() / "network")
    model.save(out / NETWORK)
    patients = train.table["patient_id"].to_pylist()
    films = matching.Gallery.of(model, train.images, patients, train.row_ids, section.batch_size, section.poses)
    films.save(out / f"{NETWORK}_embeddings.parquet")


def make_unseen(work: Work) -> Made:
    """Score the images of control and test patients, whom the gallery does not hold."""
    return match_rows(work, work.draft.write_source(score.unseen(work.inputs["ingest"])), searched(work))


def make_scores(work: Work) -> Made:
    """Score the samples."""
    return match_rows(work, work.inputs["sample/0"].uri_of("rows"), searched(work))


def searched(work: Work) -> dict[str, Searched]:
    """The judge's column, and what it comes from."""
    return {COLUMN: Searched(work.inputs["tune/gallery"], NETWORK)}
