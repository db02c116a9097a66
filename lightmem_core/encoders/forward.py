"""Rows of tokens through a model, in batches of similar length, without waiting for the device.

On a GPU a launch returns before its work is done: batches go over from pinned memory while others
are computed, and one small copy per launch comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from lightmem_core.encoders.batching import length_batches
from lightmem_core.encoders.loading import load_model

if TYPE_CHECKING:
    import torch

Score = Callable[[Any, "torch.Tensor", "torch.Tensor"], "torch.Tensor"]
T = TypeVar("T")
P = TypeVar("P")
L = TypeVar("L")
R = TypeVar("R")

WASTE = 0.08  # of a batch may be padding
BATCH_TOKENS = {"cpu": 4096, "cuda": 32768}


@dataclass
class Launched:
    """Work under way on a device. `places` are where each row's values begin, and their number."""

    flat: torch.Tensor
    places: list[tuple[int, int]]
    done: Any = None

    def values(self) -> list[np.ndarray]:
        """Wait for the values: float32 of shape (tokens,), one array per row."""
        if self.done is not None:
            self.done.synchronize()
        flat = self.flat.numpy()
        return [flat[start : start + length] for start, length in self.places]


class Forward:
    """One value per token: `score` makes them, float (B, L), of a model, ids and mask (B, L).

    `read` and `padded` count the tokens that were batched, without and with their padding. Weights
    are loaded when they are first needed.
    """

    def __init__(
        self,
        model: str,
        score: Score,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        batch_tokens: int | None = None,
    ):
        self.name, self.score, self.dtype, self.device = model, score, dtype, device
        self.budget = batch_tokens or BATCH_TOKENS.get(device.partition(":")[0], 4096)
        self.read = self.padded = 0

    @cached_property
    def model(self) -> Any:
        return load_model(self.name, self.dtype, self.device)

    def launch(self, rows: Sequence[np.ndarray], pad: int, alone: bool = False) -> Launched:
        """Queue rows of token ids; `alone` gives each row a batch of its own."""
        import torch

        lengths = [len(row) for row in rows]
        batches = (
            [[row] for row in range(len(rows))]
            if alone
            else length_batches(lengths, self.budget, WASTE)
        )
        places, found, start = [(0, 0)] * len(rows), [], 0
        with torch.inference_mode():
            for batch in batches:
                ids, mask = self._tensors([rows[row] for row in batch], pad)
                found.append(self.score(self.model, ids, mask).float().flatten())
                for line, row in enumerate(batch):
                    places[row] = (start + line * ids.shape[1], lengths[row])
                start += ids.numel()
            return self._returning(found, places)

    def _tensors(self, rows: Sequence[np.ndarray], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        width = max(len(row) for row in rows)
        ids = np.full((len(rows), width), pad, np.int64)
        mask = np.zeros((len(rows), width), np.int64)
        for line, row in enumerate(rows):
            ids[line, : len(row)] = row
            mask[line, : len(row)] = 1
        self.read += int(mask.sum())
        self.padded += mask.size
        both = torch.from_numpy(ids), torch.from_numpy(mask)
        if self.device.startswith("cuda"):
            both = both[0].pin_memory(), both[1].pin_memory()
        return (
            both[0].to(self.device, non_blocking=True),
            both[1].to(self.device, non_blocking=True),
        )

    def _returning(self, found: list[torch.Tensor], places: list[tuple[int, int]]) -> Launched:
        import torch

        flat = torch.cat(found) if found else torch.zeros(0)
        if flat.device.type != "cuda":
            return Launched(flat.cpu(), places)
        back = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
        back.copy_(flat, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        return Launched(back, places, done)


def each_once(
    texts: Sequence[str],
    size: int,
    prepare: Callable[[Sequence[str]], P],
    launch: Callable[[P], L],
    finish: Callable[[P, L], Sequence[R]],
) -> list[R]:
    """What becomes of each text. Equal ones are read once, `size` texts while others are computed,
    as `overlapped` does it; `finish` gives an outcome for each of its texts."""
    unique = list(dict.fromkeys(texts))
    parts = [unique[start : start + size] for start in range(0, len(unique), size)]
    found = chain.from_iterable(overlapped(parts, prepare, launch, finish))
    outcome = dict(zip(unique, found, strict=True))
    return [outcome[text] for text in texts]


def overlapped(
    items: Iterable[T],
    prepare: Callable[[T], P],
    launch: Callable[[P], L],
    finish: Callable[[P, L], R],
) -> Iterator[R]:
    """finish(p, launch(p)) of p = prepare(item), in order.

    Items are prepared in a thread, and an item is launched before the one ahead of it is finished:
    neither tokenising nor joining words keeps a GPU waiting.
    """
    ahead: tuple[P, L] | None = None
    with ThreadPoolExecutor(1, "prepare") as thread:
        for prepared in thread.map(prepare, items):
            launched = launch(prepared)
            if ahead:
                yield finish(*ahead)
            ahead = prepared, launched
    if ahead:
        yield finish(*ahead)
