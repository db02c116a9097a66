"""A program: the server on Ray Serve, with a Ray of its own: CONFIG PORT.

Prints a line when it answers, and ends when its input does.
"""

import sys

from ray import serve

from lightmem_core import load_config
from lightmem_pipelines.cluster import ray_session
from lightmem_serve.app import AppArgs, build_app


def main(path: str, port: str) -> None:
    with ray_session(load_config(path).pipelines):
        options = {"host": "127.0.0.1", "port": int(port)}
        serve.start(http_options=options)  # pyright: ignore[reportArgumentType]
        serve.run(build_app(AppArgs(config=path)))
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.read()
        serve.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
