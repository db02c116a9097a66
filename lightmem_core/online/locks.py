"""What keeps the threads of a writer apart, and other processes away from its store."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress

from lightmem_core.errors import StoreError
from lightmem_core.long_term.lease import LEASE_MS, Hold, Leases
from lightmem_core.long_term.store import MemoryStore

NAME = "the online writer"
PAUSE_S = 0.5


class Gate:
    """Many may pass at once, or one alone, who goes before those that come later."""

    def __init__(self):
        self._changed = threading.Condition()
        self._inside = 0
        self._alone = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether one is inside alone, or waits to be."""
        return self._alone

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            self._alone = True
            self._changed.wait_for(lambda: not self._inside)
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()


class Users:
    """A lock for each user. Some are taken together or not at all: no two wait for each other."""

    def __init__(self):
        self._changed = threading.Condition()
        self._held: set[str] = set()

    @contextmanager
    def held(self, user_ids: Collection[str]) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._held.isdisjoint(user_ids))
            self._held.update(user_ids)
        try:
            yield
        finally:
            with self._changed:
                self._held.difference_update(user_ids)
                self._changed.notify_all()

    def busy(self) -> set[str]:
        with self._changed:
            return set(self._held)


class WriterHold:
    """The lease of the one process that takes messages in for a store. It is renewed in the
    background; a process that died gives it back when its time is over, on this machine at once."""

    def __init__(self, store: MemoryStore):
        self.store = store
        self._stack = ExitStack()
        self._hold: Hold | None = None

    def take(self, wait_s: float = 1.5 * LEASE_MS / 1000) -> None:
        """Raise StoreError if another process has it for so long."""
        ends = time.monotonic() + wait_s
        while True:
            try:
                held = Leases(self.store.database).held(NAME, NAME)
                self._hold = self._stack.enter_context(held)
                atexit.register(self.release)  # later the database answers no more
                return
            except StoreError:
                if time.monotonic() >= ends:
                    raise
            time.sleep(PAUSE_S)

    def confirm(self) -> None:
        """Raise StoreError if another process may have begun to write."""
        if self._hold is None:
            raise StoreError(f"{NAME} is closed: start the server again")
        self._hold.confirm()

    def release(self) -> None:
        """What was lost is another's by now, and that is no error here."""
        self._hold = None
        atexit.unregister(self.release)
        with suppress(StoreError):
            self._stack.close()
