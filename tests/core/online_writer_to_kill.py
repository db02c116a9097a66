"""A process that accepts messages of a few users and extracts them in the background, until it is
killed. It tells each message that it has acknowledged: CONFIG STORE ROUND."""

import sys

from lightmem_core import load_config
from lightmem_core.online.service import Incoming
from lightmem_core.online.writer import OnlineWriter


def main(path: str, uri: str, round_: str) -> None:
    config = load_config(path, uri=uri)
    writer = OnlineWriter(config)
    writer.shared.backlogs.after_ms = 20
    writer.start()
    for number in range(10_000):
        user = f"user {number % 3}"
        turn = [Incoming("user", f"{round_} {number} {at}") for at in range(2)]
        for accepted, message in zip(writer.add(user, "s1", turn), turn, strict=True):
            sys.stdout.write(f"{user}\t{accepted.message_id}\t{message.content}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
