"""The pages about users and their memories. They change nothing."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import RedirectResponse, Response

from lightmem_core.long_term import retrieve
from lightmem_core.metadata import DAY_MS
from lightmem_core.online.overview import Asked
from lightmem_core.online.tenants import LONGEST_ID
from lightmem_core.types import Entry
from lightmem_serve.access import Asking, needs
from lightmem_serve.backend import Serving, searched
from lightmem_serve.errors import told
from lightmem_serve.explorer import views
from lightmem_serve.explorer.lanes import lanes
from lightmem_serve.explorer.people import may_list, people
from lightmem_serve.explorer.places import HOME, url
from lightmem_serve.explorer.rendering import answer
from lightmem_serve.schemas import asked_time

PAGE = 100
REACH = 3  # messages shown around those that a memory came from
MOST_CHANGES = 200
WIDE, NARROW = 960, 400  # px of a plot
FOUND = 10
router = APIRouter(prefix=HOME, include_in_schema=False, dependencies=[Depends(needs("read"))])
User = Annotated[str, Query(min_length=1, max_length=LONGEST_ID)]
Word = Annotated[str, Query(max_length=LONGEST_ID)]
Line = Annotated[str, Query(max_length=2_000)]
Day = Annotated[str, Query(pattern=r"^(\d{4}-\d\d-\d\d)?$")]


@router.get("")
async def home(
    request: Request, caller: Asking, server: Serving, after: Word = "", starts: Word = ""
) -> Response:
    """Whose memories? A key of one user needs no answer."""
    if caller.user_id:
        shown = caller.shown(caller.user_id)
        return RedirectResponse(url("user", user=shown), 303)
    listed = None
    if may_list(caller):
        with told():
            listed = await people(server.reader, caller, after, starts)
    shown = {"listed": listed, "starts": starts, "behind": after, "server": server}
    return answer(request, "home.html", **shown)


@router.get("/user")
async def user(
    request: Request, caller: Asking, server: Serving, user: User, before: Word = "",
    topic: Line | None = None,
) -> Response:  # fmt: skip
    """The time line of a user."""
    owner = caller.owner(user)
    with told():
        line = await server.reader.time_line(owner, Asked(PAGE, before, topic))
    shown = {
        "groups": views.groups(line.page),
        "counts": views.summary(line),
        "older": line.page[-1].id if line.older else None,
        "plots": [lanes(user, line.points, width, topic) for width in (WIDE, NARROW)],
        "line": line,
        "topic": topic,
        "before": before,
    }
    return answer(request, "user.html", user=user, views=views, **shown)


@router.get("/memory")
async def memory(
    request: Request, caller: Asking, server: Serving, user: User, id: Word
) -> Response:
    """All about a memory."""
    owner = caller.owner(user)
    with told():
        story = await server.reader.story(id, owner, REACH)
    entry: Entry = caller.own(story.provenance.entry)
    shown = {
        "entry": entry,
        "known": story.provenance,
        "turns": views.turns(story),
        "states": views.states(story.history),
        "metadata": views.metadata(entry),
    }
    return answer(request, "memory.html", user=user, views=views, **shown)


@router.get("/search")
async def search(
    request: Request, caller: Asking, server: Serving, user: User, q: Line = "", since: Day = "",
    until: Day = "",
) -> Response:  # fmt: skip
    """The memories that answer a text, and why they are the best."""
    owner, hits = caller.owner(user), []
    if q.strip():
        with told():
            first, last = (asked_time(given) if given else None for given in (since, until))
            end = None if last is None else last + DAY_MS - 1
            asked = retrieve.Query(owner, q, FOUND, since=first, until=end)
        hits = (await searched(server, asked)).hits
    found = list(zip(hits, views.scores(hits), strict=True))
    shown = {"q": q, "since": since, "until": until, "found": found, "views": views}
    return answer(request, "search.html", user=user, **shown)


@router.get("/changes")
async def changes(
    request: Request, caller: Asking, server: Serving, user: User, run: Word = ""
) -> Response:
    """What runs changed, before and after."""
    owner = caller.owner(user)
    with told():
        found = await server.reader.changes(owner, MOST_CHANGES, run)
    shown = {"steps": views.steps(found.newest), "by_run": found.by_run, "run": run}
    return answer(request, "changes.html", user=user, views=views, **shown)
