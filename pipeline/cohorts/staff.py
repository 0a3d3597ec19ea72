"""Phrases about staff in reports: who read, signed, was told or asked, and all that the sentence says after it.

Not here: names that stand without such a phrase (`cohorts.names`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

from pipeline.cohorts import words
from pipeline.cohorts.tokens import TOKEN, parts_of, tokens_of

STAFF_PHRASE = "phrase about staff"
_ROLE = (
    r"attending|resident(?:e|in)?|radiologists?|physicians?|clinicians?|surgeons?|registrar|consultant|nurses?"
    r"|nursing staff|hospitalist|intensivist|pulmonologist|cardiologist|oncologist|urologist|neurologist|internist"
    r"|technologist|technician|sonographer|transcriptionist|practitioner|provider|house ?officer|house ?staff"
    r"|radiographers?|chaperone[ds]?|(?:ward|charge|night|theatre)\s+sister|sister(?=\s*:|\s+(?-i:[A-Z]))|tech|(?:second|first|third|double)\s+read(?:er)?|reader|sho|gp(?=\s*:|\s+(?:dr\b|(?-i:[A-Z])))|physio(?:therapist)?"
    r"|paramedic|locum|trainee|perfusionist|phlebotomist|sonologist|prelim(?:inary)?(?:\s+read)?\s*:|stationsarzt"
    r"|fellow|intern|proceduralist|anesthesiologist|anaesthetist|midwife|matron|radi[óo]log[oa]|m[ée]dic[oa]"
    r"|enfermer[oa]|m[ée]decin|infirmi[eè]re?|radiologue|radiolog(?:e|in)|[aä]rzt(?:in)?|arzt|krankenschwester|schwester"
    r"|krankenpfleger|pfleger|zuweiser(?:in)?"
)
_WORK = (
    r"read|over-?read|interpreted|reviewed|verified|approved|authored|finali[sz]ed|edited|prepared|supervised|checked"
    r"|reported|created|entered|released|le[íi]do|revisado|informado|validado|lu|relu|valid[ée]|interpr[ée]t[ée]"
    r"|befundet|freigegeben|gelesen"
)
_BY = r"(?:by|por|par|von|durch)\b|:"
_BE = r"(?:was|were|is|are|be|been|being)"
# The group `told`: what is said of the person whose name stands before it, as in `John Smith was notified`.
_CUE = re.compile(
    rf"\b(?P<told>(?:{_BE}\s+)?(?:\w+ly\s+|also\s+|then\s+)?"
    r"(?:notified|informed|paged|made\s+aware|contacted|alerted|informiert|avisad[oa]|inform[ée]e?)"
    rf"|acknowledged|(?<!be\s)(?:{_BE}\s+)?aware|verbali[sz]ed|agree[sd]?|concur(?:s|red)?|disagrees?d?|is\s+happy\s+with"
    r"|verständigt|benachrichtigt|unterrichtet|kontaktiert|einverstanden|prévenue?s?|avertie?s?|contactée?s?|d['’]accord"
    r"|enterad[oa]|notificad[oa]|contactad[oa]|informad[oa]|de\s+acuerdo|updated(?=\s*$|\s+(?:by|at|on|re|about|regarding)\b)"
    rf"|{_BE}\s+(?:told|asked|shown|in\s+agreement)"
    r"|(?:will|shall|would\s+like\s+to|can)\s+(?:re-?)?(?:review|arrange|page|call|discuss|repeat|attend|follow[\s-]*up|check|inform"
    r"|notify|position|remove|exchange|ask|contact|see|perform|look|speak|phone|chase|pull|advance|adjust|inspect|read|site)"
    rf"|{_BE}\s+(?:\w+ly\s+)?(?:called|consulted|telephoned|phoned)(?=\s*$|\s+(?:with|at|about|regarding|immediately)\b))\b"
    r"|\bdiscussed\b(?!\s+(?:above|below|previously|earlier|in\b))|\bdiscussion\s+(?:with|between|was\s+had)\b"
    r"|\b(?:communicat(?:ed|ion)|conveyed|relayed|notif(?:y|ication)|telephon(?:ed|e|ic|ically)|phoned|dictat(?:ed|or|ion)"
    r"|transcri(?:bed|ber|ptionist)|(?:e-?|co-?|counter-?)?signed|spoke|spoken|conferred|messaged|texted|faxed|authenticated"
    r"|(?<!difficult\sto\s)(?<!hard\sto\s)(?:told|tell|ask(?:ed|ing)?|ping(?:ed)?)\b(?!\s+(?:if|whether|apart|for\s+evaluation)\b)"
    r"|(?:will|please|pls|kindly|to)\s+(?:page|call|contact|text|phone|bleep|inform|notify)|^\s*(?:page|call|bleep)|bleeped|paging"
    r"|thanks|thank\s+you|regards|sincerely|on\s+behalf\s+of|at\s+the\s+request\s+of|hand(?:ed)?[\s-]*over|handed|cop(?:y|ied)\s+to"
    r"|(?:images?|films?|study|studies|message|voicemail|case|scan)\s+(?:was\s+|were\s+)?(?:sent|left|forwarded|shown|presented)\s+(?:to"
    r"|for|with)|escalated|opinion\s+(?:of|from)|telefoniert"
    r"|attest(?:ed|ation)|e-?mailed|(?:by|over\s+the|via)\s+phone|phone\s+call|verbal(?:ly)?|signature"
    r"|diktiert|vidiert|befunder|telefonisch|mitgeteilt|besprochen|unterschrieben|signiert|firmado|firma|dictado|comunicado"
    r"|comentado|discutido|discut[ée]|communiqu[ée]|sign[ée]|dict[ée]|transmis|rapport[ée]\s+(?:à|au))\b"
    rf"|\b(?:{_WORK})(?:\s+(?:and|y|et|und)\s+\w+)?(?:\s+(?:electronically|remotely|preliminarily))?\s*(?:{_BY})"
    r"(?!\s+(?:(?:the|a|an)\s+)?(?:patient|family|mother|outside|ct|mri?|ultrasound)\b)"
    r"|\b(?:results?|findings?|reports?|critical|wet\s+read|impression)\b[^;]{0,60}?\b(?:called|given|phoned|provided"
    r"|delivered|reported|flagged|sent)\s+(?:in\s+|back\s+|over\s+)?(?:to|by)\b(?!\s+(?:be|have|represent|reflect)\b)"
    r"|\bpersonally\s+(?:re)?viewed\b|\bcc\s*:|\bI\s+(?:have|personally|agree|concur|attest|was\s+present|reviewed)\b|^\s*I,"
    rf"|\btranscription\s*(?:by|:)|(?<!home\s)(?<!general\s)\b(?:{_ROLE})\b",
    re.IGNORECASE,
)
_CUE_STEM = re.compile(
    r"will$|shall$|would$|can$|told|tell$|ask|ping|please|pls$|kindly|page$|call$|bleep|paging|thank|regards|sincer|behalf"
    r"|request|hand|cop[iy]|message|voicemail|forward|present|escal|opinion|disagree|happy|verständ|benachr"
    r"|unterr|kontakt|einverst|prévenu|averti|contact|d['’]accord|enterad|notific|acuerdo|updated|shown|chaperon|sister"
    r"|tech$|second$|first$|third$|double$|reader|sho$|gp$|physio|paramed|locum|trainee|perfus|phleb|sonol|prelim|station"
    r"|agree|concur|personally|notif|inform|paged|made|contacted|alerted|avisad|acknowl|aware|verb|called|consult|phone|discu|communi|convey|relay"
    r"|telef|dict|dikt|transc|e?-?sign[eé]|co-?sign|counter|spoke|conferred|messag|texted|faxed|authent|attest|e-?mail|vidiert"
    r"|befund|mitget|bespro|signat|signi?er|firma|comuni|comenta|transmis|rapport|(?:over-?)?read$|reviewed|verified"
    r"|approv|author|finali|edited|prepared|supervi|checked|reported|created|entered|released|le[íi]do|revisado|valid|relu$"
    r"|lu$|interpr|freigeg|gelesen|given|provided|delivered|flagged|sent$|cc$|i$|attend|resident|radi[oó]l|physic|clinician"
    r"|surgeon|regist|nurs|hospitalist|intensiv|pulmonologist|cardiologist|oncologist|urologist|neurologist|intern$"
    r"|internist|interne$|technolog|technic|sonogr|practit|provider|house|fellow|procedur|anesthe|anaest|midwife|matron"
    r"|m[ée]d[ie]c|enfermer|infirm|arzt|[äa]rzt|schwester|krankens|krankenp|pfleger|zuweiser|unters"
)
"""How the words of cues begin: a text without one is spared the slow pattern."""
_ABBREVIATED = (
    "dr",
    "drs",
    "prof",
    "mr",
    "mrs",
    "ms",
    "st",
    "sr",
    "dra",
    "sra",
    "med",
    "priv",
    "doz",
    "univ",
    "pr",
    "mme",
)
_SENTENCE_END = re.compile(
    r"[;!?\n]|\.(?:(?<=\b[ap]\.m\.)|(?<=\b\w\.\w\.)(?=\s+(?-i:[A-Z][a-z])|\s*$)|(?!\d)(?<!\b[^\W\d_]\.)"
    + "".join(rf"(?<!\b{word}\.)" for word in _ABBREVIATED)
    + ")",
    re.IGNORECASE,
)


SURE = 10
"""How many words that merely stand after `with` weigh as much as one with a capital, a title or a degree."""


def is_about_staff(header: str) -> bool:
    """Whether a header, such as `ATTENDING`, announces a name."""
    return _CUE.search(f"{header}:") is not None


def without_cued(text: str, removed: Counter[str], named: Counter[str]) -> str:
    """The text with each sentence up to its first cue; the names in what goes are counted."""
    return "".join(_cut(sentence, removed, named) for sentence in _sentences(text)) if _is_cued(text) else text


def _is_cued(text: str) -> bool:
    return any(map(_begins_cue, TOKEN.findall(text)))


@lru_cache(maxsize=1 << 16)
def _begins_cue(word: str) -> bool:
    return _CUE_STEM.match(word.lower()) is not None


def _sentences(text: str) -> Iterator[str]:
    start = 0
    for end in _SENTENCE_END.finditer(text):
        yield text[start : end.end()]
        start = end.end()
    yield text[start:]


def _cut(sentence: str, removed: Counter[str], named: Counter[str]) -> str:
    """The sentence up to its first cue; what comes after one names who, when and how, and shows nothing."""
    cue = _CUE.search(sentence) if _is_cued(sentence) else None
    if cue is None:
        return sentence
    head, end = sentence[: cue.start()], sentence[-1:]
    if cue["told"]:
        head = _before_person(head)
    if set(TOKEN.findall((head[_clause_start(head) :]).lower())) <= words.FILLERS:
        head = head[: _clause_start(head)]
    removed[STAFF_PHRASE] += 1
    named.update(_names_in(sentence[len(head) :]))
    return f"{head}{end if end in '.;!?' else '.'}\n"


def _clause_start(text: str) -> int:
    return max(text.rfind(mark) for mark in ",:(") + 1


def _before_person(head: str) -> str:
    """The head without its last clause, which names a person: `Small effusion, |Smith, John`."""
    start = _clause_start(head)
    before = head[:start].rstrip(" ,")
    last = before[_clause_start(before) :].split()
    if start and (len(last) == 1 or (last and last[0].lower() in words.PARTICLES)):
        return before[: _clause_start(before)]
    if head[start - 1 : start] == "," and set(TOKEN.findall(head[start:].lower())) <= words.DEGREES:
        return _before_person(head[: start - 1])  # `Jane Doe, RN |was notified`
    return head[:start]


def _names_in(phrase: str) -> Iterator[str]:
    """Words of a phrase about staff that may be names: those with capitals, else those after `by` or `with`."""
    tokens = tokens_of(phrase)
    by_capital = phrase != phrase.lower()  # a report all in capitals comes here in small letters
    place = 0
    for token in tokens:
        place = 2 if token.word in words.TAKERS or phrase[token.end : token.end + 1] == ":" else place
        ordinary = (
            token.word in words.FUNCTION or token.word in words.ORDINARY or _CUE.fullmatch(token.word) is not None
        )
        if ordinary or len(token.word) < 3 or not token.word.replace("-", "").replace("'", "").isalpha():
            continue
        if token.text[0].isupper() if by_capital else place > 0:
            yield from parts_of(token.word) * (SURE if by_capital else 1)
        place -= 1
