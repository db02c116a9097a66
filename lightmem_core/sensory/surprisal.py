"""-log P(x_i | x_<i) of every token, without ever holding the logits of a whole batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

LOGIT_BYTES = 256 << 20  # of float32 logits at a time
PROBE = 4  # tokens on which a model's head is tried


class Surprisal:
    """Scores ids (B, L) with the surprise at each token, in nats; the first of a row has 0."""

    def __init__(self, logit_bytes: int = LOGIT_BYTES):
        self.logit_bytes = logit_bytes
        self._plain: bool | None = None

    def __call__(self, model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        import torch

        if self._plain is None:
            self._plain = _has_plain_head(model)
        rows = max(self.logit_bytes // (4 * model.config.get_text_config().vocab_size), 1)
        score = _by_head if self._plain else _whole
        return torch.nn.functional.pad(score(model, ids, mask, rows), (1, 0))


def _by_head(model: Any, ids: torch.Tensor, mask: torch.Tensor, rows: int) -> torch.Tensor:
    import torch

    states = _states(model, ids, mask)[:, :-1].flatten(0, 1)
    targets, head = ids[:, 1:].flatten(), model.get_output_embeddings()
    found = [
        _surprise(head(part), target)
        for part, target in zip(states.split(rows), targets.split(rows), strict=True)
    ]
    return torch.cat(found).view(ids.shape[0], -1)


def _whole(model: Any, ids: torch.Tensor, mask: torch.Tensor, rows: int) -> torch.Tensor:
    """For a model that does more to its logits than its head: some rows of the batch at a time."""
    import torch

    step = max(rows // ids.shape[1], 1)
    found = []
    for i, m in zip(ids.split(step), mask.split(step), strict=True):
        logits = model(input_ids=i, attention_mask=m, use_cache=False).logits
        found.append(_surprise(logits[:, :-1], i[:, 1:]))
    return torch.cat(found)


def _surprise(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    wide = logits.float()
    return wide.logsumexp(-1) - wide.gather(-1, targets[..., None])[..., 0]


def _states(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)[0]


def _has_plain_head(model: Any) -> bool:
    """Whether the logits are what the head makes of the last states, with no scale or cap after."""
    import torch

    head = model.get_output_embeddings()
    if head is None or model.base_model is model:
        return False
    ids = torch.arange(PROBE, device=model.device)[None]
    states = _states(model, ids, torch.ones_like(ids))
    logits = model(input_ids=ids, use_cache=False).logits
    return states.shape[-1] == head.weight.shape[-1] and torch.allclose(
        head(states), logits, rtol=1e-2, atol=1e-3
    )
