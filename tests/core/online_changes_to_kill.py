"""A process that makes one kind of change to one user after the other, until it is killed. It tells
whose is done: CONFIG STORE CHANGE."""

import sys

from lightmem_core import load_config
from lightmem_core.online.service import Incoming
from lightmem_core.online.writer import OnlineWriter

USERS = [f"user {number}" for number in range(40)]
SAID = ("It rains.", "It rains.", "I like tea.")
NEW = "It snows."


def make(writer: OnlineWriter, change: str, user: str) -> None:
    """A change of a user's first memory, or of all."""
    if change in ("sleep", "erase"):
        getattr(writer, change)(user)
        return
    first = writer.shared.store.shard_for(user).entries_of([user], tombstones=True)[0]
    if change == "update":
        writer.update(user, first.id, NEW)
    else:
        writer.delete(user, first.id)


def main(path: str, uri: str, change: str) -> None:
    writer = OnlineWriter(load_config(path, uri=uri))
    for user in USERS:
        writer.add(user, "s1", [Incoming("user", text, at) for at, text in enumerate(SAID)])
    writer.flushing(USERS)
    for user in USERS:
        make(writer, change, user)
        sys.stdout.write(f"{user}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
