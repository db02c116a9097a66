"""Laws that every segmenter keeps, whatever its messages hold and whatever stands beside them."""

import runpy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightmem_core.encoders.hashing import WordTokenizer
from lightmem_core.encoders.joint_reading import JointReader
from lightmem_core.encoders.minilm import MiniLMEmbedder
from lightmem_core.protocols import Segmenter
from lightmem_core.sensory.attention import AttentionSegmenter
from lightmem_core.sensory.joint import JointSegmentation, JointSegmenter
from lightmem_core.sensory.segment import Segmentation
from lightmem_core.sensory.token_classifier import TokenClassifierCompressor
from lightmem_core.sensory.valley import ValleySegmenter
from lightmem_core.types import History, Message

KINDS = ("valley", "valley by spread", "attention", "joint")
WORDS = WordTokenizer()
hard = runpy.run_path(str(Path(__file__).with_name("hard_messages.py")))
HARD, LONG, TALK, MESSAGES = (hard[name] for name in ("HARD", "LONG", "TALK", "MESSAGES"))
SESSIONS = st.lists(MESSAGES, max_size=4)


@pytest.fixture(scope="module")
def made(tiny_model: Callable[[str], str]) -> Callable[[str], Any]:
    """Segmenters that read all they read with a tiny BERT."""
    model = tiny_model("bert")
    embedder = MiniLMEmbedder(model)
    rules: dict[str, Any] = {"layers": (0, 1), "capacity": 60, "embedder": embedder}

    def valley(depth: float | None) -> ValleySegmenter:
        found = ValleySegmenter(depth=depth)
        found.minilm, found.reader = embedder, JointReader(model)
        return found

    kinds: dict[str, Segmenter] = {
        "valley": valley(0.1),
        "valley by spread": valley(None),
        "attention": AttentionSegmenter(mode="tolerant", model=model, **rules),
        "joint": JointSegmenter(
            TokenClassifierCompressor(WORDS, model, 0.5), mode="attention", **rules
        ),
    }
    return kinds.__getitem__


def session(make: Callable[..., Message], texts: Sequence[str], name: str) -> tuple[Message, ...]:
    return tuple(make(text, i, name) for i, text in enumerate(texts))


def segmented(segmenter: Any, messages: Sequence[Message]) -> list[Message]:
    """All messages, in order, as the stage leaves them."""
    joint = isinstance(segmenter, JointSegmenter)
    stage = JointSegmentation(segmenter, WORDS) if joint else Segmentation(segmenter)
    (found,) = stage([History("ada", tuple(messages))])
    return [m for segment in found.segments for m in segment.messages]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(said=SESSIONS)
def test_nothing_is_lost_and_each_message_is_in_one_segment(
    made: Callable[[str], Any], message: Callable[..., Message], kind: str, said: list[list[str]]
):
    messages = [m for i, texts in enumerate(said) for m in session(message, texts, f"s{i}")]
    found = segmented(made(kind), messages)
    assert [m.id for m in found] == [m.id for m in messages]
    assert all(m.segment_id for m in found)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(said=SESSIONS, order=st.randoms(use_true_random=False))
def test_the_cuts_do_not_depend_on_the_batch(
    made: Callable[[str], Any],
    message: Callable[..., Message],
    kind: str,
    said: list[list[str]],
    order: Any,
):
    segmenter = made(kind)
    sessions = [session(message, texts, f"s{i}") for i, texts in enumerate(said)]
    numbers = order.sample(range(len(sessions)), len(sessions)) * 2
    alone = [segmenter.cut([of])[0] for of in sessions]
    assert segmenter.cut([sessions[n] for n in numbers]) == [alone[n] for n in numbers]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", HARD.values(), ids=HARD)
def test_hard_messages_are_read(
    made: Callable[[str], Any], message: Callable[..., Message], kind: str, text: str
):
    for texts in ([text], [text] * 9, [*TALK.split(), text, TALK, text, "", *TALK.split()]):
        messages = session(message, texts, "s1")
        found = segmented(made(kind), messages)
        assert [m.content for m in found] == texts
        if kind == "joint":
            assert all(hard["is_part"](m.compressed, m.content) for m in found)
            assert all(bool(m.compressed.strip()) == bool(m.content.strip()) for m in found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_a_hundred_thousand_characters_are_a_message_as_any(
    made: Callable[[str], Any], message: Callable[..., Message], kind: str, text: str
):
    texts = [TALK, "Where?", text, *TALK.split()[:6]]
    found = segmented(made(kind), session(message, texts, "s1"))
    assert [m.content for m in found] == texts
