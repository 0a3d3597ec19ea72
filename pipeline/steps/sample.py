"""sample: the teacher makes a large synthetic set, round by round, from the training prompts."""

from __future__ import annotations

from pipeline import records
from pipeline.config import Recipe
from pipeline.generators import prompts
from pipeline.task import Made, Task, Work
from pipeline.workers import sample_plan

VERSION = 2


def round_tasks(recipe: Recipe, number: int) -> list[Task]:
    """`sample/<number>`: a `plan` of prompts and seeds, and its images in `rows`."""
    outcome = {"want_images", "max_rounds", "class_quota"}  # decide how many rounds, not what is in one
    place = {"block_rows", "actors", "min_actors", "cpus_per_actor", "gpus_per_actor", "market"}
    section = recipe.sample.model_dump(mode="json", exclude=outcome | place)
    short_of = (f"filter/{number - 1}",) if number and recipe.sample.class_quota else ()
    return [
        Task(
            f"sample/{number}",
            make,
            {"sample": section, "seed": recipe.seed, "round": number},
            ("ingest", "teach", *short_of),
            version=VERSION,
            slots=recipe.sample.actors,
            resumable=True,
            about="synthetic images",
        )
    ]


def make(work: Work) -> Made:
    """Plan the round's prompts and stream them through the sampling actors."""
    ingest, sample = work.inputs["ingest"], work.recipe.sample
    number = int(work.draft.key.name.split("/")[1])
    before = work.inputs.get(f"filter/{number - 1}")
    short = before.facts["shortfall"] if before else {}
    findings = ingest.facts["findings"]
    plan = prompts.plan(
        records.asked_for(ingest),
        sample.n_images,
        number,
        work.origin,
        short={findings.index(name): n for name, n in short.items()},
    )
    return sample_plan(work, plan, work.inputs["teach"], sample)
