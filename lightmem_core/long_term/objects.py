"""Stores on object storage: the files beside the tables, and a test that commits are safe there.

A commit is a conditional create of the next manifest. Where a server ignores the condition, two
writers overwrite each other without an error, so such a store is refused.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from functools import lru_cache
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from pyarrow import fs

from lightmem_core.config import StoreConfig
from lightmem_core.errors import ConfigError, StoreError
from lightmem_core.hushed import hushed

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore

Verdict = Literal["kept", "ignored", "read-only"]

S3 = ("s3", "s3a", "s3+ddb")
TESTED = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl")
PROVIDERS = ("aws_", "azure_", "google_")
CLIENT = {
    "allow_http",
    "allow_invalid_certificates",
    "connect_timeout",
    "default_content_type",
    "http1_only",
    "http2_keep_alive_interval",
    "http2_keep_alive_timeout",
    "http2_keep_alive_while_idle",
    "http2_only",
    "pool_idle_timeout",
    "pool_max_idle_per_host",
    "proxy_ca_certificate",
    "proxy_excludes",
    "proxy_url",
    "randomize_addresses",
    "read_timeout",
    "timeout",
    "user_agent",
}
PYARROW = {
    "access_key_id": "access_key",
    "secret_access_key": "secret_key",
    "session_token": "session_token",
    "token": "session_token",
    "region": "region",
    "default_region": "region",
    "endpoint": "endpoint_override",
    "endpoint_url": "endpoint_override",
}
FLAGS = {
    "skip_signature": "anonymous",
    "virtual_hosted_style_request": "force_virtual_addressing",
}
QUICK = {"connect_timeout": "5s", "timeout": "10s"}  # a test at start-up must not take minutes


def scheme_of(uri: str) -> str:
    """The scheme of a URI, "" for a path."""
    return uri.partition("://")[0].lower() if "://" in uri else ""


def filesystem(
    uri: str, storage_options: Mapping[str, str] | None = None
) -> tuple[fs.FileSystem, str]:
    """The file system of a URI or local path, and the path within it. `storage_options` are those
    of a store on S3; without them, and elsewhere, the URI and the environment say all."""
    scheme = scheme_of(uri)
    if not scheme:
        return fs.LocalFileSystem(), str(PurePosixPath(uri))
    if scheme == "s3+ddb":  # a store's; its tables alone need the lock
        uri = f"s3://{place_of(uri)}"
    if scheme in S3 and storage_options:
        return s3_filesystem(storage_options), place_of(uri)
    return fs.FileSystem.from_uri(uri)


def place_of(uri: str) -> str:
    """Bucket and path of a URI, without a query."""
    return uri.partition("://")[2].partition("?")[0].rstrip("/")


def s3_filesystem(options: Mapping[str, str], **own: Any) -> fs.S3FileSystem:
    """The file system that the storage options of LanceDB describe; `own` are pyarrow's."""
    named: dict[str, Any] = {"connect_timeout": 5, **own}
    for key, value in options.items():
        name = key.lower().removeprefix("aws_")
        if name in PYARROW:
            named[PYARROW[name]] = value
        elif name in FLAGS:
            named[FLAGS[name]] = _true(value)
    return fs.S3FileSystem(**named)


def check_store(config: StoreConfig, write: bool = False) -> None:
    """Raise StoreError if a store cannot be reached, or would lose commits; `write`: or cannot be
    written to. Local stores are safe, and what locks by a DynamoDB table is left to it."""
    if scheme_of(config.uri) not in TESTED:
        return
    verdict = _verdict(config.uri, tuple(sorted(config.storage_options.items())))
    if verdict == "ignored":
        raise StoreError(
            f"{config.uri} would lose memories: it ignores If-None-Match, so one of two writers "
            "that commit at once would overwrite the other; use a store that honours it, or "
            "s3+ddb://BUCKET/PATH?ddbTableName=TABLE with a DynamoDB table"
        )
    if write and verdict == "read-only":
        raise StoreError(
            f"{config.uri} can be read, not written: give credentials that may put and delete "
            "objects there, in memory.store.storage_options or the environment"
        )


@lru_cache
def _verdict(uri: str, options: tuple[tuple[str, str], ...]) -> Verdict:
    """Test a store, once in a process."""
    from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

    try:
        store = _connect(uri, dict(options))
        try:
            return _conditional_writes(store)
        except (PermissionDeniedError, UnauthenticatedError):
            if _readable(store):
                return "read-only"
            raise
    except (BaseError, FileNotFoundError) as error:
        raise _explained(uri, dict(options), error) from None


def _readable(store: ObjectStore) -> bool:
    from obstore.exceptions import BaseError

    try:
        store.list_with_delimiter()
    except BaseError:
        return False
    return True


def _conditional_writes(store: ObjectStore) -> Verdict:
    """Create one key twice: the second must fail and leave what the first wrote. The same
    requests as a commit makes."""
    from obstore.exceptions import AlreadyExistsError, NotSupportedError

    key = f"_check-{secrets.token_hex(8)}"
    try:
        store.put(key, b"first", mode="create")
    except NotSupportedError:
        return "ignored"
    try:
        store.put(key, b"second", mode="create")
        refused = False
    except AlreadyExistsError:
        refused = True
    try:
        return "kept" if refused and bytes(store.get(key).bytes()) == b"first" else "ignored"
    finally:
        store.delete(key)


def _connect(uri: str, options: Mapping[str, str]) -> ObjectStore:
    from obstore.store import from_url

    client: Any = {"allow_http": os.environ.get("AWS_ALLOW_HTTP", "false")}
    config: Any = {}
    for key, value in ((key.lower(), value) for key, value in options.items()):
        name = key.removeprefix("aws_").removeprefix("azure_").removeprefix("google_")
        if name in CLIENT:
            client[name] = value
        elif key.startswith(PROVIDERS) or name in PYARROW or name in FLAGS:
            config[key] = value  # the others are LanceDB's own
    quick: ClientConfig = client | QUICK
    return from_url(uri, config=config, client_options=quick, retry_config=_retries())


def _retries() -> Any:
    from datetime import timedelta

    return {"max_retries": 1, "retry_timeout": timedelta(seconds=10)}


def _explained(uri: str, options: Mapping[str, str], error: Exception) -> StoreError | ConfigError:
    """What to check, in one line that tells no secret."""
    from obstore.exceptions import (
        PermissionDeniedError,
        UnauthenticatedError,
        UnknownConfigurationKeyError,
    )

    reason = _first_line(error, options)
    if isinstance(error, UnknownConfigurationKeyError):
        return ConfigError(f"memory.store.storage_options: {reason}")
    if isinstance(error, FileNotFoundError):
        return StoreError(f"there is no bucket for {uri}: make it, or correct memory.store.uri")
    if isinstance(error, (PermissionDeniedError, UnauthenticatedError)):
        return StoreError(
            f"{uri} refuses these credentials: check the access key and the secret in "
            "memory.store.storage_options or the environment, and what they may do there"
        )
    return StoreError(
        f"{uri} cannot be reached: check the endpoint, the region, the credentials and, for plain "
        f"http, allow_http in memory.store.storage_options ({reason})"
    )


def _first_line(error: Exception, options: Mapping[str, str]) -> str:
    names = ("key", "secret", "token", "password")
    secrets = (v for key, v in options.items() if any(name in key.lower() for name in names))
    return hushed(str(error).strip().partition("\n")[0], *secrets)


def _true(value: str) -> bool:
    return value.strip().lower() in ("1", "true", "yes", "on")
