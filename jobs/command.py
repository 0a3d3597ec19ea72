"""The command line of every job: RECIPE --store DIR [--dry-run] [--section.key value ...].

Nothing heavy is imported before the recipe is valid, so `--help` and a mistake answer at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple, NoReturn

import tyro

from pipeline.config import ConfigError, Recipe, read

NOT_CLEARED = 3


class Options(NamedTuple):
    """What the command line says beside overrides of the recipe."""

    recipe: Recipe
    store: str
    dry_run: bool


def options(arguments: list[str], program: str) -> Options:
    """The recipe with its overrides, the store, and whether only to plan.

    Raises: ConfigError for a bad recipe; SystemExit from the parser for a bad option.
    """
    if not arguments or arguments[0].startswith("-"):
        print(f"usage: python -m {program} RECIPE.yaml --store DIR [--dry-run] [--section.key value ...]")
        print("Every key of the recipe is an option; `RECIPE.yaml --help` lists them with their meaning.")
        raise SystemExit(0 if arguments in (["-h"], ["--help"]) else 2)
    recipe, rest = read(Path(arguments[0])), arguments[1:]
    dry_run = "--dry-run" in rest
    rest = [argument for argument in rest if argument != "--dry-run"]
    store, rest = _store(rest)
    changed = tyro.cli(Recipe, default=recipe, args=rest, prog=f"python -m {program} {arguments[0]} --store DIR")
    return Options(Recipe.model_validate(changed.model_dump()), store, dry_run)


def main(word: str | None) -> None:
    """Run one word's tasks, or all; exit 0, 2 for a mistake of the user, 3 if the gate withholds the package."""
    try:
        chosen = options(sys.argv[1:], f"jobs.{word or 'all'}")
        from jobs.run import run

        sys.exit(run(chosen.recipe, chosen.store, word, dry_run=chosen.dry_run))
    except ConfigError as error:
        fail(str(error))


def fail(message: str) -> NoReturn:
    """End with the message on stderr."""
    print(message, file=sys.stderr)
    raise SystemExit(2)


def _store(arguments: list[str]) -> tuple[str, list[str]]:
    for position, argument in enumerate(arguments):
        name, given, value = argument.partition("=")
        if name != "--store":
            continue
        end = position + (1 if given else 2)
        value = value if given else " ".join(arguments[position + 1 : end])
        if value and not value.startswith("--"):
            return value, arguments[:position] + arguments[end:]
    if {"-h", "--help"} & set(arguments):
        return "", arguments
    fail("--store: want a folder or s3:// address, got nothing — say where artifacts go, e.g. --store runs/demo")
