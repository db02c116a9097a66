"""What keeps the tables of a shard fast, by what they show: others write to them, too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightmem_core.long_term.compaction import index_anew, small_fragments, unindexed

if TYPE_CHECKING:
    from lightmem_core.long_term.shard import Shard

# At so many fragments that the index on users does not know, or rows, it is brought up to date. Who
# reads a user scans them: 0.5 ms a fragment, and 2 ms for 5,000 entries. Searches read entries, and
# hardly ever messages. An index is merged whole: that is worth it for no less than a SHARE of it.
ENTRIES_BEHIND = (4, 4_000)
MESSAGES_BEHIND = (8, 40_000)
SHARE = 0.05
COMPACT_AFTER = 48  # commits: search slows down with the fragments that each one leaves
REST = 8  # commits after a compaction until the next is tried
CROWDED = 20  # small fragments of a table, which a run joins at its end


def keep_fast(shard: Shard) -> None:
    """Look at a shard after a commit. A compaction that others hindered is tried again after a
    while."""
    shard.rest = max(shard.rest - 1, 0)
    if not shard.rest and any(small_fragments(t) >= COMPACT_AFTER for t in shard.tables):
        shard.compact()
        shard.rest = REST
        return
    for table, most in ((shard.entries, ENTRIES_BEHIND), (shard.messages, MESSAGES_BEHIND)):
        fragments, rows = unindexed(table)
        many = rows >= most[1] and rows >= SHARE * table.count_rows()
        if fragments >= most[0] or many:
            index_anew(table)


def compact_if_crowded(shard: Shard) -> None:
    """Compact a shard where many commits have left their small fragments. To look costs little:
    no rows are read."""
    for table in shard.tables:
        table.checkout_latest()
    if any(small_fragments(table) > CROWDED for table in shard.tables):
        shard.compact()
