"""Surprise under a causal language model, aggregated per word by places alone."""

import json
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightmem_core import factory
from lightmem_core.config import Component, MemoryConfig
from lightmem_core.encoders.hashing import WordTokenizer
from lightmem_core.errors import ConfigError
from lightmem_core.sensory.causal_entropy import WORD, CausalEntropyCompressor, per_word
from lightmem_core.sensory.surprisal import Surprisal

MODELS = ("gpt", "llama", "bert-lm")  # byte-level BPE, SentencePiece, WordPiece
TEXTS = (
    "I went to the river yesterday with 3 friends; we didn't swim.",
    "Where does Caroline live now? In Lisbon, I think!",
    "I live in Lisbon",
    "我昨天搬到了里斯本。你住在哪里？",
    "أين تسكن الآن؟ أعمل في لشبونة",
    "naïve café 😀👍🏽 zzyzx",
)


def compressor(model: str, rate: float = 0.5, **options: Any) -> CausalEntropyCompressor:
    return CausalEntropyCompressor(WordTokenizer(), model, rate, **options)


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tiny_model: Callable[[str], str]) -> str:
    return tiny_model(request.param)


def by_definition(ours: CausalEntropyCompressor, text: str) -> list[float]:
    """-log P(x_i | x_<i) of each token: one plain pass, all logits, nothing batched."""
    import torch

    ids = ours.tokenizer.encode(text, add_special_tokens=False).ids
    with torch.inference_mode():
        logits = ours.forward.model(torch.tensor([[*ours.prefix, *ids]])).logits[0]
    logs = logits.double().log_softmax(-1)
    start = len(ours.prefix)
    return [-logs[start + i - 1, token].item() for i, token in enumerate(ids)]


def scored(ours: CausalEntropyCompressor, texts: Sequence[str]) -> list[np.ndarray]:
    """The surprise of the words of each text, as a batch gives it."""
    reading = ours._read(texts)
    words, _ = ours._limits(reading, ours._launch(reading).values())
    return [words.values[words.group == text] for text in range(len(texts))]


# --- the formula ---------------------------------------------------------------------------------


def test_a_batch_gives_the_surprise_of_the_formula(model: str):
    ours = compressor(model)
    for text, found in zip(TEXTS, scored(ours, TEXTS), strict=True):
        expected = by_definition(ours, text)
        assert sum(found) == pytest.approx(sum(expected), rel=1e-4)  # nothing lost, none twice
        assert len(found) == len(WORD.findall(text))


def test_the_first_token_is_judged_too(model: str):
    ours = compressor(model)
    assert len(ours.prefix) == 1
    ((first, *_),) = scored(ours, ["Lisbon"])
    assert first == pytest.approx(sum(by_definition(ours, "Lisbon")), rel=1e-4)
    assert first > 0


def test_a_prefix_of_ones_own_is_read_before_the_text(model: str):
    ours = compressor(model, prefix="Where does Caroline live now?")
    assert len(ours.prefix) > 1
    (found,) = scored(ours, ["In Lisbon"])
    assert sum(found) == pytest.approx(sum(by_definition(ours, "In Lisbon")), rel=1e-4)
    assert not np.allclose(found, scored(compressor(model), ["In Lisbon"])[0])


def test_the_words_of_a_space_separated_text_get_the_sums_of_their_tokens(model: str):
    ours = compressor(model)
    text = "I went to the river yesterday"
    encoding = ours.tokenizer.encode(text, add_special_tokens=False)
    ends = [m.end() for m in WORD.finditer(text)]
    sums = [0.0] * len(ends)
    for value, (_, end) in zip(by_definition(ours, text), encoding.offsets, strict=True):
        sums[next(i for i, e in enumerate(ends) if end <= e)] += value
    np.testing.assert_allclose(scored(ours, [text])[0], sums, rtol=1e-4)


def test_the_mean_is_the_sum_over_the_tokens(model: str):
    text = "Carolinesque went Lisbonward yesterdays"
    sums, means = (
        scored(compressor(model, aggregate=kind), [text])[0]  # pyright: ignore[reportArgumentType]
        for kind in ("sum", "mean")
    )
    tokens = sums / means
    np.testing.assert_allclose(tokens, np.round(tokens), atol=1e-3)
    assert tokens.max() > 1


@pytest.mark.parametrize(
    ("spans", "offsets", "values", "expected"),
    [
        ([(0, 2), (3, 5)], [(0, 2), (2, 5)], [4, 6], [4, 6]),  # " de" is all of the second word
        ([(0, 2), (3, 5)], [(0, 2), (2, 3), (3, 5)], [4, 1, 6], [4, 7]),  # a space by itself
        ([(0, 1), (1, 2)], [(0, 2)], [6], [3, 3]),  # a token over two words
        ([(0, 1), (1, 2)], [(0, 1), (0, 1), (0, 1), (1, 2)], [1, 2, 3, 4], [6, 4]),  # bytes
        ([(1, 3)], [(0, 1), (1, 3), (3, 4)], [1, 2, 4], [7]),  # white space around
        ([(0, 3), (4, 5)], [(0, 5)], [8], [6, 2]),
    ],
)
def test_tokens_are_shared_out_by_place(
    spans: list[tuple[int, int]],
    offsets: list[tuple[int, int]],
    values: list[float],
    expected: list[float],
):
    found, counted = per_word(spans, np.array(offsets), np.array(values, float))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert counted.sum() == pytest.approx(len(values))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=st.text(max_size=80), data=st.data())
def test_no_surprise_is_lost_whatever_the_tokens(text: str, data: st.DataObject):
    spans = [match.span() for match in WORD.finditer(text)]
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=12)) | {0, len(text)})
    offsets = np.array(list(pairwise(cuts)), np.int64).reshape(-1, 2)
    values = np.arange(1.0, len(offsets) + 1)
    found, _ = per_word(spans, offsets, values)
    assert len(found) == len(spans)
    assert not spans or found.sum() == pytest.approx(values.sum())


# --- long texts, memory, batches -----------------------------------------------------------------


def test_a_text_longer_than_the_window_is_read_with_context(tiny_model: Callable[[str], str]):
    ours = compressor(tiny_model("gpt"), window=24)
    text = " ".join(TEXTS[:3])
    reading = ours._read([text])
    size = len(ours.tokenizer.encode(text, add_special_tokens=False).ids)
    assert len(reading.rows) > 2
    assert all(len(row) <= 24 for row in reading.rows)
    assert sum(len(r) - f for r, f in zip(reading.rows, reading.fresh, strict=True)) == size
    assert all(fresh > ours.room // 2 for fresh in reading.fresh[1:])
    # The first window is read as if the text ended there, each later one as if it started there.
    whole = by_definition(compressor(tiny_model("gpt")), text)
    values = ours._launch(reading).values()
    np.testing.assert_allclose(values[0][1:], whole[: len(values[0]) - 1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("window", [2, 128, 5000])
def test_no_row_is_longer_than_the_model_reads(tiny_model: Callable[[str], str], window: int):
    if window == 2:
        with pytest.raises(ValueError, match="no room"):
            compressor(tiny_model("gpt"), window=window)
        return
    reading = compressor(tiny_model("gpt"), window=window)._read(["river " * 1000])
    assert max(map(len, reading.rows)) == 128


def test_logits_are_made_a_few_at_a_time(model: str):
    ours = compressor(model)
    vocabulary = ours.forward.model.config.vocab_size
    few = Surprisal(logit_bytes=4 * vocabulary * 3)
    seen: list[int] = []
    head = ours.forward.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda _m, _i, logits: seen.append(logits[..., 0].numel()))
    try:
        expected = scored(ours, TEXTS)
        ours.forward.score = few
        few(ours.forward.model, *ours.forward._tensors(ours._read(TEXTS[:1]).rows, ours.pad))
        seen.clear()
        found = scored(ours, TEXTS)
    finally:
        handle.remove()
    longest = max(map(len, ours._read(TEXTS).rows))
    assert max(seen) <= (3 if few._plain else longest)
    assert few._plain == ("bert" not in model)  # whose head is more than a product
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)


def test_a_model_that_caps_its_logits_is_read_as_it_is(tiny_model: Callable[[str], str]):
    import torch

    ours = compressor(tiny_model("llama"))
    forward = type(ours.forward.model).forward

    class Capped(type(ours.forward.model)):
        """As Gemma does."""

        def forward(self, *args: Any, **options: Any) -> Any:
            output = forward(self, *args, **options)
            output.logits = 2 * torch.tanh(output.logits / 2)
            return output

    capped = Capped.from_pretrained(ours.forward.name).eval()
    ours.forward.__dict__["model"] = capped
    (found,) = scored(ours, TEXTS[:1])
    assert ours.forward.score._plain is False  # pyright: ignore[reportFunctionMemberAccess]
    assert sum(found) == pytest.approx(sum(by_definition(ours, TEXTS[0])), rel=1e-4)


def test_padding_on_either_side_is_no_matter(tiny_model: Callable[[str], str]):
    ours = compressor(tiny_model("gpt"))  # whose tokenizer pads on the left
    alone = [scored(ours, [text])[0] for text in TEXTS]
    for a, b in zip(alone, scored(ours, TEXTS), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)


# --- compression ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.25, 0.5, 0.75])
def test_the_share_is_that_of_the_tokens(model: str, rate: float):
    text = " ".join(TEXTS[:3])
    (kept,) = compressor(model, rate).compress([text])
    words = len(text.split())
    assert math.floor(rate * (words - 1)) <= len(kept.split()) <= math.ceil(rate * (words - 1)) + 1


def test_the_words_that_surprise_most_stay(model: str):
    ours = compressor(model, 0.4)
    text = TEXTS[0]
    (values,) = scored(ours, [text])
    (kept,) = ours.compress([text])
    words = text.split()
    by_surprise = [words[i] for i in np.argsort(-values)]
    assert set(kept.split()) == set(by_surprise[: len(kept.split())])


@pytest.mark.parametrize("text", ["", " ", "\n\n", "river", "👍", "我", "\ud83d"])
def test_a_text_of_one_piece_stays_as_it_is(model: str, text: str):
    assert compressor(model, 0.01).compress([text]) == [text]


def test_bfloat16_keeps_nearly_the_same_words(model: str):
    exact, fast = (
        compressor(model, dtype=dtype).compress(TEXTS) for dtype in ("float32", "bfloat16")
    )
    pairs = [(set(a.split()), set(b.split())) for a, b in zip(exact, fast, strict=True)]
    assert sum(len(a & b) for a, b in pairs) >= 0.8 * sum(len(a | b) for a, b in pairs)


def test_it_is_chosen_by_name(model: str):
    component = Component(use="causal-entropy", options={"model": model, "aggregate": "mean"})
    memory = MemoryConfig(tokenizer=Component(use="words"), compressor=component)
    assert isinstance(factory.compression(memory).compressor, CausalEntropyCompressor)
    for wrong in (
        {"rate": 2},
        {"dtype": "int8"},
        {"batch_tokens": 0},
        {"window": "x"},
        {"aggregate": "max"},
        {"prefix": ""},
        {"model": "/no/such"},
    ):
        component = Component(use="causal-entropy", options={"model": model, **wrong})
        with pytest.raises(ConfigError):
            factory.compression(memory.model_copy(update={"compressor": component}))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("bert", "is BertForTokenClassification: name a causal language model"),
        ("reranker", "is BertForSequenceClassification: name a causal language model"),
        ("bert-lm", "is no decoder, it reads in both directions: name a causal language model"),
    ],
)
def test_a_model_that_reads_ahead_is_refused(
    tiny_model: Callable[[str], str], tmp_path: Path, kind: str, said: str
):
    config = json.loads(Path(tiny_model(kind), "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"is_decoder": False}))
    with pytest.raises(ValueError, match=said):
        compressor(str(tmp_path))
