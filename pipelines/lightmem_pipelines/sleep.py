"""The sleep phase: what is new is planned, decided in parallel, saved, and then applied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightmem_core import factory
from lightmem_core.config import Config
from lightmem_core.errors import InputError, StoreError
from lightmem_core.fingerprint import sleep_fingerprint
from lightmem_core.long_term.runs import Run
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.long_term.tables import of_users
from lightmem_core.long_term.undo import UNDONE
from lightmem_pipelines.budget import Budget, prices_of
from lightmem_pipelines.cluster import ray_session
from lightmem_pipelines.phase import SleepPhase
from lightmem_pipelines.running import running

ENDED = ("done", UNDONE)


@dataclass(frozen=True, slots=True)
class SleepRequest:
    """Whose memories to consolidate: one user's, or everyone's; `every` one of them again, or only
    what is new. `dry_run` decides and applies nothing; `resume` names an interrupted run."""

    user_id: str | None = None
    progress: bool = True
    every: bool = False
    dry_run: bool = False
    resume: str | None = None
    budget_tokens: int | None = None
    budget_money: float | None = None


def sleep(config: Config, request: SleepRequest) -> Run:
    """Consolidate the memories in the store, or plan to, and return the finished run.

    Raise StoreError if there is no store, or no such user in it.
    """
    config = factory.shipped(config)
    prices = prices_of(config.memory)
    budget = Budget.asked(request.budget_tokens, request.budget_money, prices)
    store = MemoryStore.open(config.memory.store)
    asked = _resumed(store, config, request.resume) or _asked(store, config, request)
    with running(store, "sleep", asked, request.resume) as run, ray_session(config.pipelines):
        phase = SleepPhase(config, store, run.finished)
        phase.decide(request.progress, budget)
        if not asked["dry_run"]:
            phase.apply()
        run.report = phase.report().as_dict(prices)
        run.status = "planned" if asked["dry_run"] else "done"
    return run.finished


def apply_planned(config: Config, run_id: str) -> Run:
    """Apply what a dry run has decided, and return the finished run.

    Raise InputError if there is nothing of it to apply.
    """
    store = MemoryStore.open(config.memory.store)
    planned = store.runs.get(run_id)
    if planned.kind != "sleep" or planned.status in ENDED:
        raise InputError(
            f"{run_id} is a {planned.kind} that is {planned.status}: name a sleep that was planned "
            "with --dry-run"
        )
    if not SleepPhase(config, store, planned).decided:
        raise InputError(
            f"{run_id} was cut off while it decided: finish that with `lightmem sleep --resume "
            f"{run_id}`"
        )
    with running(store, "sleep", planned.request, run_id) as run, ray_session(config.pipelines):
        phase = SleepPhase(config, store, run.finished)
        phase.apply()
        run.report = phase.report().as_dict(prices_of(config.memory))
    return run.finished


def _asked(store: MemoryStore, config: Config, request: SleepRequest) -> dict[str, Any]:
    if (user := request.user_id) is not None:
        active = f"{of_users([user])} AND superseded_by = ''"
        if not store.shard_for(user).entries.count_rows(active):
            raise StoreError(f"there are no memories of user {user!r} in this store")
    what = {"user_id": user, "every": request.every, "dry_run": request.dry_run}
    return what | {"config": sleep_fingerprint(store, config.memory)}


def _resumed(store: MemoryStore, config: Config, run_id: str | None) -> dict[str, Any] | None:
    """What an interrupted run was asked to do."""
    if run_id is None:
        return None
    run = store.runs.get(run_id)
    if run.kind != "sleep" or run.status in ENDED:
        raise InputError(f"{run_id} is a {run.kind} that is {run.status}: nothing is left of it")
    if run.request.get("config") != sleep_fingerprint(store, config.memory):
        raise InputError(
            f"{run_id} decided with another updater, queue or embedder: resume it with the "
            "configuration that it was started with, or start a new one"
        )
    return run.request
