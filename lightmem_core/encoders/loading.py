"""Hugging Face models and tokenizers by folder or hub name; one copy of a model per process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Any

import regex

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LOADING = Lock()
_SURROGATE = regex.compile(r"[\ud800-\udfff]")


def model_config(model: str) -> Any:
    """The configuration of a model. Raise ValueError if there is none to be had."""
    from transformers import AutoConfig

    with _readable(model):
        return AutoConfig.from_pretrained(model)


def load_model(model: str, dtype: str = "float32", device: str = "cpu") -> Any:
    """The model with the head that its configuration names, in evaluation mode.

    Whoever asks for the same model, dtype and device gets the same object: compression and
    segmentation then share its memory. Raise ValueError if it cannot be had.
    """
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype must be float32 or bfloat16, got {dtype!r}")
    with _LOADING:
        return _load(model, dtype, device)


@cache
def _load(model: str, dtype: str, device: str) -> Any:
    import torch
    import transformers
    from transformers.utils import logging

    heads = " ".join(model_config(model).architectures or ())
    kind = "AutoModel"
    if "ForTokenClassification" in heads:
        kind = "AutoModelForTokenClassification"
    elif "ForSequenceClassification" in heads:
        kind = "AutoModelForSequenceClassification"
    elif "ForCausalLM" in heads or "LMHead" in heads:
        kind = "AutoModelForCausalLM"
    logging.disable_progress_bar()
    # Whoever asks first may be in inference mode; weights made there are of no other use.
    with _readable(model), torch.inference_mode(False):
        loaded = getattr(transformers, kind).from_pretrained(model, dtype=getattr(torch, dtype))
    return loaded.eval().to(device)


def load_tokenizer(model: str) -> tuple[Tokenizer, Any]:
    """A tokenizer of one's own, without truncation and padding, and its special tokens by role.

    What a text says is text: "[SEP]" or "<s>" in a message are no special tokens.
    """
    from transformers import AutoTokenizer

    with _readable(model):
        loaded = AutoTokenizer.from_pretrained(model)
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"{model} has no fast tokenizer, which is needed for its offsets")
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend, loaded


def special_id(tokenizer: Any, *roles: str) -> int | None:
    """The id of the first of the roles ("cls", "bos", ...) that a tokenizer has."""
    found = (getattr(tokenizer, f"{role}_token_id", None) for role in roles)
    return next((token for token in found if token is not None), None)


def window_of(config: Any, limit: int) -> int:
    """How many tokens a model reads at once: what its positions allow, at most `limit`."""
    longest = getattr(config, "max_position_embeddings", None) or limit
    numbered_from_padding = "roberta" in config.model_type or config.model_type == "camembert"
    return min(limit, longest - (config.pad_token_id + 1 if numbered_from_padding else 0))


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
