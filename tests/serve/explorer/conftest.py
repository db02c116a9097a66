"""A server with the shipped samples in its store: what people would look at."""

import http.client
import json
import re
import shutil
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from lightmem_core.long_term.runs import Run
from lightmem_core.long_term.store import MemoryStore
from lightmem_pipelines.report import BackfillReport, Messages

SAMPLES = Path(__file__).parents[3] / "pipelines" / "samples" / "chats.jsonl"
USERS = ("ada", "José Núñez")
AGAIN = {"role": "user", "content": "I live in Lisbon now."}
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
QUIET = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
EVIL = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
EVIL_USER = "o'\"><script>document.title='taken'</script>&x"
BACKFILL, STARTED = "backfill-20251101-090000-aaaaaa", 1_761_987_600_000


@dataclass
class Page:
    status: int
    text: str
    headers: dict[str, str]

    @property
    def words(self) -> str:
        """What is read, without the tags and the hints."""
        bare = re.sub(r"<(title|desc|script|style)\b.*?</\1>", " ", self.text, flags=re.S)
        return " ".join(unescape(re.sub(r"<[^>]+>", " ", bare)).split())

    @property
    def links(self) -> list[str]:
        return [unescape(link) for link in re.findall(r'href="([^"]*)"', self.text)]

    def link(self, words: str) -> str:
        """Where the first link with these words leads."""
        found = re.search(rf'<a [^>]*href="([^"]*)"[^>]*>{re.escape(words)}', self.text)
        assert found, (words, self.words)
        return unescape(found[1])


@dataclass
class Visitor:
    """A browser without scripts: it keeps its cookies and follows nothing."""

    url: str
    cookies: dict[str, str] = field(default_factory=dict)

    def get(self, path: str, /, **headers: str) -> Page:
        return self._ask("GET", path, None, headers)

    def post(self, path: str, /, form: dict[str, str] | None = None, **headers: str) -> Page:
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        return self._ask("POST", path, urllib.parse.urlencode(form or {}), kind | headers)

    def of(self, page: str, /, **query: str) -> Page:
        return self.get(f"/explore/{page}?{urllib.parse.urlencode(query)}")

    def signed_in(self, key: str) -> "Visitor":
        page = self.post("/explore/login", {"key": key})
        assert page.status == 303, page
        return self

    def _ask(self, method: str, path: str, body: str | None, headers: dict[str, str]) -> Page:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.cookies:
            sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        at = urllib.parse.urlsplit(self.url)
        connection = http.client.HTTPConnection(at.hostname or "", at.port, timeout=60)
        target = urllib.parse.quote(path, safe="/?&=%+-_.~:")
        connection.request(method, target, body, sent)
        reply = connection.getresponse()
        text = reply.read().decode()
        given = {name.lower(): value for name, value in reply.getheaders()}
        connection.close()
        for line in reply.headers.get_all("set-cookie") or []:
            name, _, value = line.partition(";")[0].partition("=")
            self.cookies[name] = value.strip('"')
            if not self.cookies[name]:
                del self.cookies[name]
        return Page(reply.status, text, given)


def fill(running: Any) -> None:
    """Two users of the samples, whose first one repeats a sentence and is then consolidated."""
    lines = [json.loads(line) for line in SAMPLES.read_text("utf-8").splitlines()]
    for line in lines:
        if line["user_id"] in USERS:
            said = [{"timestamp": line["timestamp"], **m} for m in line["messages"]]
            ids = {"user_id": line["user_id"], "run_id": line["session_id"], "async_mode": True}
            running.done("POST", "/memories", {"messages": said, **ids})
    again = {"messages": [{**AGAIN, "timestamp": "2025-11-01T10:00:00Z"}], "user_id": "ada"}
    running.done("POST", "/memories", {**again, "infer": False, "async_mode": True})
    for user in USERS:
        path = f"/users/{urllib.parse.quote(user)}"
        running.done("POST", f"{path}/flush")
        running.done("POST", f"{path}/sleep")


def backfill_report() -> dict[str, Any]:
    """As the batch writes it."""
    messages = Messages(415, 365, 43, 1, {"bad_json": 4, "<b>bad</b>": 2})
    steps = {"compress": {"rows": 8, "seconds": 1.9}, "embed": {"rows": 16, "seconds": 5.25}}
    report = BackfillReport(messages, 8, 60, 377, 7191, 5258, 39.8, steps, "q")
    return report.as_dict()


@pytest.fixture(scope="session")
def shown(start: Callable[..., Any]) -> Iterator[Any]:
    """With keys: its own of an admin, one that reads, one of a user and one of another tenant."""
    with start(generator="extractive", requests_per_minute=100_000) as running:
        fill(running)
        running.say(EVIL_USER, EVIL, metadata={EVIL: EVIL})
        running.acme = running.make_key(tenant="acme", scopes=["admin"])
        said = {"messages": "the vault opens with 4711", "user_id": "wile", "async_mode": False}
        running.done("POST", "/memories", said, key=running.acme)
        running.reader = running.make_key(scopes=["read"])
        running.of_ada = running.make_key(user="ada", scopes=["admin"])
        done = Run(
            BACKFILL, "backfill", "done", STARTED, STARTED + 40_000, {"x": EVIL}, backfill_report()
        )
        MemoryStore.open(running.config.memory.store).runs.write(done)
        yield running


@pytest.fixture
def visit(shown: Any) -> Callable[..., Visitor]:
    """Come with nothing, or signed in with a key."""

    def come(key: str = "", url: str = shown.url) -> Visitor:
        visitor = Visitor(url)
        return visitor.signed_in(key) if key else visitor

    return come


@pytest.fixture
def admin(visit: Callable[..., Visitor], shown: Any) -> Visitor:
    return visit(shown.key)


@pytest.fixture(scope="session")
def evil() -> tuple[str, str]:
    """A user's id and a memory that would run, if they were not escaped."""
    return EVIL_USER, EVIL


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """For a module: as long as it is there, no other loop of events can run in this thread."""
    if not CHROMIUM:
        pytest.skip("needs an installed Chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def browse(chromium: Any, shown: Any) -> Iterator[Callable[..., Any]]:
    """Open the pages in a new window, signed in. What the browser complains of fails the test."""
    complaints: list[str] = []
    windows = []

    def opened(size: tuple[int, int] = (1280, 900), key: str = shown.key) -> Any:
        shape = {"viewport": {"width": size[0], "height": size[1]}}
        windows.append(chromium.new_context(base_url=shown.url, **shape))
        page = windows[-1].new_page()
        page.on("console", lambda said: complaints.append(said.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.goto("/")
        page.get_by_label("Access key").fill(key)
        page.get_by_role("button", name="Sign in").click()
        return page

    yield opened
    for window in windows:
        window.close()
    assert complaints == []
