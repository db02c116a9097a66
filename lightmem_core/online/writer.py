"""Writing online: messages are durable when they are accepted, and extracted in the background."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from lightmem_core.config import Config
from lightmem_core.errors import LightMemError, StoreError
from lightmem_core.long_term.lease import SLEEPING, Leases
from lightmem_core.long_term.runs import Run
from lightmem_core.long_term.tables import now_ms
from lightmem_core.online.changing import Changing
from lightmem_core.online.erasing import erase
from lightmem_core.online.flushing import Flushing
from lightmem_core.online.inbox import Waiting
from lightmem_core.online.recalled import sessions_of
from lightmem_core.online.service import Accepted, Incoming
from lightmem_core.online.sessions import Posted, posted
from lightmem_core.online.shared import Shared
from lightmem_core.online.sleeping import Sleeping
from lightmem_core.types import Entry

KIND = "online"
USERS_AT_ONCE = 64  # that are extracted together
LOOK_S = 0.25  # for users that are due
REPORT_MS = 60_000  # at most every so often the ledger is told what was done
PAUSE_MS = 5_000  # after nothing could be extracted at all; it doubles up to a minute

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WriterStatus:
    """How a writer does: what waits, `oldest_ms` of age at most, of how many users an extraction
    failed, and why none can be made at present. `counts` are since the start of `run_id`."""

    run_id: str
    waiting: int
    users: int
    oldest_ms: int
    failing: int
    trouble: str
    last_write_at: int
    counts: dict[str, int]


class OnlineWriter:
    """The one writer of a store, safe for many threads. `start` extracts in the background what is
    due; without it only `flush` extracts."""

    def __init__(self, config: Config, wait_s: float | None = None):
        """Make the store if there is none. Raise StoreError if another process writes online and
        does not end within `wait_s`, by default long enough to outlast a dead one."""
        self.shared = Shared(config)
        _ = self.shared.stages  # a wrong configuration is an error at once
        self.shared.hold.take(**({} if wait_s is None else {"wait_s": wait_s}))
        self.flushing = Flushing(self.shared)
        self.changing = Changing(self.shared, self.flushing)
        self.sleeping = Sleeping(self.shared)
        self.trouble = ""
        self._closed = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        for inbox in self.shared.inboxes:
            self.shared.backlogs.add(inbox.everything())
        self._reported = {}, now_ms()
        _end_the_dead(self.shared)
        self._report("running")

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="flusher", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End after the extraction that is under way. What waits is extracted by the next one."""
        if self._closed:
            return
        self._closed = True
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with suppress(StoreError):  # where the hold was lost the run is another's to end
            self._report("done")
        self.shared.hold.release()

    def check(self) -> None:
        """Raise StoreError if this process can write no more. An erase lets go of the hold and
        takes it again: meanwhile messages wait, and are taken."""
        erasing = self.shared.gate.closed
        try:
            self.shared.hold.confirm()
        except StoreError:
            if not (erasing or self.shared.gate.closed):
                raise
        self.shared.store.confirm()

    def add(self, user_id: str, session_id: str, messages: Sequence[Incoming]) -> list[Accepted]:
        """One for each message, in order. They are durable when this returns."""
        return self.add_all([posted(user_id, session_id, messages)])[0]

    def add_all(self, requests: Sequence[Posted]) -> list[list[Accepted]]:
        """Take in several requests with one commit for each shard. Raise StoreError if more waits
        than may."""
        most = self.shared.config.serve.limits.waiting
        if self.shared.backlogs.messages >= most:
            raise StoreError(f"{most:,} messages wait to be extracted: no more are taken in")
        outcomes: dict[int, list[Accepted]] = {}
        by_shard = self.shared.store.by_shard({request.user_id for request in requests})
        for number, users in by_shard.items():
            mine = [(at, r) for at, r in enumerate(requests) if r.user_id in set(users)]
            taken = self._take(number, [request for _, request in mine])
            outcomes |= zip((at for at, _ in mine), taken, strict=True)
        return [outcomes[at] for at in range(len(requests))]

    def _take(self, number: int, requests: Sequence[Posted]) -> list[list[Accepted]]:
        inbox, now = self.shared.inboxes[number], now_ms()
        rows: dict[str, Waiting] = {}
        outcomes = []
        with self.shared.writing(inbox):
            shard, span = self.shared.store.shards[number], self.shared.config.serve.repeat_within_s
            sessions = sessions_of(shard, inbox, requests, now, span * 1000)
            for request in requests:
                taken = sessions[request.name].take(request.messages, now)
                for (message, accepted), infer in zip(taken, request.infer, strict=True):
                    if accepted.state == "accepted":
                        rows[message.id] = Waiting.of(message, infer=infer, accepted_at=now)
                outcomes.append([accepted for _, accepted in taken])
            counts = self.shared.stages.tokens([row.content for row in rows.values()])
            counted = zip(rows.values(), counts, strict=True)
            waiting = [replace(row, tokens=tokens) for row, tokens in counted]
            inbox.accept(waiting)
            self.shared.backlogs.add(waiting)
        total = sum(map(len, outcomes))
        self.shared.count(accepted=len(waiting), duplicates=total - len(waiting))
        return outcomes

    def flush(self, user_id: str) -> int:
        """Extract what waits of a user, also what was cut off or failed before; return how many
        entries were written."""
        return self.flushing.all_of(user_id)

    def update(
        self, user_id: str, memory_id: str, text: str | None = None, metadata: str | None = None
    ) -> Entry:
        """Change an entry, or the one that came of a message; what it was stays in its history.
        None leaves a part as it is. Raise NotFoundError, or ConflictError if several came of it."""
        return self.changing.update(user_id, memory_id, text, metadata)

    def delete(self, user_id: str, memory_id: str) -> None:
        """Make an entry a tombstone without a successor: hidden, but in its history. The id of a
        message means the one entry that came of it, or of several those that came of it alone."""
        self.changing.delete(user_id, memory_id)

    def erase(self, user_id: str) -> dict[str, int]:
        """Remove all of a user, physically; return the rows that are gone, by table."""
        return erase(self.shared, user_id)

    def sleep(self, user_id: str) -> dict[str, int]:
        """Consolidate a user's memories; return how many decisions were applied, by action."""
        return self.sleeping(user_id)

    def status(self) -> WriterStatus:
        backlogs = self.shared.backlogs.all().values()
        oldest = min((b.since for b in backlogs), default=now_ms())
        return WriterStatus(
            self.shared.run_id,
            waiting=sum(b.messages for b in backlogs),
            users=len(backlogs),
            oldest_ms=max(0, now_ms() - oldest),
            failing=sum(bool(b.reason) for b in backlogs),
            trouble=self.trouble,
            last_write_at=self.shared.last_write_at,
            counts=self.shared.counts,
        )

    def _run(self) -> None:
        """Extract what is due until `close`. No error ends this: whatever it is may pass."""
        pause = PAUSE_MS
        while not self._stop.wait(LOOK_S):
            try:
                self._flush_due()
                self.trouble, pause = "", PAUSE_MS
            except Exception as error:  # noqa: BLE001
                self.trouble = f"{type(error).__name__}: {error}"
                level = log.warning if isinstance(error, LightMemError) else log.exception
                level("nothing could be extracted, what waits is kept: %s", error)
                self._stop.wait(pause / 1000)
                pause = min(2 * pause, REPORT_MS)

    def _flush_due(self) -> None:
        while not self._stop.is_set() and (users := self._due()):
            self.flushing(users)
        counts, at = self._reported
        if now_ms() - at >= REPORT_MS and counts != self.shared.counts:
            self._report("running")

    def _due(self) -> list[str]:
        busy = self.shared.users.busy()
        due = self.shared.backlogs.due(now_ms(), USERS_AT_ONCE + len(busy))
        return [user for user in due if user not in busy][:USERS_AT_ONCE]

    def _report(self, status: str) -> None:
        counts = self.shared.counts
        ended = now_ms() if status == "done" else 0
        run = Run(self.shared.run_id, KIND, status, self.shared.started_at, ended, report=counts)
        with self.shared.writing():
            self.shared.store.runs.write(run)
        self._reported = counts, now_ms()


def _end_the_dead(shared: Shared) -> None:
    """Only one writer lives: runs of its kinds that did not end were killed. What one has changed
    is whole, and the same request goes on with what it left."""
    told = {
        KIND: f"{shared.run_id} went on with what waited",
        "sleep": "sleep again to go on",
        "erase": "erase again to go on",
    }
    running = [run for run in shared.store.runs.latest(None) if run.status == "running"]
    for run in running:
        if run.kind not in told or (run.kind == "sleep" and not _is_dead_sleep(shared, run)):
            continue
        error = f"it was killed; {told[run.kind]}"
        ended = replace(run, status="failed", report={**run.report, "error": error})
        with shared.writing():
            shared.store.runs.write(ended)


def _is_dead_sleep(shared: Shared, run: Run) -> bool:
    """Whether it was the sleep of one user, and nobody sleeps. The batch ends its own runs."""
    if run.request.get("user_id") is None:
        return False
    try:
        with Leases(shared.store.database).held(SLEEPING, SLEEPING):
            return True
    except StoreError:
        return False
