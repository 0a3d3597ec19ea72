"""Places in a sentence where a person stands: before `repositioned the tube`, after `checked by`, in the last line.

A place says nothing yet of the word in it: a film is sent to a ward, too. Whether the word may be a name is for
`cohorts.names` to say. Not here: whole phrases about staff, which go with all that is in them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import IntEnum


class Sureness(IntEnum):
    """Which words are names where they stand."""

    LISTED = 1
    """Those that a list has: findings stand there, too."""
    LIKELY = 2
    """Those, too, that the cohort uses mostly where persons stand."""
    CERTAIN = 3
    """All."""


_WORD = r"[^\W\d_](?:[\w'’]|-(?=\w)|\.(?=[^\W\d_]))+"
_NAMED = (
    r"(?:[^\W\d_]\.\s*)?(?:(?:van|von|de|der|den|del|della|di|da|dos|du|le|la|ter|ten|zu|zum|el|al|bin|ben|st\.?)\s+)*"
    + _WORD
)

_DID = (
    r"repositioned|moved|pulled|placed|inserted|removed|advanced|adjusted|exchanged|performed|supervised|reviewed"
    r"|ordered|requested|repeated|checked|confirmed|withdrew|withdrawn|did|took|read|reported|dictated|changed|replaced"
    r"|flushed|drained|aspirated|intubated|extubated|cancelled|scanned|examined|assessed|noted|raised|queried|answered"
    r"|attempted|secured|sutured|tried|turned|positioned|brought|saw|completed|injected|marked|obtained|rechecked"
    r"|re-?sited|wrote|held|accepted|approved|signed|left|started|stopped|gave|put"
)
_OBJECT = (
    r"the(?!\s+(?:same|next|previous|following|day))|this|it|an?|his|her|their|both|all\s+three|these|another|our"
    r"|(?:chest|right|left|new|old|second|repeat|ng|og|et|central|arterial|feeding)?\s*(?:lines?|tubes?|drains?|films?"
    r"|catheters?|picc|ett|ngt|punctures?|procedures?|study|images?|patient|stent|wire|sheath|report)"
)
_SAYS = (
    r"thinks|thought|feels|felt|wants|wanted|asks|asked|insists|suspects|wonders|believes|phoned|rang"
    r"|called\s+(?:to|back|about|from|us|me)|reckons|disagrees"
)
_TO_DO = (
    r"review|repeat|arrange|follow|reposition|check|discuss|attend|call|inform|pull|remove|exchange|advance|action|chase"
    r"|liaise|decide|confirm|inspect|re-?read|reread|addend|phone|page|adjust|perform|do|see|replace|rescan|counter-?sign"
    r"|withdraw|order|request|re-?check|re-?site|contact|sign|report|read|look|speak|place|insert|come|re-?assess"
)
_THERE = (
    r"(?:was\s+|is\s+)?(?:present|attending|in\s+attendance|on\s+call|on\s+duty|scrubbed|assisting)"
    r"|called\s+(?:for|with|in|at)|on\s+the\s+phone"
    r"|hat|wird|wünscht|bittet|möchte|übernimmt|anwesend|demande|souhaite|présente?|a\s+(?:vu|demandé|relu|revu)"
    r"|pide|solicita|presente|ha\s+(?:visto|pedido|revisado)|revisará"
)
_ENDS = (
    r"(?=\s*(?:\Z|[.;,:)/&+\n]|\s[-–—]\s|\s(?:and|at|on|in|for|to|this|today|tonight|overnight|yesterday|present|pending|who"
    r"|regarding|re|with|via|from|as|is|was|has|prior|before|after|if|when|then|again|about|earlier|later|und|et|y)\b))"
)
_LINK = r"(?:\s*(?:,|/|&|\+)\s*(?:(?:and|und|et|y)\s+)?|\s+(?:and|und|et|y)\s+)"
_SENT = (
    r"sent|shown|handed(?:\s+over)?|forwarded|referred|passed|showed|gave|given|call|message|voicemail|copy|letter|fax"
    r"|reported|escalated|deferred|left|addressed|returned|described|explained|mentioned|presented|pushed|shared"
)
_WITH = (
    r"reviewed|checked|confirmed|agreed|done|read|plan(?:ned)?|conference|rounds?|seen|compared|shared|looked\s+at"
    r"|performed|went\s+through|correlated|worked|double-?checked|together"
)
_OF = (
    r"request|opinion|behalf|clinic|patient|team|care|service|list|film|question|query|advice|hands|view"
    r"|read|referral"
)

_OF_THINGS = (
    r"limit|obscur|degrad|caus|follow|suggest|accompani|complicat|evidenc|indicat|displac|replac|distort|explain|compress"
    r"|surround|obstruct|overl|mask|hamper|increas|decreas|impair|affect|border|bound|form|induc|improv|produc|characteri"
)
"""How what things do begins, as in `limited by habitus`."""

# Patterns run on small letters, from the rare word to its neighbours: so most texts are passed over quickly.
_ACTS = re.compile(
    rf"\b(?:(?:{_DID})\s+(?:{_OBJECT})\b|(?:{_SAYS})\b|(?:(?:is|are|was|were|has|plans|wants|agreed|needs)\s+)?to\s+(?:{_TO_DO})\b"
    rf"|(?P<there>{_THERE})\b|saw\b)"
)
_ACTOR = re.compile(
    rf"(?P<who>{_WORD})(?:{_LINK}{_WORD})?[,:]?\s+(?:(?:has|have|had|then|also|just|later|kindly|now|again)\s+)?\Z"
)
_TOWARDS = re.compile(rf"\b(?:per|via|à|w|by|with|to|for|of|from|through)\s+(?P<who>{_NAMED}){_ENDS}")
_ALWAYS = ("per", "via", "à", "w/")
_TURNED = re.compile(
    rf"(?:\b(?!{_OF_THINGS})\w+(?:ed|en|ne|wn|ut)(?:\s+\w+)?\s+by|\b(?:{_SENT})(?:\s+\w+)?\s+(?:to|for|with)|\b(?:{_WITH})(?:\s+\w+)?"
    rf"\s+with|\b(?:{_OF})s?\s+(?:of|from|via|to|by)|\b(?:came|ordered|heard|request\w*|received|advice|opinion|call)"
    rf"\s+(?:via|from|through)|\baddendum\s+by|\bok\s+(?:by|with|per))\s+\Z"
)
_SIGNED = re.compile(
    rf"(?:(?<=[.;!?])|\n|\A)\s*(?:[-–—]+|/+|~)\s*(?P<who>{_NAMED})(?:\s+(?P<last>{_WORD}))?\s*\.?\s*\Z"
    rf"|(?<=\w)\s+(?:/+|[-–—]{{1,2}})\s*(?P<end>{_NAMED})\s*\.?\s*\Z"
)
_TITLED = re.compile(
    rf"\b(?:drs|doctors|profs|professors|drs\.\s*med|doctores|docteurs|sres|mmes|dres)\b\.?\s+(?P<many>{_NAMED}(?:\s+{_WORD})??"
    rf"(?:{_LINK}(?:drs?\.?\s+)?{_NAMED})+)"
    rf"|\b(?:dr|doctor|prof|professor|mr|mrs|ms|dra?|nurse|sister)\b\.?\s+{_NAMED}(?:\s+{_WORD})??(?P<few>(?:{_LINK}{_NAMED})+)"
    r"(?=\s*(?:\Z|[.;)\n]|(?:\s+(?:aware|agreed?s?|concurs?|informed|notified|to|will|at|on|were|was|are|have|had|present"
    rf"|{_DID}|{_SAYS}|both))\b))",
)
_PART = re.compile(_WORD)
_DASH = re.compile(r"(?:\A|\s)[-–—/~]")
_TITLE = re.compile(r"\b(?:d(?:oct|ra?s?\b)|prof|m[rs]s?\b|nurse|sister|sres|mmes|dres)")
_JOINING = frozenset({"and", "und", "et", "y", "dr", "drs", "drs.", "dr."})


def places(text: str) -> Iterator[tuple[int, Sureness]]:
    """Where in the text a word begins that stands as a person."""
    small = text.lower()
    if len(small) != len(text):  # `İ` becomes two letters
        small = text
    for match in _ACTS.finditer(small):
        actor = _ACTOR.search(small, _word_start(small, match.start() - 60), match.start())
        if actor is not None:
            yield actor.start("who"), Sureness.LISTED if match["there"] else Sureness.LIKELY
    for match in _TOWARDS.finditer(small):
        before = small[_word_start(small, match.start() - 40) : match.start("who")]
        if match.group().startswith(_ALWAYS) or _TURNED.search(before):
            yield _last(match, "who"), Sureness.LIKELY
    for match in _SIGNED.finditer(text) if _DASH.search(text) else ():
        for group in ("who", "last", "end"):
            if match[group]:
                alone = group != "end" or match[group][0].isupper()  # not as in `bones - intact`
                yield _last(match, group), Sureness.LIKELY if alone else Sureness.LISTED
    for match in _TITLED.finditer(small) if _TITLE.search(small) else ():
        group = "many" if match["many"] else "few"
        for part in _PART.finditer(match[group]):
            if part.group() not in _JOINING:
                sureness = Sureness.CERTAIN if group == "many" else Sureness.LIKELY
                yield match.start(group) + part.start(), sureness


def _last(match: re.Match[str], group: str) -> int:
    """Where the group's name begins, after its initial."""
    *_, name = _PART.finditer(match[group])
    return match.start(group) + name.start()


def _word_start(text: str, at: int) -> int:
    """The beginning of the word that stands there."""
    return text.rfind(" ", 0, at) + 1 if at > 0 else 0
