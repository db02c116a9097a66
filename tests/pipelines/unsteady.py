"""A generator that says the same in other words each time it is asked."""

from collections.abc import Sequence
from uuid import uuid4

from lightmem_core.types import Buffer, Fact


class UnsteadyGenerator:
    name = "unsteady"

    def generate(self, buffers: Sequence[Buffer]) -> list[list[Fact]]:
        return [
            [Fact(f"{m.content} {uuid4()}", (at,)) for at, m in enumerate(buffer.messages)]
            for buffer in buffers
        ]
