"""What `memory.llm.options` of `use: openai` may hold."""

from __future__ import annotations

import re
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from lightmem_core.llm.options import Options

OPENAI = "https://api.openai.com/v1"
Structured = Literal["json_schema", "json_schema_without_lengths", "json_object", "none"]


class OpenAIOptions(Options):
    """`concurrency` holds for each process that asks the model; a run shares its limits a minute
    out among the actors that its pool may have.

    The key is read from the environment variable `api_key_env` and kept nowhere else. A request is
    repeated until `give_up_s` passed without any reply; one that fails `attempts` times while the
    server answers others is rejected. Pauses start at `pause_s` and double. `structured` is for
    servers that know less than JSON schemas, `temperature: server` for those that allow only their
    own, `extra_body` for what else a server takes. TLS is always verified, against
    `ca_file` if one is given.
    """

    shaping = ("structured", "temperature", "extra_body")

    model: str = Field(min_length=1)
    base_url: str = OPENAI
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = Field(default=16, ge=1, le=1000)
    requests_per_minute: float | None = Field(default=None, gt=0)
    tokens_per_minute: float | None = Field(default=None, gt=0)
    timeout_s: float = Field(default=120, gt=0)
    give_up_s: float = Field(default=600, ge=0)
    attempts: int = Field(default=6, ge=1)
    pause_s: float = Field(default=1, gt=0)
    structured: Structured | None = None
    temperature: float | Literal["server"] | None = None
    tokens_field: Literal["max_tokens", "max_completion_tokens"] | None = None
    extra_body: dict[str, Any] = Field(default={}, repr=False)
    ca_file: str | None = None

    @field_validator("api_key_env")
    @classmethod
    def _a_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError("give the name of an environment variable, not the key itself")
        return name

    @field_validator("base_url")
    @classmethod
    def _a_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("give the URL up to /v1, such as http://127.0.0.1:8000/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError("a URL holds no key: name its environment variable in api_key_env")
        return url.rstrip("/")

    @property
    def form(self) -> Structured:
        """OpenAI bounds numbers and lists but not the lengths of strings, of which others need the
        bounds: without them a small model can write without end."""
        known = "json_schema_without_lengths" if self.base_url == OPENAI else "json_schema"
        return self.structured or known

    @property
    def field_of_max_tokens(self) -> str:
        """OpenAI's newest models take only the new name, many other servers only the old one."""
        newest = "max_completion_tokens" if self.base_url == OPENAI else "max_tokens"
        return self.tokens_field or newest
