"""Words of a report with their places, as rules about names look at them."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

TOKEN = re.compile(r"[^\W_]+(?:[.'’-][^\W_]+)*")


class Token(NamedTuple):
    """A word where it stands."""

    text: str
    word: str
    """In small letters, with plain apostrophes and without an `'s`."""
    start: int
    end: int


def tokens_of(text: str) -> list[Token]:
    """The text's words, in order."""
    return [Token(m.group(), word_of(m.group()), m.start(), m.end()) for m in TOKEN.finditer(text)]


@lru_cache(maxsize=1 << 16)
def word_of(text: str) -> str:
    """A token in small letters, with plain apostrophes and without its `'s`."""
    return text.lower().replace("’", "'").removesuffix("'s")


def parts_of(word: str) -> list[str]:
    """The word, and of one with hyphens what is more than two letters long between them."""
    return [word, *(part for part in word.split("-") if len(part) > 2)] if "-" in word else [word]


def has_both_cases(text: str) -> bool:
    """Whether a capital says something here: a text in capitals may have a few small letters, as in `10 pm`."""
    if text == text.lower():
        return False
    spoken = [word for word in TOKEN.findall(text) if len(word) > 2 and word.isalpha()]
    return 2 * sum(word.isupper() for word in spoken) < len(spoken)
