"""Compression by self-information -log2 P(word) under a unigram model of the text's language."""

from __future__ import annotations

import math
from collections.abc import Sequence

import regex

from lightmem_core.language import COMMON_BITS, LANGUAGES, WordModel, negates, words
from lightmem_core.protocols import Tokenizer
from lightmem_core.sensory.options import check_rate

# Single marks are quotes where no letter stands outside of them; within words, apostrophes.
QUOTED = regex.compile(
    r"""[“„«\"][^“”„«»\"]{1,100}[”“»\"]
    | [「『《][^「」『』《》]{1,100}[」』》]
    | (?<![\p{L}\p{N}])['‘‚‹](?!\s)
        (?:[^'‘’‚‹›]|(?<=\p{L})['’](?=\p{L})){1,100}
        (?<!\s)['’‘›](?!\p{L})""",
    regex.VERBOSE,
)
SENTENCE_END = (".", "!", "?", "…", ":")
# A capitalised word is a name if it carries as many bits as this. A sentence may start with any
# word, and German capitalises its nouns, which stand behind an article where names rarely do.
NAME_BITS, NOUN_BITS = 8, 13
ARTICLE = regex.compile(
    "d(?:er|ie|as|en|em|es)|im|ins|am|ans|vom|zum|zur|beim"
    "|(?:(?:k|m|d|s)?ein|ihr|unser|eur|dies|jed|jen|welch|viel|all|manch)(?:e[mnrs]?)?"
)


class SelfInformationCompressor:
    """Keep the share `rate` of each text's tokens: the most informative words, in their order.

    Numbers, negations, what is quoted, addresses and names always stay, even above the share. A
    name is told by its capital: one that is a word of small talk too ("Will") may go where it
    starts a sentence, and in German one behind an article ("die Emma") unless it is rare.
    """

    def __init__(
        self, tokenizer: Tokenizer, rate: float = 0.7, languages: Sequence[str] = LANGUAGES
    ):
        check_rate(rate)
        self.tokenizer = tokenizer
        self.rate = rate
        self.model = WordModel(languages)

    def compress(self, texts: Sequence[str]) -> list[str]:
        pieces = [text.split() for text in texts]
        unique = list({piece for text in pieces for piece in text})
        tokens = dict(zip(unique, self.tokenizer.count(unique), strict=True))
        return [
            self._compress(text, found, [tokens[piece] for piece in found])
            for text, found in zip(texts, pieces, strict=True)
        ]

    def _compress(self, text: str, pieces: list[str], tokens: list[int]) -> str:
        budget = math.ceil(self.rate * sum(tokens))
        language = self.model.language_of([w for piece in pieces for w in words(piece)])
        bits = [self._bits(piece, language) for piece in pieces]
        kept = self._protected(text, pieces, bits, language)
        spent = sum(tokens[i] for i in kept)
        for i in sorted(range(len(pieces)), key=lambda i: (-bits[i], i)):
            if i not in kept and spent + tokens[i] <= budget:
                kept.add(i)
                spent += tokens[i]
        return " ".join(pieces[i] for i in sorted(kept)) or text

    def _bits(self, piece: str, language: str) -> float:
        return max((self.model.bits(word, language) for word in words(piece)), default=0.0)

    def _protected(
        self, text: str, pieces: list[str], bits: list[float], language: str
    ) -> set[int]:
        kept, at_start, before = _quoted(text, pieces), True, ""
        for i, piece in enumerate(pieces):
            name_bits = NAME_BITS
            if at_start:
                name_bits = COMMON_BITS
            elif language == "de":
                name_bits = NOUN_BITS if ARTICLE.fullmatch(before) else COMMON_BITS
            if _always_kept(piece) or (_capitalised(piece) and bits[i] >= name_bits):
                kept.add(i)
            at_start, before = piece.endswith(SENTENCE_END), piece.lower()
        return kept


def _quoted(text: str, pieces: list[str]) -> set[int]:
    """The pieces that stand in quotation marks."""
    spans = [match.span() for match in QUOTED.finditer(text)]
    found, at = set(), 0
    for i, piece in enumerate(pieces if spans else ()):
        start = text.index(piece, at)
        at = start + len(piece)
        while spans and spans[0][1] <= start:
            spans.pop(0)
        if spans and spans[0][0] < at:
            found.add(i)
    return found


def _always_kept(piece: str) -> bool:
    return (
        any(c.isdigit() for c in piece)
        or "@" in piece
        or "://" in piece
        or any(map(negates, words(piece)))
    )


def _capitalised(piece: str) -> bool:
    return next((c.isupper() for c in piece if c.isalpha()), False)
