"""Hugging Face models and tokenizers by folder or hub name; one copy of a model per process."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import regex

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LOADING = Lock()
_IMPORTING = Lock()
_SURROGATE = regex.compile(r"[\ud800-\udfff]")


def model_config(model: str) -> Any:
    """The configuration of a model. Raise ValueError if there is none to be had."""
    with _readable(model):
        return _transformers("AutoConfig").from_pretrained(model)


def config_value(model: str, name: str) -> Any:
    """A value of a model's configuration. What its config.json says is had without transformers,
    which take seconds to import."""
    file = Path(model) / "config.json"
    written = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return written[name] if name in written else getattr(model_config(model), name)


def config_with_head(model: str, heads: Sequence[str], wanted: str) -> Any:
    """The configuration of a model with one of the heads, such as "ForTokenClassification". Raise
    ValueError that says what is `wanted` if it has another or none."""
    config = model_config(model)
    named = config.architectures or ()
    if not any(head in architecture for head in heads for architecture in named):
        raise ValueError(f"{model} is {' or '.join(named) or 'of no named architecture'}: {wanted}")
    return config


def check_dtype(dtype: str) -> None:
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype must be float32 or bfloat16, got {dtype!r}")


def load_model(model: str, dtype: str = "float32", device: str = "cpu") -> Any:
    """The model with the head that its configuration names, in evaluation mode.

    Whoever asks for the same model, dtype and device gets the same object: compression and
    segmentation then share its memory. Raise ValueError if it cannot be had.
    """
    check_dtype(dtype)
    with _LOADING:
        return _load(model, dtype, device)


@cache
def _load(model: str, dtype: str, device: str) -> Any:
    import torch

    heads = " ".join(model_config(model).architectures or ())
    kind = "AutoModel"
    if "ForTokenClassification" in heads:
        kind = "AutoModelForTokenClassification"
    elif "ForSequenceClassification" in heads:
        kind = "AutoModelForSequenceClassification"
    elif "ForCausalLM" in heads or "LMHead" in heads:
        kind = "AutoModelForCausalLM"
    _transformers("logging").disable_progress_bar()
    # Whoever asks first may be in inference mode; weights made there are of no other use.
    with _readable(model), torch.inference_mode(False):
        loaded = _transformers(kind).from_pretrained(model, dtype=getattr(torch, dtype))
    return loaded.eval().to(device)


def load_tokenizer(model: str) -> tuple[Tokenizer, Any]:
    """A tokenizer of one's own, without truncation and padding, and its special tokens by role.

    What a text says is text: "[SEP]" or "<s>" in a message are no special tokens.
    """
    with _readable(model):
        loaded = _transformers("AutoTokenizer").from_pretrained(model)
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"{model} has no fast tokenizer, which is needed for its offsets")
    return _plain(backend), loaded


def shared_tokenizer(model: str) -> Tokenizer:
    """The tokenizer of a model, as `load_tokenizer` gives it, for all who do not change it."""
    with _LOADING:
        return _shared_tokenizer(model)


@cache
def _shared_tokenizer(model: str) -> Tokenizer:
    from tokenizers import Tokenizer

    file = Path(model) / "tokenizer.json"  # spares the import of transformers
    return _plain(Tokenizer.from_file(str(file))) if file.is_file() else load_tokenizer(model)[0]


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def token_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of each text, special ones left out."""
    encoded = tokenizer.encode_batch_fast(whole_characters(texts), add_special_tokens=False)
    return [e.ids for e in encoded]


def special_id(tokenizer: Any, *roles: str) -> int | None:
    """The id of the first of the roles ("cls", "bos", ...) that a tokenizer has."""
    found = (getattr(tokenizer, f"{role}_token_id", None) for role in roles)
    return next((token for token in found if token is not None), None)


def window_of(config: Any, limit: int) -> int:
    """How many tokens a model reads at once: what its positions allow, at most `limit`."""
    longest = getattr(config, "max_position_embeddings", None) or limit
    numbered_from_padding = "roberta" in config.model_type or config.model_type == "camembert"
    return min(limit, longest - (config.pad_token_id + 1 if numbered_from_padding else 0))


def _transformers(name: str) -> Any:
    """A part of the library, which puts another module in its place while it is imported: a thread
    that imports it meanwhile would get the one that holds nothing."""
    with _IMPORTING:
        return getattr(import_module("transformers"), name)


@contextmanager
def _readable(model: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{model} is neither a folder with a model nor a name on the Hugging Face hub "
            f"that can be reached: {str(error).splitlines()[0]}"
        ) from error


def whole_characters(texts: Sequence[str]) -> list[str]:
    """The texts with U+FFFD for each half of a character, which no tokenizer takes."""
    return [_SURROGATE.sub("\ufffd", text) for text in texts]
