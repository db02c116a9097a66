"""LightMem's memory model and stages, free of any cluster framework."""

from lightmem_core.config import Config, load_config
from lightmem_core.types import Buffer, Entry, History, Message, Segment

__all__ = ["Buffer", "Config", "Entry", "History", "Message", "Segment", "load_config"]
