"""A lease is held by one process at a time, and one that was lost is not taken for held."""

import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pyarrow as pa
import pytest

from lightmem_core.errors import StoreError
from lightmem_core.long_term import lease
from lightmem_core.long_term.lease import ERASING, SCHEMA, Leases
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.long_term.tables import now_ms


def put(leases: Leases, name: str, holder: str, until: int) -> None:
    row = {"id": name, "holder": holder, "until": until, "work": "a sleep"}
    leases.table.delete(f"id = '{name}'")
    leases.table.add(pa.Table.from_pylist([row], SCHEMA))


@pytest.fixture
def leases(store: MemoryStore) -> Leases:
    return Leases(store.database)


@pytest.fixture
def dead(leases: Leases) -> str:
    """A holder on this system whose process has ended."""
    process = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                             capture_output=True, text=True, check=True)  # fmt: skip
    host, _, rest = leases.holder.split("/", 2)
    return f"{host}/{process.stdout.strip()}/{rest}"


def test_the_hold_of_the_dead_ends_at_once_but_for_an_erase(leases: Leases, dead: str):
    put(leases, "sleep", dead, now_ms() + 9_500)
    with pytest.raises(StoreError, match=r"a sleep is under way .* try again in (9|10) seconds"):
        leases.held(ERASING).__enter__()
    with leases.held("sleep"):
        pass
    put(leases, "sleep", dead, now_ms() - 1)
    with leases.held(ERASING):
        pass


def test_a_dead_erase_holds_nobody_up(leases: Leases, dead: str):
    put(leases, ERASING, dead, now_ms() + 60_000)
    with leases.held("sleep"):
        pass
    with leases.held(ERASING) as hold:
        assert hold.until > now_ms()


@pytest.mark.parametrize("system", ["", "/another-boot/pid:[1]"])
def test_a_process_of_another_system_of_this_name_is_not_taken_for_dead(
    leases: Leases, dead: str, system: str
):
    put(leases, "sleep", "/".join(dead.split("/")[:3]) + system, now_ms() + 60_000)
    with pytest.raises(StoreError, match=f"in process {dead.split('/')[1]} on {platform.node()}: "):
        leases.held("sleep").__enter__()


def test_the_error_names_the_work(leases: Leases, store: MemoryStore):
    other = Leases(store.database)
    other.holder = f"{leases.holder}/other"
    with other.held("the sleep phase", "an import"), pytest.raises(StoreError) as raised:
        leases.held("the sleep phase", "an undo").__enter__()
    assert str(raised.value).startswith(f"an import is under way in process {os.getpid()} on ")


def test_a_lease_that_another_took_is_an_error_at_the_end(
    leases: Leases, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.01)
    until = now_ms() + 60_000
    held = leases.held("sleep", "a sleep")
    hold = held.__enter__()
    put(Leases(store.database), "sleep", "another/1/1", until)
    wait_for(lambda: hold.lost)
    with pytest.raises(StoreError, match="a sleep lost its hold on the store"):
        held.__exit__(None, None, None)
    (row,) = Leases(store.database).table.search().to_list()
    assert (row["holder"], row["until"]) == ("another/1/1", until)


def test_a_lease_that_lapsed_is_an_error_even_if_nobody_took_it(
    leases: Leases, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lease, "LEASE_MS", 50)
    with pytest.raises(StoreError, match="lost its hold"), leases.held("sleep"):
        time.sleep(0.06)


def test_a_renewal_that_fails_is_tried_again(leases: Leases, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.01)
    write, failing = leases._write, threading.Event()
    tried: list[str] = []

    def fails(hold: lease.Hold, until: int, where: str | None = None) -> None:
        if failing.is_set():
            tried.append(hold.name)
            raise OSError("the network is away")
        write(hold, until, where)

    monkeypatch.setattr(leases, "_write", fails)
    with leases.held("sleep") as hold:
        failing.set()
        wait_for(lambda: len(tried) > 1)
        failing.clear()
        before = hold.until
        wait_for(lambda: hold.until > before)
        assert not hold.lost


def test_an_error_of_the_block_is_not_hidden_by_one_at_its_end(
    leases: Leases, monkeypatch: pytest.MonkeyPatch
):
    def fails(*_: object, **__: object) -> None:
        raise OSError("the network is away")

    def block() -> None:
        with leases.held("sleep"):
            monkeypatch.setattr(leases, "_write", fails)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()


def wait_for(law: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not law():
        assert time.monotonic() < end
        time.sleep(0.01)
