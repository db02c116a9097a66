"""The pages about runs, for those who may see all of a store."""

import json
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from lightmem_serve.access import Asking, needs
from lightmem_serve.backend import Serving
from lightmem_serve.errors import refused, told
from lightmem_serve.explorer import reports, views
from lightmem_serve.explorer.people import may_see_runs
from lightmem_serve.explorer.places import HOME
from lightmem_serve.explorer.rendering import answer

PAGE = 100
KINDS = ("backfill", "sleep", "retry", "undo", "reembed", "import", "erase", "online")


async def sees_runs(caller: Asking) -> None:
    if not may_see_runs(caller):
        raise refused(403, "runs are shown to admin keys of the default tenant")


rules = [Depends(needs("read")), Depends(sees_runs)]
router = APIRouter(prefix=HOME, include_in_schema=False, dependencies=rules)


@router.get("/runs")
async def runs(
    request: Request,
    server: Serving,
    kind: Annotated[str, Query(max_length=64)] = "",
    after: Annotated[str, Query(max_length=100)] = "",
) -> Response:
    """A page of the runs, of a kind or of all, newest first."""
    with told():
        found = await server.reader.runs(kind, PAGE + 1, after)
    shown = {
        "runs": found[:PAGE],
        "kind": kind,
        "kinds": KINDS,
        "older": found[PAGE - 1].id if len(found) > PAGE else None,
    }
    return answer(request, "runs.html", **shown, views=views, reports=reports)


@router.get("/run")
async def run(
    request: Request, server: Serving, id: Annotated[str, Query(max_length=100)]
) -> Response:
    """The report of a run, with plots."""
    with told():
        found = await server.reader.run(id)
    if found is None:
        raise refused(404, "there is no such run")
    shown = {
        "run": found,
        "name": views.run_name(found.id),
        "plots": reports.plots(found.report),
        "facts": reports.facts(found.report),
        "whole": json.dumps(found.report, indent=2, ensure_ascii=False),
        "request_text": json.dumps(found.request, indent=2, ensure_ascii=False),
    }
    return answer(request, "run.html", **shown)
