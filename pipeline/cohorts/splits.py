"""Who belongs to which split, and which images of a patient stay.

Both are functions of an origin and of identities, never of the order of rows, so a cohort that is listed again is
split the same way; where the origin is a secret, a list of patients does not tell who is where. Not here: sizes and
shares, which are the recipe's.

Axis letters: n images.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool

from pipeline import config, seeds

STRATA = (2, 4, 13, 30, 100)
"""Images per patient at which a new stratum begins; what leaks most is what many images of one patient teach."""


class SplitError(ValueError):
    """The cohort has too few patients for a split; the message says how many it has and needs."""


def assign(
    patients: Sequence[str], splits: config.Splits, origin: seeds.Origin, min_patients: Mapping[config.Split, int]
) -> dict[str, str]:
    """The split of each patient, from one entry per image.

    Patients stand in line by stratum (most images first) and, within one, by a keyed hash; the line is dealt out so
    that among the first t patients each split has less than one more or less than its share of t. So each split's
    total is within 1 of its share, and its part of any stratum within 3, as dealing begins at a drawn place.
    Raises: SplitError if a split gets fewer than `min_patients`.
    """
    n_images = Counter(patients)
    strata = dict(zip(n_images, np.digitize(list(n_images.values()), STRATA), strict=True))
    line = sorted(n_images, key=lambda patient: (-strata[patient], seeds.row_seed(origin, "split", patient), patient))
    dealt = _dealt(splits.shares(), len(line))
    # Whoever alone has most images is first in line whatever the origin, so that where dealing begins is drawn too.
    start = seeds.row_seed(origin, "deal") % len(line)
    split_of = dict(zip(line, dealt[start:] + dealt[:start], strict=True))
    n_patients = Counter(split_of.values())
    for name, least in min_patients.items():
        if n_patients[name] < least:
            share = splits.shares()[name]
            needed = f"about {math.ceil((least + 1) / share)} patients in the cohort" if share else "a share above 0"
            raise SplitError(
                f"split {name}: want {least} patients, got {n_patients[name]} ({share:g} of {len(line)}) — it needs "
                f"{needed}; give more patients, raise ingest.splits.{name} or lower ingest.min_patients.{name}"
            )
    return split_of


def _dealt(shares: Mapping[str, float], n: int) -> list[str]:
    """Which split the 1st, 2nd, ... n-th in line goes to, so that every split is always within 1 of its share.

    Source: Tijdeman, The chairman assignment problem, Discrete Mathematics 32 (1980) 323-330: of the splits that may
    take one more without running ahead, the one takes it that would be the first to fall behind.
    """
    shares = {name: share for name, share in shares.items() if share > 0}
    slack = 1 - 1 / (2 * len(shares) - 2) if len(shares) > 1 else 1.0
    taken = dict.fromkeys(shares, 0)
    dealt = []
    for t in range(1, n + 1):
        behind = {name: share * t - taken[name] for name, share in shares.items()}
        free = [name for name in shares if behind[name] >= 1 - slack - 1e-9]
        choice = min(free, key=lambda name: (slack - behind[name]) / shares[name])
        taken[choice] += 1
        dealt.append(choice)
    return dealt


def within_cap(
    row_ids: Sequence[str],
    patients: Sequence[str],
    split_of: Mapping[str, str],
    caps: Mapping[config.Split, int],
    origin: seeds.Origin,
) -> Bool[np.ndarray, " n"]:
    """Which images stay where a split caps the images of a patient: chosen by hash, not the first in the table."""
    cap_of: dict[str, int] = {**caps}
    positions: dict[str, list[int]] = defaultdict(list)
    for i, patient in enumerate(patients):
        positions[patient].append(i)
    stays = np.ones(len(row_ids), bool)
    for patient, own in positions.items():
        hashed = sorted(own, key=lambda i: seeds.row_seed(origin, "cap", row_ids[i]))
        stays[hashed[cap_of.get(split_of[patient], len(own)) :]] = False
    return stays
