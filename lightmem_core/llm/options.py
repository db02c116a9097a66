"""Options of a language model, read from the configuration."""

from __future__ import annotations

from typing import Any, Self

from pydantic import ValidationError

from lightmem_core.config import Model

SUMMARIZER_URL = "http://127.0.0.1:8000/llm/v1"  # where serve/llm.yaml brings it up


class Options(Model):
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
