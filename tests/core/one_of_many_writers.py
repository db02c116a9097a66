"""A process that inserts, updates and compacts while others do the same to the same shard.

Usage: python one_of_many_writers.py URI FOLDER NAME. It starts when FOLDER/go is there, inserts the
batches FOLDER/NAME.*.arrow, and leaves the number of its updates that were written in
FOLDER/NAME.written.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from lightmem_core.config import StoreConfig
from lightmem_core.long_term.shard import Shard
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.long_term.tables import now_ms
from lightmem_core.schema import to_table
from lightmem_core.types import Entry

PATIENCE_S = 600


def main(uri: str, folder: Path, name: str) -> None:
    shard = MemoryStore.open(StoreConfig(uri=uri)).shards[0]
    wait_for_all(folder, name)
    written = 0
    for path in sorted(folder.glob(f"{name}.*.arrow")):
        with pa.ipc.open_file(path) as file:
            shard.insert(file.read_all(), name)
        written += update_all(shard, "shared", name)
    shard.compact()
    (folder / f"{name}.written").write_text(str(written))


def wait_for_all(folder: Path, name: str) -> None:
    (folder / f"{name}.ready").touch()
    end = time.monotonic() + PATIENCE_S
    while not (folder / "go").exists():
        if time.monotonic() > end:
            raise TimeoutError("nobody said go")
        time.sleep(0.01)


def update_all(shard: Shard, user: str, run_id: str) -> int:
    """What a sleep phase does: change all entries of a user, unless others did so meanwhile."""
    stamp = {"changed_by": run_id, "changed_at": now_ms()}
    changed = [replace(e, gen=e.gen + 1, **stamp) for e in shard.entries_of([user])]
    return len(changed) - shard.update(to_table(changed, Entry))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
