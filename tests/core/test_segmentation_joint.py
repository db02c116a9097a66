from collections.abc import Callable

import numpy as np
import pytest

from lightmem_core import factory
from lightmem_core.config import Component, MemoryConfig
from lightmem_core.encoders.hashing import HashEmbedder, WordTokenizer
from lightmem_core.errors import ConfigError
from lightmem_core.sensory.attention import AttentionSegmenter
from lightmem_core.sensory.joint import JointSegmentation, JointSegmenter
from lightmem_core.sensory.token_classifier import TokenClassifierCompressor
from lightmem_core.types import History, Message

WORDS = WordTokenizer()
SAID = (
    "I went to the river yesterday with 3 friends; we didn't swim, it was 12 degrees! Where does "
    "Caroline live now? In Lisbon, I think. She moved there on 7 May 2023. def add(a, b): 我昨天"
)


@pytest.fixture(scope="module", params=["bert", "xlm-r"])
def model(request: pytest.FixtureRequest, tiny_model: Callable[[str], str]) -> str:
    return tiny_model(request.param)


def segmenter(model: str, **options) -> JointSegmenter:
    compressor = TokenClassifierCompressor(WORDS, model, 0.5)
    return JointSegmenter(compressor, embedder=HashEmbedder(), layers=(0, 1), **options)


@pytest.fixture
def histories(message: Callable[..., Message]) -> list[History]:
    """Sessions of many buffers and of one message; one message is longer than the model's window,
    one is said again and again."""
    draw = np.random.default_rng(3)
    words = SAID.split()

    def text(length: int) -> str:
        return " ".join(draw.choice(words, length))

    def history(user: str, *sessions: list[str]) -> History:
        said = [
            message(content, i, f"s{s}", user_id=user)
            for s, session in enumerate(sessions)
            for i, content in enumerate(session)
        ]
        return History(user, tuple(said))

    talk = [text(int(n)) for n in draw.integers(1, 25, 30)]
    return [
        history("ada", talk, [text(9)]),
        history("bob"),
        history("eve", [text(8), text(900), text(7), "👍", text(5)], [text(6)] * 9),
    ]


def test_the_cuts_are_those_of_the_attention_segmenter(model: str, histories: list[History]):
    for mode in ("paper", "tolerant", "attention"):
        options = {"mode": mode, "capacity": 200, "tokenizer": WORDS}
        alone = AttentionSegmenter(
            model=model, embedder=HashEmbedder(), layers=(0, 1), **options
        )  # fmt: skip
        sessions = [row.messages for row in histories]
        found = [cuts for _, cuts in segmenter(model, **options).read(sessions)]
        assert found == alone.cut(sessions)
        assert mode == "paper" or any(found)


def test_a_message_alone_in_its_buffer_is_compressed_as_by_the_compressor(
    model: str, histories: list[History]
):
    sessions = [[m] for row in histories for m in row.messages]
    joint = segmenter(model, mode="attention")
    texts = [text for (text,), _ in joint.read(sessions)]
    assert texts == joint.compressor.compress([m.content for (m,) in sessions])


def test_a_message_is_judged_beside_those_of_its_buffer(model: str, histories: list[History]):
    joint = segmenter(model, mode="attention", capacity=500)
    session = histories[0].messages[:20]
    ((texts, _),) = joint.read([session])
    alone = joint.compressor.compress([m.content for m in session])
    assert texts != alone
    shares = [len(" ".join(said).split()) for said in (texts, alone)]
    assert abs(shares[0] - shares[1]) < 0.15 * shares[1]


def test_nothing_depends_on_the_batch(model: str, histories: list[History]):
    joint = segmenter(model, mode="attention", capacity=60)
    stage = JointSegmentation(joint, WORDS)
    found = stage(histories)
    assert found == [stage([row])[0] for row in histories]
    assert found == stage(histories[::-1])[::-1]
    assert stage([]) == []


def test_messages_keep_their_content_and_get_their_counts(model: str, histories: list[History]):
    found = JointSegmentation(segmenter(model, mode="attention"), WORDS)(histories)
    for row, cut in zip(histories, found, strict=True):
        messages = [m for segment in cut.segments for m in segment.messages]
        assert [(m.id, m.content) for m in messages] == [(m.id, m.content) for m in row.messages]
        for m in messages:
            assert (m.content_tokens, m.compressed_tokens) == tuple(
                map(len, (m.content.split(), m.compressed.split()))
            )
            assert m.segment_id
    assert sum(len(cut.segments) for cut in found) > 4


def test_one_pass_is_an_option_of_the_configuration(model: str, histories: list[History]):
    config = MemoryConfig(
        tokenizer=Component(use="words"),
        compressor=Component(use="token-classifier", options={"model": model, "rate": 0.5}),
        segmenter=Component(use="joint", options={"mode": "attention", "layers": [0, 1]}),
    )
    compressed = factory.compression(config)(histories)
    assert [m.compressed for m in compressed[0].messages] == [
        m.content for m in histories[0].messages
    ]
    joint = segmenter(model, mode="attention", tokenizer=WORDS)
    expected = JointSegmentation(joint, WORDS)(histories)
    assert factory.segmentation(config)(compressed) == expected


@pytest.mark.parametrize(
    ("compressor", "mode", "said"),
    [("self-information", "paper", "needs a compressor that classifies tokens"),
     ("token-classifier", "similarity", "takes neither mode similarity nor force_tokens")],
)  # fmt: skip
def test_what_one_pass_cannot_do_is_said(model: str, compressor: str, mode: str, said: str):
    options = {"model": model} if compressor == "token-classifier" else {}
    config = MemoryConfig(
        compressor=Component(use=compressor, options=options),
        segmenter=Component(use="joint", options={"mode": mode}),
    )
    with pytest.raises(ConfigError, match=said):
        factory.segmentation(config)
