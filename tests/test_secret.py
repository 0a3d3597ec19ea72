"""One secret of the store decides what may not be guessed; no fingerprint lets a guess of the data be verified."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from pipeline import plan, secret
from pipeline.artifact import ArtifactError, Store
from pipeline.config import Recipe, changed
from pipeline.seeds import numpy_generator, row_seed, subkey

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))


def with_key(path: Path, content: bytes) -> Recipe:
    path.write_bytes(content)
    path.chmod(0o600)
    return changed(Recipe(), {"ingest.key_file": path})


def fingerprints(recipe: Recipe, store: Store) -> dict[str, str]:
    return {line.task.name: line.key.fingerprint for line in plan.plan(recipe, store)}


def test_the_secret_is_made_once_is_for_this_user_alone_and_does_not_stand_in_the_recipes_seed(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path / "store")
    made = secret.of(Recipe(), store)
    assert len(made) == 32 and secret.of(changed(Recipe(), {"seed": 1}), Store(tmp_path / "store")) == made
    assert (tmp_path / "store" / secret.PATH).stat().st_mode & 0o077 == 0
    assert secret.of(Recipe(), Store(tmp_path / "other")) != made


def test_a_plan_before_the_first_run_makes_no_secret(tmp_path: Path) -> None:
    plan.plan(Recipe(), Store(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_another_secret_and_another_use_give_other_draws_and_the_same_ones_the_same() -> None:
    assert row_seed(KEY, "split", "a") == row_seed(KEY, "split", "a")
    drawn = {row_seed(origin, use, "a") for origin in (KEY, OTHER, 0) for use in ("split", "cap")}
    assert len(drawn) == 6
    assert numpy_generator(KEY, "a").random() == numpy_generator(KEY, "a").random()
    assert numpy_generator(KEY, "a").random() != numpy_generator(OTHER, "a").random()


def test_what_is_derived_for_one_use_tells_nothing_of_another() -> None:
    assert (
        len({subkey(KEY, "patient"), subkey(KEY, "cohort"), subkey(KEY, "run", 0), subkey(KEY, "run", 1), KEY}) == 5
    )


def test_the_same_key_file_gives_the_same_fingerprints_in_two_stores_and_another_one_others(tmp_path: Path) -> None:
    recipe, other = with_key(tmp_path / "key", KEY), with_key(tmp_path / "other", OTHER)
    first, second = (fingerprints(recipe, Store(tmp_path / name)) for name in "ab")
    assert first == second
    foreign = fingerprints(other, Store(tmp_path / "a"))
    assert all(first[name] != foreign[name] for name in first)


def test_a_fingerprint_that_may_be_read_verifies_no_guess_of_the_table(tmp_path: Path) -> None:
    """Whoever knows table and recipe lacks the secret alone: as many names as secrets."""
    recipe = with_key(tmp_path / "key", KEY)
    names = {
        secret.cohort_name(with_key(tmp_path / "k", bytes(range(i, i + 32))), Store(tmp_path / "s"))
        for i in range(1, 10)
    }
    assert len(names) == 9 and secret.cohort_name(recipe, Store(tmp_path / "s")) not in names


@pytest.mark.parametrize(("content", "got"), [(b"short", "got 5"), (b"", "got 0")])
def test_a_key_file_without_enough_chance_is_refused_with_a_way_to_make_one(
    tmp_path: Path, content: bytes, got: str
) -> None:
    with pytest.raises(ArtifactError, match=rf"key_file: want 32 bytes.*{got}.*urandom"):
        secret.of(with_key(tmp_path / "key", content), Store(tmp_path / "store"))


@pytest.mark.parametrize(
    "content", [bytes(32), b"\n" * 40, b"k" * 64, b"the name of my first dog was Bello, a poodle", b"0123" * 16]
)
def test_a_key_that_somebody_could_have_chosen_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"key_file: want bytes of chance.*umask 077.*urandom"):
        secret.of(with_key(tmp_path / "key", content), Store(tmp_path / "store"))


@pytest.mark.parametrize(
    "content", [KEY, b"9f86d081884c7d659a2feaa0c55ad015\n", b"n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg="]
)
def test_chance_in_bytes_in_hexadecimal_digits_and_in_base64_is_a_key(tmp_path: Path, content: bytes) -> None:
    assert len(secret.of(with_key(tmp_path / "key", content), Store(tmp_path / "store"))) == 32


@pytest.mark.parametrize("mode", [0o644, 0o606, 0o666])
def test_a_key_file_that_everybody_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    recipe = with_key(tmp_path / "key", KEY)
    (tmp_path / "key").chmod(mode)
    with pytest.raises(ArtifactError, match=r"key_file: want a file that nobody else may read.*chmod 600 key"):
        secret.of(recipe, Store(tmp_path / "store"))


def test_a_damaged_secret_is_refused_before_anything_is_made_from_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    secret.of(Recipe(), store)
    (tmp_path / secret.PATH).write_bytes(b"half")
    with pytest.raises(ArtifactError, match=r"secret\.key: want 32 bytes, got 4"):
        plan.plan(Recipe(), Store(tmp_path))


def test_a_damaged_secret_is_not_passed_over_where_the_cohorts_name_was_told(tmp_path: Path) -> None:
    store = Store(tmp_path)
    secret.of(Recipe(), store)
    secret.tell(Recipe(), store, secret.cohort_name(Recipe(), store))
    (tmp_path / secret.PATH).write_bytes(b"half")
    with pytest.raises(ArtifactError, match=r"secret\.key: want 32 bytes, got 4"):
        plan.plan(Recipe(), Store(tmp_path))


def test_who_may_not_read_the_secret_takes_the_cohorts_name_that_was_told(tmp_path: Path) -> None:
    recipe = with_key(tmp_path / "key", KEY)
    store = Store(tmp_path / "store")
    wanted = fingerprints(recipe, store)
    (tmp_path / "key").unlink()
    with pytest.raises(ArtifactError, match="key_file: want a file, got nothing"):
        plan.plan(recipe, store)
    with_key(tmp_path / "key", KEY)
    secret.tell(recipe, store, secret.cohort_name(recipe, store))
    (tmp_path / "key").unlink()
    assert fingerprints(recipe, store) == wanted
    (told,) = (tmp_path / "store" / "releasable" / "cohorts").iterdir()
    assert json.loads(told.read_text()).keys() == {"cohort"}


DRAWS = {"numpy_generator", "torch_generator", "row_seed", "subkey"}
BY_SEED = {
    "secret.py",  # the secret's own use of it
    "steps/distill.py",  # the student learns from what is released
    "proposals.py",  # which settings a study tries
    "cohorts/phantom_anatomy.py",  # the drawn cohort is public
    "cohorts/phantom_findings.py",
    "cohorts/phantom_reports.py",
    "cohorts/phantom.py",
    "cohorts/phantom_drawing.py",
}


def test_no_step_draws_by_the_recipes_seed_or_by_a_constant_where_private_rows_decide() -> None:
    """Who is drawn for membership, planted, calibrated with, sampled for ...: all of it comes from the secret."""
    found = set()
    for path in (Path(secret.__file__).parent).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in DRAWS:
                origin = ast.unparse(node.args[0]) if node.args else ""
                if re.search(r"recipe\.seed|\bb['\"]", origin):
                    found.add(path.relative_to(Path(secret.__file__).parent).as_posix())
    assert found <= BY_SEED, found - BY_SEED
