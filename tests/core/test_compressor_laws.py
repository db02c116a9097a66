"""Laws that every compressor keeps, whatever a message holds and whatever stands beside it."""

from collections.abc import Callable
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

KINDS = ("none", "self-information", "bert", "xlm-r", "gpt", "llama", "bert-lm")
EXACT = ("bert", "xlm-r", "gpt", "llama", "bert-lm")
JSON = '{"user": {"name": "Ada", "age": 36, "tags": ["a", "b"]}, "ok": true, "note": null}'
CODE = "def add(a, b):\n    return a + b  # both\n\nfor i in range(10):\n\tprint(add(i, 2 ** i))\n"
URL = "https://example.org/a/b?c=1&d=%20x#top"
CHINESE = "我昨天搬到了里斯本。你住在哪里？我想下个月去看你。"
ARABIC = "أين تسكن الآن؟ أعمل في لشبونة منذ عام 2020."
TALK = "I went to the river yesterday with 3 friends; we didn't swim. Where does Caroline live? "
HARD = {
    "json": JSON,
    "code": CODE,
    "url": URL,
    "chinese": CHINESE,
    "arabic": ARABIC,
    "emoji": "😀👍🏽👩‍👩‍👧🇵🇹",
    "thai": "ฉันย้ายไปลิสบอนเมื่อวานนี้",
    "combining": "e\u0301\u0302" * 20,
    "controls": "a\x00b\x07c\u200d",
    "tags": "<s>hello</s> [CLS] what [SEP] <mask> <|end|>",
    "marks": "▁▁ ##ing Ġthe ▁",
}
LONG = {
    "talk": TALK * 1100,
    "one-word": "x" * 100_000,
    "spaces": " " * 100_000,
    "chinese": CHINESE * 4000,
    "emoji": "😀" * 100_000,
    "json": f"[{', '.join([JSON] * 1200)}]",
}


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
        if kind in ("bert", "xlm-r"):
            return TokenClassifierCompressor(WordTokenizer(), tiny_model(kind), rate)
        return CausalEntropyCompressor(WordTokenizer(), tiny_model(kind), rate)

    return make


def is_part(kept: str, text: str) -> bool:
    """Whether `kept` is `text` with some characters left out, white space aside."""
    remaining = iter(text)
    return all(character in remaining for character in kept if not character.isspace())


MESSAGES = st.lists(
    st.one_of(
        st.text(max_size=60),
        st.sampled_from([*HARD.values(), *TALK.split(), ""]),
        st.lists(st.sampled_from(TALK.split()), max_size=40).map(" ".join),
    ),
    max_size=12,
)


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


@pytest.mark.parametrize("kind", ["self-information", "bert", "xlm-r", "gpt"])
@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_a_hundred_thousand_characters_are_read_to_their_end(
    made: Callable[..., Compressor], kind: str, text: str
):
    ending = f"{text} and then Caroline moved"
    (kept,) = made(kind, 0.9).compress([ending])
    assert is_part(kept, ending)
    assert {"and", "then", "Caroline", "moved"} & set(kept.split())
    if text == LONG["talk"]:
        assert 0.8 < len(kept) / len(ending) < 0.95
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
