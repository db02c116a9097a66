"""Tokens per second of compression and segmentation on a GPU, at XLM-R-large's size.

    make bench-gpu [LOCOMO=path/to/locomo10.json]
    python tests/benchmarks/bench_gpu.py --device cpu --small    to see that it works

Weights are random, the tokenizer is learned. The messages are made of the words of LoCoMo, or of
the shipped samples, and as long as LoCoMo's: none is said twice. Time is wall time until the device
is done. `one pass` is compression with attention pooling (`use: joint`), `two passes` a compressor
and a segmenter by attention of their own. The share is that of the linear layers' operations for
the tokens of the messages, in all passes, over what products of the same shapes reach in the same
run. llmlingua is called as the reference implementation calls it, if it is installed. All else that
is needed is torch, transformers and pyarrow.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from random_models import XLMR_LARGE, Size, gemm_rate, write_model
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a box where nothing was installed

from lightmem_core.encoders.hashing import HashEmbedder
from lightmem_core.encoders.loading import load_tokenizer, token_ids
from lightmem_core.formats import Rejected, parse_file
from lightmem_core.sensory.attention import AttentionSegmenter
from lightmem_core.sensory.joint import JointSegmenter
from lightmem_core.sensory.token_classifier import TokenClassifierCompressor
from lightmem_core.types import Message

RATE = 0.6
SAMPLES = Path(__file__).resolve().parents[2] / "pipelines" / "samples" / "chats.jsonl"
SMALL = Size("xlm-roberta-large", 2, 64, 2)
SESSION = 25  # messages
SLOW = 30  # messages for the package


class Counter:
    """Counts tokens as the model does."""

    def __init__(self, model: str):
        self.tokenizer, _ = load_tokenizer(model)

    def count(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in token_ids(self.tokenizer, texts)]


def said(path: str, many: int) -> list[str]:
    """So many messages of the words of a file, 3 to 60 of them each."""
    with open(path, "rb") as file:
        found = [m.content for m in parse_file(file, path) if not isinstance(m, Rejected)]
    words, draw = " ".join(found).split(), np.random.default_rng(0)
    return [" ".join(draw.choice(words, n)) for n in draw.integers(3, 60, many)]


def sessions(texts: Sequence[str]) -> list[list[Message]]:
    rows = [
        Message("ada", str(i // SESSION), i % SESSION, "user", t, i) for i, t in enumerate(texts)
    ]
    return [rows[start : start + SESSION] for start in range(0, len(rows), SESSION)]


class Device:
    def __init__(self, name: str):
        self.name = name
        self.cuda = name.startswith("cuda")

    def clock(self) -> float:
        """Seconds of wall time, once all is computed that was asked for."""
        if self.cuda:
            torch.cuda.synchronize(self.name)
        return time.perf_counter()

    def __str__(self) -> str:
        card = torch.cuda.get_device_name(self.name) if self.cuda else "CPU"
        return f"{card}, torch {torch.__version__}, transformers {transformers.__version__}"


def main() -> None:
    options = arguments()
    device, size = Device(options.device), SMALL if options.small else XLMR_LARGE
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    texts = said(options.messages, 200 if options.small else options.many)
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(size, texts[:5000], folder)
        tokens = Counter(model).count(texts)
        dtype = getattr(torch, options.dtype)
        rate = gemm_rate(
            size.width, dtype, device.clock, device.name, 256 if options.small else 32768
        )
        print(f"{device}; {time.strftime('%Y-%m-%d')}")
        print(f"{size.layers} layers of {size.width}, {options.dtype}; {len(texts):,} messages, "
              f"{sum(tokens):,} tokens; GEMM {rate / 1e12:.2f} TFLOP/s")  # fmt: skip
        print(f"{'':<40}{'tokens/s':>12}{'of GEMM rate':>14}")
        for name, passes, run in contestants(model, options):
            run(texts[: 4 * SESSION])  # loads the weights and warms the kernels
            started = device.clock()
            run(texts)
            report(name, sum(tokens) / (device.clock() - started), passes * size.operations / rate)
        package(model, options, texts[:SLOW], tokens, device)


def contestants(
    model: str, options: Any
) -> list[tuple[str, int, Callable[[Sequence[str]], object]]]:
    """(name, passes through the model, what reads texts)."""
    given = {"dtype": options.dtype, "device": options.device}
    compressor = TokenClassifierCompressor(
        Counter(model), model, RATE, batch_tokens=options.batch_tokens, **given
    )
    rules: dict[str, Any] = {"mode": "attention", "embedder": HashEmbedder()}
    last = (-1,) if options.small else (-4, -3, -2, -1)
    joint = JointSegmenter(compressor, layers=last, **rules)
    alone = AttentionSegmenter(model=model, layers=last, **rules, **given)
    return [
        ("compression", 1, compressor.compress),
        ("compression and segmentation, one pass", 1, lambda texts: joint.read(sessions(texts))),
        ("compression and segmentation, two passes", 2,
         lambda texts: (compressor.compress(texts), alone.cut(sessions(texts)))),
    ]  # fmt: skip


def package(
    model: str, options: Any, texts: Sequence[str], tokens: Sequence[int], device: Device
) -> None:
    try:
        from reference_compressor import Counter as Counted
        from reference_compressor import Package

        made = Package(model, Counted(Counter(model)), RATE, options.device)
    except ImportError as error:
        print(f"llmlingua is not compared: {error}")
        return
    for name, padded in (("as the reference calls it", True), ("without padding", False)):
        made.compress(texts[:2], padded)
        started = device.clock()
        made.compress(texts, padded)
        spent = device.clock() - started
        report(f"llmlingua, {name}, float32", sum(tokens[: len(texts)]) / spent, None)


def report(name: str, speed: float, share: float | None) -> None:
    of_rate = "" if share is None else f"{speed * share:>14.1%}"
    print(f"{name:<40}{speed:>12,.0f}{of_rate}", flush=True)


def arguments() -> Any:
    parser = argparse.ArgumentParser(description="Tokens per second on a GPU.")
    parser.add_argument("messages", nargs="?", default=str(SAMPLES))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--many", type=int, default=20_000, help="messages")
    parser.add_argument("--batch-tokens", type=int)
    parser.add_argument("--small", action="store_true", help="two layers of 64, 200 messages")
    return parser.parse_args()


if __name__ == "__main__":
    main()
