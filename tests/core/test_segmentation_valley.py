from collections.abc import Callable

import numpy as np
import pytest

from lightmem_core import factory
from lightmem_core.config import Component, MemoryConfig
from lightmem_core.encoders.hashing import HashEmbedder
from lightmem_core.encoders.joint_reading import JointReader
from lightmem_core.encoders.minilm import MiniLMEmbedder, packaged_model
from lightmem_core.errors import ConfigError
from lightmem_core.sensory.valley import ValleySegmenter, valley_depth, window_similarity
from lightmem_core.types import Message

WORDS = Component(use="words")
GARDEN = ("the roses need water", "roses and water in the garden", "the garden has many roses")
TRAINS = ("trains run late tonight", "late trains from the station", "the station closes late")
TEXTS = [*GARDEN, "", "a " * 400, "👍", *TRAINS]


def talk(make: Callable[..., Message], *texts: str) -> tuple[Message, ...]:
    return tuple(make(text, i) for i, text in enumerate(texts))


@pytest.mark.models
def test_vectors_of_early_layers_come_from_the_pass_of_the_last():
    from transformers import AutoModel

    embedder, cut_short = MiniLMEmbedder(), MiniLMEmbedder()
    cut_short.__dict__["model"] = AutoModel.from_pretrained(
        packaged_model(), num_hidden_layers=2
    ).eval()
    found = embedder.encode_layers(TEXTS, (2, -1))
    np.testing.assert_allclose(found[:, 0], cut_short.encode(TEXTS), atol=1e-6)
    np.testing.assert_allclose(found[:, 1], embedder.encode(TEXTS), atol=1e-6)


def test_several_kinds_of_vectors_count_alike():
    draw = np.random.default_rng(0)
    kinds = draw.standard_normal((9, 2, 4))
    each = [window_similarity(kinds[:, kind], 2) for kind in (0, 1)]
    np.testing.assert_allclose(window_similarity(kinds, 2), np.mean(each, axis=0), atol=1e-12)


@pytest.mark.models
@pytest.mark.parametrize("depth", [0.0, None])
def test_what_rounding_could_turn_is_decided_alone(
    message: Callable[..., Message], unsteady: type[JointReader], depth: float | None
):
    valley = ValleySegmenter(depth=depth, attention=5.0)
    valley.reader = unsteady(layers=(0,))
    even = talk(message, *["again and again"] * 40)
    others = [talk(message, *["something else"] * n) for n in (8, 11)]
    assert valley.cut([even, *others])[0] == valley.cut([even])[0]


@pytest.mark.models
def test_a_tie_costs_the_reading_of_a_few_messages(message: Callable[..., Message]):
    draw = np.random.default_rng(0)
    words = " ".join(TEXTS[:4] + TEXTS[6:]).split()
    said = [" ".join(draw.choice(words, 8)) for _ in range(60)]
    said[30:36] = ["see you"] * 6  # of the same similarity twice
    valley = ValleySegmenter(attention=0)
    read: list[int] = []
    vectors = valley._vectors
    valley._vectors = lambda texts: (read.append(len(texts)), vectors(texts))[1]
    (found,) = valley.cut([talk(message, *said)])
    assert read[0] == 60
    assert 0 < len(read) - 1 < 10
    assert found == valley.cut([talk(message, *said), talk(message, *said[:9])])[0]


def test_without_a_depth_the_spread_of_the_valleys_decides(message: Callable[..., Message]):
    said = talk(message, *GARDEN, *TRAINS, *TRAINS, GARDEN[0], *TRAINS, *GARDEN)
    valley = ValleySegmenter(depth=None, attention=0, embedder=HashEmbedder())
    (found,) = valley.cut([said])
    curve = window_similarity(HashEmbedder().encode([m.content for m in said]), 2)
    depths = valley_depth(curve)
    valleys = depths[depths > 0]
    assert found == np.flatnonzero(depths > valleys.mean() + valleys.std()).tolist()
    assert 0 < len(found) < len(valleys)
    assert valley.cut([said, (), said[:1]]) == [found, [], []]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"window": 0}, "window must be a number from 1 on, got 0"),
        ({"early": 99}, "early must be a number from 0 to 6, got 99"),
        ({"layers": 7}, "layers must be a number from 1 to 6, got 7"),
        ({"depth": "deep"}, "depth must be a number from 0 on, got 'deep'"),
        ({"attention": -1}, "attention must be a number from 0 on, got -1"),
        ({"dtype": "int8"}, "dtype must be float32 or bfloat16, got 'int8'"),
        ({"embedder": "hash"}, "embedder must be 'configured', .* got 'hash'"),
        ({"embedder": True}, "embedder must be 'configured', .* got True"),
    ],
)
def test_a_wrong_option_is_named(options: dict, said: str):
    config = MemoryConfig(segmenter=Component(use="valley", options=options))
    with pytest.raises(ConfigError, match=said):
        factory.check(config)


@pytest.mark.parametrize("kind", ["valley", "attention"])
def test_the_embedder_of_the_memory_is_had_by_its_name(kind: str):
    hashed = Component(use="hash", options={"dim": 8})
    for options in {}, {"embedder": "configured"}:
        segmenter = Component(use=kind, options=options)
        config = MemoryConfig(tokenizer=WORDS, embedder=hashed, segmenter=segmenter)
        found = factory.segmentation(config).segmenter.embedder  # pyright: ignore[reportAttributeAccessIssue]
        assert isinstance(found, HashEmbedder) == bool(options)


def test_a_segmenter_that_reads_nothing_takes_no_embedder():
    segmenter = Component(use="fixed", options={"embedder": "configured"})
    with pytest.raises(ConfigError, match=r"'fixed' has no option \['embedder'\]"):
        factory.segmentation(MemoryConfig(tokenizer=WORDS, segmenter=segmenter))


@pytest.mark.models
def test_bfloat16_cuts_nearly_where_float32_does(message: Callable[..., Message]):
    said = talk(message, *GARDEN, *TRAINS, *TRAINS, GARDEN[0], *TRAINS, *GARDEN)
    exact, fast = (ValleySegmenter(dtype=dtype).cut([said]) for dtype in ("float32", "bfloat16"))
    assert exact == fast != [[]]
