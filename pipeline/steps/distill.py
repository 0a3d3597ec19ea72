"""distill: kept synthetic images become the student. Opens `releasable/` and nothing else."""

from __future__ import annotations

from pipeline import generator
from pipeline.config import Recipe
from pipeline.seeds import row_seed
from pipeline.task import Made, Task, Work

VERSION = 2


def tasks(recipe: Recipe) -> list[Task]:
    """`distill/latents` (the student's own autoencoder and tokenizer) and `distill` (the pipeline)."""
    section, seed = recipe.distill, recipe.seed + recipe.distill.seed_offset
    latents = generator.fingerprinted_latents(section) | {"seed": seed}
    config = generator.fingerprinted(section) | {"seed": seed}
    return [
        Task(
            "distill/latents",
            make_latents,
            latents,
            ("filter",),
            "releasable",
            VERSION,
            slots=2,
            resumable=True,
            about="student's autoencoder, tokenizer",
        ),
        Task("distill", make, config, ("distill/latents",), "releasable", VERSION, resumable=True, about="student"),
    ]


def make_latents(work: Work) -> Made:
    """Encode the kept images and their shared prompts."""
    kept = work.inputs["filter"].table("kept", ["row_id", "prompt", "image"])
    return generator.make_latents(work, work.recipe.distill, kept, _seed(work.recipe))


def make(work: Work) -> Made:
    """Train the student."""
    return generator.make_pipeline(work, work.recipe.distill, "distill/latents", _seed(work.recipe))


def _seed(recipe: Recipe) -> int:
    return row_seed(recipe.seed + recipe.distill.seed_offset, "distill")
