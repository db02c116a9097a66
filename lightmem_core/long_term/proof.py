"""Proof that a user is erased: the files of a store are read again, block by block.

What is looked for are the user's id, and the letters of the ids of some of the user's rows. These
are known only while the rows are there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from lightmem_core.errors import StoreError
from lightmem_core.long_term.erase import SHARDED, tables_of
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.long_term.tables import of_users, quoted, read_batches

if TYPE_CHECKING:
    from lancedb.table import Table

SOUGHT_IDS = 10  # of a user's rows in each table
USER_COLUMNS = {"user_id", "values", "min", "max"}  # of data files, and of an index on user_id
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Proof:
    """What to look for of a user, and where: `root` is None on object storage, where no files are
    read, `shard` the user's, and `folders` are the tables that may hold rows of the user."""

    root: Path | None
    shard: int
    folders: frozenset[str]
    user_id: str
    ids: tuple[bytes, ...]

    @classmethod
    def of(cls, store: MemoryStore, user_id: str) -> Proof:
        uri = store.database.uri
        tables = list(tables_of(store, user_id))
        folders = frozenset(f"{table.name}.lance" for table in tables)
        ids = tuple(i.encode() for table in tables for i in _ids(table, user_id))
        root = None if "://" in uri else Path(uri)
        return cls(root, store.shard_number(user_id), folders, user_id, ids)

    def check_beside(self) -> None:
        """Raise StoreError if a file beside those tables and the shards holds an id of the user's
        rows: what runs left, and the ledger. To be asked while the rows are there, so that another
        erase finds it, too."""
        for path in _files(self.root):
            beside = _shard_of(path, self.root) is None and not self._may_hold_rows(path)
            if beside and _holds(path, self.ids):
                raise StoreError(f"{path} holds an id of the user: end what writes it, erase again")

    def files(self) -> list[Path]:
        """Those of the user's shard and of the other tables that held rows, as they are now."""
        return [
            path
            for path in _files(self.root)
            if _shard_of(path, self.root) == self.shard or self._may_hold_rows(path)
        ]

    def check(self, files: Iterable[Path]) -> None:
        """Raise StoreError if one of the files holds the user, also one that no version names."""
        for path in files:
            try:
                left = self._names_user(path) or _holds(path, self.ids)
            except FileNotFoundError:  # a clean-up came by
                continue
            if left:
                raise StoreError(
                    f"{path} still holds the user: end what writes to the store, and erase again"
                )

    def _may_hold_rows(self, path: Path) -> bool:
        return self.root is not None and path.relative_to(self.root).parts[0] in self.folders

    def _names_user(self, path: Path) -> bool:
        if path.suffix == ".lance":
            try:
                return _column_holds(path, self.user_id)
            except (OSError, ValueError, RuntimeError):  # cut off while it was written
                return _holds(path, [self.user_id.encode()])
        return _holds(path, [quoted(self.user_id).encode()])


def _ids(table: Table, user_id: str) -> list[str]:
    if "id" not in table.schema.names:
        return []
    batches = read_batches(table, of_users([user_id]), ["id"])
    return list(islice((i for batch in batches for i in batch["id"].to_pylist()), SOUGHT_IDS))


def _files(root: Path | None) -> Iterator[Path]:
    return iter(()) if root is None else (p for p in sorted(root.rglob("*")) if p.is_file())


def _shard_of(path: Path, root: Path | None) -> int | None:
    """The shard whose table a file belongs to, if it is of one."""
    folder = path.relative_to(root or path).parts[0]
    found = SHARDED.search(folder.removesuffix(".lance")) if folder.endswith(".lance") else None
    return int(found[1]) if found else None


def _holds(path: Path, sought: Sequence[bytes]) -> bool:
    """Whether one of the sequences of bytes stands in a file, be it across two blocks."""
    if not sought:
        return False
    pattern, reach = re.compile(b"|".join(map(re.escape, sought))), max(map(len, sought)) - 1
    tail = b""
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            block = tail + block
            if pattern.search(block):
                return True
            tail = block[-reach:] if reach else b""
    return False


def _column_holds(path: Path, user_id: str) -> bool:
    import pyarrow.compute as pc
    from lance.file import LanceFileReader

    schema = LanceFileReader(str(path)).metadata().schema
    columns = [f.name for f in schema if f.name in USER_COLUMNS and f.type == "string"]
    if not columns:
        return False
    for batch in LanceFileReader(str(path), columns=columns).read_all().to_batches():
        if any(pc.any(pc.equal(column, user_id)).as_py() for column in batch.columns):  # pyright: ignore[reportAttributeAccessIssue]
            return True
    return False
