"""Compression by surprise under a causal language model: -log P(x_i | x_1 ... x_i-1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import regex

from lightmem_core.encoders.forward import Compute, Forward, Launched, each_once
from lightmem_core.encoders.loading import (
    config_with_head,
    load_tokenizer,
    special_id,
    whole_characters,
    window_of,
)
from lightmem_core.protocols import Tokenizer
from lightmem_core.sensory.joining import join
from lightmem_core.sensory.options import check_rate, check_whole
from lightmem_core.sensory.quantile import Scored, chosen, thresholds, unsure
from lightmem_core.sensory.surprisal import Surprisal

if TYPE_CHECKING:
    from tokenizers import Encoding

PART = 512  # texts that are read while the ones before are computed
WANTED = "name a causal language model, such as Qwen/Qwen3-0.6B"
WINDOW = 1024  # tokens read at once, if the model can
# What stands between spaces; in scripts that write none, each character or run of Katakana.
WORD = regex.compile(
    r"\p{Katakana}+|(?=[\p{Han}\p{Hiragana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}])\X"
    r"|[^\s\p{Katakana}\p{Han}\p{Hiragana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]+"
)


@dataclass(frozen=True, slots=True)
class CausalReading:
    """Texts as a language model reads them. `rows` are its input, the windows of all texts in
    order; `owner` says of which text, and `fresh` from which place on a row is not context only."""

    texts: Sequence[str]
    spans: list[list[tuple[int, int]]]  # the words of each text
    offsets: list[np.ndarray]  # the places of the tokens of each text, (n, 2)
    weights: np.ndarray  # tokens of all words, by the tokenizer that counts
    rows: list[np.ndarray]
    owner: list[int]
    fresh: list[int]


class CausalEntropyCompressor:
    """Keep the share `rate` of each text's tokens: the words that surprise most.

    `model` is a folder or hub name of any causal language model. A word's surprise is the `sum`
    (the information it carries) or the `mean` of its tokens'. A text starts after the model's
    token for a beginning, or after the text `prefix`. A text longer than `window` tokens is read
    in windows that overlap by half: no token but the first ones is read with less context. With
    `dtype` float32 the outcome for a text does not depend on the texts beside it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        model: str,
        rate: float = 0.7,
        *,
        aggregate: Literal["sum", "mean"] = "sum",
        prefix: str | None = None,
        window: int = WINDOW,
        dtype: str = "float32",
        device: str = "cpu",
        batch_tokens: int | None = None,
    ):
        check_rate(rate)
        check_whole("window", window, 2)
        config = causal_config(model)
        if aggregate not in ("sum", "mean"):
            raise ValueError(f"aggregate must be sum or mean, got {aggregate!r}")
        self.counter, self.rate, self.aggregate = tokenizer, rate, aggregate
        self.tokenizer, roles = load_tokenizer(model)
        self.prefix = self._prefix(roles, prefix)
        self.room = window_of(config, window) - len(self.prefix)
        if self.room < 2:
            raise ValueError(
                f"window {window} leaves no room beside a prefix of {len(self.prefix)}"
            )
        self.pad = special_id(roles, "pad", "eos", "unk") or 0
        self.forward = Forward(model, Surprisal(), Compute(dtype, device, batch_tokens))

    def _prefix(self, roles: Any, text: str | None) -> list[int]:
        opening = special_id(roles, "bos", "cls", "eos")
        if text is None and opening is not None:
            return [opening]
        text = "\n" if text is None else text
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        if not ids:
            raise ValueError(f"prefix {text!r} has no token: give a text that the model can read")
        return ids

    def compress(self, texts: Sequence[str]) -> list[str]:
        if self.rate == 1:
            return list(texts)
        return each_once(texts, PART, self._read, self._launch, self._finish)

    # --- reading ---------------------------------------------------------------------------------

    def _read(self, texts: Sequence[str]) -> CausalReading:
        whole = whole_characters(texts)
        encoded = self.tokenizer.encode_batch(whole, add_special_tokens=False)
        spans = [[match.span() for match in WORD.finditer(text)] for text in whole]
        words = [text[a:b] for text, of in zip(whole, spans, strict=True) for a, b in of]
        counted = np.array(self.counter.count(words), np.int64)
        reading = CausalReading(texts, spans, [], counted, [], [], [])
        for owner, encoding in enumerate(encoded):
            reading.offsets.append(np.array(encoding.offsets, np.int64).reshape(-1, 2))
            self._add_windows(reading, owner, encoding)
        return reading

    def _add_windows(self, reading: CausalReading, owner: int, encoding: Encoding) -> None:
        ids, done = encoding.ids, 0
        while done < len(ids):
            start = max(done - self.room // 2, 0) if done else 0
            reading.rows.append(np.array([*self.prefix, *ids[start : start + self.room]], np.int64))
            reading.owner.append(owner)
            reading.fresh.append(len(self.prefix) + done - start)
            done = start + self.room

    def _launch(self, reading: CausalReading) -> Launched:
        return self.forward.launch(reading.rows, self.pad)

    # --- choosing --------------------------------------------------------------------------------

    def _finish(self, reading: CausalReading, launched: Launched) -> list[str]:
        def judge(rows: list[np.ndarray]) -> tuple[np.ndarray, list[int]]:
            words, limits = self._limits(reading, rows)
            doubtful = set(unsure(words, limits, 2e-4 * (1 + np.abs(limits))).tolist())
            again = [row for row, text in enumerate(reading.owner) if text in doubtful]
            return chosen(words, limits), again

        return _texts(reading, self.forward.settled(reading.rows, self.pad, launched, judge))

    def _limits(
        self, reading: CausalReading, rows: Sequence[np.ndarray]
    ) -> tuple[Scored, np.ndarray]:
        """All words with their surprise in nats, and the quantile of each text."""
        surprise = [[] for _ in reading.texts]
        for values, text, fresh in zip(rows, reading.owner, reading.fresh, strict=True):
            surprise[text].append(values[fresh:])
        found = [
            self._of_words(spans, offsets, np.concatenate(values or [np.zeros(0)]))
            for spans, offsets, values in zip(reading.spans, reading.offsets, surprise, strict=True)
        ]
        sizes = [len(spans) for spans in reading.spans]
        group = np.repeat(np.arange(len(sizes)), sizes)
        values = np.concatenate(found or [np.zeros(0)])
        words = Scored(values, reading.weights, group, len(sizes))
        return words, thresholds(words, np.maximum(words.totals() - 1, 0) * (1 - self.rate))

    def _of_words(
        self, spans: Sequence[tuple[int, int]], offsets: np.ndarray, surprise: np.ndarray
    ) -> np.ndarray:
        values, tokens = per_word(spans, offsets, surprise)
        return values / np.maximum(tokens, 1e-9) if self.aggregate == "mean" else values


def causal_config(model: str) -> Any:
    """The configuration of a model. Raise ValueError if it reads what follows a token, too."""
    config = config_with_head(model, ["ForCausalLM", "LMHead"], WANTED)
    if not getattr(config, "is_decoder", getattr(config, "causal", True)):
        raise ValueError(f"{model} is no decoder, it reads in both directions: {WANTED}")
    return config


def per_word(
    spans: Sequence[tuple[int, int]], offsets: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What each word has of the values of tokens, and of their number, by places alone.

    A token belongs to the words that it touches, in proportion to their characters; one of white
    space to the word that follows.
    """
    if not spans:
        return np.zeros(0), np.zeros(0)
    bounds = np.array(spans)
    length = int(max(bounds[-1, 1], offsets.max(initial=0)))
    inked = np.zeros(length + 1, np.int64)  # before each place: characters that are in words
    inside = np.zeros(length + 1, np.int64)
    np.add.at(inside, bounds[:, 0], 1)
    np.add.at(inside, bounds[:, 1], -1)
    inked[1:] = np.cumsum(np.cumsum(inside))[:-1]
    start, stop = inked[offsets[:, 0]], inked[offsets[:, 1]]
    stop = np.where(stop > start, stop, start + 1)
    total = inked[-1]
    start, stop = np.minimum(start, total - 1), np.minimum(stop, total)
    opening = inked[bounds[:, 0]]
    shares = []
    for amount in (values, np.ones(len(values))):
        density = np.zeros(total + 1)
        np.add.at(density, start, amount / (stop - start))
        np.add.at(density, stop, -amount / (stop - start))
        shares.append(np.add.reduceat(np.cumsum(density)[:-1], opening))
    return shares[0], shares[1]


def _texts(reading: CausalReading, kept: np.ndarray) -> list[str]:
    texts, start = [], 0
    for text, spans in zip(reading.texts, reading.spans, strict=True):
        stay = kept[start : start + len(spans)].tolist()
        start += len(spans)
        texts.append(join(text, (s for s, k in zip(spans, stay, strict=True) if k)) or text)
    return texts
