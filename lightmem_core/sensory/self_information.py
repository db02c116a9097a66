"""Compression by self-information -log2 P(word) under a unigram model of the text's language."""

from __future__ import annotations

import math
from collections.abc import Sequence

import regex

from lightmem_core.language import LANGUAGES, WordModel, negates, words
from lightmem_core.protocols import Tokenizer
from lightmem_core.sensory.compress import check_rate

QUOTED = regex.compile(r"[“„«\"]([^“”„«»\"]{1,100})[”“»\"]")
SENTENCE_END = (".", "!", "?", "…", ":")
# A capitalised word is a name if it is rarer than this, in bits; German writes nouns so, too.
NAME_BITS, NAME_BITS_AT_START, NAME_BITS_GERMAN = 8, 13, 13


class SelfInformationCompressor:
    """Keep the share `rate` of each text's tokens: the most informative words, in their order.

    Names, numbers, negations, quoted titles and addresses always stay, even above the share; in
    German, where every noun is capitalised, names only where they are rarer than common nouns.
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
        quoted = {_bare(piece) for match in QUOTED.findall(text) for piece in match.split()}
        mid_sentence = NAME_BITS_GERMAN if language == "de" else NAME_BITS
        kept, at_start = set(), True
        for i, piece in enumerate(pieces):
            name_bits = NAME_BITS_AT_START if at_start else mid_sentence
            if _always_kept(piece, quoted) or (_capitalised(piece) and bits[i] >= name_bits):
                kept.add(i)
            at_start = piece.endswith(SENTENCE_END)
        return kept


def _always_kept(piece: str, quoted: set[str]) -> bool:
    return (
        _bare(piece) in quoted
        or any(c.isdigit() for c in piece)
        or "@" in piece
        or "://" in piece
        or any(map(negates, words(piece)))
    )


def _bare(piece: str) -> str:
    return piece.strip("“”„«»\"'.,!?;:()")


def _capitalised(piece: str) -> bool:
    return next((c.isupper() for c in piece if c.isalpha()), False)
