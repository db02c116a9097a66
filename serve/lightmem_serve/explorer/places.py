"""Where the pages are. Only there the cookie counts as a key: the API never looks at it."""

from urllib.parse import urlencode

HOME = "/explore"
LOGIN, LOGOUT = f"{HOME}/login", f"{HOME}/logout"
STATIC = f"{HOME}/static"
ASSETS = {
    "style.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
PUBLIC = frozenset({"/", LOGIN, LOGOUT, *(f"{STATIC}/{name}" for name in ASSETS)})
FORMS = frozenset({LOGIN})
COOKIE = "lightmem_key"


def is_page(path: str) -> bool:
    return path in ("/", HOME) or path.startswith(f"{HOME}/")


def url(page: str = "", /, **query: object) -> str:
    """The address of a page; what is None is left out of the query."""
    given = {name: value for name, value in query.items() if value is not None}
    path = f"{HOME}/{page}" if page else HOME
    return f"{path}?{urlencode(given)}" if given else path


def local(address: str) -> str:
    """An address that a login may go on to: one of the pages, or else the first one."""
    path = address.partition("?")[0]
    plain = address.isascii() and address.isprintable() and "\\" not in address
    return address if plain and is_page(path) and path not in (LOGIN, LOGOUT) else HOME
