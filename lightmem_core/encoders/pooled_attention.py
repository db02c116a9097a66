"""The attention between texts that a model reads jointly, pooled inside its layers.

For the attention that each token pays to each text, a layer's own attention is computed once more
with the membership of the tokens as values: a token's output is then the share of its attention
that falls on each text. Fused kernels (on a GPU flash attention, or the memory-efficient one where
a batch has padding) do this without ever holding a matrix of tokens by tokens; only one of texts by
texts leaves the device. The layers not asked for pay nothing, and those after the last one are not
run, unless the model's output is wanted too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

IMPLEMENTATION = "lightmem_pooled"  # transformers' SDPA, and pooling where one is active


class Pooling:
    """Collects, over the chosen layers of one forward pass, the attention of texts to texts.

    `owners`: int64 (B, L), the text of each token, -1 for those of none; `texts` is the largest
    number of them. `layers` count from 0. `sums`, once collected: float32 (B, S, S), summed over
    tokens and layers, mean over heads.
    """

    def __init__(self, owners: torch.Tensor, texts: int, layers: Sequence[int], stop: bool):
        self.owners, self.layers, self.stop = owners, frozenset(layers), stop
        self.last = max(layers)
        self.seen = 0
        self.texts = texts
        self.sums: Any = None

    def layer(self, query: Any, key: Any, mask: Any, scale: float | None) -> None:
        """Take note of a layer's queries and keys, float (B, heads, L, size)."""
        number = self.seen
        self.seen += 1
        if number in self.layers:
            self._add(query, key, mask, scale)
        if self.stop and number == self.last:
            raise LastLayer

    def _add(self, query: Any, key: Any, mask: Any, scale: float | None) -> None:
        import torch
        from torch.nn.functional import pad, scaled_dot_product_attention

        batch, heads, length, size = query.shape
        member = membership(self.owners, self.texts).to(query)
        paid = []
        for start in range(0, self.texts, size):
            part = member[:, :, start : start + size]
            width = part.shape[2]
            # Fused kernels want values as wide as keys.
            values = pad(part, (0, size - width))[:, None].expand(batch, heads, length, size)
            out = scaled_dot_product_attention(query, key, values, attn_mask=mask, scale=scale)
            paid.append(out[..., :width].float().mean(1))
        self.add(member.float().transpose(1, 2) @ torch.cat(paid, -1))

    def add(self, sums: torch.Tensor) -> None:
        self.sums = sums if self.sums is None else self.sums + sums


class LastLayer(Exception):
    """Ends a forward pass whose output nobody wants: a signal, not an error."""


ACTIVE: ContextVar[Pooling | None] = ContextVar("pooling", default=None)


@contextmanager
def pooling_in(pooling: Pooling) -> Iterator[None]:
    token = ACTIVE.set(pooling)
    try:
        yield
    except LastLayer:
        pass
    finally:
        ACTIVE.reset(token)


@cache
def register() -> str:
    """Make the implementation known to transformers; its name, for `attn_implementation`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def attend(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any
    ) -> Any:
        if pooling := ACTIVE.get():
            pooling.layer(query, key, attention_mask, options.get("scaling"))
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)

    AttentionInterface.register(IMPLEMENTATION, attend)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
    return IMPLEMENTATION


def prepare(model: Any) -> Any:
    """Let the attention of a Hugging Face encoder be pooled; all else it computes stays the same.

    Raise ValueError if its attention cannot be replaced.
    """
    name = register()
    if not model._can_set_attn_implementation():
        raise ValueError(
            f"{type(model).__name__} computes attention in a way of its own that cannot be pooled: "
            f"use an encoder such as BERT, RoBERTa, XLM-R, DistilBERT or ModernBERT"
        )
    model.set_attn_implementation(name)
    return model


def membership(owners: torch.Tensor, texts: int) -> torch.Tensor:
    """bool (B, L, S): whether a token is of a text."""
    import torch

    return owners[..., None] == torch.arange(texts, device=owners.device)


def normalised(sums: torch.Tensor) -> torch.Tensor:
    """M, float32 (B, S, S): row k holds the shares of its attention to earlier texts that fall on
    each of them; row 0 is zero."""
    earlier = sums.tril(-1)
    return earlier / earlier.sum(-1, keepdim=True).clamp_min(1e-30)
