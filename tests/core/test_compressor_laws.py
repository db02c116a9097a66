"""Laws that every compressor keeps, whatever a message holds and whatever stands beside it."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightmem_core.encoders.hashing import WordTokenizer
from lightmem_core.protocols import Compressor
from lightmem_core.sensory.causal_entropy import CausalEntropyCompressor
from lightmem_core.sensory.compress import NoCompressor
from lightmem_core.sensory.self_information import SelfInformationCompressor
from lightmem_core.sensory.token_classifier import TokenClassifierCompressor

EXACT = ("bert", "bert openvino", "xlm-r", "gpt", "llama", "bert-lm")
KINDS = ("none", "self-information", *EXACT)
hard = runpy.run_path(str(Path(__file__).with_name("hard_messages.py")))
HARD, LONG, TALK, MESSAGES = (hard[name] for name in ("HARD", "LONG", "TALK", "MESSAGES"))
is_part = hard["is_part"]
END = "and then she moved to Lisbon because her sister had bought an old house by its harbour"


@pytest.fixture(scope="module")
def made(tiny_model: Callable[[str], str]) -> Callable[..., Compressor]:
    kept: dict[Any, Compressor] = {}

    def make(kind: str, rate: float = 0.5) -> Compressor:
        if (kind, rate) not in kept:
            kept[kind, rate] = build(kind, rate)
        return kept[kind, rate]

    def build(kind: str, rate: float) -> Compressor:
        if kind == "none":
            return NoCompressor()
        if kind == "self-information":
            return SelfInformationCompressor(WordTokenizer(), rate, ("en", "de"))
        name, _, runtime = kind.partition(" ")
        if name in ("bert", "xlm-r"):
            return TokenClassifierCompressor(
                WordTokenizer(), tiny_model(name), rate, runtime=runtime or "torch"
            )
        return CausalEntropyCompressor(WordTokenizer(), tiny_model(kind), rate)

    return make


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(texts=MESSAGES)
def test_no_text_becomes_empty_and_none_says_anything_new(
    made: Callable[..., Compressor], kind: str, texts: list[str]
):
    found = made(kind, 0.4).compress(texts)
    assert len(found) == len(texts)
    for text, kept in zip(texts, found, strict=True):
        assert bool(kept.strip()) == bool(text.strip())
        assert is_part(kept, text)


@pytest.mark.parametrize("kind", EXACT)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(texts=MESSAGES, order=st.randoms(use_true_random=False))
def test_the_outcome_does_not_depend_on_the_batch(
    made: Callable[..., Compressor], kind: str, texts: list[str], order: Any
):
    compressor = made(kind, 0.6)
    alone = {text: compressor.compress([text])[0] for text in texts}
    shuffled = order.sample(texts, len(texts))
    assert compressor.compress(shuffled) == [alone[text] for text in shuffled]
    assert compressor.compress(texts * 3) == [alone[text] for text in texts] * 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", HARD.values(), ids=HARD)
@pytest.mark.parametrize("rate", [0.05, 0.5, 0.95])
def test_hard_messages_keep_something_and_gain_nothing(
    made: Callable[..., Compressor], kind: str, text: str, rate: float
):
    (kept,) = made(kind, rate).compress([text])
    assert kept.strip()
    assert is_part(kept, text)


# Models read the texts that differ to them; each costs them seconds.
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        pytest.param(kind, text, id=f"{kind}-{name}")
        for kind in KINDS
        for name, text in LONG.items()
        if kind not in EXACT or name in ("talk", "one-word", "json")
    ],
)
def test_a_hundred_thousand_characters_are_read_to_their_end(
    made: Callable[..., Compressor], kind: str, text: str
):
    ending = f"{text} {END}"
    (kept,) = made(kind, 0.9).compress([ending])
    assert is_part(kept, ending)
    assert set(END.split()) & set(kept.split()) - set(text.split())
    if text == LONG["talk"] and kind != "none":
        assert 0.8 < len(kept) / len(ending) < 0.97
        # What is kept comes from every part of the text.
        assert is_part(kept[-2000:], ending[-8000:])


def test_a_text_said_twice_is_read_once(made: Callable[..., Compressor]):
    compressor = made("bert", 0.5)
    assert isinstance(compressor, TokenClassifierCompressor)
    before = compressor.forward.read
    compressor.compress([TALK])
    once = compressor.forward.read - before
    compressor.compress([TALK] * 50)
    assert compressor.forward.read - before == 2 * once
