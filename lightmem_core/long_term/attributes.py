"""Statements that give a person's attribute its value, where the form leaves no doubt.

Only plain statements in the first person and the present are read: no past ("I used to live"), no
wish ("I'd love to live"), no question, no negation. A pattern is added only with its counterexample
in tests/core/test_consolidate.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import regex

from lightmem_core.short_term.sentences import split

NOW = r"(?:now |currently |just |recently |finally |officially )*"
VALUE = r"(?P<value>[^,.!?;:()]{2,60})"

# (attribute, pattern of a whole sentence's start). `of` names what the attribute belongs to.
PATTERNS = [
    ("home", rf"i(?:'m| am)? {NOW}(?:live|living) {NOW}in {VALUE}"),
    ("home", rf"(?:i|we)(?:'ve| have)? {NOW}moved (?:from [\p{{L}} ]+? )?to {VALUE}"),
    ("job", rf"i {NOW}work {NOW}as an? {VALUE}"),
    ("favourite", rf"my (?:new )?favou?rite (?P<of>[\p{{L}} ]{{2,30}}?) is {NOW}{VALUE}"),
    ("number", rf"my (?:new )?(?P<of>phone number|mobile number|email|e-mail|address) is {VALUE}"),
    ("home", rf"ich (?:wohne|lebe) (?:jetzt |nun |inzwischen |seit \w+ )*in {VALUE}"),
    ("home", rf"ich bin (?:jetzt |vor \w+ |gerade )*nach {VALUE} (?:um)?gezogen"),
    ("job", rf"ich arbeite (?:jetzt |nun |inzwischen )*als {VALUE}"),
    ("favourite", rf"mein(?:e|) lieblings(?P<of>\p{{L}}+) ist (?:jetzt )?{VALUE}"),
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
    r"^(?:(?:and|so|well|oh|yes|also|actually|hey|und|ja|y|pues|sí)[, ]+)+", regex.IGNORECASE
)
# What follows the value and belongs to something else: "in Porto with my sister".
TAIL = regex.compile(
    r"\s(?:and|but|with|since|because|for|from|where|which|these days|now|und|aber|mit|seit|weil|"
    r"y|pero|con|desde|porque|ahora)\b.*$",
    regex.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Attribute:
    """An attribute of the speaker and its value, lowercased: ("home", "", "porto")."""

    name: str
    of: str
    value: str

    def replaced_by(self, later: Attribute) -> bool:
        same = (self.name, self.of) == (later.name, later.of)
        return same and self.value not in later.value and later.value not in self.value


@lru_cache(maxsize=100_000)
def attribute_of(text: str) -> Attribute | None:
    """The attribute that a text's only such sentence states, or None."""
    found = {a for sentence in split(text) if (a := _stated(sentence)) is not None}
    return found.pop() if len(found) == 1 else None


def _stated(sentence: str) -> Attribute | None:
    if sentence.rstrip().endswith("?"):
        return None
    plain = OPENING.sub("", sentence.strip().replace("’", "'"))
    for name, pattern in COMPILED:
        if match := pattern.match(plain):
            groups = match.groupdict()
            value = TAIL.sub("", groups["value"]).strip().lower()
            return Attribute(name, (groups.get("of") or "").lower(), value)
    return None
