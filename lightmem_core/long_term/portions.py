"""Long work on a shard's users, in portions that fit into memory and into one filter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from lightmem_core.long_term.shard import USERS_PER_FILTER


def portioned(
    sizes: Mapping[str, int], limit: float, work: Callable[[int], float] = float
) -> Iterator[list[str]]:
    """Users in the order of `sizes`, as many at a time as cost `limit` together, at least one.
    `work` is what a user of some size costs."""
    held: list[str] = []
    cost = 0.0
    for user_id, size in sizes.items():
        if held and (cost + work(size) > limit or len(held) == USERS_PER_FILTER):
            yield held
            held, cost = [], 0.0
        held.append(user_id)
        cost += work(size)
    if held:
        yield held
