"""Write what decisions change, beside online writes, which win."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias

import pyarrow as pa

from lightmem_core.long_term.apply import Applied, Phase, apply_decisions, landed
from lightmem_core.long_term.shard import Shard
from lightmem_core.schema import to_table
from lightmem_core.types import Decision, Entry

ROUNDS = 5  # at a shard's changes, where online writes come in between

Judge: TypeAlias = Callable[[Sequence[Entry], Sequence[Decision], Phase], Applied]


def carry_out(
    shard: Shard,
    judged: Callable[[Judge], Iterable[Applied]],
    writing: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> list[Applied]:
    """Make the changes in one commit. `judged` gives what a judge makes of some decisions and the
    present rows; `writing` is held during the commit.

    Where an online write came between reading and the commit it wins, and what now follows from
    the decisions is written again; what has not landed in the end is counted as dropped.
    """
    for _ in range(ROUNDS):
        applied = list(judged(apply_decisions))
        changed = [to_table(a.changed, Entry) for a in applied if a.changed]
        if not changed:
            return applied
        with writing():
            if not shard.update(pa.concat_tables(changed)):
                return applied
    return list(judged(landed))
