"""How the tokens of a model make up words: LLMLingua-2's conventions, by kind of tokenizer.

WordPiece (BERT): a token opens a word unless it starts with ##. SentencePiece (XLM-R) and
byte-level BPE: it does if it starts with the mark of a space, or is punctuation.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import regex

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WordValue = Literal["mean", "first"]

SENTENCE_ENDS = (".", "!", "?", "。", "！", "？", "؟", "।")
MOST_FORCED = 100
SPACE_MARKS = "▁ĠĊ"
_DIGIT = regex.compile(r"\d")


@dataclass(frozen=True, slots=True)
class Rules:
    """What LLMLingua-2 can be told, under its own names.

    `force_tokens` always stay, each where it makes up a word of its own; `drop_consecutive` keeps
    one of those that would follow themselves. `force_reserve_digit` keeps words with digits. A word
    has the `mean` of its tokens' probabilities, or that of the `first`. Long messages are cut after
    `chunk_end_tokens`.

    `as_llmlingua` does as the package does where that loses something: what the vocabulary lacks is
    dropped, digits count only for their own tokens, words are joined as its tokenizer writes them
    and counted with the mark of their space, and XLM-R reads unknown tokens where it was trained on
    <s> and </s>.
    """

    force_tokens: Sequence[str] = ()
    force_reserve_digit: bool = False
    drop_consecutive: bool = False
    token_to_word: WordValue = "mean"
    chunk_end_tokens: Sequence[str] = SENTENCE_ENDS
    as_llmlingua: bool = False

    def __post_init__(self) -> None:
        if len(self.force_tokens) > MOST_FORCED or "" in self.force_tokens:
            raise ValueError(f"force_tokens must be at most {MOST_FORCED} texts, none empty")
        if self.token_to_word not in get_args(WordValue):
            raise ValueError(f"token_to_word must be mean or first, got {self.token_to_word!r}")

    @classmethod
    def of(cls, options: dict[str, Any]) -> Rules:
        """Raise TypeError naming the options that exist."""
        known = [field.name for field in fields(cls)]
        if unknown := sorted(options.keys() - set(known)):
            raise TypeError(f"there is no option {unknown}; of words there are: {', '.join(known)}")
        return cls(**options)


class Vocabulary:
    """Of each token id: `texts`, whether it `begins` a word, is `forced`, is `blank` but for the
    mark of a space, or stands for what is `unknown`.

    `marks` maps forced texts that are no single token to tokens added for them, whose embeddings
    the model must hold: `size` rows in all.
    """

    def __init__(self, tokenizer: Tokenizer, rules: Rules, unknown: int | None):
        self.kind = type(tokenizer.model).__name__
        self.marks = _added_marks(tokenizer, rules.force_tokens)
        self.size = tokenizer.get_vocab_size()
        raw = [tokenizer.id_to_token(token) or "" for token in range(self.size)]
        sources = {mark: text for text, mark in self.marks.items()}
        pure = [self._pure(token) for token in raw]
        own = {*rules.force_tokens, *sources}
        wanted = np.array([token in own for token in pure])
        self.texts = [sources.get(token, token) for token in raw]
        self.pure = pure
        self.blank = np.array([not token for token in pure]) & (self.kind != "WordPiece")
        self.unknown = np.arange(self.size) == (-1 if unknown is None else unknown)
        self.begins = np.array([self._begins(token, own) for token in raw]) & self._opening()
        digits = np.array([bool(_DIGIT.search(text)) for text in self.texts])
        self.forced = (wanted & self.begins) | (digits & rules.force_reserve_digit)

    def _pure(self, token: str) -> str:
        return token.lstrip("#" if self.kind == "WordPiece" else SPACE_MARKS)

    def _begins(self, token: str, own: set[str]) -> bool:
        if self.kind == "WordPiece":
            return not token.startswith("##") or token.lstrip("#") in own
        # A substring, not a set: "()" is punctuation too.
        return token.startswith(tuple(SPACE_MARKS)) or token in own or token in string.punctuation

    def _opening(self) -> np.ndarray:
        """What is unknown is a word of its own in WordPiece, a part of one elsewhere."""
        return np.ones(self.size, bool) if self.kind == "WordPiece" else ~self.unknown


def _added_marks(tokenizer: Tokenizer, forced: Sequence[str]) -> dict[str, str]:
    from tokenizers import AddedToken

    found = tokenizer.encode_batch(list(forced), add_special_tokens=False)
    marks = {
        text: f"[NEW{place}]"
        for place, (text, encoding) in enumerate(zip(forced, found, strict=True))
        if len(encoding.ids) != 1
    }
    if marks:
        added = [f"[NEW{place}]" for place in range(MOST_FORCED)]
        tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in added])
    return marks
