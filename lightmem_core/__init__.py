"""LightMem's memory model and stages, free of any cluster framework."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightmem_core.types import Buffer, Entry, History, Message, Segment

if TYPE_CHECKING:
    from lightmem_core.config import Config, load_config

__all__ = ["Buffer", "Config", "Entry", "History", "Message", "Segment", "load_config"]


def __getattr__(name: str) -> Any:
    """Sensory memory runs where torch and transformers are: only configuration needs pydantic."""
    if name not in ("Config", "load_config"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lightmem_core import config

    return getattr(config, name)
