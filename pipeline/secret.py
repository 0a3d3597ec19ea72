"""The store's secret, and what may be known without it.

Splits, caps, sample seeds, the order of the kept set, pseudonyms: whatever a released thing owes to private rows by
way of chance or order is derived from one secret of 256 bits in `private/` (or from `ingest.key_file`), with a domain
for each use. The recipe's seed may be published: without the secret, nobody can recompute a draw or verify a guess.

`cohort_name` stands for the cohort in fingerprints. It is keyed too, as a fingerprint that chains to the table's
plain hash would let somebody who knows the table but for one patient try it both ways. It is told in
`releasable/cohorts/`, so that who may not read `private/` finds the artifacts of the run.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress

import pyarrow.fs as pafs

from pipeline.artifact import ArtifactError, Store
from pipeline.cohorts import table
from pipeline.config import Ingest, Recipe, canonical
from pipeline.seeds import Origin, subkey
from pipeline.storage import is_denied

PATH = "private/secret.key"
MIN_BYTES = 32
FEWEST_BYTES = 8
"""Different bytes of a key: 32 hexadecimal digits of chance have 14."""
_HOW_TO = f"(umask 077; head -c {MIN_BYTES} /dev/urandom > secret.key)"
ELSEWHERE = {"actors", "root", "key_file"}
"""Keys of `ingest` that say where and how, not what."""
UNBORN = "unborn"
"""The name of a cohort whose store has no secret yet: no artifact has it."""


def of(recipe: Recipe, store: Store) -> bytes:
    """The secret of this store, made at the first call, or that of the recipe's key file.

    Raises: ArtifactError if the key file is missing, too short, open to others or no chance, or the store's secret is
        damaged.
    """
    file = recipe.ingest.key_file
    return store.secret(PATH) if file is None else _of_file(recipe.ingest)


def run_origin(recipe: Recipe, store: Store) -> bytes:
    """The origin of every draw of a run that private rows decide or are decided by."""
    return subkey(of(recipe, store), "run", recipe.seed)


def origin_if_known(recipe: Recipe, store: Store) -> Origin:
    """The same before there is a secret: then the recipe's seed, to count by; nothing may be made from it."""
    found = _readable(recipe, store)
    return subkey(found, "run", recipe.seed) if found else recipe.seed


def require_key_file(ingest: Ingest) -> None:
    """Raises: ArtifactError if the recipe names a key file that cannot be the secret (see `of`)."""
    if ingest.key_file is not None:
        _of_file(ingest)


def cohort_name(recipe: Recipe, store: Store) -> str:
    """What stands for the cohort in fingerprints: its content, under the secret.

    Who may not read the secret takes the name that was told the last time this recipe's cohort was at hand.
    Raises: ArtifactError if the secret may not be read and no name was told; CohortError if the table is not there.
    """
    secret = _readable(recipe, store)
    if secret is None:
        return _told(recipe, store)
    if not secret:
        return UNBORN
    source = None
    if recipe.ingest.root is not None:
        source = table.source_digest(recipe.ingest.table, recipe.ingest.root)
    return subkey(secret, "cohort", source).hex()[:16]


def tell(recipe: Recipe, store: Store, name: str) -> None:
    """Leave the cohort's name for those who may not read `private/`."""
    if _read(recipe, store) != name:
        store.put(_path(recipe), json.dumps({"cohort": name}).encode())


def _readable(recipe: Recipe, store: Store) -> bytes | None:
    """The secret; empty if the store has none yet, none if this user may not read it."""
    file = recipe.ingest.key_file
    if file is not None and not file.is_file() and _read(recipe, store) is not None:
        return None  # a role that has no key file, on a store that told the name
    try:
        return store.secret(PATH, create=False) if file is None else _of_file(recipe.ingest)
    except OSError as error:
        if is_denied(error):
            return None
        raise


def _of_file(ingest: Ingest) -> bytes:
    file = ingest.key_file
    assert file is not None  # the caller asked
    if not file.is_file():
        raise ArtifactError(f"ingest.key_file: want a file, got nothing at {file} — make one or leave it out")
    content = file.read_bytes()
    if len(content) < MIN_BYTES:
        raise ArtifactError(
            f"ingest.key_file: want {MIN_BYTES} bytes of chance or more, got {len(content)} in {file} — {_HOW_TO}"
        )
    if os.name == "posix" and file.stat().st_mode & 0o007:
        raise ArtifactError(
            f"ingest.key_file: want a file that nobody else may read, got {file} readable or writable by "
            f"everybody — chmod 600 {file.name}, and a new key if others had it"
        )
    if len(set(content)) < FEWEST_BYTES or (_is_text(content) and len(content.split()) > 1):
        raise ArtifactError(f"ingest.key_file: want bytes of chance, got what a person or no one chose — {_HOW_TO}")
    return hashlib.blake2b(content, digest_size=32).digest()


def _is_text(content: bytes) -> bool:
    return content.isascii() and content.decode("ascii").replace("\n", " ").isprintable()


def _told(recipe: Recipe, store: Store) -> str:
    name = _read(recipe, store)
    if name is None:
        raise ArtifactError(
            f"store {store.uri}: want {PATH}, or the cohort's name in {_path(recipe)}, got neither: this user may "
            "not read the one, and the other was not written — run it as who may, once, with this recipe"
        )
    return name


def _read(recipe: Recipe, store: Store) -> str | None:
    path = f"{store.root}/{_path(recipe)}"
    if store.fs.get_file_info(path).type != pafs.FileType.File:
        return None
    with store.fs.open_input_stream(path) as stream, suppress(json.JSONDecodeError):
        return json.loads(stream.read())["cohort"]
    return None


def _path(recipe: Recipe) -> str:
    """Where the name of a recipe's cohort is told; the path tells settings, no data."""
    settings = canonical({"ingest": recipe.ingest.model_dump(mode="json", exclude=ELSEWHERE), "seed": recipe.seed})
    return f"releasable/cohorts/{hashlib.sha256(settings.encode()).hexdigest()[:16]}.json"
