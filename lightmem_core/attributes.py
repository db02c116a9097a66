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

# (attribute, the start of a sentence). `of` names what the attribute belongs to.
PATTERNS = [
    ("home", rf"i(?:'m| am)? {NOW}(?:live|living) {NOW}in {VALUE}"),
    ("home", rf"(?:i|we)(?:'ve| have)? {NOW}moved (?:from [\p{{L}} ]+? )?to {VALUE}"),
    ("job", rf"i {NOW}work {NOW}as an? {VALUE}"),
    ("favourite", rf"my (?:new )?favou?rite (?P<of>[\p{{L}} ]{{2,30}}?) is {NOW}{VALUE}"),
    ("number", rf"my (?:new )?(?P<of>phone number|mobile number|email|e-mail|address) is {VALUE}"),
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

    `alone` if the sentence says nothing else, so that nothing else is lost with it.
    """

    name: str
    of: str
    value: str
    alone: bool

    def replaced_by(self, later: Attribute) -> bool:
        """Whether a later statement leaves nothing of this one. A closer value does not, and both
        must be plain: "I moved to Lisbon in 2012" says nothing of today."""
        same = (self.name, self.of) == (later.name, later.of)
        closer = self.value in later.value or later.value in self.value
        return self.alone and later.alone and same and not closer


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
            if name == "home" and not said[:1].isupper():
                return None  # "I moved to the couch": a home is a place with a name
            return Attribute(name, of.lower(), value.lower(), alone=value == said and not rest)
    return None
