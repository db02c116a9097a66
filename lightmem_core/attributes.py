"""Sentences that give a person's attribute its value, where the form leaves no doubt.

Only plain statements in the first person and the present are read: no past ("I used to live"), no
wish ("I'd love to live"), no question, no negation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import regex

NOW = r"(?:now |currently |just |recently |finally |officially )*"
VALUE = r"(?P<value>[^,.!?;:()]{2,60})"
PHONE = r"(?P<value>\+?[\d(][\d ()/.-]{3,25}\d)"
EMAIL = r"(?P<value>[\w.+-]+@[\w-]+(?:\.[\w-]+)+)"

PATTERNS = [
    ("home", rf"i(?:'m| am)? {NOW}(?:live|living) {NOW}in {VALUE}"),
    ("home", rf"(?:i|we)(?:'ve| have)? {NOW}moved (?:from [\p{{L}} ]+? )?to {VALUE}"),
    ("job", rf"i {NOW}work {NOW}as an? {VALUE}"),
    ("favourite", rf"my (?:new )?favou?rite (?P<of>[\p{{L}} ]{{2,30}}?) is {NOW}{VALUE}"),
    ("number", rf"my (?:new )?(?P<of>(?:phone|mobile|cell) number) is {NOW}{PHONE}"),
    ("number", rf"my (?:new )?(?P<of>e-?mail)(?: address)? is {NOW}{EMAIL}"),
    ("number", rf"my (?:new )?(?P<of>address) is {NOW}{VALUE}"),
    ("home", rf"ich (?:wohne|lebe) (?:jetzt |nun |inzwischen |seit \w+ )*in {VALUE}"),
    ("home", rf"ich bin (?:jetzt |vor \w+ |gerade )*nach {VALUE} (?:um)?gezogen"),
    ("job", rf"ich arbeite (?:jetzt |nun |inzwischen )*als {VALUE}"),
    ("favourite", rf"meine? lieblings(?P<of>\p{{L}}+) ist (?:jetzt )?{VALUE}"),
    ("home", rf"(?:ahora |yo |actualmente )*vivo (?:ahora )?en {VALUE}"),
    ("home", rf"(?:me he mudado|nos hemos mudado|me mudé|nos mudamos) (?:ya )?a {VALUE}"),
    ("job", rf"(?:ahora |yo |actualmente )*trabajo (?:ahora )?(?:como|de) {VALUE}"),
    (
        "favourite",
        rf"mi (?P<of>[\p{{L}} ]{{2,30}}?) (?:favorit[oa]|preferid[oa]) es (?:ahora )?{VALUE}",
    ),
]
COMPILED = [(name, regex.compile(pattern, regex.IGNORECASE)) for name, pattern in PATTERNS]
OPENING = regex.compile(
    r"^(?:(?:and|so|well|oh|yes|also|actually|hey|btw|und|ja|y|pues|sí)[, ]+)+", regex.IGNORECASE
)
# What one moves to that is no home: a part of a firm, a tool, a day.
NO_HOME = regex.compile(
    r"(?:the )?(?:marketing|sales|engineering|finance|accounting|accounts|hr|human resources|legal"
    r"|support|operations|product|design|it|research|development|r&d|procurement|logistics"
    r"|management|security|data|platform|(?:customer|public) \w+|(?:google|apple|ms|microsoft) \w+"
    r"|slack|zoom|discord|notion|gmail|outlook|whatsapp|signal|telegram|linux|ubuntu|windows|macos"
    r"|mac|android|ios|python|java|javascript|typescript|rust|go|kubernetes|github|gitlab|aws|azure"
    r"|(?:mon|tues|wednes|thurs|fri|satur|sun)days?|vertrieb|einkauf|personal|ventas|finanzas"
    r"|[\w ]+ (?:team|department|division|shift|group|desk|plan|abteilung))",
    regex.IGNORECASE,
)
# Several jobs can be held at once, and "England" is where one lives in London, too: only a
# statement that says that something has changed ends an earlier one.
COEXIST = ("home", "job")
CHANGE = regex.compile(
    r"\b(?:now|finally|moved|new|these days|jetzt|nun|inzwischen|gezogen|umgezogen|ahora"
    r"|mudado|mud[éa]|mudamos)\b",
    regex.IGNORECASE,
)
# A time that may follow the value, and words after which something else is said.
TIME = regex.compile(r"\s(?:now|these days|at the moment|jetzt|ahora)$", regex.IGNORECASE)
TAIL = regex.compile(
    r"\s(?:and|but|with|since|because|for|from|where|which|now|to|if|when|in|near|"
    r"und|aber|mit|seit|weil|wenn|um|y|pero|con|desde|porque|para|si|cuando|ahora)\b.*$",
    regex.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Attribute:
    """An attribute of the speaker and its value, lowercased: ("home", "", "porto").

    `alone` if the sentence says nothing else, so that nothing else is lost with it; `changed` if it
    says that the value was another one before.
    """

    name: str
    of: str
    value: str
    alone: bool
    changed: bool

    def replaced_by(self, later: Attribute) -> bool:
        """Whether a later statement leaves nothing of this one. A closer value does not, and both
        must be plain: "I moved to Lisbon in 2012" says nothing of today."""
        same = (self.name, self.of) == (later.name, later.of)
        closer = self.value in later.value or later.value in self.value
        ended = later.changed or self.name not in COEXIST
        return self.alone and later.alone and same and ended and not closer


@lru_cache(maxsize=1 << 16)
def attribute_of(sentence: str) -> Attribute | None:
    """The attribute that a single sentence states, or None."""
    plain = OPENING.sub("", sentence.strip().replace("’", "'"))
    if plain.endswith("?"):
        return None
    for name, pattern in COMPILED:
        if match := pattern.match(plain):
            said = TIME.sub("", match["value"].strip())
            value = TAIL.sub("", said)
            rest = plain[match.end() :].strip(" .!…")
            of = match.groupdict().get("of") or ""
            if name == "home" and (not said[:1].isupper() or NO_HOME.fullmatch(value)):
                return None  # "I moved to the couch": a home is a place with a name
            around = plain[: match.start("value")] + match["value"][len(said) :]
            around += plain[match.end("value") : match.end()]
            return Attribute(
                name=name,
                of=of.lower().replace("-", ""),
                value=value.lower(),
                alone=value == said and not rest,
                changed=CHANGE.search(around) is not None,
            )
    return None
