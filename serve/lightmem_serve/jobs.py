"""Runs bulk uploads in the background, a claim at a time, and goes on with those of a dead server.

A job is worked on in one process. Whatever was done twice because that one died stores nothing
twice, for the writer knows the messages again.
"""

import asyncio
import logging
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from anyio.to_thread import run_sync

from lightmem_core.errors import LightMemError
from lightmem_core.long_term.tables import now_ms
from lightmem_core.online.jobs import CLAIM_MS, LINES_AT_ONCE, Job, JobStore, Line
from lightmem_serve.backend import Server

LOOK_S = 2.0  # for jobs that another process has taken in, or has left
PAUSE_S = 1.0  # after something failed that may pass; it doubles up to a minute
ADDS_AT_ONCE = 16
log = logging.getLogger(__name__)


@dataclass(slots=True)
class JobRunner:
    """Adds the lines of jobs through the writer, then has them extracted."""

    server: Server
    name: str = field(default_factory=lambda: secrets.token_hex(8))
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def store(self) -> JobStore:
        return self.server.jobs

    async def run(self) -> None:
        """Until cancelled. A job that cannot go on is tried again after a pause."""
        pause = PAUSE_S
        while True:
            self.wake.clear()
            try:
                job = await self._locked(self.store.claim, self.name)
                if job is not None:
                    await self._work(job)
                    pause = PAUSE_S
                    continue
            except (LightMemError, OSError, RuntimeError, ValueError) as error:
                log.warning("a job waits for %.0f s: %s", pause, error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, 60.0)
                continue
            with suppress(TimeoutError):
                await asyncio.wait_for(self.wake.wait(), LOOK_S)

    async def _work(self, job: Job) -> None:
        after = 0
        while job.status == "in_progress" and after < job.total:
            job = await self._added(job, after)
            after += LINES_AT_ONCE
        if job.status == "in_progress":
            job = await self._changed(job, status="finalizing", finalizing_at=now_ms())
        if job.status == "finalizing":
            await self._extracted(job)
        elif job.status == "cancelling":
            await self._locked(self.store.forget, job.id)
            await self._changed(job, status="cancelled", finished_at=now_ms())

    async def _added(self, job: Job, after: int) -> Job:
        """Add the next lines; one session after the other is not waited for."""
        async with self.server.quiet:
            lines = await run_sync(self.store.to_add, job.id, after)
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
        return await self._changed(job, **counts)

    async def _add(self, lines: Sequence[Line], limit: asyncio.Semaphore) -> list[tuple[Line, str]]:
        """Add lines of one session; return those that the store refuses, and why."""
        first = lines[0]
        messages = [line.incoming for line in lines]
        try:
            async with limit:
                await self.server.writer.add(first.user_id, first.session_id, messages)
        except ValueError as error:
            if len(lines) == 1:
                return [(first, str(error))]
            halves = (lines[: len(lines) // 2], lines[len(lines) // 2 :])
            return [bad for half in halves for bad in await self._add(half, limit)]
        return []

    async def _extracted(self, job: Job) -> None:
        """Extract what was added. What fails waits on: the writer tries it again by itself."""
        reasons = []
        for user in await run_sync(self.store.added_users, job.id):
            try:
                await self.server.writer.flush(user)
            except (LightMemError, KeyError, ValueError) as error:
                reasons.append(str(error))
            await self._locked(self.store.forget, job.id, user)
            await self._changed(job)
        waits = f"the extraction of {len(reasons)} users waits: {reasons[0]}" if reasons else ""
        await self._locked(self.store.forget, job.id)
        await self._changed(job, status="completed", finished_at=now_ms(), error=waits)

    async def _changed(self, job: Job, **values: Any) -> Job:
        """The job as it is after a change; a cancellation that came in between stands."""
        if values.get("status") in ("finalizing", "completed"):
            values = {"unless": "status = 'cancelling'", **values}
        claim = {"claimed_until": now_ms() + CLAIM_MS}
        await self._locked(lambda: self.store.change(job.id, **claim, **values))
        now = await run_sync(self.store.get, job.id)
        return now or job

    async def _locked(self, work: Any, *args: Any) -> Any:
        async with self.server.quiet:
            return await run_sync(work, *args)


def _session(line: Line) -> tuple[str, str]:
    return line.user_id, line.session_id
