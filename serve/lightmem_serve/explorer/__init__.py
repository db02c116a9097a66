"""The pages for people: whose memories, what each came from, what the sleep phase changed."""

from fastapi import FastAPI

from lightmem_serve.access import Access
from lightmem_serve.explorer import routes_login, routes_pages, routes_runs
from lightmem_serve.explorer.door import Door
from lightmem_serve.explorer.places import FORMS, PUBLIC

__all__ = ["FORMS", "PUBLIC", "install"]


def install(app: FastAPI, access: Access) -> None:
    """Add the pages to an application, around whatever guards it already. `PUBLIC` are the paths
    that its guard must let pass, `FORMS` those to which a form is sent."""
    app.state.access = access
    for routes in (routes_login, routes_pages, routes_runs):
        app.include_router(routes.router)
    app.add_middleware(Door)
