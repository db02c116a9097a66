"""An S3 server for the tests that need one, started on first use."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from lightmem_core.config import StoreConfig
from lightmem_core.long_term.objects import s3_filesystem

SERVER = Path(__file__).with_name("s3_server.py")


@pytest.fixture(scope="session")
def s3_ports() -> Iterator[tuple[int, int]]:
    """The ports of a server: that keeps conditions, and that forgets them."""
    with subprocess.Popen(
        [sys.executable, str(SERVER)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        kept, forgetful = map(int, server.stdout.readline().split())
        yield kept, forgetful
        server.kill()


@pytest.fixture
def bucket(s3_ports: tuple[int, int]) -> Callable[..., StoreConfig]:
    """A store's place in an empty bucket, with what it takes to reach it."""
    name = f"bucket-{uuid4().hex[:8]}"

    def config(forgetful: bool = False, **options: str) -> StoreConfig:
        own = {
            "aws_endpoint": f"http://127.0.0.1:{s3_ports[forgetful]}",
            "aws_region": "us-east-1",
            "aws_access_key_id": "writer",
            "aws_secret_access_key": "HUSH-HUSH",
            "allow_http": "true",
        }
        return StoreConfig(uri=f"s3://{name}/deep/store", storage_options=own | options)

    s3_filesystem(config().storage_options, allow_bucket_creation=True).create_dir(name)
    return config
