"""Where the Ray that a command starts keeps what tasks hand over."""

from __future__ import annotations

import pytest
import ray
import ray.experimental

pytestmark = pytest.mark.ray

SHARD_BYTES, SHARDS = 50_000, 40  # of a task of a shuffle


def test_what_a_shuffle_hands_over_does_not_gather_in_the_process_that_asked(cluster: None):
    @ray.remote(num_cpus=0.1, num_returns=SHARDS)
    def shards() -> list[bytes]:
        return [bytes(SHARD_BYTES) for _ in range(SHARDS)]

    refs = shards.remote()
    ray.wait(refs, num_returns=SHARDS)
    places = ray.experimental.get_object_locations(refs)
    gathered = sum(not place["node_ids"] for place in places.values())
    assert gathered * SHARD_BYTES < 1 << 16
