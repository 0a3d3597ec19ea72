"""Names of staff in reports, with the phrases that say who read, signed or was told (`cohorts.staff`).

A radiologist's name stands in many patients' reports, so no count of patients keeps it out. Evidence for a name,
from strong to weak: a cue in the sentence (`discussed with`, `attending:`), a title before it or a degree after it,
a capital where the cohort otherwise writes small letters, a list of names. A word that the cohort has shown to be a
name in one place is removed in all. Not here: patients' identifiers (`cohorts.text`).
"""

from __future__ import annotations

import importlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, lru_cache
from itertools import pairwise
from typing import NamedTuple

from pipeline.cohorts import mentions, words
from pipeline.cohorts.staff import SURE, without_cued
from pipeline.cohorts.tokens import TOKEN, Token, has_both_cases, parts_of, tokens_of, word_of

NAME = "name of a person"

_EPONYM_OF = re.compile(
    rf"\b(?:{'|'.join(sorted(words.SHARED_EPONYMS))})(?:['’]?s)?[\s-]+(?:b[\s-]+)?(?:signs?|syndromes?|diseases?|lines?|nodules?"
    r"|angles?|fractures?|tumou?rs?|drains?|catheters?|tubes?|valves?|filters?|ports?|stents?|pacemakers?|scientific"
    r"|operations?|procedures?|position|view|method|spots?|sulcus|groove|ligament|hernias?|deformity|node|stain"
    r"|scores?|grade|classification|rods?|pratt|flint|steell|murmur|lobe|sump|sachs|harris|feil|rendu|edwards|campbell)\b"
    r"|\b(?:ann[\s-]+arbor|ivor[\s-]+lewis|swyer[\s-]+james|st\.?\s+jude|klippel[\s-]+feil|hamman[\s-]+rich|austin\s+flint|bence[\s-]+jones)\b",
    re.IGNORECASE,
)
"""Signs and devices whose names are common family names: they stay only beside the word that makes them one."""


# A line this long was cut by a typewriter's margin, and a line that ends so has not come to its name yet.
_WRAPPED = re.compile(
    r"(?P<long>^[^\n]{60,}[^.:;\n])\n[ \t]*(?=\S)|(?P<open>(?:\b(?:by|to|with|from|and|dr\.?|per)|:))[ \t]*\n\s*",
    re.I | re.M,
)
_WITH = re.compile(r"\bw/(?!o(?:ut)?\b)\s*", re.IGNORECASE)
_MID_CAPITAL = re.compile(
    r"(?:(?<=[^\W\d_A-Z.:;!?][ ,)])|(?<=[,)] )|(?<=[ (][A-Z]\. ))"
    r"([^\W\d_a-zß-öø-ÿ][\w'’-]*[^\W\d_A-Z][\w'’-]*)"
)
_CLAUSE_END = re.compile(r"[.;:()\n\[\]/]")
_JOINT = re.compile(r"[ \t]*\.?[ \t]*,?[ \t]*\Z|[ \t]*-[ \t]*\Z")
_SAME_CLAUSE = re.compile(r"[ \t,]+\Z")


class Known(NamedTuple):
    """What the cohort's own texts say of its words."""

    uses: Counter[str]
    """Word -> how often it is used outside phrases about staff."""
    small: Counter[str]
    """Word -> uses in small letters, in texts that have capitals too."""
    capital: Counter[str]
    """Word -> uses with a capital that no beginning of a sentence explains."""
    after_given: Counter[str]
    """Word -> uses right after a given name, or after a word such as `per`."""
    before_family: Counter[str]
    """Word -> uses right before a family name."""
    placed: Counter[str]
    """Word -> uses where persons stand, as before `repositioned the tube`."""
    staff: frozenset[str]
    """Words shown to be names by a cue, a title or a degree somewhere in the cohort."""
    capitals_frac: float
    """Share of words with such a capital: small in English, large where nouns have one."""


def without_staff(texts: Sequence[str], reports: Sequence[str], removed: Counter[str]) -> list[str]:
    """The texts without phrases about staff and without names; `reports` are what names may be learned from, too."""
    named: Counter[str] = Counter()
    lines = [_unwrapped(text) for text in texts]
    seconds = _second_names(lines)
    read = [_without_phrases(text, removed, named, seconds) for text in lines]
    for text, report in zip(texts, reports, strict=True):
        if text != report:
            _without_phrases(_unwrapped(report), Counter(), named, seconds)
    known = _known(read, named)
    suspects = _suspects(known)
    return [_without_names(text, known, suspects, removed) for text in read]


def _unwrapped(text: str) -> str:
    """The text in lines as they were dictated, all in small letters if it is in capitals."""
    text = unicodedata.normalize("NFC", text)
    text = _WITH.sub("with ", text)
    if "\n" in text:
        text = _WRAPPED.sub(lambda match: f"{match['long'] or match['open']} ", text)
    return text if has_both_cases(text) else text.lower()


def _second_names(texts: Sequence[str]) -> frozenset[str]:
    """Words that mostly stand in second place after a title: where capitals say nothing, `dr jane doe` ends there."""
    uses: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for text in texts:
        spoken = [word_of(token) for token in TOKEN.findall(text)]
        uses.update(spoken)
        if not words.TITLES.isdisjoint(spoken):
            name = [i for i in range(1, len(spoken)) if spoken[i - 1] in words.TITLES | words.AFTER_TITLES]
            seconds.update(
                spoken[i + 1]
                for i in name
                if i + 1 < len(spoken) and spoken[i] not in words.TITLES | words.AFTER_TITLES
            )
    return frozenset(word for word, n in seconds.items() if 2 * n >= uses[word]) - words.FUNCTION - words.ORDINARY


def _without_phrases(text: str, removed: Counter[str], named: Counter[str], seconds: frozenset[str]) -> str:
    """The text without phrases about staff; the names in them, and those beside a title or degree, are counted."""
    return _without_titled(without_cued(text, removed, named), removed, named, seconds)


def _without_titled(text: str, removed: Counter[str], named: Counter[str], seconds: frozenset[str]) -> str:
    """The text without names after a title or before a degree."""
    if not any(map(_is_title_or_degree, TOKEN.findall(text))):
        return text
    tokens = tokens_of(text)
    mixed = has_both_cases(text)
    gone: set[int] = set()
    for i, token in enumerate(tokens):
        dot = text[token.end : token.end + 1] == "."
        if token.word in words.TITLES or token.text in {"Mr", "Ms"} or (dot and token.word in words.TITLES_WITH_DOT):
            gone |= _after_title(text, tokens, i, mixed, seconds)
        elif token.word in words.DEGREES and (token.text.isupper() or token.word not in words.DEGREES_IN_CAPITALS):
            gone |= _before_degree(text, tokens, i, mixed)
    named.update(
        part
        for i in gone
        if len(tokens[i].word) > 2
        and tokens[i].word not in words.ORDINARY | words.FUNCTION | words.TITLES | words.DEGREES
        for part in parts_of(tokens[i].word) * SURE
    )
    return _blank(text, tokens, gone, removed)


def _joined(text: str, left: Token, right: Token) -> bool:
    """Whether only what stands inside a name stands between them: blanks, the dot of an initial, a comma."""
    gap = text[left.end : right.start]
    initial = len(left.word) == 1 and left.word.isalpha()  # the `1.` of a list is none
    if (
        "." in gap
        and not initial
        and left.word not in words.TITLES | words.TITLES_WITH_DOT | words.AFTER_TITLES | words.DEGREES
    ):
        return False
    return _JOINT.match(gap) is not None


def _after_title(text: str, tokens: list[Token], i: int, mixed: bool, seconds: frozenset[str]) -> set[int]:
    end = i + 1
    skipped = words.TITLES | words.AFTER_TITLES | words.PARTICLES
    while end < len(tokens) and tokens[end].word in skipped and _joined(text, tokens[end - 1], tokens[end]):
        end += 1
    if end == len(tokens) or not _joined(text, tokens[end - 1], tokens[end]):
        return set() if tokens[i].word in words.TITLES_WITH_DOT else set(range(i, end))
    if tokens[i].word in words.TITLES_WITH_DOT and mixed and not tokens[end].text[0].isupper():
        return set()
    if tokens[end].word in words.FUNCTION and text[tokens[end].end : tokens[end].end + 1] != ".":  # but `Dr. A. Nagy`
        return set(range(i, end))
    name = {*range(i, end), *_rightwards(text, tokens, end, mixed)}
    if end + 1 < len(tokens) and tokens[end + 1].word in seconds and _joined(text, tokens[end], tokens[end + 1]):
        name.add(end + 1)
    return name


def _rightwards(text: str, tokens: list[Token], first: int, mixed: bool) -> Iterator[int]:
    """The indices of the name that begins with this token."""
    yield first
    given, _, _ = lists()
    for i in range(first + 1, min(first + 6, len(tokens))):
        left, token = tokens[i - 1], tokens[i]
        gap = text[left.end : token.start]
        if not _joined(text, left, token) or (
            "," in gap and not (mixed and left.text.isupper() and token.text.isupper())
        ):
            return
        begun = (
            len(left.word) == 1 or left.word in words.PARTICLES or any(part in given for part in left.word.split("-"))
        )
        if token.word in words.PARTICLES and i + 1 < len(tokens) and (not mixed or tokens[i + 1].text[0].isupper()):
            begun = token.word in words.STRONG_PARTICLES or begun
        elif mixed and (not token.text[0].isupper() or _is_abbreviation(token)):
            return
        if not (mixed and token.text[0].isupper()) and not (begun and token.word not in words.FUNCTION):
            return
        yield i


def _is_abbreviation(token: Token) -> bool:
    short = 1 < len(token.word) < 5 and token.text.rstrip("s").isupper()
    return short or token.word in words.CALENDAR


def _before_degree(text: str, tokens: list[Token], i: int, mixed: bool) -> set[int]:
    """The degree and the name before it: all with capitals, or in small letters up to three words of its clause."""
    gone = {i}
    n_commas = 0
    for j in range(i - 1, max(i - 6, -1), -1):
        token, gap = tokens[j], text[tokens[j].end : tokens[j + 1].start]
        n_commas += "," in gap
        ends = not _joined(text, token, tokens[j + 1]) or (
            token.word in words.FUNCTION and token.word not in words.PARTICLES
        )
        capital = token.text[0].isupper() or token.word in words.PARTICLES or token.word in words.DEGREES
        if ends or n_commas > 2 or (mixed and not capital) or (not mixed and len(gone) > 3):
            break
        gone.add(j)
    return gone


@lru_cache(maxsize=1 << 16)
def _is_title_or_degree(word: str) -> bool:
    return word_of(word) in words.TITLES | words.TITLES_WITH_DOT | words.DEGREES


def _blank(text: str, tokens: list[Token], gone: Iterable[int], removed: Counter[str]) -> str:
    """The text without these tokens; neighbours count as one name."""
    pieces, at, last = [], 0, -2
    for i in sorted(gone):
        pieces.append(text[at : tokens[i].start])
        at = tokens[i].end
        removed[NAME] += i != last + 1
        last = i
    return "".join([*pieces, text[at:]])


@cache
def lists() -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Given names, family names, and names that are also words; of many countries, in small letters."""
    given, family = _listed("first_names"), _listed("last_names")
    given |= words.MORE_GIVEN
    family |= words.MORE_FAMILY
    given |= {_plain(name) for name in given}
    family |= {_plain(name) for name in family}
    given = {name for name in given if len(name) > 3 or name in words.SHORT_GIVEN}
    family = {name for name in family if len(name) > 2} - words.FUNCTION
    return (
        frozenset(given - words.ORDINARY - words.FUNCTION),
        frozenset(family - words.ORDINARY),
        frozenset((family | given) & words.ORDINARY) - words.FUNCTION,
    )


def _listed(kind: str) -> set[str]:
    """The names of one kind; four letters are too like an abbreviation to be taken from every country's list."""
    names: set[str] = set()
    for place in (*words.LOCALES, *words.MORE_LOCALES):
        provider = importlib.import_module(f"faker.providers.person.{place}").Provider
        listed = (name for listing in dir(provider) if kind in listing for name in getattr(provider, listing))
        min_letters = 1 if place in words.LOCALES else 5
        last_words = (name.split()[-1] for name in listed if isinstance(name, str) and name)  # `de Vries`
        names |= {name.lower() for name in last_words if len(name) >= min_letters}
    return names


def _plain(name: str) -> str:
    """The name as a keyboard without accents writes it."""
    return "".join(letter for letter in unicodedata.normalize("NFD", name) if not unicodedata.combining(letter))


def _known(texts: Sequence[str], named: Counter[str]) -> Known:
    given, family, _ = lists()
    uses, small, capital, after, before, placed = (Counter[str]() for _ in range(6))
    n_mixed = 0
    for text in texts:
        tokens = TOKEN.findall(text)
        spoken = [word_of(token) for token in tokens]
        uses.update(spoken)
        after.update(
            b for a, b in pairwise(spoken) if a in given or a in words.TAKERS or (len(a) == 1 and a.isalpha())
        )
        before.update(a for a, b in pairwise(spoken) if b in family)
        placed.update(word_of(match.group()) for at in set(_places(text)) if (match := TOKEN.match(text, at)))
        if has_both_cases(text):
            n_mixed += len(tokens)
            small.update(token for token in tokens if token[0].islower())
            capital.update(map(word_of, _MID_CAPITAL.findall(text)))
    frac = sum(n for word, n in capital.items() if word not in words.KEPT) / max(n_mixed, 1)
    staff = frozenset(
        word
        for word, n in named.items()
        if small[word] * 10 <= n / SURE + capital[word]
        and (word in given or word in family or capital[word] or uses[word] * SURE <= n)
    )
    return Known(uses, small, capital, after, before, placed, staff - words.ORDINARY - words.FUNCTION, frac)


@lru_cache(maxsize=1 << 16)
def _places(text: str) -> dict[int, mentions.Sureness]:
    """Where persons stand in the text, and how surely."""
    places: dict[int, mentions.Sureness] = {}
    for at, sureness in mentions.places(text):
        places[at] = max(sureness, places.get(at, sureness))
    return places


def _suspects(known: Known) -> frozenset[str]:
    """The words for whose sake a text is looked at more closely."""
    given, family, _ = lists()
    return frozenset(
        word
        for word in known.uses
        if any(part in given or part in family or part in known.staff for part in parts_of(word))
        or (len(word) == 1 and word.isalpha() and word not in "ai")
        or _DOTTED_INITIALS.match(word)
        or _SHAPE.match(word)
        or (known.capital[word] and _never_small(word, known))
        or word in words.STRONG_PARTICLES
    )


_SHAPE = re.compile(
    r"(?:el|al|abu|abd|ibn|ait|ould)-[^\W\d_]{3}|o['’][^\W\d_]{3}|d['’](?:[aeiou][^\W\d_]{4})|mc[^\W\d_]{4}"
)
"""How the names of some countries begin, and no words."""
_DOTTED_INITIALS = re.compile(r"[^\W\d_](?:\.-?[^\W\d_]){1,2}\Z")


def _never_small(word: str, known: Known) -> bool:
    return known.small[word] * 50 <= known.capital[word] and word not in words.KEPT


def _without_names(text: str, known: Known, suspects: frozenset[str], removed: Counter[str]) -> str:
    """The text without names that stand there with no cue, title or degree."""
    places = _places(text)
    if not places and suspects.isdisjoint(map(word_of, TOKEN.findall(text))):
        return text
    tokens = tokens_of(text)
    mixed = has_both_cases(text)
    by_capital = mixed and _capitals_mean_names(text, tokens, known)
    kept = [match.span() for match in _EPONYM_OF.finditer(text)]
    tokens_kept = {i for i, token in enumerate(tokens) if any(a <= token.start < b for a, b in kept)}
    gone = {
        i
        for i, token in enumerate(tokens)
        if i not in tokens_kept
        and text[token.end : token.end + 1] != "@"  # an address goes as a whole, later
        and (
            (token.start in places and _is_person(token, known, places[token.start]))
            or _is_name(text, tokens, i, known, mixed, by_capital)
        )
    }
    gone = _widened(text, tokens, gone, known, mixed) - tokens_kept
    return _blank(text, tokens, gone, removed)


def _capitals_mean_names(text: str, tokens: list[Token], known: Known) -> bool:
    """Not where nouns have capitals, as in German, nor In A Line Like This."""
    if len(tokens) < 10:
        return known.capitals_frac < 0.2
    n_capitals = sum(word_of(word) not in words.KEPT for word in _MID_CAPITAL.findall(text))
    return n_capitals <= 0.25 * len(tokens)


def _is_person(token: Token, known: Known, sureness: mentions.Sureness) -> bool:
    """Whether the word is a name, as it stands where persons do."""
    word = token.word
    if word in words.NO_PERSON or word in words.KEPT or _is_number_like(word):
        return False
    given, family, words_too = lists()
    if (
        any(part in given or part in family for part in parts_of(word))
        or word in words_too
        or word in words.SHORT_FAMILY
    ):
        return True
    if sureness is mentions.Sureness.LISTED or word in words.ORDINARY or words.MEDICAL_ENDING.search(word):
        return False
    return sureness is mentions.Sureness.CERTAIN or known.placed[word] * 2 >= known.uses[word]


def _is_a_word(word: str, known: Known) -> bool:
    """Whether a cohort writes a name of the lists as only words are written: often, small, and not of persons."""
    return known.small[word] >= 50 * (1 + known.capital[word]) and known.placed[word] * 10 <= known.uses[word]


def _is_name(text: str, tokens: list[Token], i: int, known: Known, mixed: bool, by_capital: bool) -> bool:
    token = tokens[i]
    before = tokens[i - 1] if i and _joined(text, tokens[i - 1], token) else None
    if token.word in words.KEPT or _is_number_like(token.word):
        return False
    if _DOTTED_INITIALS.match(token.word):
        return (
            token.word not in words.DOTTED
            and text[token.end : token.end + 1] == "."
            and token.word not in words.DEGREES
        )
    if token.word in known.staff or any(part in known.staff for part in parts_of(token.word)):
        return True
    given, family, words_too = lists()
    capital = token.text[0].isupper()
    if mixed and _is_abbreviation(token):
        return False
    if _SHAPE.match(token.word) and token.word not in words.NO_PERSON:
        return True
    listed = any(len(part) > 3 and (part in given or part in family) for part in parts_of(token.word))
    if listed and not _is_a_word(token.word, known):
        return True
    if by_capital and capital and token.word in words_too and _follows_small(text, tokens, i):
        return True
    a_word = known.small[token.word] > 0 and not (
        mixed and capital and known.capital[token.word] > known.small[token.word]
    )
    if any(part in given for part in parts_of(token.word)) and not a_word and not (mixed and not capital):
        return True
    if by_capital and before is not None and capital and not _is_acronym(token.text):
        if _never_small(token.word, known):
            return True
        if before.word in {"by", "per", "with"} and token.word not in words.FUNCTION:
            return True
    if any(part in family for part in parts_of(token.word)) and not a_word and _is_alone(text, tokens, i):
        return True
    if before is None:
        return False
    if before.word == "by" and i > 1 and tokens[i - 2].word in words.DONE:  # `noted by brown`
        return token.word in family or token.word in words_too
    if (
        len(before.word) == 1
        and i > 1
        and tokens[i - 2].word in words.TAKERS
        and "." in text[before.end : token.start]
    ):
        return token.word not in words.FUNCTION and (capital or not mixed)  # `per P. Small`
    if mixed or a_word:
        return False
    first = i - 1
    while first > 0 and tokens[first].word in words.PARTICLES:
        first -= 1
    if first < i - 1:  # `p. de vries`, `per van der berg`
        begun = len(tokens[first].word) == 1 or tokens[first].word in words.TAKERS or tokens[first + 1].word == "van"
        return begun and token.word in family
    cued = before.word in words.TAKERS or (len(before.word) == 1 and "." in text[before.end : token.start])
    pair = i + 1 < len(tokens) and _joined(text, token, tokens[i + 1]) and tokens[i + 1].word in family
    return cued and (token.word in family or pair) and known.after_given[token.word] * 2 >= known.uses[token.word]


def _follows_small(text: str, tokens: list[Token], i: int) -> bool:
    """Whether the word's capital is that of a name: no sentence begins and no acronym, title or heading is near."""
    if i == 0 or _is_acronym(tokens[i].text) or tokens[i].word in words.NO_PERSON:
        return False
    left = tokens[i - 1]
    right = tokens[i + 1] if i + 1 < len(tokens) else None
    return (
        text[left.end : tokens[i].start] in {" ", ", "}
        and left.text.islower()
        and (right is None or right.text.islower() or text[tokens[i].end : right.start] != " ")
    )


def _is_alone(text: str, tokens: list[Token], i: int) -> bool:
    """Whether the word is all that stands between two ends of clauses, as in `(Tremblay)` or `; de Vries.`"""
    first = i
    while first and tokens[first - 1].word in words.PARTICLES:
        first -= 1
    left = text[tokens[first - 1].end if first else 0 : tokens[first].start]
    right = text[tokens[i].end : tokens[i + 1].start if i + 1 < len(tokens) else len(text)]
    begins = first == 0 or tokens[first - 1].word == "with" or _CLAUSE_END.search(left)
    return bool(begins and (i + 1 == len(tokens) or _CLAUSE_END.search(right)))


def _is_number_like(word: str) -> bool:
    return any(letter.isdigit() for letter in word) or len(word) == 1 or word in words.CALENDAR


def _is_acronym(text: str) -> bool:
    first = text.split("-")[0].split("'")[0]
    return first.rstrip("s").isupper() or not first.isalpha() or 2 * sum(map(str.isupper, first)) >= len(first)


def _widened(text: str, tokens: list[Token], gone: set[int], known: Known, mixed: bool) -> set[int]:
    """The names with their neighbours: initials, particles, a family name that is also a word (`Ann White`)."""
    wide = set(gone)
    for i in sorted(gone):
        if i + 1 < len(tokens) and _takes_next(text, tokens, i, known, mixed):
            wide |= set(_rightwards(text, tokens, i, mixed))
        for j in range(i - 1, max(i - 5, -1), -1):
            left, right = tokens[j], tokens[j + 1]
            if not _joined(text, left, right) or not _goes_before(text, left, right, known, mixed):
                break
            wide.add(j)
    return wide


def _takes_next(text: str, tokens: list[Token], i: int, known: Known, mixed: bool) -> bool:
    token, following = tokens[i], tokens[i + 1]
    if mixed:
        return True
    given, family, words_too = lists()
    word = following.word
    if not any(part in given for part in token.word.split("-")):
        return word in family
    return (
        len(word) == 1
        or word in words.PARTICLES
        or any(part in family or part in words_too for part in word.split("-"))
        or known.after_given[word] * 2 >= known.uses[word]
    )


def _goes_before(text: str, left: Token, right: Token, known: Known, mixed: bool) -> bool:
    gap = text[left.end : right.start]
    if len(left.word) == 1 and left.word.isalpha():
        return "." in gap or (mixed and left.text.isupper() and left.word not in {"a", "i"})
    if left.word in words.PARTICLES:
        return gap.strip() == ""
    if "," in gap:  # `Smith, John`
        return left.word in lists()[1] and (not mixed or left.text[0].isupper())
    if not mixed and known.before_family[left.word] * 2 >= known.uses[left.word] and right.word in lists()[1]:
        return left.word not in words.NO_PERSON and left.word not in words.ORDINARY
    capital = mixed and left.text[0].isupper() and not _is_acronym(left.text)
    return capital and known.small[left.word] == 0 and left.word not in words.FUNCTION
