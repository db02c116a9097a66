"""The day that a text speaks of: "yesterday", "vor zwei Wochen", "el 3 de mayo".

Only phrases that can hardly mean anything else are tried: a bare "may" or "sun" is never a date.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache

import regex

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)
ARTICLE = "(?:(?:el|la|le) |l')?"  # dateparser wants it in Spanish and French, and others lack it


@dataclass(frozen=True, slots=True)
class Grammar:
    """How a language names days, as regular expressions over lowercased text.

    In `spans`, N is a number and U a unit. `numbers` are the words for 1, 2, 3 and so on;
    `weekdays` begin with Monday. `past` and `future` stand before or after what they point at.
    """

    fixed: str
    spans: str
    units: str
    numbers: tuple[str, ...]
    weekdays: str
    weekend: str
    months: str
    past: str
    future: str
    on: str
    during: str
    of: str
    intent: str


GRAMMARS = {
    "en": Grammar(
        fixed="(?:the )?day (?:before yesterday|after tomorrow)|yesterday|today|tonight|tomorrow"
        "|last night|this (?:morning|afternoon|evening)",
        spans="N U ago|in N U",
        units="days?|weeks?|months?|years?",
        numbers=(
            "an?|one",
            "(?:a )?couple(?: of)?|two",
            "(?:a )?few|three",
            *("four", "five", "six", "seven", "eight", "nine", "ten"),
        ),
        weekdays="monday|tuesday|wednesday|thursday|friday|saturday|sunday",
        weekend="weekend",
        months="january|february|march|april|may(?! (?:be|have|not)\\b)|june|july|august"
        "|september|october|november|december",
        past="last|past",
        future="next|this coming|upcoming",
        on="on|this",
        during="in|during|since",
        of="of",
        intent="will|gonna|going to|plan(?:ning)? to|[a-z]+'ll|looking forward|can't wait"
        r"|(?:(?<!\b(?:in|of|on|since|by|until|last|next|early|late|mid) |\d(?:st|nd|rd|th)? )may"
        "|might|should|shall)(?! (?:have\\b|\\d))|(?:want|hope|need|have|intend)s? to"
        "|would like to",
    ),
    "de": Grammar(
        fixed="vorgestern|gestern|heute|übermorgen"
        "|(?<!(?:guten|am|jeden|heute|gestern|diesen) )morgen",
        spans="vor N U|in N U",
        units="tage?n?|wochen?|monate?n?|jahre?n?",
        numbers=(
            "eine[mnr]?|ein",
            *("zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun", "zehn"),
        ),
        weekdays="montag|dienstag|mittwoch|donnerstag|freitag|samstag|sonntag",
        weekend="wochenende",
        months="januar|februar|märz|april|mai|juni|juli|august|september|oktober|november|dezember",
        past="letzte[mnrs]?|vergangene[mnrs]?|vorige[mnrs]?",
        future="nächste[mnrs]?|kommende[mnrs]?",
        on="am|diese[mnrs]?",
        during="im|seit",
        of="des",
        intent="werden?|wird|wirst|will|wollen|möchten?|soll(?:en)?|muss|müssen|kann|können|darf"
        "|dürfen|freue mich auf",
    ),
    "es": Grammar(
        fixed="anteayer|ayer|hoy|pasado mañana|(?<!(?:la|esta|cada|una) )mañana",
        spans="hace N U|(?:en|dentro de) N U",
        units="días?|semanas?|mes(?:es)?|años?",
        numbers=(
            "una?",
            *("dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve", "diez"),
        ),
        weekdays="lunes|martes|miércoles|jueves|viernes|sábado|domingo",
        weekend="fin de semana",
        months="enero|febrero|marzo|abril|mayo|junio|julio|agosto|septiembre|octubre|noviembre"
        "|diciembre",
        past="pasad[oa]",
        future="próxim[oa]|que viene",
        on="el|este",
        during="en|desde",
        of="de|del",
        intent="vamos a|voy a|vas a|va a|van a|quiero|queremos|puedo|podemos|tengo que|tenemos que"
        "|espero",
    ),
    "fr": Grammar(
        fixed="avant-hier|hier|aujourd'hui|après-demain|demain",
        spans="il y a N U|dans N U",
        units="jours?|semaines?|mois|ans?|années?",
        numbers=(
            "une?",
            *("deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf", "dix"),
        ),
        weekdays="lundi|mardi|mercredi|jeudi|vendredi|samedi|dimanche",
        weekend="week-?end",
        months="janvier|février|mars|avril|mai|juin|juillet|août|septembre|octobre|novembre"
        "|décembre",
        past="derni(?:er|ère)|passée?",
        future="prochaine?",
        on="ce",
        during="en|depuis",
        of="de",
        intent="vais|vas|va|allons|allez|vont|veux|voulons|peux|pouvons|dois|devons|espère",
    ),
}


def resolve(text: str, said_at: int, language: str) -> int | None:
    """Midnight UTC of the first day named in the text, or None. A named month stands for its first
    day; "last year" and "two months ago" are counted from the day to the day.

    Languages without a grammar here give None.
    """
    if language not in GRAMMARS:
        return None
    lowered = text.lower().replace("’", "'")
    said_on = (EPOCH + said_at * MILLISECOND).strftime("%Y-%m-%d")
    tense = "future" if _intent(language).search(lowered) else "past"
    for found in _phrases(language).finditer(lowered):
        at = _parse(found[0], said_on, language, tense)
        if at is not None:
            return at
    return None


@cache
def _intent(language: str) -> regex.Pattern[str]:
    return regex.compile(rf"\b(?:{GRAMMARS[language].intent})\b")


@cache
def _phrases(language: str) -> regex.Pattern[str]:
    g = GRAMMARS[language]
    number = rf"(?:\d{{1,3}}|{'|'.join(g.numbers)})"
    spans = g.spans.replace("N", number).replace("U", f"(?:{g.units})")
    named = f"(?:{g.units}|{g.weekend}|{g.weekdays}|{g.months})"
    of, month = f"(?: (?:{g.of}))?", f"(?:{g.months})"
    forms = (
        g.fixed,
        spans,
        rf"{ARTICLE}(?:{g.past}|{g.future}) {named}",
        rf"{ARTICLE}{named} (?:{g.past}|{g.future})",
        rf"(?:{g.on}) (?:{g.weekend}|{g.weekdays})",
        rf"(?:3[01]|[12]?\d)(?:st|nd|rd|th|er|\.)?{of} {month}(?:,?{of} \d{{4}})?",
        rf"{month} \d{{1,2}}(?!\d)(?:st|nd|rd|th)?(?:,? \d{{4}})?",
        rf"{month}{of} \d{{4}}",
        rf"(?:{g.during}) {month}",
        r"(?:19|20)\d\d-\d\d-\d\d",
    )
    return regex.compile(rf"(?<![\w-])(?:{'|'.join(forms)})(?![\w-])")


@lru_cache(maxsize=1 << 16)
def _parse(phrase: str, said_on: str, language: str, tense: str) -> int | None:
    """Read a phrase as said on a day (ISO). A named weekday or month lies on the side of `tense`,
    unless the phrase itself says "last" or "next"; a date without a year is the nearest such."""
    months = GRAMMARS[language].months
    if regex.search(r"\d", phrase) and regex.search(rf"\b(?:{months})\b", phrase):
        read = [_read(phrase, said_on, language, side) for side in ("past", "future")]
        said_at = (datetime.fromisoformat(said_on).replace(tzinfo=UTC) - EPOCH) // MILLISECOND
        found = [at for at in read if at is not None]
        return min(found, key=lambda at: abs(at - said_at), default=None)
    return _read(phrase, said_on, language, tense)


def _read(phrase: str, said_on: str, language: str, tense: str) -> int | None:
    import dateparser

    g = GRAMMARS[language]
    if regex.search(rf"\b(?:{g.past})\b", phrase):
        tense = "past"
    elif regex.search(rf"\b(?:{g.future}|this)\b", phrase):
        tense = "future"
    of_month = regex.search(rf"\b(?:{g.months})\b", phrase)
    found = dateparser.parse(
        _plain(phrase, g),
        languages=[language],
        settings={
            "RELATIVE_BASE": datetime.fromisoformat(said_on),
            "PREFER_DATES_FROM": tense,
            "PREFER_DAY_OF_MONTH": "first" if of_month else "current",
        },
    )
    if found is None:
        return None
    midnight = found.replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=UTC)
    return (midnight - EPOCH) // MILLISECOND


def _plain(phrase: str, g: Grammar) -> str:
    """Say a phrase in the words that dateparser knows."""
    name = regex.search(rf"\b(?:{g.weekdays}|{g.weekend}|{g.months})\b", phrase)
    if name and not regex.search(r"\d", phrase):
        return g.weekdays.split("|")[5] if regex.fullmatch(g.weekend, name[0]) else name[0]
    if name:
        return regex.sub(rf"(?<=\d)(?:st|nd|rd|th|er)\b|\b(?:{g.of})\b", "", phrase)
    for value, word in enumerate(g.numbers, start=1):
        phrase = regex.sub(rf"\b(?:{word})\b(?= (?:{g.units})\b)", str(value), phrase)
    return phrase
