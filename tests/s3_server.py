"""A program: moto as an S3 server, one request at a time, on two ports of 127.0.0.1.

Prints the ports. One serial server makes the check and the write of a conditional put one step,
which they are not in moto's threaded one. The second port is the same store behind a proxy that
drops the condition. moto knows no accounts; here the key `reader` may only read, and of the others
only `writer` is known.
"""

import re
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

Start = Callable[..., Any]
DENIED = b"<Error><Code>%s</Code><Message>denied</Message></Error>"
MAY = {"writer": {"GET", "HEAD", "PUT", "POST", "DELETE"}, "reader": {"GET", "HEAD"}}


class Server:
    """A WSGI application. `forgetful` drops If-None-Match."""

    def __init__(self, app: Any, lock: threading.Lock, forgetful: bool):
        self.app = app
        self.lock = lock
        self.forgetful = forgetful

    def __call__(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        found = re.search(r"Credential=(\w+)/", environ.get("HTTP_AUTHORIZATION", ""))
        allowed = MAY.get(found[1] if found else "")
        if allowed is None or environ["REQUEST_METHOD"] not in allowed:
            start("403 Forbidden", [("Content-Type", "application/xml")])
            return [DENIED % (b"AccessDenied" if allowed else b"InvalidAccessKeyId")]
        if self.forgetful:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        with self.lock:
            return list(self.app(environ, start))


def main() -> None:
    app, lock = DomainDispatcherApplication(create_backend_app), threading.Lock()
    servers = [make_server("127.0.0.1", 0, Server(app, lock, f)) for f in (False, True)]
    sys.stdout.write(" ".join(str(server.server_port) for server in servers) + "\n")
    sys.stdout.flush()
    threading.Thread(target=servers[1].serve_forever, daemon=True).start()
    servers[0].serve_forever()


if __name__ == "__main__":
    main()
