"""What a server counts, for Prometheus. Each replica of the HTTP part counts its own requests."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.registry import Collector
from starlette.types import Scope

from lightmem_core.online.writer import WriterStatus

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
UNMATCHED = "none"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


WRITTEN = {
    "accepted": "Messages made durable",
    "duplicates": "Messages that were there before",
    "extracted": "Messages extracted",
    "entries": "Entries written",
    "calls": "Calls of the language model",
    "tokens_in": "Tokens of its prompts",
    "tokens_out": "Tokens of its replies",
}


class WriterCounts(Collector):
    """What the writer has done since it was started; a new one counts from 0."""

    def __init__(self):
        self.counts: Mapping[str, int] = {}

    def collect(self) -> Iterator[CounterMetricFamily]:
        for name, about in WRITTEN.items():
            value = self.counts.get(name, 0)
            yield CounterMetricFamily(f"lightmem_writer_{name}", about, value=value)


@dataclass(slots=True)
class Metrics:
    """Routes are counted by their template: no id of a user becomes a label."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    seconds: Histogram = field(init=False)
    parts: Histogram = field(init=False)
    batches: Histogram = field(init=False)
    messages: Counter = field(init=False)
    entries: Counter = field(init=False)
    tokens: Counter = field(init=False)
    in_flight: Gauge = field(init=False)
    waiting: Gauge = field(init=False)
    users: Gauge = field(init=False)
    trouble: Gauge = field(init=False)
    writer: WriterCounts = field(init=False)
    oldest: Gauge = field(init=False)
    failing: Gauge = field(init=False)
    last_write: Gauge = field(init=False)

    def __post_init__(self) -> None:
        own, name = self.registry, "lightmem_"
        labels = ("method", "route", "status")
        about = "Until answered"
        self.seconds = Histogram(
            f"{name}request_seconds", about, labels, buckets=SECONDS, registry=own
        )
        about = "Until queries were embedded, and from then until they were ranked"
        self.parts = Histogram(
            f"{name}search_seconds", about, ("part",), buckets=SECONDS, registry=own
        )
        about = "Queries that were embedded together, by query"
        self.batches = Histogram(f"{name}search_batch", about, buckets=BATCHES, registry=own)
        self.messages = Counter(f"{name}messages", "Messages given", ("state",), registry=own)
        self.entries = Counter(f"{name}found_entries", "Entries that searches gave", registry=own)
        self.tokens = Counter(f"{name}context_tokens", "Tokens of contexts given", registry=own)
        about = "Requests that are being answered"
        self.in_flight = Gauge(f"{name}in_flight_requests", about, ("kind",), registry=own)
        self.users = Gauge(f"{name}waiting_users", "Of whom messages wait", registry=own)
        about = "1 while nothing can be extracted, or no bulk upload can go on"
        self.trouble = Gauge(f"{name}trouble", about, ("part",), registry=own)
        self.writer = WriterCounts()
        own.register(self.writer)
        self.waiting = Gauge(f"{name}waiting_messages", "Not extracted yet", registry=own)
        self.oldest = Gauge(f"{name}oldest_waiting_seconds", "Age of the oldest", registry=own)
        self.failing = Gauge(f"{name}failing_users", "Whose extraction failed", registry=own)
        about = "When a write last succeeded"
        self.last_write = Gauge(f"{name}last_write_timestamp_seconds", about, registry=own)

    def count(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", UNMATCHED)
        method = scope["method"] if scope["method"] in METHODS else UNMATCHED
        self.seconds.labels(method, route, status or 499).observe(seconds)

    def searched(self, embed_s: float, rank_s: float, batch: int) -> None:
        self.parts.labels("embed").observe(embed_s)
        self.parts.labels("rank").observe(rank_s)
        self.batches.observe(batch)

    def show(self, status: WriterStatus, jobs_trouble: str) -> None:
        self.writer.counts = status.counts
        self.waiting.set(status.waiting)
        self.users.set(status.users)
        self.trouble.labels("writer").set(bool(status.trouble))
        self.trouble.labels("jobs").set(bool(jobs_trouble))
        self.oldest.set(status.oldest_ms / 1000)
        self.failing.set(status.failing)
        self.last_write.set(status.last_write_at / 1000)

    def text(self) -> bytes:
        return generate_latest(self.registry)
