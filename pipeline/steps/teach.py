"""teach: records of the train split become the teacher, a diffusers pipeline that stays in the building."""

from __future__ import annotations

import pyarrow as pa

from pipeline import generator, images, records
from pipeline.config import Recipe
from pipeline.seeds import row_seed
from pipeline.task import Made, Task, Work

VERSION = 3


def tasks(recipe: Recipe) -> list[Task]:
    """`teach/latents` (autoencoder, tokenizer, encoded rows) and `teach` (the pipeline)."""
    section, seeds = recipe.teach, {"seed": recipe.seed, "seed_offset": recipe.teach.seed_offset}
    latents = generator.fingerprinted_latents(section) | seeds
    config = generator.fingerprinted(section) | seeds
    return [
        Task(
            "teach/latents",
            make_latents,
            latents,
            ("ingest",),
            version=VERSION,
            resumable=True,
            about="teacher's autoencoder, tokenizer",
        ),
        Task("teach", make, config, ("teach/latents",), version=VERSION, resumable=True, about="teacher"),
    ]


def make_latents(work: Work) -> Made:
    """Encode the training images and their prompts."""
    train = records.of_split(work.inputs["ingest"], "train")
    table = train.table.select(["row_id", "prompt"]).append_column(
        "image", pa.chunked_array([images.column(train.images)])
    )
    return generator.make_latents(work, work.recipe.teach, table, _seed(work))


def make(work: Work) -> Made:
    """Train the teacher."""
    return generator.make_pipeline(work, work.recipe.teach, "teach/latents", _seed(work))


def _seed(work: Work) -> int:
    return row_seed(work.origin, "teach", work.recipe.teach.seed_offset)
