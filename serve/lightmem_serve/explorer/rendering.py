"""From templates to pages. All that is filled in is escaped."""

import hashlib
from datetime import timedelta
from functools import cache
from importlib.resources import files
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lightmem_core.long_term.render import EPOCH, day
from lightmem_serve.explorer.places import STATIC, url

SHORT = 420  # characters of a text that is one of many


def page(template: str, **shown: Any) -> str:
    return (
        _environment()
        .get_template(template)
        .render(**{"who": None, "keys": False, "user": "", **shown})
    )


def answer(request: Request, template: str, status: int = 200, **shown: Any) -> HTMLResponse:
    """A page for who asks."""
    who = getattr(request.state, "caller", None)
    keys = request.app.state.access.ring is not None
    return HTMLResponse(page(template, **{"who": who, "keys": keys, **shown}), status)


@cache
def asset(name: str) -> bytes:
    return files("lightmem_serve.explorer").joinpath("static", name).read_bytes()


def asset_url(name: str) -> str:
    """It changes with what is there, so that it may be kept for ever."""
    return f"{STATIC}/{name}?{hashlib.sha256(asset(name)).hexdigest()[:12]}"


def clock(at: int) -> str:
    moment = EPOCH + timedelta(milliseconds=at)
    return f"{day(at)}, {moment:%H:%M}"


def hour(at: int) -> str:
    return f"{EPOCH + timedelta(milliseconds=at):%H:%M}"


def moment(at: int, form: str = "day") -> Markup:
    """A time as people read it, and machines too. UTC."""
    exact = (EPOCH + timedelta(milliseconds=at)).isoformat(timespec="seconds")
    shown = {"day": day, "clock": clock, "hour": hour}[form](at)
    return Markup('<time datetime="{}" title="{} UTC">{}</time>').format(exact, clock(at), shown)


def lasted(ms: float) -> str:
    seconds = ms / 1000
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7_200 else f"{seconds / 3600:.1f} h"


def short(text: str, most: int = SHORT) -> str:
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


def number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}"


def plural(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("lightmem_serve.explorer"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"moment": moment, "short": short, "number": number, "lasted": lasted}
    made.globals |= {"url": url, "asset": asset_url, "plural": plural}
    return made
