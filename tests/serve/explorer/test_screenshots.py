"""The pictures under docs/explorer: `make screenshots` takes them anew, and one looks at them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightmem_core.long_term.runs import Run
from lightmem_core.long_term.store import MemoryStore
from lightmem_pipelines.report import BackfillReport, Messages

NAME, STARTED = "backfill-20251101-100000-b6c871", 1_761_991_200_000
FOLDER = os.environ.get("SCREENSHOTS", "")
DESK, PHONE = (1280, 900), (390, 844)
PICTURES = {
    "time-line": (DESK, "/explore/user?user=ada"),
    "changes": (DESK, "/explore/changes?user=ada"),
    "search-phone": (PHONE, "/explore/search?user=ada&q=a+cat+called+Biscuit"),
}
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not FOLDER, reason="make screenshots: they are looked at, not compared"),
]


def pictured_run(shown: Any) -> str:
    """A backfill as `make demo` makes it."""
    messages = Messages(415, 365, 43, 1, {"bad_json": 1, "bad_time": 1, "missing_user": 4})
    seconds = {"read": 0.4, "compress": 1.9, "segment": 4.6, "extract": 0.7, "embed": 5.3}
    steps = {step: {"rows": 8, "seconds": took} for step, took in seconds.items()}
    report = BackfillReport(messages, 8, 60, 377, 7191, 5258, 39.8, steps, "q").as_dict()
    run = Run(NAME, "backfill", "done", STARTED, STARTED + 39_800, {"inputs": ["chats/"]}, report)
    MemoryStore.open(shown.config.memory.store).runs.write(run)
    return NAME


@pytest.mark.parametrize("name", [*PICTURES, "memory", "run"])
def test_a_picture(browse: Callable[..., Any], shown: Any, name: str):
    size, place = PICTURES.get(name, (DESK, ""))
    page = browse(size)
    if name == "run":
        page.goto(f"/explore/run?id={pictured_run(shown)}")
    elif name == "memory":
        page.goto("/explore/search?user=ada&q=a+cat+called+Biscuit")
        page.get_by_role("link", name="And I have a cat called Biscuit.").first.click()
    else:
        page.goto(place)
    page.wait_for_load_state()
    path = Path(FOLDER) / f"{name}.png"
    page.screenshot(path=path)
    assert path.stat().st_size > 10_000
