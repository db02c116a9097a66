"""Runs bulk uploads in the background, by portions, and goes on with those of a dead server.

Each tenant, and each user with a key of its own, has its turn, so that nobody waits for the end of
another's job. Whatever was done twice because a process died stores nothing twice, for the writer
knows the messages again.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from anyio.to_thread import run_sync

from lightmem_core.errors import LightMemError, RequestError
from lightmem_core.long_term.tables import now_ms
from lightmem_core.online.jobs import CLAIM_MS, LINES_AT_ONCE, Job, JobStore, Line, Party
from lightmem_serve.backend import Server

LOOK_S = 2.0  # for jobs that another process has taken in, or has left
TURN_S = 5.0  # of extraction, until others have their turn
PAUSE_S = 1.0  # after something failed that may pass; it doubles
LONGEST_PAUSE_S = 600.0
MOST_ATTEMPTS = 20  # without any progress: some two hours
MOST_PARTIES = 10_000
ADDS_AT_ONCE = 16
WAITS = "the extraction of some messages failed: they are durable, and the server tries it again"
log = logging.getLogger(__name__)


@dataclass(slots=True)
class JobRunner:
    """Adds the lines of jobs through the writer, then has them extracted. `trouble` says why no job
    can go on at present, `served` when each party had its last turn."""

    server: Server
    pause_s: float = PAUSE_S
    most_attempts: int = MOST_ATTEMPTS
    name: str = field(default_factory=lambda: secrets.token_hex(8))
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    served: dict[Party, float] = field(default_factory=dict)
    trouble: str = ""

    @property
    def store(self) -> JobStore:
        return self.server.jobs

    async def run(self) -> None:
        """Until cancelled. No error ends this: whatever it is may pass."""
        failures = 0
        while True:
            self.wake.clear()
            try:
                job = await self._locked(self.store.claim, self.name, self.served)
                if job is not None:
                    await self._turn(job)
                failures, self.trouble = 0, ""
            except Exception as error:  # noqa: BLE001
                failures += 1
                self.trouble = f"{type(error).__name__}: {error}"
                _log(error, "no job can go on")
                await asyncio.sleep(min(self._pause(failures), 60.0))
                continue
            if job is None:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.wake.wait(), LOOK_S)

    async def _turn(self, job: Job) -> None:
        """A portion of a job. What fails is tried again after a pause, as often as is borne."""
        self.served.pop(job.party, None)
        self.served[job.party] = time.monotonic()
        if len(self.served) > MOST_PARTIES:
            del self.served[next(iter(self.served))]
        try:
            await self._work(job)
        except Exception as error:  # noqa: BLE001
            _log(error, f"job {job.id} does not go on")
            await self._failed(job)

    async def _work(self, job: Job) -> None:
        if job.status == "cancelling":
            await self._locked(self.store.forget, job.id)
            await self._changed(job, status="cancelled", finished_at=now_ms())
        elif job.status == "finalizing":
            await self._extracted(job)
        elif job.reached < job.total:
            await self._added(job)
        else:
            await self._changed(job, status="finalizing", finalizing_at=now_ms())

    async def _failed(self, job: Job) -> None:
        attempts = job.attempts + 1
        why = f"the server could not go on with it, {attempts} times: its log says why"
        if attempts >= self.most_attempts:
            await self._locked(self.store.give_up, job, why)
            return
        retry_at = now_ms() + int(1000 * self._pause(attempts))
        told = {"attempts": attempts, "retry_at": retry_at, "error": why}
        await self._locked(lambda: self.store.change(job.id, **told))

    def _pause(self, failures: int) -> float:
        return min(self.pause_s * 2.0 ** (failures - 1), LONGEST_PAUSE_S)

    async def _added(self, job: Job) -> None:
        """Add the next lines; one session after the other is not waited for."""
        async with self.server.quiet:
            lines = await run_sync(self.store.to_add, job.id, job.reached)
            groups = [list(g) for _, g in groupby(sorted(lines, key=_session), key=_session)]
            limit = asyncio.Semaphore(ADDS_AT_ONCE)
            results = await asyncio.gather(*(self._add(group, limit) for group in groups))
            wrong = [(line, reason) for bad in results for line, reason in bad]
            failed = {line.id for line, _ in wrong}
            added = [line for line in lines if line.id not in failed]
            await run_sync(lambda: self.store.mark(added, added=True, message=""))
            for line, reason in wrong:
                values = {"error": reason, "message": ""}
                await run_sync(lambda line=line, values=values: self.store.mark([line], **values))
            counts = await run_sync(self.store.counts, job)
        await self._changed(job, reached=job.reached + LINES_AT_ONCE, **counts)

    async def _add(self, lines: Sequence[Line], limit: asyncio.Semaphore) -> list[tuple[Line, str]]:
        """Add lines of one session; return those that the store refuses, and why."""
        first = lines[0]
        messages = [line.incoming for line in lines]
        try:
            async with limit:
                await self.server.writer.add(first.user_id, first.session_id, messages)
        except RequestError as error:
            if len(lines) == 1:
                return [(first, str(error))]
            halves = (lines[: len(lines) // 2], lines[len(lines) // 2 :])
            return [bad for half in halves for bad in await self._add(half, limit)]
        return []

    async def _extracted(self, job: Job) -> None:
        """Extract what was added, for a while. What fails waits on: the writer tries it again."""
        ends = time.monotonic() + TURN_S
        for user in await run_sync(self.store.added_users, job.id):
            waits = "" if await self._flushed(user) else WAITS
            await self._locked(self.store.forget, job.id, user)
            await self._changed(job, **({"waits": waits} if waits else {}))
            if time.monotonic() > ends:
                return
        await self._locked(self.store.forget, job.id)
        await self._changed(job, status="completed", finished_at=now_ms())

    async def _flushed(self, user: str) -> bool:
        try:
            async with asyncio.timeout(self.server.config.limits.work_seconds):
                await self.server.writer.flush(user)
        except Exception as error:  # noqa: BLE001
            _log(error, "an extraction waits")
            return False
        return True

    async def _changed(self, job: Job, **values: Any) -> None:
        """Note what a job has come to; a cancellation that came in between stands."""
        if values.get("status") in ("finalizing", "completed"):
            values = {"unless": "status = 'cancelling'", **values}
        on = {"claimed_until": now_ms() + CLAIM_MS, "attempts": 0, "retry_at": 0, "error": ""}
        await self._locked(lambda: self.store.change(job.id, **on, **values))

    async def _locked(self, work: Any, *args: Any) -> Any:
        async with self.server.quiet:
            return await run_sync(work, *args)


def _session(line: Line) -> tuple[str, str]:
    return line.user_id, line.session_id


def _log(error: Exception, what: str) -> None:
    level = log.warning if isinstance(error, LightMemError) else log.exception
    level("%s for now: %s", what, error)
