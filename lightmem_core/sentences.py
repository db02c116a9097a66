"""Cut a message into sentences by its punctuation: no model, and only white space is lost."""

from __future__ import annotations

import regex

# Written with a full stop that does not end a sentence. Single characters never end one either.
ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof st vs approx dept inc ltd jr sr e.g i.e hr fr nr bzw evtl ggf inkl vgl "
    "z.b d.h u.a sra srta ud uds ee.uu p.ej pág mme mlle av p.ex "
    "jan feb mar apr jun jul aug sep sept oct nov dec".split()
)
_CUT = regex.compile(
    r"""(?<=[.!?…]['"”’»)\]]*[\p{Emoji_Presentation}\uFE0F]*)\s+  # a stop, then space
    | (?<=[。！？｡]['"”’」』）]*)\s*(?=\S)                      # a stop that needs no space
    | (?<=[\p{Emoji_Presentation}\uFE0F])\s+(?=\p{Lu})
    | [\r\n]+\s*
    | (?=\[image:)""",
    regex.VERBOSE,
)
_LAST_WORD = regex.compile(r"[\s(]([\p{L}\p{N}][\p{L}\p{N}.]*)\.$")


def split(text: str) -> list[str]:
    """The sentences of a text in order, stripped, none empty. A line break always cuts."""
    sentences: list[str] = []
    start = 0
    for cut in _CUT.finditer(text):
        piece = text[start : cut.start()]
        if not {"\n", "\r"} & set(cut[0]) and _runs_on(piece, text[cut.end() : cut.end() + 1]):
            continue
        sentences.append(piece)
        start = cut.end()
    sentences.append(text[start:])
    return [stripped for piece in sentences if (stripped := piece.strip())]


def _runs_on(piece: str, following: str) -> bool:
    """Whether the stop at the end of `piece` belongs to its last word, not to the sentence."""
    if not piece.endswith((".", "…")):
        return False
    if following.islower():
        return True
    found = _LAST_WORD.search(f" {piece}"[-20:])
    if not found:
        return False
    word = found[1].lower()
    return word in ABBREVIATIONS or len(word) == 1 or (word.isdigit() and len(word) == 2)
