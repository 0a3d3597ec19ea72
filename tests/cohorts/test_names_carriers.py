"""Names of staff in carriers that the rules were not tuned on, by kind; SECURITY.md states the shares."""

from __future__ import annotations

import pytest
from cohorts.test_names import planted

# Written after the rules, and the rules left as they were: F, S, I and C as in `test_names`.
SENTENCE_INITIAL = """
    S pushed the tube in by 2 cm.
    S was happy with the position.
    S can be reached on the ward.
    S disagrees.
    S will look at the film tonight.
    S favours another view.
    S changed the drain at six.
    S paged twice.
    S has seen the film.
    S consulted.
    S hat angerufen.
    S prévenu à midi.
    S enterado.
    S attended the intubation.
    S made aware.
    S to chase the old films.
"""
LISTS = """
    Drs. Lee / S notified.
    Drs. Lee, S, and Roy in agreement.
    Profs. Lee & S saw the film.
    Dr. Lee and Dr. S to follow.
    Dr. Lee & S at the conference.
    Nurses Lee and S called.
"""
TELLING = """
    Let S know about the tube.
    Heads up given to S.
    Tube shortened by S.
    Bronchoscopy planned with S.
    Old films borrowed from S.
    Left a note for S.
    Ping S if worse.
    As per S no new film.
    In discussion: S.
    Under the care of S.
    Secretary: S
    Seen together with I.
"""
ENDS = """
    No effusion. -- S
    Clear lungs. (S)
    Lines in place. /S
    Tube in place; seen, S.
    Normal film - F
    No fracture [S]
"""

KINDS = {"initial": SENTENCE_INITIAL, "list": LISTS, "telling": TELLING, "end": ENDS}


@pytest.mark.parametrize(
    ("kind", "case", "floor"),
    [
        ("initial", "mixed", 0.88),
        ("initial", "lower", 0.87),
        ("list", "mixed", 0.92),
        ("list", "lower", 0.91),
        ("telling", "mixed", 0.93),
        ("telling", "lower", 0.85),
        ("end", "mixed", 0.90),
        ("end", "lower", 0.84),
    ],
)
def test_names_go_from_carriers_that_no_rule_was_tuned_on(kind: str, case: str, floor: float) -> None:
    names = planted(KINDS[kind], case)
    assert names.n_gone >= floor * names.n_names, str(names)
