"""Compression by a token classifier such as LLMLingua-2: P(retain x_i) = softmax(l_i)_1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from lightmem_core.encoders.forward import Compute, Forward, Launched, each_once
from lightmem_core.encoders.loading import config_with_head
from lightmem_core.protocols import Tokenizer
from lightmem_core.sensory.consecutive import repeats, without_repeats
from lightmem_core.sensory.joining import join
from lightmem_core.sensory.options import check_rate
from lightmem_core.sensory.quantile import Scored, chosen, thresholds, unsure
from lightmem_core.sensory.reading import Reader, Reading, Words
from lightmem_core.sensory.vocabulary import Rules

if TYPE_CHECKING:
    import torch

LLMLINGUA2 = "microsoft/llmlingua-2-bert-base-multilingual-cased-meetingbank"
PART = 1024  # texts that are read while the ones before are computed
WANTED = f"name a token classifier of two labels, such as {LLMLINGUA2}"
SEED = 42  # of the rows that forced tokens add to the embeddings, as in the package llmlingua


class TokenClassifierCompressor:
    """Keep the share `rate` of each text's tokens: the words most likely to be retained.

    `model` is a folder or hub name of any token-classification model with two labels. A word stays
    if its probability is above the quantile of its window's tokens; `rules` are those of `Rules`.
    What the vocabulary lacks the model cannot judge: it stays. With `dtype` float32 the outcome for
    a text does not depend on the texts beside it; bfloat16 is faster. `runtime` openvino is another
    way to compute on a CPU.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        model: str = LLMLINGUA2,
        rate: float = 0.7,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        batch_tokens: int | None = None,
        runtime: str = "torch",
        **rules: Any,
    ):
        check_rate(rate)
        labels = config_with_head(model, ["ForTokenClassification"], WANTED).num_labels
        if labels != 2:
            raise ValueError(f"{model} has {labels} labels: {WANTED}")
        self.rate, self.rules = rate, Rules.of(rules)
        self.reader = Reader(model, tokenizer, self.rules)
        compute = Compute(dtype, device, batch_tokens, runtime)
        self.forward = Forward(model, self._retention, compute)

    def compress(self, texts: Sequence[str]) -> list[str]:
        if self.rate == 1:
            return list(texts)
        return each_once(texts, PART, self.reader.read, self._launch, self._finish)

    def _retention(self, model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if self.reader.vocabulary.marks:
            _add_rows(model, self.reader.vocabulary.size)
        return model(input_ids=ids, attention_mask=mask).logits.float().softmax(-1)[..., 1]

    def _launch(self, reading: Reading) -> Launched:
        return self.forward.launch(reading.rows, self.reader.pad)

    def _finish(self, reading: Reading, launched: Launched) -> list[str]:
        def judge(rows: list[np.ndarray]) -> tuple[np.ndarray, list[int]]:
            return self._judge(reading, self.reader.inside(rows))

        kept = self.forward.settled(reading.rows, self.reader.pad, launched, judge)
        return self._texts(reading, kept)

    def _judge(self, reading: Reading, values: np.ndarray) -> tuple[np.ndarray, list[int]]:
        """Which words stay, and the windows in which the last bits of the values may decide it."""
        words, certain = self._words(reading, values)
        names, forced, doubtful = reading.words.names, set(self.rules.force_tokens), set[int]()
        if self.rules.drop_consecutive:
            each = replace(words, weights=np.minimum(words.weights, 1))
            limits = thresholds(each, self._ranks(each, certain, 0))
            doubtful.update(unsure(each, limits, _noise(limits)).tolist())
            again = repeats(words, names, limits, forced)
            words, certain = (
                replace(words, values=np.where(again, 0, words.values)),
                certain | again,
            )
        limits = thresholds(words, self._ranks(words, certain, 1))
        doubtful.update(unsure(words, limits, _noise(limits)).tolist())
        kept = chosen(words, limits)
        if self.rules.drop_consecutive:
            kept = without_repeats(kept, words, names, forced)
        return kept, sorted(doubtful)

    def _words(self, reading: Reading, values: np.ndarray) -> tuple[Scored, np.ndarray]:
        """The words with their probabilities, and whether each is forced."""
        found, many = reading.words, len(reading.words.names)
        forced = self.reader.vocabulary.forced[reading.ids][found.judged]
        tokens = np.where(forced, np.float32(1), values[found.judged])
        counts = np.bincount(found.owner, minlength=many)
        if self.rules.token_to_word == "first":
            first = np.cumsum(counts) - counts
            means = np.append(tokens, 0)[first]
        else:
            means = np.bincount(found.owner, tokens, many) / np.maximum(counts, 1)
        by_force = np.bincount(found.owner, forced, many)
        certain = (counts > 0) & (by_force == counts)
        if not self.rules.as_llmlingua:
            certain = by_force > 0
            means = np.where(certain, 1, means)
        scored = Scored(means.astype(np.float32), found.weights, found.window, len(reading.windows))
        return scored, certain

    def _ranks(self, words: Scored, certain: np.ndarray, extra: int) -> np.ndarray:
        """Where the quantile of each window lies among its tokens.

        The package takes it to the whole percent, and some percent more. It computes it in float32
        unless a word of the window is certain, whose value is not: the two can differ by a token.
        """
        last = np.maximum(words.totals() - 1, 0)
        if not self.rules.as_llmlingua:
            return last * (1 - self.rate)
        percent = min(int(100 * (1 - self.rate) + extra), 100)
        wide = np.bincount(words.group[certain], minlength=words.groups) > 0
        narrow = last.astype(np.float32) * (np.float32(percent) / np.float32(100))
        return np.where(wide, last * (percent / 100), narrow.astype(np.float64))

    def _texts(self, reading: Reading, kept: np.ndarray) -> list[str]:
        words = reading.words
        if not self.rules.as_llmlingua:
            kept = kept | ~words.known
        stay = np.flatnonzero(kept).tolist()
        owner = np.array([window.text for window in reading.windows], np.int64)[words.window]
        texts = list(reading.texts)
        for text, found in groupby(stay, key=owner.tolist().__getitem__):
            joined = self._joined(reading.texts[int(text)], words, list(found))
            texts[text] = joined if joined.strip() else reading.texts[text]
        return texts

    def _joined(self, text: str, words: Words, kept: list[int]) -> str:
        if not self.rules.as_llmlingua:
            return join(text, [words.spans[i] for i in kept])
        windows = groupby(kept, key=words.window.__getitem__)
        write = self.reader.tokenizer.decoder.decode
        return "".join(write([words.names[i] for i in found]) for _, found in windows)


def _noise(limits: np.ndarray) -> np.ndarray:
    """How far a probability near the limit may move with the batch it is computed in: by less than
    1e-4 in its logit, and by a rounding."""
    return 1e-4 * limits * (1 - limits) + 2e-7


def _add_rows(model: Any, rows: int) -> None:
    """Give the model an embedding for each forced token, drawn as the package draws it."""
    import torch

    if model.get_input_embeddings().num_embeddings >= rows:
        return
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(SEED)
        model.resize_token_embeddings(rows)
