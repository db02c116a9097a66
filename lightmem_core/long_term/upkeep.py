"""What a run that changes few entries does for the tables in the end."""

from __future__ import annotations

from lightmem_core.long_term.shard import Shard
from lightmem_core.long_term.tables import FRAGMENT_ROWS

CROWDED = 20  # small fragments of a table: search slows down with each


def compact_if_crowded(shard: Shard) -> None:
    """Compact a shard where many commits have left their small fragments. To look costs little:
    no rows are read."""
    for table in (shard.entries, shard.messages, shard.versions):
        table.checkout_latest()
        fragments = table.to_lance().get_fragments()
        if sum(f.physical_rows < FRAGMENT_ROWS for f in fragments) > CROWDED:
            shard.compact()
            return
