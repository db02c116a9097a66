"""What a run that changes few entries does for the tables in the end."""

from __future__ import annotations

from lightmem_core.long_term.shard import Shard
from lightmem_core.long_term.tables import small_fragments

CROWDED = 20  # small fragments of a table: search slows down with each


def compact_if_crowded(shard: Shard) -> None:
    """Compact a shard where many commits have left their small fragments. To look costs little:
    no rows are read."""
    tables = (shard.entries, shard.messages, shard.versions)
    for table in tables:
        table.checkout_latest()
    if any(small_fragments(table) > CROWDED for table in tables):
        shard.compact()
