"""Access keys: what a request carries to say who asks. The store holds only their hashes.

A secret has 256 random bits, so that a plain hash of it cannot be guessed; the part before it is
public and finds the row.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import pyarrow as pa

from lightmem_core.errors import StoreError
from lightmem_core.long_term.compaction import drop_versions
from lightmem_core.long_term.tables import keyed_table, now_ms, upsert
from lightmem_core.online.tenants import checked_tenant, stored_user

if TYPE_CHECKING:
    from lancedb.db import DBConnection

Scope = Literal["read", "write", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
NAME = "keys"
MARK = "lm"
REFRESH_S = 1.0  # how long a revoked key may still open the server
UNKNOWN_S = 0.1  # at least, between two looks for keys that are not known
TRUSTED_S = 10.0  # how long keys are believed while the store cannot be read
NO_DIGEST = "0" * 64
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("digest", pa.string()),
        pa.field("name", pa.string()),
        pa.field("tenant", pa.string()),
        pa.field("user_id", pa.string()),
        pa.field("scopes", pa.string()),
        pa.field("per_minute", pa.int64()),
        pa.field("created_at", pa.int64()),
        pa.field("revoked_at", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True)
class Key:
    """An access key. It opens a tenant, or only `user_id` of it, which is the store's own id: who
    is erased loses the keys too. `per_minute` 0: the server's own limit of requests."""

    id: str
    digest: str
    name: str
    tenant: str
    user_id: str
    scopes: tuple[Scope, ...]
    per_minute: int
    created_at: int
    revoked_at: int = 0

    @property
    def revoked(self) -> bool:
        return self.revoked_at > 0


@dataclass(frozen=True, slots=True)
class NewKey:
    """What a key is asked to open. Admin opens what read and write open, too."""

    name: str = ""
    tenant: str = ""
    user: str = ""
    scopes: Collection[str] = ("read", "write")
    per_minute: int = 0


class KeyRing:
    """The keys of a store. What `find` knows is as old as the last `refresh`."""

    def __init__(self, database: DBConnection):
        self.table = keyed_table(database, NAME, SCHEMA, "id")
        self.known: dict[str, Key] = {}
        self.version = -1
        self.checked = -TRUSTED_S
        self.lock = threading.Lock()

    def create(self, asked: NewKey) -> tuple[Key, str]:
        """Make a key and its text, which nobody can read again. Raise ValueError if what is asked
        for cannot be."""
        tenant, scopes = checked_tenant(asked.tenant), _scopes(asked.scopes)
        user_id = stored_user(tenant, asked.user) if asked.user else ""
        key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
        made = (key_id, _digest(secret), asked.name, tenant, user_id, scopes)
        key = Key(*made, per_minute=asked.per_minute, created_at=now_ms())
        self._write(key)
        return key, f"{MARK}_{key_id}_{secret}"

    def all(self) -> list[Key]:
        """Every key, revoked ones too, oldest first."""
        self.table.checkout_latest()
        keys = map(_key, self.table.search().to_list())
        return sorted(keys, key=lambda key: (key.created_at, key.id))

    def revoke(self, key_id: str) -> Key:
        """Raise StoreError if there is no such key. To revoke one twice is harmless."""
        found = next((key for key in self.all() if key.id == key_id), None)
        if found is None:
            raise StoreError(f"there is no key {key_id!r}: see `lightmem keys list`")
        if not found.revoked:
            found = replace(found, revoked_at=now_ms())
            self._write(found)
        return found

    def find(self, token: str) -> Key | None:
        """The key of a text, None if it opens nothing."""
        mark, key_id, secret = _parts(token)
        key = self.known.get(key_id) if mark == MARK else None
        same = hmac.compare_digest(_digest(secret), key.digest if key else NO_DIGEST)
        return key if key is not None and same and not key.revoked else None

    def due(self, token: str) -> float:
        """0 if the keys are young enough to look a text up in; else how old they may be, in s."""
        wait = REFRESH_S if _parts(token)[1] in self.known else UNKNOWN_S
        return wait if time.monotonic() - self.checked >= wait else 0.0

    def refresh(self, older_s: float = 0.0) -> None:
        """Read the keys again if they are older, and have changed. Raise StoreError if the store
        has not let that be known for too long."""
        with self.lock:
            if time.monotonic() - self.checked < older_s:
                return
            now = time.monotonic()
            try:
                version = self.table.version
                if version != self.version:
                    self.known = {key.id: key for key in self.all()}
                    self.version = version
            except (OSError, RuntimeError, ValueError) as error:
                if now - self.checked > TRUSTED_S:
                    raise StoreError("the access keys cannot be read: try again") from error
                return
            self.checked = now

    def _write(self, key: Key) -> None:
        row = asdict(key) | {"scopes": " ".join(key.scopes)}
        upsert(self.table, "id", pa.Table.from_pylist([row], schema=SCHEMA))
        drop_versions(self.table)


def _parts(token: str) -> tuple[str, str, str]:
    mark, key_id, secret = (*token.split("_", 2), "", "")[:3]
    return mark, key_id, secret


def _key(row: dict[str, Any]) -> Key:
    return Key(**{**row, "scopes": _scopes(row["scopes"].split())})


def _scopes(asked: Collection[str]) -> tuple[Scope, ...]:
    unknown = set(asked) - set(SCOPES)
    if unknown or not asked:
        raise ValueError(f"the scopes of a key are some of {', '.join(SCOPES)}")
    return cast("tuple[Scope, ...]", tuple(scope for scope in SCOPES if scope in asked))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
