"""Options of a language model, read from the configuration."""

from __future__ import annotations

import json
from typing import Any, ClassVar, Self

from pydantic import ValidationError

from lightmem_core.config import Model
from lightmem_core.types import stable_id

SUMMARIZER_URL = "http://127.0.0.1:8000/llm/v1"  # where serve/llm.yaml brings it up


class Options(Model):
    """`shaping` are the options that shape a model's replies, beside its name."""

    shaping: ClassVar[tuple[str, ...]] = ()

    @property
    def key(self) -> str:
        """The same where those options are."""
        shape = self.model_dump(mode="json", include=set(self.shaping))
        return stable_id("options", json.dumps(shape, sort_keys=True))

    @classmethod
    def of(cls, given: dict[str, Any]) -> Self:
        """Raise ValueError, in one line and without the values, which may be a misplaced key."""
        try:
            return cls(**given)
        except ValidationError as error:
            raise ValueError("; ".join(map(cls._problem, error.errors()))) from None

    @classmethod
    def _problem(cls, error: Any) -> str:
        place = ".".join(map(str, error["loc"]))
        if error["type"] == "extra_forbidden":
            return f"there is no option {place!r}; it accepts: {', '.join(cls.model_fields)}"
        return f"{place}: {error['msg'].removeprefix('Value error, ')}"
