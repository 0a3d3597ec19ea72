"""How well a score tells people whose images trained a model (members) from people whose images did not (strangers).

An attacker has a film of someone and what was released, and asks whether this person was in the training data. The
higher the score, the more like a member; one film a person, as films of one person are not independent. People with
many films are easier to find and are rarer among strangers, so that strangers count as often as makes their strata
(bands of the number of films) match the members'. Not here: how scores are made. Axis letters: m members,
s strangers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy.stats import binom

from pipeline.estimate import Estimate
from pipeline.privacy.risk import widened, wilson
from pipeline.privacy.verification import weighted_auc
from pipeline.seeds import Origin, numpy_generator

Strata = Shaped[np.ndarray, " _"] | Sequence[str]
CHANCE = 0.5  # AUC of guessing


class Comparable(NamedTuple):
    """Who has a stratum that the other side has too."""

    members: Bool[np.ndarray, " m"]
    strangers: Bool[np.ndarray, " s"]
    n_left_out: int
    """People of either side whose stratum the other side lacks; no attack on them is measured."""


class Attack(NamedTuple):
    """What an attacker reaches at a threshold that was set on other strangers; NaN if too few strangers set it, or
    somebody has no score."""

    true_positive_rate: Estimate
    """Share of members at or over the threshold; n members. Its interval is for the threshold that exactly the wanted
    share of all strangers reaches."""
    false_positive_rate: Estimate
    """Share of the strangers who did not set it, weighted as the members' strata; n of these strangers."""


def comparable(member_strata: Strata, stranger_strata: Strata) -> Comparable:
    """Who can be compared: people of strata that both sides have."""
    members, strangers = np.asarray(member_strata), np.asarray(stranger_strata)
    both = np.intersect1d(members, strangers)
    kept = np.isin(members, both), np.isin(strangers, both)
    return Comparable(*kept, int(sum((~side).sum() for side in kept)))


def membership_auc(
    members: Float[np.ndarray, " m"],
    strangers: Float[np.ndarray, " s"],
    member_strata: Strata,
    stranger_strata: Strata,
    seed: Origin,
    n_resamples: int = 1_000,
) -> Estimate:
    """Chance that a member scores higher than a stranger of the members' strata, a tie counting half; n people.

    .5 is guessing; under .5 see `folded`. People of strata that one side lacks are left out (`comparable` counts
    them). The interval holds percentiles of a bootstrap over people of both sides, strata weighted anew in each;
    where all pairs are in order, which a bootstrap takes for certain, it is Wilson's for the smaller side.
    Simulated with three strata it holds the truth in 94-96 of 100 for 300 and 200 people and for 60 and 40, in 90-94
    for 20 and 20.
    NaN in [0, 1] with n = 0 if nobody can be compared, or somebody has no score: whoever is hardest to tell apart may
    be the one without.
    Source: Mann & Whitney, Ann. Math. Stat. 18:50 (1947); weights: direct standardisation; bootstrap: Efron &
    Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.
    """
    kept = comparable(member_strata, stranger_strata)
    members, strangers = members[kept.members], strangers[kept.strangers]
    n_members, n_strangers = len(members), len(strangers)
    if n_members == 0 or _lacks_scores(members, strangers):
        return wilson(0, 0)
    strata = _codes(np.asarray(member_strata)[kept.members], np.asarray(stranger_strata)[kept.strangers])
    generator = numpy_generator(seed, "membership")
    counts = [(np.ones(n_members), np.ones(n_strangers))] + [
        (_drawn(n_members, generator), _drawn(n_strangers, generator)) for _ in range(n_resamples)
    ]
    areas = [weighted_auc(members, strangers, *_matched(*strata, *drawn)) for drawn in counts]
    auc = _exact_at_its_ends(areas[0])
    low, high = (_exact_at_its_ends(end) for end in np.nanpercentile(areas[1:], (2.5, 97.5)).tolist())
    smaller = min(n_members, n_strangers)
    if auc in (0.0, 1.0):
        low, high = wilson(int(auc) * smaller, smaller)[1:3]
    return Estimate(auc, low, high, n_members + n_strangers)


def folded(auc: Estimate) -> Estimate:
    """The AUC of an attacker who reads the score the better way round: one under .5 is as good as 1 - AUC.

    An interval that holds .5 is cut there, as no attack is worse than guessing. The value of a useless score lies
    over .5 by chance; its interval says so.
    """
    if math.isnan(auc.value):
        return Estimate(auc.value, CHANCE, 1.0, 0)
    value, ends = max(auc.value, 1 - auc.value), (auc.low, 1 - auc.low, auc.high, 1 - auc.high)
    nearest = CHANCE if auc.low <= CHANCE <= auc.high else min(end for end in ends if end >= CHANCE)
    return Estimate(value, nearest, max(ends), auc.n)


def true_positive_rate(
    members: Float[np.ndarray, " m"],
    strangers: Float[np.ndarray, " s"],
    member_strata: Strata,
    stranger_strata: Strata,
    *,
    generator: np.random.Generator,
    false_positive: float = 0.05,
) -> Attack:
    """Members found at the lowest threshold that at most `false_positive` of a random half of the strangers reach.

    The other half says how many strangers are accused at it. The members' interval carries the error of a threshold
    that few strangers set, as `risk.ratio_over_control` does; the strangers' interval is about the threshold as it
    was set. Both take the effective number of weighted strangers. Simulated,
    the members' interval holds the rate at exactly 5 % in 95-97 of 100 for 300 and 200 people, in 99 for 60 and 40.
    Source: Carlini et al., Membership Inference Attacks From First Principles, arXiv 2112.03570, section III;
    effective n: Kish, Survey Sampling (1965), section 11.7.
    """
    order = generator.permutation(len(strangers))
    halves = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
    of_member, of_stranger = np.asarray(member_strata), np.asarray(stranger_strata)
    kept = np.isin(of_member, np.intersect1d(of_stranger[halves[0]], of_stranger[halves[1]]))
    setting, telling = (half[np.isin(of_stranger[half], of_member[kept])] for half in halves)
    unmeasured = wilson(0, 0)
    if not kept.any() or len(setting) * false_positive < 1 or _lacks_scores(members, strangers):
        return Attack(unmeasured, unmeasured)
    weights = [_weights(of_member[kept], of_stranger[half]) for half in (setting, telling)]
    limit = _threshold(strangers[setting], weights[0], false_positive)
    found, *at_ends = (
        wilson(int(flagged.sum()), len(flagged))
        for end in (limit, *_threshold_ends(strangers[setting], weights[0], false_positive))
        for flagged in [members[kept] >= end]
    )
    fewest, most = (end.value for end in at_ends)
    found = widened(found, max(0.0, found.value - fewest), max(0.0, most - found.value), floor=0.0)
    return Attack(found, _weighted_share(strangers[telling] >= limit, weights[1]))


def _lacks_scores(members: Float[np.ndarray, " m"], strangers: Float[np.ndarray, " s"]) -> bool:
    return bool(np.isnan(members).any() or np.isnan(strangers).any())


def _exact_at_its_ends(area: float) -> float:
    """The area without what the rounding of weights adds to 0 and to 1."""
    return float(round(area)) if math.isclose(area, round(area), abs_tol=1e-9) else area


def _codes(
    members: Shaped[np.ndarray, " m"], strangers: Shaped[np.ndarray, " s"]
) -> tuple[Shaped[np.ndarray, " m"], Shaped[np.ndarray, " s"]]:
    """Strata as numbers from 0."""
    codes = np.unique(np.concatenate([members, strangers]), return_inverse=True)[1]
    return codes[: len(members)], codes[len(members) :]


def _drawn(n: int, generator: np.random.Generator) -> Float[np.ndarray, " n"]:
    """How often a resample drew each of n people."""
    return generator.multinomial(n, np.full(n, 1 / n)).astype(np.float64)


def _matched(
    member_codes: Shaped[np.ndarray, " m"],
    stranger_codes: Shaped[np.ndarray, " s"],
    member_counts: Float[np.ndarray, " m"],
    stranger_counts: Float[np.ndarray, " s"],
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " s"]]:
    """Weights with which each stratum weighs the same on both sides; one that a side lacks weighs nothing."""
    n_strata = 1 + max(member_codes.max(), stranger_codes.max())
    wanted = np.bincount(member_codes, member_counts, n_strata)
    there = np.bincount(stranger_codes, stranger_counts, n_strata)
    each = np.divide(wanted, there, out=np.zeros(n_strata), where=there > 0)
    return member_counts * (there > 0)[member_codes], stranger_counts * each[stranger_codes]


def _weights(members: Shaped[np.ndarray, " m"], strangers: Shaped[np.ndarray, " s"]) -> Float[np.ndarray, " s"]:
    """Weights of strangers of the members' strata, 1 on average."""
    member_codes, stranger_codes = _codes(members, strangers)
    weights = _matched(member_codes, stranger_codes, np.ones(len(members)), np.ones(len(strangers)))[1]
    return weights / weights.mean()


def _threshold(scores: Float[np.ndarray, " s"], weights: Float[np.ndarray, " s"], share: float) -> float:
    """The lowest score that at most `share` of the weight is at or over; over all scores if none is."""
    names, position = np.unique(scores, return_inverse=True)
    at_or_over = np.bincount(position, weights)[::-1].cumsum()[::-1] / weights.sum()
    allowed = names[at_or_over <= share + 1e-9]
    return float(allowed[0]) if len(allowed) else math.nextafter(float(names[-1]), math.inf)


def _threshold_ends(
    scores: Float[np.ndarray, " s"], weights: Float[np.ndarray, " s"], share: float
) -> tuple[float, float]:
    """Upper and lower end of the 95 % interval of the score that `share` of all strangers reach; may be infinite."""
    effective_n = max(1, int(_effective_n(weights)))
    fewest, most = binom.ppf([0.025, 0.975], effective_n, share) / effective_n
    order = np.argsort(scores)[::-1]
    at_or_over = weights[order].cumsum() / weights.sum()
    first = np.searchsorted(at_or_over + 1e-9, [fewest, most + 1 / effective_n])
    high = float(scores[order[first[0]]]) if fewest > 0 else math.inf
    return high, float(scores[order[first[1]]]) if first[1] < len(order) else -math.inf


def _effective_n(weights: Float[np.ndarray, " s"]) -> float:
    return float(weights.sum() ** 2 / np.square(weights).sum())


def _weighted_share(flags: Bool[np.ndarray, " s"], weights: Float[np.ndarray, " s"]) -> Estimate:
    share = float(np.average(flags, weights=weights))
    effective_n = _effective_n(weights)
    return wilson(share * effective_n, effective_n)._replace(value=share, n=len(flags))
