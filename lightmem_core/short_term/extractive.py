"""Memory entries without an LLM: the informative sentences of each message, in its own words."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence

import regex

from lightmem_core.attributes import attribute_of
from lightmem_core.language import (
    ATTITUDES,
    COMMON_BITS,
    FIRST_PERSON,
    LANGUAGES,
    PLEASANTRIES,
    WordModel,
    negates,
    words,
)
from lightmem_core.sentences import split
from lightmem_core.short_term.dates import resolve
from lightmem_core.types import Buffer, Fact, Message, Segment

RARE_BITS = 20.0  # rarer than this are names and misspellings: not more informative
# Above common words, praise and the like aside: enough where one says how it is with oneself, and
# needed of every sentence.
OWN_BITS, TOLD_BITS = 1.0, 2.0
TOPIC_WORDS = 4
_DIGIT = regex.compile(r"\p{N}")


class ExtractiveGenerator:
    """The informative sentences of a message in texts of at most `max_chars`: a fact is one
    statement or a few that were made together.

    A sentence informs if it holds a number; if its words, speakers' names aside, carry `min_bits`
    more than common words do, and not by praise alone; or if it says anything of the speaker ("I
    have a son."). Greetings, thanks and praise do not. A sentence that gives an attribute its value
    stands alone, so that a later value can supersede it alone. Only messages of `roles` are read,
    unless that is None.
    """

    name = "extractive"
    deterministic = True

    def __init__(
        self,
        *,
        roles: Sequence[str] | None = None,
        languages: Sequence[str] = LANGUAGES,
        min_bits: float = 5.0,
        max_chars: int = 240,
    ):
        self.roles = None if roles is None else frozenset(roles)
        self.model = WordModel(languages)
        self.min_bits = min_bits
        self.max_chars = max_chars

    def generate(self, buffers: Sequence[Buffer]) -> list[list[Fact] | str]:
        return [list(self._facts(buffer)) for buffer in buffers]

    def _facts(self, buffer: Buffer) -> Iterator[Fact]:
        start = 0
        for segment in buffer.segments:
            yield from self._of_segment(segment, start)
            start += len(segment.messages)

    def _of_segment(self, segment: Segment, start: int) -> Iterator[Fact]:
        tokens = [words(message.content) for message in segment.messages]
        names = {word for message in segment.messages for word in words(message.speaker)}
        said = [word for row in tokens for word in row]
        language = self.model.language_of(said)
        topic = self._topic(said, names, language)
        for index, message in enumerate(segment.messages, start):
            for text in self._statements(message, names, language):
                event_at = resolve(text, message.said_at, language)
                yield Fact(text, (index,), topic, event_at)

    def _statements(self, message: Message, names: set[str], language: str) -> Iterator[str]:
        """The informative sentences of a message, packed into texts of at most `max_chars`."""
        if self.roles is not None and message.role not in self.roles:
            return
        packed = ""
        for sentence in split(message.content):
            alone = attribute_of(sentence) is not None
            if not alone and not self._informs(sentence, names, language):
                continue
            for piece in self._pieces(sentence):
                if packed and (alone or len(packed) + len(piece) >= self.max_chars):
                    yield packed
                    packed = ""
                packed = f"{packed} {piece}".lstrip()
            if alone:
                yield packed
                packed = ""
        if packed:
            yield packed

    def _pieces(self, sentence: str) -> list[str]:
        """A sentence, cut at spaces where it is more than twice too long for one text."""
        if len(sentence) <= 2 * self.max_chars:
            return [sentence]
        return textwrap.wrap(sentence, self.max_chars, break_on_hyphens=False)

    def _informs(self, sentence: str, names: set[str], language: str) -> bool:
        if _DIGIT.search(sentence):
            return True
        spoken = dict.fromkeys(words(sentence))
        surplus = {word: self._surplus(word, names, language) for word in spoken}
        told = sum(bits for word, bits in surplus.items() if word not in ATTITUDES)
        of_oneself = any(word.split("'")[0] in FIRST_PERSON for word in spoken)
        if of_oneself and not sentence.endswith("?") and told >= OWN_BITS:
            return True
        return told >= TOLD_BITS and sum(surplus.values()) >= self.min_bits

    def _surplus(self, word: str, names: set[str], language: str) -> float:
        """The bits of a word above those of common words; none for what informs of nothing."""
        head, _, tail = word.partition("'")
        bare = tail if len(tail) > 2 else head  # "l'hôpital", "mum's"
        if negates(word) or head in names or {word, bare} & PLEASANTRIES:
            return 0.0
        return max(self.model.bits(bare, language) - COMMON_BITS, 0.0)

    def _topic(self, said: Sequence[str], names: set[str], language: str) -> str:
        """The words said most, each weighed by what it informs; ties go to the one said first."""
        weights: dict[str, float] = {}
        for word, times in Counter(said).items():
            if word.isalpha() and len(word) > 1 and word not in ATTITUDES:
                surplus = self._surplus(word, names, language)
                weights[word] = times * min(surplus, RARE_BITS - COMMON_BITS)
        best = sorted(weights, key=lambda word: -weights[word])[:TOPIC_WORDS]
        return ", ".join(word for word in best if weights[word] > 0)
