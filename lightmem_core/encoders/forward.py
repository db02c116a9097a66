"""Rows of tokens through a model, in batches of similar length.

On a GPU batches go over from pinned memory, and one small copy per launch comes back, which nobody
waits for before it is wanted. What may wait is transformers: a look at each padding mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from lightmem_core.encoders.batching import batch_budget, length_batches
from lightmem_core.encoders.compiled import check_runtime, load_compiled
from lightmem_core.encoders.loading import check_dtype, load_model

if TYPE_CHECKING:
    import torch

Score = Callable[[Any, "torch.Tensor", "torch.Tensor"], "torch.Tensor"]
T = TypeVar("T")
P = TypeVar("P")
L = TypeVar("L")
R = TypeVar("R")


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


@dataclass(frozen=True, slots=True)
class Compute:
    """How a model is computed: in float32 or bfloat16, on a device of torch, in batches of at most
    so many tokens, by torch or (on a CPU) by openvino. Raise ValueError for what cannot be."""

    dtype: str = "float32"
    device: str = "cpu"
    batch_tokens: int | None = None
    runtime: str = "torch"

    def __post_init__(self) -> None:
        check_dtype(self.dtype)
        check_runtime(self.runtime, self.device)

    def load(self, model: str) -> Any:
        if self.runtime == "openvino":
            return load_compiled(model, self.dtype)
        return load_model(model, self.dtype, self.device)


class Forward:
    """One value per token: `score` makes them, float (B, L), of a model, ids and mask (B, L).

    `read` and `padded` count the tokens that were batched, without and with their padding. Weights
    are loaded when they are first needed.
    """

    def __init__(self, model: str, score: Score, compute: Compute):
        self.name, self.score, self.compute = model, score, compute
        self.budget = batch_budget(compute.device, compute.batch_tokens)
        self.read = self.padded = 0

    @cached_property
    def model(self) -> Any:
        return self.compute.load(self.name)

    def launch(self, rows: Sequence[np.ndarray], pad: int, alone: bool = False) -> Launched:
        """Queue rows of token ids; `alone` gives each row a batch of its own."""
        import torch

        lengths = [len(row) for row in rows]
        batches = (
            [[row] for row in range(len(rows))] if alone else length_batches(lengths, self.budget)
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

    def settled(
        self,
        rows: Sequence[np.ndarray],
        pad: int,
        launched: Launched,
        judge: Callable[[list[np.ndarray]], tuple[R, Sequence[int]]],
    ) -> R:
        """What `judge` makes of the values of launched rows. It names the rows in which rounding
        could turn its judgement: in float32 these are computed again, each alone, and all judged
        anew."""
        values = launched.values()
        outcome, doubtful = judge(values)
        if self.compute.dtype != "float32" or not len(doubtful):
            return outcome
        again = self.launch([rows[row] for row in doubtful], pad, alone=True)
        for row, of_row in zip(doubtful, again.values(), strict=True):
            values[row] = of_row
        return judge(values)[0]

    def _tensors(self, rows: Sequence[np.ndarray], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
        ids, mask = padded(rows, pad), padded([np.ones(len(row)) for row in rows], 0)
        self.read += int(mask.sum())
        self.padded += mask.size
        return sent(ids, self.compute.device), sent(mask, self.compute.device)

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


def padded(rows: Sequence[Sequence[int] | np.ndarray], fill: int) -> np.ndarray:
    """The rows as int64 (rows, tokens of the longest), the others filled up."""
    found = np.full((len(rows), max(map(len, rows))), fill, np.int64)
    for line, row in enumerate(rows):
        found[line, : len(row)] = row
    return found


def sent(array: np.ndarray, device: str) -> torch.Tensor:
    """A tensor on its way to the device, from pinned memory if that is a GPU."""
    import torch

    tensor = torch.from_numpy(array)
    if device.startswith("cuda"):
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


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
    found = chain.from_iterable(overlapped(in_parts(unique, size), prepare, launch, finish))
    outcome = dict(zip(unique, found, strict=True))
    return [outcome[text] for text in texts]


def in_parts(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def overlapped(
    items: Sequence[T],
    prepare: Callable[[T], P],
    launch: Callable[[P], L],
    finish: Callable[[P, L], R],
) -> Iterator[R]:
    """finish(p, launch(p)) of p = prepare(item), in order.

    Items but the first are prepared while others are computed, and an item is launched before the
    one ahead of it is finished: neither tokenising nor joining words keeps a GPU waiting.
    """
    ahead: tuple[P, L] | None = None
    if len(items) == 1:  # a thread would cost more than it could save
        prepared = prepare(items[0])
        yield finish(prepared, launch(prepared))
        return
    with ThreadPoolExecutor(1, "prepare") as thread:
        for prepared in thread.map(prepare, items):
            launched = launch(prepared)
            if ahead:
                yield finish(*ahead)
            ahead = prepared, launched
    if ahead:
        yield finish(*ahead)
