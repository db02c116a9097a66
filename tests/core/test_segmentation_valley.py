from collections.abc import Callable, Sequence

import numpy as np
import pytest

from lightmem_core.encoders.hashing import HashEmbedder
from lightmem_core.encoders.joint_reading import JointReader
from lightmem_core.encoders.minilm import MiniLMEmbedder, packaged_model
from lightmem_core.sensory.valley import ValleySegmenter, valley_depth, window_similarity
from lightmem_core.types import Message

GARDEN = ("the roses need water", "roses and water in the garden", "the garden has many roses")
TRAINS = ("trains run late tonight", "late trains from the station", "the station closes late")
TEXTS = [*GARDEN, "", "a " * 400, "👍", *TRAINS]


class Unsteady(JointReader):
    """Rounds as a device might: differently in a batch of another size."""

    def attention(self, groups: Sequence[Sequence[Sequence[int]]]) -> list[np.ndarray]:
        draw = np.random.default_rng(len(groups))
        return [m + 1e-6 * draw.standard_normal(m.shape) for m in super().attention(groups)]


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
def test_what_rounding_could_turn_is_decided_on_the_session_alone(
    message: Callable[..., Message],
):
    valley = ValleySegmenter(depth=0.0, attention=5.0)
    valley.reader = Unsteady(layers=(0,))
    even = talk(message, *["again and again"] * 40)
    others = [talk(message, *["something else"] * n) for n in (8, 11)]
    assert valley.cut([even, *others])[0] == valley.cut([even])[0]


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
