"""Which users the commits to a table touched: what is held of all the others is still true."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any, TypeAlias

from lightmem_core.long_term.newest import NewestVersion

if TYPE_CHECKING:
    from lance import LanceDataset
    from lancedb.table import Table

Fragments: TypeAlias = dict[int, tuple[object, ...]]

MOST_VERSIONS = 100  # that are followed one by one; after more, everybody counts as touched
MOST_ROWS = 50_000  # that a commit may add, for its users to be read
MOST_USERS = 100_000  # that are remembered
CACHE_BYTES = 4 << 20


class Commits:
    """Follows a table with the column user_id.

    A commit that adds rows touched the users of these, also where they replace others. Joining
    fragments and indexing touch nobody, and whatever is not known touches everybody.
    """

    def __init__(self, table: Table):
        self.table = table
        self._lock = Lock()
        self._dataset: LanceDataset | None = None
        self._fragments: Fragments = {}
        self._newest = NewestVersion(table)
        self._seen = self._everybody = self._newest()
        self._touched: dict[str, int] = {}

    def touched(self, user_id: str) -> tuple[int, int]:
        """The newest version, and the last one that may have changed rows of a user."""
        with self._lock:
            version = self._newest()
            if version != self._seen:
                self._follow(version)
            return version, max(self._everybody, self._touched.get(user_id, 0))

    @property
    def everybody(self) -> int:
        """The last version that may have changed rows of anybody."""
        return self._everybody

    def _follow(self, version: int) -> None:
        behind, self._seen = version - self._seen, version
        if not 0 < behind <= MOST_VERSIONS:
            self._note(version, None)
            return
        try:
            for number in range(version - behind + 1, version + 1):
                self._note(number, self._users_of(number))
        except (OSError, RuntimeError, ValueError):  # a version on the way has been dropped
            self._dataset = None
            self._note(version, None)

    def _note(self, version: int, users: set[str] | None) -> None:
        if users is None or len(self._touched) + len(users) > MOST_USERS:
            self._everybody = version
            self._touched.clear()
        else:
            self._touched.update(dict.fromkeys(users, version))

    def _users_of(self, version: int) -> set[str] | None:
        """Whose rows a version changed, None for everybody's."""
        before, dataset = self._before(version), self._at(version)
        self._fragments = fragments = _fragments(dataset)
        if fragments == before:
            return set()
        operation = _operation(dataset, version)
        if operation == "Rewrite":
            return set()
        if operation not in ("Append", "Update"):
            return None
        added = [f for f in dataset.get_fragments() if f.fragment_id not in before]
        if not added or sum(f.metadata.num_rows for f in added) > MOST_ROWS:
            return None
        rows = dataset.scanner(columns=["user_id"], fragments=added).to_table()
        return set(rows["user_id"].unique().to_pylist())

    def _before(self, version: int) -> Fragments:
        """The fragments of the version before: those seen last, but for the first time."""
        if self._dataset is None or self._dataset.version != version - 1:
            return _fragments(self._at(version - 1))
        return self._fragments

    def _at(self, version: int) -> LanceDataset:
        if self._dataset is None:
            self._dataset = self.table.to_lance(
                index_cache_size_bytes=CACHE_BYTES, metadata_cache_size_bytes=CACHE_BYTES
            )
        self._dataset = self._dataset.checkout_version(version)
        return self._dataset


def _operation(dataset: LanceDataset, version: int) -> str:
    """The kind of a commit, "" where it cannot be told or changed rows in their place."""
    try:
        operation: Any = getattr(dataset.read_transaction(version), "operation", None)
    except TypeError as error:  # pylance 14 cannot show a Rewrite that took an index along
        return "Rewrite" if "RewrittenIndex" in str(error) else ""
    return "" if getattr(operation, "fields_modified", None) else type(operation).__name__


def _fragments(dataset: LanceDataset) -> Fragments:
    """What tells a fragment from what a commit made of it: its files and its deleted rows."""
    found = {}
    for fragment in dataset.get_fragments():
        known: Any = fragment.metadata
        removed = known.deletion_file
        deleted = (removed.num_deleted_rows, removed.id) if removed else (0, 0)
        found[fragment.fragment_id] = (*(file.path for file in known.files), *deleted)
    return found
