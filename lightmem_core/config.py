"""The configuration file as types: one tree for batch and online. Units are in the names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from zoneinfo import available_timezones

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from lightmem_core.errors import ConfigError

StepName = Literal["compress", "segment", "buffer", "extract", "embed"]
STEPS: tuple[StepName, ...] = ("compress", "segment", "buffer", "extract", "embed")


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Component(Model):
    """A part chosen by name, or by import path ("package.module:Class") for one of your own."""

    use: str
    options: dict[str, Any] = {}


class StoreConfig(Model):
    """Where memories live. `shards` is fixed when the store is made; a laptop needs one.

    `storage_options` are LanceDB's, for a `uri` on object storage: aws_endpoint, aws_region,
    allow_http, aws_access_key_id, aws_secret_access_key and others. What they do not say comes
    from the environment (AWS_*). They are never shown.
    """

    uri: str = "./lightmem-store"
    shards: int = Field(default=1, ge=1, le=4096)
    storage_options: dict[str, str] = Field(default={}, repr=False)

    @field_validator("storage_options", mode="before")
    @classmethod
    def _as_text(cls, options: Any) -> Any:
        """YAML reads `true` and `123` as other than text."""
        if not isinstance(options, Mapping):
            return options
        return {
            key: str(value).lower() if isinstance(value, bool | int) else value
            for key, value in options.items()
        }


class QueueConfig(Model):
    """The update queue of the sleep phase: the `k` most similar later entries, cosine >= theta."""

    k: int = Field(default=20, ge=1)
    theta: float = Field(default=0.4, ge=-1, le=1)


class Prices(Model):
    """Money for a million tokens. `cached` is for those of a prompt that the server had read
    before; none: as the others."""

    prompt: float = Field(default=0, ge=0)
    cached: float | None = Field(default=None, ge=0)
    completion: float = Field(default=0, ge=0)


class LLMConfig(Component):
    """The language model of the parts that need one. `completion_tokens` are expected of the reply
    to a full buffer, in `call_seconds`: with `prices`, what a plan reckons with until a run has
    measured them."""

    prices: Prices = Prices()
    completion_tokens: int = Field(default=400, gt=0)
    call_seconds: float = Field(default=10, gt=0)


class MemoryConfig(Model):
    """What a memory is. Batch and server read the same section, so they cannot disagree.

    `buffer_tokens` is the paper's th: one extraction call per so many compressed tokens. The
    `reranker` is for searches that ask for it.
    """

    tokenizer: Component = Component(use="minilm")
    compressor: Component = Component(use="self-information")
    segmenter: Component = Component(use="valley")
    generator: Component = Component(use="extractive")
    embedder: Component = Component(use="minilm")
    updater: Component = Component(use="rules")
    reranker: Component | None = None
    llm: LLMConfig | None = None
    buffer_tokens: int = Field(default=512, gt=0)
    queue: QueueConfig = QueueConfig()
    store: StoreConfig = StoreConfig()


class Pool(Model):
    """Actors that run some consecutive steps; `batch_size` counts rows of the first of them.

    An actor that does nothing but extract can have several `batches` in hand at once: a request to
    an LLM takes long and costs the actor nothing. Its generator is then called by as many threads.
    """

    steps: tuple[StepName, ...]
    actors: tuple[int, int] = (1, 1)
    cpus: float = Field(default=1, ge=0)
    gpus: float = Field(default=0, ge=0)
    batch_size: int = Field(default=16, gt=0)
    batches: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _range(self) -> Pool:
        low, high = self.actors
        if not 1 <= low <= high:
            raise ValueError(f"actors: [{low}, {high}] is no range of at least one actor")
        if self.batches > 1 and self.steps != ("extract",):
            raise ValueError("batches: only a pool of the step extract alone can have several")
        return self


class DecidePool(Model):
    """Actors in which an LLM decides for the sleep phase, each built once. One has `batches`
    portions of at most `entries_per_portion` entries in hand at once."""

    actors: int = Field(default=1, ge=1)
    cpus: float = Field(default=1, ge=0)
    gpus: float = Field(default=0, ge=0)
    batches: int = Field(default=4, ge=1)
    entries_per_portion: int = Field(default=500, gt=0)


class InputConfig(Model):
    """`timezone` is for times that name none. `grouped` promises that each user's rows stand
    together in one file, which spares the shuffle."""

    timezone: str = "UTC"
    grouped: bool = False

    @field_validator("timezone")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in available_timezones():
            raise ValueError(f"there is no time zone {name!r}: name one such as Europe/Berlin")
        return name


class PipelinesConfig(Model):
    """How a run is spread over a machine or a cluster. `address` is Ray's; none starts a local
    Ray with `num_cpus` (none: all, at least 2) and `object_store_mib`, beyond which it spills to
    disk. `committers` processes write, each to its share of the shards. A batch for them takes
    `commit_buffers` buffers for each of 16 shards, but at most an eighth of an object store.
    `sleep_gpus_per_task` is for users of 30,000 entries or more; `decide` is for an LLM."""

    address: str | None = None
    num_cpus: int | None = Field(default=None, ge=1)
    object_store_mib: int = Field(default=80, ge=80)
    input: InputConfig = InputConfig()
    pools: tuple[Pool, ...] = (Pool(steps=STEPS),)
    committers: int = Field(default=2, gt=0)
    commit_buffers: int = Field(default=250, gt=0)
    sleep_entries_per_task: int = Field(default=20_000, gt=0)
    sleep_gpus_per_task: float = Field(default=0, ge=0)
    decide: DecidePool = DecidePool()

    @model_validator(mode="after")
    def _covers_all_steps(self) -> PipelinesConfig:
        named = tuple(step for pool in self.pools for step in pool.steps)
        if named != STEPS:
            raise ValueError(
                f"pools must name each step once and in order: {list(STEPS)}, got {list(named)}"
            )
        return self


class LimitsConfig(Model):
    """What one request may ask of a server: bytes of its body, how deep its JSON is nested, how
    many messages of how many characters. It is answered within `seconds`, or within `work_seconds`
    if it asks for work on all that a user has. Beyond `in_flight` requests at once it is refused,
    or beyond as many `chats`; no messages are taken in while `waiting` ones are not extracted.
    """

    body_bytes: int = Field(default=4 << 20, gt=0)
    job_bytes: int = Field(default=64 << 20, gt=0)
    depth: int = Field(default=32, gt=0, le=200)
    messages: int = Field(default=500, gt=0)
    characters: int = Field(default=100_000, gt=0)
    seconds: float = Field(default=30, gt=0)
    work_seconds: float = Field(default=600, gt=0)
    in_flight: int = Field(default=128, gt=0)
    chats: int = Field(default=256, gt=0)
    waiting: int = Field(default=200_000, gt=0)


class ServeConfig(Model):
    """Queries that come while others are embedded are embedded together, `max_batch_size` at most;
    they are then ranked and sent one after the other, so that few wait little for each other, and
    many are embedded for less. `replicas`: readers in processes of their own; with 0 the HTTP part
    reads. Each reader, or the HTTP part in its place, and the writer reserve `cpus`.
    Without keys (`auth: off`) only this machine is answered; with them a key may ask
    `requests_per_minute`, unless it was made with a limit of its own. Messages that do not fill a
    buffer are extracted after `flush_after_s`. One without a time that says what its session has
    said within `repeat_within_s` is taken for that message, sent again; later it is a new one. A
    chat is told of memories of at most `chat_memory_tokens`."""

    auth: Literal["keys", "off"] = "keys"
    requests_per_minute: int = Field(default=1_200, gt=0)
    chat_memory_tokens: int = Field(default=1_000, gt=0)
    limits: LimitsConfig = LimitsConfig()
    flush_after_s: float = Field(default=60, gt=0)
    repeat_within_s: float = Field(default=3_600, ge=0)
    max_batch_size: int = Field(default=3, gt=0)
    replicas: int = Field(default=0, ge=0)
    cpus: float = Field(default=0.5, ge=0)

    @field_validator("auth", mode="before")
    @classmethod
    def _as_word(cls, auth: Any) -> Any:
        """YAML reads `off` as false."""
        return "off" if auth is False else auth


class Config(Model):
    memory: MemoryConfig = MemoryConfig()
    pipelines: PipelinesConfig = PipelinesConfig()
    serve: ServeConfig = ServeConfig()


def load_config(source: str | Path | Mapping[str, Any] | None = None, **store: Any) -> Config:
    """Read a YAML file, take what one would hold, or take the defaults. `store` overrides keys of
    memory.store.

    Raise ConfigError naming the file and every bad key.
    """
    if isinstance(source, Mapping):
        name, tree = "what was given", dict(source)
    else:
        name = str(source) if source else "the built-in configuration"
        tree = _read(source) if source else {}
    try:
        config = Config.model_validate(tree)
        if given := {key: value for key, value in store.items() if value is not None}:
            tree = config.model_dump()
            tree["memory"]["store"] |= given
            config = Config.model_validate(tree)
        return config
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()
        )
        raise ConfigError(f"{name} is not a valid configuration: {problems}") from error


def _read(path: str | Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"cannot read the configuration {path}: {reason}") from error
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{path} is not a valid configuration: it must hold a mapping")
    return dict(tree)
