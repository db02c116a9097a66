"""The newest version of a table, which every search asks for."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lancedb.table import Table

SETTLED_NS = 1_000_000_000


class NewestVersion:
    """Asks a table for its newest version. For many threads.

    On a disk the folder of the versions tells whether there can be a new one, and at once: each
    commit moves the time of its last change. One that is younger than a second is not believed,
    since two commits may share a tick of the clock. A network file system may tell the commits of
    other machines as late as it keeps attributes.
    """

    def __init__(self, table: Table):
        self.table = table
        uri: str = table.uri  # pyright: ignore[reportAttributeAccessIssue]
        self._folder = None if "://" in uri else os.path.join(uri, "_versions")
        self._known = (0, 0)  # when the folder changed, and the version then

    def __call__(self) -> int:
        changed, known = self._changed(), self._known
        if changed and changed == known[0]:
            return known[1]
        version = self.table.version
        if changed:
            self._known = changed, version
        return version

    def _changed(self) -> int:
        """When the folder last changed, 0 where that says nothing."""
        if self._folder is None:
            return 0
        try:
            changed = os.stat(self._folder).st_mtime_ns
        except OSError:
            return 0
        return changed if time.time_ns() - changed > SETTLED_NS else 0
