"""Text hygiene: reports to short phrases without de-identification traces, dates, identifiers or rare words.

De-identification traces in prompts are what generators memorise most (arXiv 2502.07516), and a word that few patients
share points at them. What is promised is k-anonymity word by word; whole phrases and prompts that few patients share
are the business of `generators.prompts.recompose`. Not here: which rows may be counted (the caller passes the
training split only), or how phrases become a prompt.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.cohorts.names import without_staff
from pipeline.cohorts.staff import is_about_staff

_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)"
)
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"

# Reason -> what is removed for it, in this order: a date is a date before its digits are an identifier.
TRACES = {
    reason: re.compile(pattern, re.IGNORECASE)
    for reason, pattern in {
        "longer than a word": r"[^\W_]{61,}",
        "de-identification trace": r"\[\*\*(?s:.*?)(?:\*\*\]|\Z)|_{2,}|\bx{3,}\b",
        "address on the web": r"\bhttps?://\S+|\bwww\.\S+|\S+@\S+",
        "name after a title": r"\b(?:(?:drs?|mrs|prof|doctor|professor)\b\.?|m[rs]\.)[ \t]+[^\W\d_][\w'-]*",
        "age": (
            r"\b\d{1,3}[\s-]*(?:years?|yrs?|y/o|yo|y\.o\.?|months?|weeks?|days?)[\s-]*(?:old|of[\s-]age)\b"
            r"|\b\d{1,3}[\s-]*(?:years?|yrs?|y/?o)\b|\b\d{1,3}[\s-]?(?:y\.o\.|[ymf]\b)|\baged?:?\s+\d{1,3}\b"
        ),
        "date": (
            r"\b\d{4}[-/.]\d{1,2}[-/.]\d{1,2}\b|\b\d{1,2}[-/.]\d{1,2}[-/.](?:\d{4}|\d{2})\b|\b\d{1,2}/\d{1,4}\b"
            rf"|\b{_DAY}[\s-]+(?:of\s+)?{_MONTH}\b(?:[\s,-]+\d{{4}}\b)?"
            rf"|\b{_MONTH}\b\.?[\s-]+(?:{_DAY}\b(?:[\s,]+\d{{4}}\b)?|\d{{4}}\b)"
        ),
        "time": r"\b\d{1,2}:\d{2}(?::\d{2})?(?:\s*[ap]\.?m\b)?|\b\d{1,2}\s*[ap]\.?m\b",
        "identifier": (
            r"\b(?:mrn|accession|acc|id)\b[\s#:]*(?:(?:no|number)\b[\s#:.]*)?[^\W\d]*\d\w*"
            r"|\b[^\W\d]*\d(?:[-/.,]?\d){3,}\w*"  # four digits or more, however they are parted
            r"|\b(?![a-z]\d{1,2}\b)(?=[^\W\d]*\d)(?=\d*[^\W\d])\w+"  # letters and digits mixed, but not `T12`
        ),
    }.items()
}
_DIGIT = re.compile(r"\d")
_TRACES_WITHOUT_DIGITS = {
    reason: TRACES[reason]
    for reason in ("longer than a word", "de-identification trace", "address on the web", "name after a title")
}
# After Johnson et al., MIT-LCP/mimic-cxr txt/section_parser.py; also headers that are not upper-case.
_HEADER = re.compile(
    r"(?:^|(?<=[.\n]))[ \t]*("
    r"[A-Z][A-Z ()/,-]{2,}|(?i:impression|findings|indication|history|technique|comparison|examination|conclusion)"
    r")[ \t]*:"
)
_WRAPPED_LINE = re.compile(r"[ \t]*\n[ \t]*(?=[a-z])")  # reports are wrapped at 79 characters
_PHRASE_END = re.compile(r"[;:\n]|(?<!\d)[.,]|[.,](?!\d)")
_WORD = re.compile(r"[^\W_]+(?:[-'/.,][^\W_]+)*")
_REAL_WORD = re.compile(r"[^\W\d_]{3,}")
_NEGATIONS = frozenset({"no", "not", "without", "never", "nor", "neither", "w/o", "denies", "absent", "resolved"})
# fmt: off
_STOP_WORDS = frozenset({
    "a", "an", "and", "are", "as", "at", "been", "but", "by", "for", "from", "had", "has", "have", "her", "his", "in",
    "is", "it", "its", "of", "on", "or", "she", "that", "the", "their", "there", "these", "they", "this", "those",
    "to", "was", "were", "which", "who", "with",
})
# fmt: on
_NO_CONTENT = _STOP_WORDS | _NEGATIONS
UNUSABLE = "phrase without a real word"
RARE = "rare word"


class Scrubbed(NamedTuple):
    """Phrases that may reach a prompt, and the counts of what may not."""

    phrases: list[list[str]]
    """Per row, in the order of the text; lower-case words with one blank between."""
    removed: dict[str, int]
    """Reason -> how many pieces of text were removed for it."""
    n_emptied: int
    """Rows that had a text and have no phrase left."""


def scrub(texts: Sequence[str | None], patients: Sequence[str], k: int) -> Scrubbed:
    """Phrases of each text, in which every word is used by at least `k` patients of these texts.

    Counted in what comes out: dropping a phrase can make a word rare, and dropping a word can bring the parts of a
    date together, so both are repeated until nothing changes.
    """
    removed: Counter[str] = Counter()
    reports = [text or "" for text in texts]
    rows = _cleaned([section(report) for report in reports], reports, removed)
    while True:
        common = _common_words(rows, patients, k)
        joined = ["; ".join(_without_rare(row, common, removed)) for row in rows]
        scrubbed = _cleaned(joined, joined, removed)
        if scrubbed == rows:
            break
        rows = scrubbed
    n_emptied = sum(bool(text and text.strip()) and not row for text, row in zip(texts, rows, strict=True))
    return Scrubbed(rows, {reason: n for reason, n in removed.items() if n}, n_emptied)


def section(text: str) -> str:
    """The last impression of a report, else its last findings, else all of its text without headers."""
    _, *parts = _HEADER.split(text)
    for wanted in ("impression", "findings"):
        for header, body in reversed(list(zip(parts[::2], parts[1::2], strict=True))):
            if wanted in header.lower() and body.strip():
                return body.strip()
    return _HEADER.sub(lambda header: header.group() if is_about_staff(header.group(1)) else "\n", text).strip()


def _cleaned(texts: Sequence[str], reports: Sequence[str], removed: Counter[str]) -> list[list[str]]:
    return [_clean(text, removed) for text in without_staff(texts, reports, removed)]


def _clean(text: str, removed: Counter[str]) -> list[str]:
    """The text's phrases without traces, and without phrases that say nothing then."""
    has_digit = _DIGIT.search(text) is not None  # most phrases have none, and are spared the slow patterns
    for reason, pattern in TRACES.items() if has_digit else _TRACES_WITHOUT_DIGITS.items():
        text, n = pattern.subn(" ", text)
        removed[reason] += n
    parts = _PHRASE_END.split(_WRAPPED_LINE.sub(" ", text))
    phrases = [words for part in parts if (words := _WORD.findall(part.lower()))]
    usable = [core for words in phrases if (core := _core(words))]
    removed[UNUSABLE] += len(phrases) - len(usable)
    return usable


def _core(words: list[str]) -> str:
    """The phrase without stop words at its ends; empty if it holds no real word."""
    if not any(_REAL_WORD.search(word) and word not in _NO_CONTENT for word in words):
        return ""
    content = [i for i, word in enumerate(words) if word not in _STOP_WORDS]
    return " ".join(words[content[0] : content[-1] + 1])


def _common_words(rows: Sequence[list[str]], patients: Sequence[str], k: int) -> set[str]:
    words_of: dict[str, set[str]] = defaultdict(set)
    for patient, phrases in zip(patients, rows, strict=True):
        words_of[patient].update(word for phrase in phrases for word in phrase.split())
    n_patients = Counter(word for words in words_of.values() for word in words)
    return {word for word, n in n_patients.items() if n >= k}


def _without_rare(phrases: list[str], common: set[str], removed: Counter[str]) -> list[str]:
    kept = []
    for phrase in phrases:
        rare = [word for word in phrase.split() if word not in common]
        removed[RARE] += len(rare)
        if _NEGATIONS.isdisjoint(rare):  # without its `not` a phrase says the opposite
            kept.append(" ".join(word for word in phrase.split() if word in common))
    return kept
