"""Text hygiene: which part of a report speaks, what is removed from it, and that no rare word is left."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pyarrow.csv
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.cohorts.text import scrub, section

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "covid-chestxray" / "metadata.csv"
REPORT = """                                 FINAL REPORT
 INDICATION:  ___ year old woman with ?pleural effusion

 FINDINGS:

 The lungs are clear.

 IMPRESSION:

 No acute cardiopulmonary
 process.
"""


def phrases(text: str) -> list[str]:
    """The phrases of a single text, where no word counts as rare."""
    return scrub([text], ["1"], k=1).phrases[0]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (REPORT, "No acute cardiopulmonary\n process."),
        (REPORT.replace("IMPRESSION", "COMPARISON"), "The lungs are clear."),
        (" IMPRESSION: old.\n FINDINGS: seen.\n FINDINGS AND IMPRESSION: new.\n", "new."),
        (" FINDINGS: Effusion.\n IMPRESSION:\n", "Effusion."),
        ("Frontal X-ray, PA view. Findings: mass.", "mass."),
        ("Small left effusion.", "Small left effusion."),
        ("", ""),
    ],
)
def test_the_impression_speaks_else_the_findings_else_the_whole_text(text, wanted):
    assert section(text) == wanted


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Effusion compared to ___", ["effusion compared"]),
        ("Seen at [**Hospital1\n 18**] effusion", ["seen at effusion"]),
        ("XXXX effusion", ["effusion"]),
        ("[**unclosed Jane Doe", []),
        ("Chest film of 2014-03-04", ["chest film"]),
        ("Chest film of 3/4/2014, of 3/4, of 04.03.14", ["chest film"]),
        ("Chest film of 4th of March 2014", ["chest film"]),
        ("Chest film, Sept. 12, 2013", ["chest film"]),
        ("Grade 4 marked effusion", ["grade 4 marked effusion"]),
        ("Called at 10:30 am", ["called"]),
        ("Case 20140304 effusion", ["case effusion"]),
        ("MRN 123, phone 555-1234", ["phone"]),
        ("Specimen A12B34 and MRN123", ["specimen"]),
        ("T12 fracture, COVID-19", ["t12 fracture", "covid-19"]),
        ("54-year-old woman, 64M, 70 y/o man, aged 33", ["woman", "man"]),
        ("Write to jane@doe.org or https://a.b/c", ["write"]),
        ("Seen by Dr. Smith", ["seen"]),
        ("Read by Dr. Smith", []),
        ("1.5 cm nodule", ["1.5 cm nodule"]),
        ("Effusion: LEFT;  small.Clear", ["effusion", "left", "small", "clear"]),
    ],
)
def test_traces_of_a_person_are_removed_and_the_rest_stays(text, left):
    assert phrases(text) == left


def test_what_was_removed_is_counted_by_reason():
    scrubbed = scrub(["Effusion of ___ on 3/4/2014, MRN 12345", None, " "], ["1", "2", "3"], k=1)
    assert scrubbed.phrases == [["effusion"], [], []]
    assert scrubbed.removed == {"de-identification trace": 1, "date": 1, "identifier": 1}
    assert scrubbed.n_emptied == 0


def test_a_text_that_is_all_identifiers_is_left_empty_and_counted():
    scrubbed = scrub(["MRN 12345, 2014-03-04, ___ 555-1234"], ["1"], k=1)
    assert scrubbed.phrases == [[]]
    assert scrubbed.n_emptied == 1


def test_words_are_counted_by_patient_and_not_by_report():
    texts = ["Effusion, osteopoikilosis"] * 5 + ["Effusion"]
    scrubbed = scrub(texts, ["1"] * 5 + ["2"], k=2)
    assert scrubbed.phrases == [["effusion"]] * 6
    assert scrubbed.removed["rare word"] == 5


def test_a_phrase_keeps_its_other_words_but_not_its_opposite():
    texts = ["Large zebra effusion", "Large effusion", "Effusion absent", "Effusion of the"]
    assert scrub(texts, list("1234"), k=2).phrases == [["large effusion"], ["large effusion"], [], ["effusion"]]


WORDS = st.sampled_from(
    [
        *("effusion", "left", "x-ray", "mm", "The", "no", "not", "Smith", "Dr.", "march", "IMPRESSION:", "İ", "é"),
        *(
            "John",
            "discussed",
            "with",
            "per",
            "MD",
            "van",
            "White",
            "J.S.",
            "resident",
            "jane",
            "by",
            "KELLY",
            "was paged",
        ),
        *("4", "12", "2014", "10:30", "MRN", "A1B2", "a@b", "___", "\n", ",", ".", ";", ":", "-"),
    ]
)
TEXTS = st.lists(
    st.tuples(st.lists(WORDS, max_size=9).map(" ".join) | st.text(max_size=20), st.sampled_from("123")), max_size=8
)


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.integers(1, 3))
@example([("IMPRESSION: was paged", "1"), ("(was paged", "1"), (", was paged", "1")], 1)
@example([("4 (march) effusion", "1"), ("4 zebra march effusion", "1")], 1)
def test_no_word_of_fewer_than_k_patients_is_left_and_scrubbing_again_changes_nothing(drawn, k):
    texts, patients = [text for text, _ in drawn], [patient for _, patient in drawn]
    rows = scrub(texts, patients, k).phrases
    patients_of = defaultdict(set)
    for patient, row in zip(patients, rows, strict=True):
        for word in " ".join(row).split():
            patients_of[word].add(patient)
    assert all(len(own) >= k for own in patients_of.values())
    assert scrub(["; ".join(row) for row in rows], patients, k) == (rows, {}, 0)


@pytest.mark.skipif(not REAL.is_file(), reason="the real X-rays are not here (../shared/data)")
def test_ages_and_dates_of_real_notes_are_gone():
    notes = pyarrow.csv.read_csv(REAL)
    patients = [str(patient) for patient in notes["patient_id"].to_pylist()]
    scrubbed = scrub(notes["text"].to_pylist(), patients, k=5)
    words = set(" ".join(phrase for row in scrubbed.phrases for phrase in row).split())
    assert scrubbed.removed["age"] > 30
    assert {"effusion", "covid-19", "opacities"} <= words
    assert words.isdisjoint({"year-old", "year", "2020", "march"})


def test_letters_that_are_longer_than_any_word_reach_no_prompt_even_if_everybody_has_them() -> None:
    found = scrub(["small effusion " + "A" * 20_000, "small effusion"], ["a", "b"], 1)
    assert found.phrases == [["small effusion"]] * 2
    assert found.removed["longer than a word"] == 1
