"""Turn `use: name` or `use: package.module:Class` into an object.

Packages built on this one give names of their own by entry points of the group "lightmem.KIND".
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from lightmem_core.config import Component
from lightmem_core.errors import ConfigError

BUILTIN = {
    "tokenizer": {
        "minilm": "lightmem_core.encoders.minilm:MiniLMTokenizer",
        "words": "lightmem_core.encoders.hashing:WordTokenizer",
    },
    "compressor": {
        "self-information": "lightmem_core.sensory.self_information:SelfInformationCompressor",
        "causal-entropy": "lightmem_core.sensory.causal_entropy:CausalEntropyCompressor",
        "token-classifier": "lightmem_core.sensory.token_classifier:TokenClassifierCompressor",
        "none": "lightmem_core.sensory.compress:NoCompressor",
    },
    "segmenter": {
        "valley": "lightmem_core.sensory.valley:ValleySegmenter",
        "attention": "lightmem_core.sensory.attention:AttentionSegmenter",
        "joint": "lightmem_core.sensory.joint:JointSegmenter",
        "fixed": "lightmem_core.sensory.segment:FixedSegmenter",
    },
    "generator": {
        "extractive": "lightmem_core.short_term.extractive:ExtractiveGenerator",
        "verbatim": "lightmem_core.short_term.extract:VerbatimGenerator",
        "llm": "lightmem_core.short_term.summarize:LLMGenerator",
    },
    "embedder": {
        "minilm": "lightmem_core.encoders.minilm:MiniLMEmbedder",
        "hash": "lightmem_core.encoders.hashing:HashEmbedder",
    },
    "updater": {
        "rules": "lightmem_core.long_term.rules:RuleUpdater",
        "none": "lightmem_core.long_term.consolidate:NoUpdater",
        "llm": "lightmem_core.long_term.llm_updater:LLMUpdater",
    },
    "reranker": {
        "cross-encoder": "lightmem_core.encoders.cross_encoder:CrossEncoder",
    },
    "llm": {
        "openai": "lightmem_core.llm.openai:OpenAIChat",
        "vllm": "lightmem_core.llm.vllm:VLLMChat",
        "echo": "lightmem_core.llm.echo:EchoChat",
    },
}
EXTRAS = {"llm": "llm"}  # of the package, by kind; "embedded" for the others


def load(kind: str, component: Component, **given: Any) -> Any:
    """Import the class that `component.use` names and call it with `component.options`.

    `given` are objects offered to a constructor that names them, such as the tokenizer. A path
    works in every process that can import it, so a class of your own needs no registration.
    """
    cls = find(kind, component)
    accepted = inspect.signature(cls).parameters
    offered = {name: value for name, value in given.items() if name in accepted}
    try:
        return cls(**offered, **component.options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{kind} {component.use!r}: {error}") from error
    except ImportError as error:
        raise ConfigError(
            f"{kind} {component.use!r} needs a package that is not installed ({error.name}): "
            f"pip install 'lightmem-ray[{EXTRAS.get(kind, 'embedded')}]'"
        ) from error


def find(kind: str, component: Component) -> Any:
    """The class that `component.use` names. Raise ConfigError with the names, or the options of
    the class, that exist."""
    path = BUILTIN[kind].get(component.use, component.use)
    if ":" not in path:
        path = _path_of_another_package(kind, component.use)
    module, _, name = path.partition(":")
    try:
        cls = getattr(import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"{kind} {component.use!r} cannot be imported: {error}") from error
    _check_options(kind, component, inspect.signature(cls).parameters)
    return cls


def _path_of_another_package(kind: str, name: str) -> str:
    others = {point.name: point.value for point in entry_points(group=f"lightmem.{kind}")}
    if name not in others:
        raise ConfigError(
            f"unknown {kind} {name!r}: use one of {sorted(BUILTIN[kind] | others)}, or the path "
            "'package.module:Class' of your own"
        )
    return others[name]


def _check_options(
    kind: str, component: Component, accepted: Mapping[str, inspect.Parameter]
) -> None:
    unknown = component.options.keys() - accepted.keys()
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        raise ConfigError(
            f"{kind} {component.use!r} has no option {sorted(unknown)}; "
            f"it accepts: {', '.join(accepted) or 'none'}"
        )
