import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightmem_core.long_term import queues
from lightmem_core.long_term.queues import update_queues

# Unit vectors whose products are exact in float32, so that ties are ties: 0, 1/4, 1/2, 3/4 or 1.
SIGNS = 1 - 2 * np.array(list(np.ndindex(2, 2, 2, 2)))
EXACT = np.concatenate([np.eye(4), SIGNS / 2]).astype(np.float32)


def random_vectors(n: int, dim: int = 8) -> np.ndarray:
    vectors = np.random.default_rng(n).standard_normal((n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def places(found: object) -> list[tuple[int, list[int]]]:
    return [(i, [j for j, _ in queue]) for i, queue in found]  # pyright: ignore[reportGeneralTypeIssues]


@pytest.mark.parametrize("cells", [40, 1 << 23])
@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.integers(0, len(EXACT) - 1), max_size=20),
    k=st.integers(1, 25),
    theta=st.sampled_from([-1.0, 0.0, 0.25, 0.5, 0.75, 1.0]),
)
def test_torch_finds_what_numpy_finds_ties_too(cells: int, rows: list[int], k: int, theta: float):
    vectors = EXACT[rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(queues, "CELLS", cells)
        with_torch = list(update_queues(vectors, k, theta, device="cpu"))
    assert with_torch == list(update_queues(vectors, k, theta))


@pytest.mark.parametrize("room_for", [0, 1])
def test_where_a_device_has_no_memory_left_numpy_goes_on(
    room_for: int, monkeypatch: pytest.MonkeyPatch
):
    vectors, blocks, select = random_vectors(600), [], queues._select_on

    def out_of_memory(*block: Any) -> Any:
        blocks.append(block)
        if len(blocks) > room_for:
            raise torch.OutOfMemoryError
        return select(*block)

    monkeypatch.setattr(queues, "_select_on", out_of_memory)
    found = places(update_queues(vectors, 5, 0.0, device="cpu"))
    assert found == places(update_queues(vectors, 5, 0.0))
    assert len(blocks) == room_for + 1


@pytest.mark.parametrize("theta", [-1.0, 0.0, 0.5])
def test_torch_and_numpy_agree_on_vectors_of_every_kind(theta: float):
    vectors = random_vectors(400)
    with_torch = list(update_queues(vectors, 5, theta, device="cpu"))
    assert places(with_torch) == places(update_queues(vectors, 5, theta))


def test_a_crowded_queue_holds_the_most_similar_of_all_later_ones():
    vectors = random_vectors(600)
    for i, queue in update_queues(vectors, 4, -1.0):
        similarities = vectors[i + 1 :] @ vectors[i]
        best = np.sort(similarities)[::-1][:4]
        np.testing.assert_allclose([s for _, s in queue], best, atol=1e-6)


def test_of_equal_entries_the_next_ones_are_queued():
    same = np.tile(EXACT[5], (600, 1))
    assert places(update_queues(same, 3, 0.5)) == [
        (i, list(range(i + 1, min(i + 4, 600)))) for i in range(599)
    ]


@pytest.mark.parametrize("vectors", [random_vectors(2_000), np.tile(EXACT[5], (2_000, 1))])
def test_memory_is_bounded_however_much_is_similar(
    vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    """All 2 million pairs are above theta: as indices alone they would take 32 MB."""
    monkeypatch.setattr(queues, "CELLS", 1 << 15)
    tracemalloc.start()
    entries = sum(1 for _ in update_queues(vectors, 20, -1.0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert entries == 1_999
    assert peak < 64 * queues.CELLS  # 2 MB


def test_no_entries_have_no_queues():
    empty = np.zeros((0, 8), np.float32)
    assert list(update_queues(empty, 5, 0.4)) == []
    assert list(update_queues(empty, 5, 0.4, device="cpu")) == []
