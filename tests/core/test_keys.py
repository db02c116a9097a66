import time
from pathlib import Path

import pytest

from lightmem_core.errors import StoreError
from lightmem_core.long_term.erase import erase_rows
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.online import keys as keys_module
from lightmem_core.online.keys import KeyRing, NewKey
from lightmem_core.online.tenants import public_user, stored_user


@pytest.fixture
def ring(store: MemoryStore) -> KeyRing:
    return KeyRing(store.database)


def test_a_key_opens_what_it_was_made_for(ring: KeyRing):
    key, text = ring.create(NewKey("ci", "acme", "ada", ("admin", "read"), 7))
    ring.refresh()
    found = ring.find(text)
    assert found == key
    assert (key.tenant, key.user_id, key.scopes, key.per_minute) == (
        "acme", "@acme/ada", ("read", "admin"), 7,
    )  # fmt: skip


def test_what_is_not_a_key_opens_nothing(ring: KeyRing):
    key, text = ring.create(NewKey())
    other, _ = ring.create(NewKey())
    ring.refresh()
    secret = text.split("_", 2)[2]
    wrong = ["", "lm", "lm__", "\ud800", text[:-1], text + "x", text.upper(), f"lm_{key.id}_"]
    for token in [*wrong, f"lm_{other.id}_{secret}", f"xx_{key.id}_{secret}", key.digest]:
        assert ring.find(token) is None


def test_a_revoked_key_opens_nothing_in_any_process(ring: KeyRing, store: MemoryStore):
    key, text = ring.create(NewKey())
    other, kept = ring.create(NewKey())
    elsewhere = KeyRing(store.database)
    elsewhere.refresh()
    assert elsewhere.find(text) == key
    assert ring.revoke(key.id) == ring.revoke(key.id)
    elsewhere.refresh()
    assert elsewhere.find(text) is None
    assert elsewhere.find(kept) == other
    assert [k.revoked for k in elsewhere.all()] == [True, False]
    with pytest.raises(StoreError, match="keys list"):
        ring.revoke("nothing")


def test_no_file_of_the_store_holds_a_secret(ring: KeyRing, tmp_path: Path):
    _, text = ring.create(NewKey())
    secret = text.split("_", 2)[2].encode()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if secret in path.read_bytes()]


def test_who_is_erased_loses_the_keys(ring: KeyRing, store: MemoryStore):
    _, hers = ring.create(NewKey(user="ada"))
    _, everyones = ring.create(NewKey())
    erase_rows(store, "ada")
    ring.refresh()
    assert ring.find(hers) is None
    assert ring.find(everyones)


def test_keys_are_not_trusted_for_ever_when_the_store_is_gone(ring: KeyRing):
    ring.create(NewKey())
    ring.refresh()
    ring.table = Unreadable()  # type: ignore[assignment]
    ring.refresh()
    ring.checked = time.monotonic() - keys_module.TRUSTED_S - 1
    with pytest.raises(StoreError, match="cannot be read"):
        ring.refresh()


class Unreadable:
    @property
    def version(self) -> int:
        raise OSError("connection reset")


@pytest.mark.parametrize(
    "asked",
    [NewKey(tenant="Acme"), NewKey(tenant="a/b"), NewKey(tenant="@a"), NewKey(scopes=["root"]),
     NewKey(scopes=[]), NewKey(user="@acme/ada"), NewKey(user=" "), NewKey(user="a\0")],
)  # fmt: skip
def test_a_key_for_what_cannot_be_is_refused(ring: KeyRing, asked: NewKey):
    with pytest.raises(ValueError, match=r"tenant|scopes|an id"):
        ring.create(asked)
    assert ring.all() == []


TENANTS = ["", "acme", "acme-2"]
OWNERS = [{"user_id": "ada"}, {"user_id": "a/b"}, {"agent_id": "ada"}, {"run_id": "ada"}]


def test_no_two_owners_share_an_id():
    stored = [stored_user(tenant, **owner) for tenant in TENANTS for owner in OWNERS]
    assert len(set(stored)) == len(stored)


def test_a_tenant_knows_its_own_users_only():
    for tenant in TENANTS:
        for owner in OWNERS:
            stored = stored_user(tenant, **owner)
            for other in TENANTS:
                known = public_user(other, stored)
                assert known == (owner.get("user_id", "") if other == tenant else None)


@pytest.mark.parametrize("user", ["@acme/ada", "@/x", "", "  ", "x" * 257, "a\nb", "\ud800"])
def test_no_id_reaches_into_what_is_reserved(user: str):
    with pytest.raises(ValueError, match=r"an id|name a user"):
        stored_user("", user)
