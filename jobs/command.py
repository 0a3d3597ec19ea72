"""The command line of every job: RECIPE --store DIR [--dry-run] [--section.key value ...].

Nothing heavy is imported before the recipe is valid, so `--help` and a mistake answer at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import tyro

from pipeline.config import ConfigError, Recipe, read

MISTAKE = 2
NOT_CLEARED = 3
INTERRUPTED = 130
TERMINATED = 143


class Options(NamedTuple):
    """What the command line says beside overrides of the recipe."""

    recipe: Recipe
    store: str
    dry_run: bool
    more: Mapping[str, str]
    """Values of the options that this program alone has, if given."""


def options(arguments: list[str], program: str, more: Sequence[str] = ()) -> Options:
    """The recipe with its overrides, the store, whether only to plan, and `more` options that take a value.

    Raises: ConfigError for a bad recipe; SystemExit from the parser for a bad option.
    """
    if not arguments or arguments[0].startswith("-"):
        also = "".join(f" [{name} FILE]" for name in more)
        print(f"usage: python -m {program} RECIPE.yaml --store DIR{also} [--dry-run] [--section.key value ...]")
        print("Every key of the recipe is an option; `RECIPE.yaml --help` lists them with their meaning.")
        raise SystemExit(0 if arguments in (["-h"], ["--help"]) else 2)
    recipe, rest = read(Path(arguments[0])), arguments[1:]
    dry_run = "--dry-run" in rest
    rest = [argument for argument in rest if argument != "--dry-run"]
    store, rest = _store(rest)
    given: dict[str, str] = {}
    for name in more:
        value, rest = taken(name, rest)
        if value:
            given[name] = value
        elif name in rest:
            fail(f"{name}: want a file or a mapping, got nothing — say which, or leave it out")
    changed = tyro.cli(Recipe, default=recipe, args=rest, prog=f"python -m {program} {arguments[0]} --store DIR")
    return Options(Recipe.model_validate(changed.model_dump()), store, dry_run, given)


def main(word: str | None) -> None:
    """Run one word's tasks, or all; exit 0, 2 for a mistake, 3 if the gate withholds the package, 130 for Ctrl-C, 143
    for SIGTERM.
    """
    # What still runs in a thread when the run ends must not start another Ray. Read when Ray is imported.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    try:
        chosen = options(sys.argv[1:], f"jobs.{word or 'all'}")
        from jobs.run import run

        status = run(chosen.recipe, chosen.store, word, dry_run=chosen.dry_run)
    except ConfigError as error:
        fail(str(error))
    except KeyboardInterrupt:
        status = _stopped(INTERRUPTED)
    except SystemExit as request:
        if request.code != signal.SIGTERM:
            raise
        status = _stopped(TERMINATED)  # Ray makes a SystemExit of the SIGTERM that `ray job stop` sends
    except Exception:  # ours or a library's own: told in full, and then ended as every run is
        traceback.print_exc()
        status = 1
    _end(status)


def _stopped(status: int) -> int:
    for again in (signal.SIGINT, signal.SIGTERM):
        signal.signal(again, signal.SIG_IGN)
    print("stopped: what is finished is kept — run the same command again to go on", file=sys.stderr)
    return status


def fail(message: str) -> NoReturn:
    """End with the message on stderr."""
    print(message, file=sys.stderr)
    raise SystemExit(MISTAKE)


def _end(status: int) -> NoReturn:
    """End now. A plain exit would wait for threads that wait for Ray, and `ray.shutdown` beside them may crash."""
    sys.stdout.flush()
    sys.stderr.flush()
    if "ray" in sys.modules:
        import psutil  # comes with Ray

        # Left alone, workers and agents live up to a minute. Ray's own processes must not notice how they go, or they
        # end too, and Ray in this process then ends it with another status.
        for process in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                process.suspend()
        for process in reversed(psutil.Process().children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                process.kill()
        if "pipeline.cluster" in sys.modules:
            sys.modules["pipeline.cluster"].forget_spilled()
    os._exit(status)


def taken(option: str, arguments: list[str]) -> tuple[str, list[str]]:
    """The value of an option (empty if it is not given), and the arguments without both."""
    for position, argument in enumerate(arguments):
        name, given, value = argument.partition("=")
        if name != option:
            continue
        end = position + (1 if given else 2)
        value = value if given else " ".join(arguments[position + 1 : end])
        if value and not value.startswith("--"):
            return value, arguments[:position] + arguments[end:]
    return "", arguments


def _store(arguments: list[str]) -> tuple[str, list[str]]:
    store, rest = taken("--store", arguments)
    if store or {"-h", "--help"} & set(arguments):
        return store, rest
    fail("--store: want a folder or s3:// address, got nothing — say where artifacts go, e.g. --store runs/demo")
