"""What a backfill will ask a language model, and what that costs, before anything is paid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from lightmem_core import factory
from lightmem_core.config import Config, LLMConfig, MemoryConfig
from lightmem_core.errors import ConfigError, InputError, StoreError
from lightmem_core.formats import Rejected, parse_file
from lightmem_core.history import ordered_history
from lightmem_core.llm.chat import ChatRequest, NoReplies
from lightmem_core.llm.usage import price
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.plugins import load
from lightmem_core.types import Buffer, History, Message
from lightmem_pipelines.budget import prices_of
from lightmem_pipelines.estimate import Estimate, Estimator, Sample
from lightmem_pipelines.files import InputFile, RunFiles, find_files
from lightmem_pipelines.measured import Measured, measured_calls
from lightmem_pipelines.replies import concurrency
from lightmem_pipelines.storing import extracting

HISTORIES = 8  # of the sample, through the stages together

Count = Callable[[ChatRequest], int]


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What to read, how many users to look at, and the folder of the model's own tokenizer."""

    sources: tuple[str, ...]
    format: str | None = None
    users: int = 50
    tokenizer: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is expected of the whole input, with what the expectation rests on. `sampled` of
    `users` were looked at; `new_messages` are those that the store does not hold.

    `tokens` are those of the messages. `money` is None where no prices are configured. `asleep`:
    the sleep asks the model too, how often is not known before there are memories.
    """

    files: int
    users: int
    messages: int
    bad_rows: int
    sampled: int
    new_messages: Estimate
    tokens: Estimate
    calls: Estimate
    prompt_tokens: Estimate
    completion_tokens: Estimate
    hours: Estimate
    money: Estimate | None
    in_flight: int
    measured: Measured
    asleep: bool


def plan(config: Config, request: PlanRequest) -> Plan:
    """Look at some users, render what would be asked, and reckon with that for all.

    Raise ConfigError if no language model writes the memories.
    """
    memory = config.memory
    llm = _llm(memory)
    files = find_files(request.sources, memory.store)
    sample, bad_rows = _read(config, files, request)
    if not sample.sizes:
        raise InputError(f"there is no message to read in {', '.join(request.sources)}")
    rows = _looked_at(memory, _new(memory, sample), _counter(memory, request.tokenizer))
    estimator = Estimator(rows, sample)
    calls, prompts = estimator.total("calls"), estimator.total("prompt_tokens")
    measured = measured_calls(memory, llm)
    completions = calls.times(measured.completion_tokens, measured.spread)
    in_flight = _in_flight(config)
    return Plan(
        files=len(files),
        users=len(sample.sizes),
        messages=sample.messages,
        bad_rows=bad_rows,
        sampled=len(sample.kept),
        new_messages=estimator.total("messages"),
        tokens=estimator.total("tokens"),
        calls=calls,
        prompt_tokens=prompts,
        completion_tokens=completions,
        hours=_hours(llm, Cost(calls, prompts, completions), measured, in_flight),
        money=_money(memory, Cost(calls, prompts, completions), measured),
        in_flight=in_flight,
        measured=measured,
        asleep=factory.asks_llm("updater", memory.updater),
    )


def _llm(memory: MemoryConfig) -> LLMConfig:
    if memory.llm is None or not factory.asks_llm("generator", memory.generator):
        raise ConfigError(
            f"generator {memory.generator.use!r} asks no language model, so there is nothing to "
            "plan: set memory.generator: {use: llm} and memory.llm"
        )
    return memory.llm


def _read(config: Config, files: Sequence[InputFile], request: PlanRequest) -> tuple[Sample, int]:
    """Every message is counted, those of the sampled users are kept."""
    sample, bad = Sample(request.users), 0
    zone = ZoneInfo(config.pipelines.input.timezone)
    place = RunFiles.of(config.memory.store, "")
    for file in files:
        system, path = place.filesystem(file.path)
        with system.open_input_file(path) as stream:
            for item in parse_file(stream, file.path, request.format, zone):
                if isinstance(item, Rejected):
                    bad += 1
                else:
                    sample.add(item)
    return sample, bad


def _new(memory: MemoryConfig, sample: Sample) -> Iterator[tuple[History, int]]:
    """The history of each sampled user, less what the store holds, with the size of the whole."""
    try:
        store = MemoryStore.open(memory.store)
    except StoreError:
        store = None
    for user, messages in sorted(sample.kept.items()):
        history = ordered_history(messages)
        known = store.shard_for(user).known([user]) if store else {}
        new = tuple(m for m in history.messages if m.id not in known)
        yield History(user, new), sample.sizes[user]


def _looked_at(
    memory: MemoryConfig, histories: Iterator[tuple[History, int]], count: Count
) -> list[dict[str, float]]:
    """What each sampled user will take, with the size of what was read of the user."""
    compress, segment = factory.compression(memory), factory.segmentation(memory)
    buffer, generator = factory.buffering(memory), _generator(memory)
    found = list(histories)
    rows = []
    for start in range(0, len(found), HISTORIES):
        part = found[start : start + HISTORIES]
        segmented = segment(compress([history for history, _ in part]))
        for row, (history, size) in zip(segmented, part, strict=True):
            buffers = [b for b in buffer([row]) if b.segments]
            messages: list[Message] = [m for b in buffers for m in b.messages]
            rows.append(
                {
                    "size": size,
                    "messages": len(history.messages),
                    "tokens": sum(m.content_tokens for m in messages),
                    "calls": len(buffers),
                    "prompt_tokens": sum(count(generator.render(b)) for b in buffers),
                }
            )
    return rows


class _Named:
    """A model that is not asked: a plan needs neither its client nor a key."""

    name = "planned"


def _generator(memory: MemoryConfig) -> Any:
    generator = load("generator", memory.generator, chat=_Named(), saved=NoReplies())
    if not hasattr(generator, "render"):
        raise ConfigError(
            f"generator {memory.generator.use!r} cannot be planned: it has no method "
            f"render({Buffer.__name__}) that gives what would be asked"
        )
    return generator


def _counter(memory: MemoryConfig, folder: str | None) -> Count:
    """The tokens of a request: by the tokenizer of the configuration, or by the model's own, with
    what its chat template adds."""
    if folder is None:
        tokenizer = factory.tokenizer(memory)
        return lambda request: sum(tokenizer.count([m["content"] for m in request.messages]))
    from transformers import AutoTokenizer

    try:
        own: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"there is no tokenizer in {folder}: {error}") from error
    if not getattr(own, "chat_template", None):
        return lambda request: sum(len(own.encode(m["content"])) for m in request.messages)

    def counted(request: ChatRequest) -> int:
        text = own.apply_chat_template(
            list(request.messages), tokenize=False, add_generation_prompt=True
        )
        return len(own.encode(text, add_special_tokens=False))

    return counted


def _in_flight(config: Config) -> int:
    """Requests at once, over all actors that extract."""
    pool = extracting(config)
    held = pool.batches * pool.batch_size
    try:
        most = concurrency(factory.chat(config.memory))
    except ConfigError:  # what the client needs is not installed here
        most = None
    return pool.actors[1] * min(most or held, held)


class Cost(NamedTuple):
    calls: Estimate
    prompt_tokens: Estimate
    completion_tokens: Estimate


def _hours(llm: LLMConfig, cost: Cost, measured: Measured, in_flight: int) -> Estimate:
    """As the replies take, or as long as the limits a minute make it."""
    seconds = cost.calls.times(measured.seconds / in_flight, measured.spread)
    if per_minute := llm.options.get("requests_per_minute"):
        seconds = seconds.or_more(cost.calls.times(60 / per_minute))
    if per_minute := llm.options.get("tokens_per_minute"):
        tokens = Estimate(*map(sum, zip(cost.prompt_tokens, cost.completion_tokens, strict=True)))
        seconds = seconds.or_more(tokens.times(60 / per_minute))
    return seconds.times(1 / 3600)


def _money(memory: MemoryConfig, cost: Cost, measured: Measured) -> Estimate | None:
    prices = prices_of(memory)
    if prices is None:
        return None
    pairs = zip(cost.prompt_tokens, cost.completion_tokens, strict=True)
    return Estimate(*(price(prices, i, o, i * measured.cached_share) for i, o in pairs))
