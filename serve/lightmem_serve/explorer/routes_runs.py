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


def sees_runs(caller: Asking) -> None:
    if not may_see_runs(caller):
        raise refused(403, "runs are shown to admin keys of the default tenant")


rules = [Depends(needs("read")), Depends(sees_runs)]
router = APIRouter(prefix=HOME, include_in_schema=False, dependencies=rules)


@router.get("/runs")
async def runs(request: Request, server: Serving) -> Response:
    """The latest runs."""
    with told():
        found = await server.reader.runs()
    return answer(request, "runs.html", runs=found, views=views, reports=reports)


@router.get("/run")
async def run(
    request: Request, server: Serving, id: Annotated[str, Query(max_length=100)]
) -> Response:
    """The report of a run, with plots."""
    with told():
        found = next((run for run in await server.reader.runs() if run.id == id), None)
    if found is None:
        raise refused(404, "there is no such run among the latest")
    shown = {
        "run": found,
        "name": views.run_name(found.id),
        "plots": reports.plots(found.report),
        "facts": reports.facts(found.report),
        "whole": json.dumps(found.report, indent=2, ensure_ascii=False),
        "request_text": json.dumps(found.request, indent=2, ensure_ascii=False),
    }
    return answer(request, "run.html", **shown)
