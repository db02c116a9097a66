"""Compression by a token classifier: the package llmlingua and ours, on the same random weights.

    make bench-sensory [LOCOMO=path/to/locomo10.json]

The package is called as the reference implementation calls it: a message at a time, each padded to
512 tokens; and again with no padding. Ours runs with `as_llmlingua`, which keeps the words that the
package keeps: what is timed is what is compared. Padding does not change the package's texts, which
is checked on those that it reads both ways; the others are compared with its unpadded ones.

Sizes are BERT-base and XLM-R-large; their tokenizers are learned from the messages, as no published
one is shipped. Tokens are those of the messages, without padding. The share of the GEMM rate is
that of the linear layers' operations for these tokens, over what products of the same shapes reach
in the same run. `MESSAGES=20` reads fewer.

Without LOCOMO the messages are the shipped samples. LoCoMo is not shipped (CC BY-NC 4.0).
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from measure import environment
from random_models import BERT_BASE, XLMR_LARGE, Size, gemm_rate, write_model
from reference_compressor import Counter, Package
from transformers.utils import logging

from lightmem_core.encoders.minilm import MiniLMTokenizer
from lightmem_core.formats import Rejected, parse_file
from lightmem_core.sensory.token_classifier import TokenClassifierCompressor

RATE = 0.6
SAMPLES = Path(__file__).parents[2] / "pipelines" / "samples" / "chats.jsonl"
LIMIT = int(os.environ.get("MESSAGES", "1000"))
SAME = {"as_llmlingua": True, "chunk_end_tokens": (".", "\n")}  # the package's own sentence ends
# How many messages the package gets padded and unpadded, and ours: it is slow.
COUNTS = {BERT_BASE: (6, 120, 400), XLMR_LARGE: (3, 100, 120)}


def messages(path: str) -> list[str]:
    with open(path, "rb") as file:
        return [m.content for m in parse_file(file, path) if not isinstance(m, Rejected)]


# --- measuring -----------------------------------------------------------------------------------


def cpu_seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    result = run()
    return time.process_time() - started, result


def compressor(
    model: str, counter: Counter, dtype: str, runtime: str = "torch"
) -> TokenClassifierCompressor:
    made = TokenClassifierCompressor(counter, model, RATE, dtype=dtype, runtime=runtime, **SAME)
    made.compress(["The weights are loaded, and memory is warm."])
    made.forward.read = made.forward.padded = 0
    return made


def decisions(made: TokenClassifierCompressor, texts: Sequence[str]) -> np.ndarray:
    """Whether each word of the texts stays."""
    reading = made.reader.read(list(dict.fromkeys(texts)))
    values = made.reader.inside(made._launch(reading).values())
    return made._judge(reading, values)[0]


# --- report --------------------------------------------------------------------------------------


class Table:
    """Prints a line for each contestant; the first is the base of the ratios."""

    def __init__(self, size: Size):
        self.size, self.base = size, 0.0
        self.rates = {d: gemm_rate(size.width, getattr(torch, d)) for d in ("float32", "bfloat16")}
        print(f"\n{size.name} size ({size.layers} layers of {size.width}), r = {RATE}")
        print(f"GEMM {self.rates['float32'] / 1e9:.0f} GFLOP per CPU second in float32, "
              f"{self.rates['bfloat16'] / 1e9:.0f} in bfloat16")  # fmt: skip
        print(f"{'':<44}{'tokens/cpu-s':>13}{'ratio':>8}{'padding':>9}{'of GEMM rate':>14}")

    def line(self, name: str, dtype: str, tokens: int, spent: float, padding: float) -> None:
        speed = tokens / spent
        self.base = self.base or speed
        share = speed * self.size.operations / self.rates[dtype]
        print(f"{name:<44}{speed:>13,.1f}{speed / self.base:>7.1f}x{padding:>9.1%}{share:>14.1%}")


def measure(size: Size, texts: Sequence[str], folder: str) -> None:
    counter = Counter(MiniLMTokenizer())
    model = write_model(size, texts, folder)
    slow, some, fast = (min(count, LIMIT, len(texts)) for count in COUNTS[size])
    many = [texts[i] for i in np.random.default_rng(0).choice(len(texts), fast, replace=False)]
    package, table = Package(model, counter, RATE), Table(size)
    ours = {dtype: compressor(model, counter, dtype) for dtype in ("float32", "bfloat16")}
    encode = ours["float32"].reader.tokenizer.encode_batch
    tokens = [len(e.ids) for e in encode(many, add_special_tokens=False)]
    package.compress(many[:1], padded=False)

    spent, padded = cpu_seconds(lambda: package.compress(many[:slow]))
    seen = sum(tokens[:slow])
    padding = 1 - seen / (512 * slow)
    table.line("llmlingua, as the reference calls it", "float32", seen, spent, padding)
    spent, theirs = cpu_seconds(lambda: package.compress(many[:some], padded=False))
    table.line("llmlingua, without padding", "float32", sum(tokens[:some]), spent, 0)
    found: dict[str, list[str]] = {}
    for dtype, made in ours.items():
        spent, found[dtype] = cpu_seconds(lambda made=made: made.compress(many))
        padding = 1 - made.forward.read / made.forward.padded
        table.line(f"ours, {dtype}", dtype, sum(tokens), spent, padding)

    by_openvino = compressor(model, counter, "bfloat16", "openvino")
    spent, found["openvino"] = cpu_seconds(lambda: by_openvino.compress(many))
    table.line("ours, bfloat16, openvino", "bfloat16", sum(tokens), spent, padding)

    print(f"llmlingua's texts with and without padding, the same: {same(padded, theirs[:slow])}")
    print(f"float32, the same text as llmlingua's: {same(found['float32'][:some], theirs)}")
    exact = decisions(ours["float32"], many)
    for name, made in (("bfloat16", ours["bfloat16"]), ("openvino", by_openvino)):
        kept = (exact & decisions(made, many)).sum() / exact.sum()
        alike = same(found["float32"], found[name])
        print(f"{name} against float32: {kept:.2%} of the words kept, the same text: {alike}")


def same(texts: Sequence[str], others: Sequence[str]) -> str:
    alike = [text == other for text, other in zip(texts, others, strict=True)]
    return f"{sum(alike)} of {len(alike)}"


def main() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    texts = [text for text in messages(sys.argv[1] if len(sys.argv) > 1 else str(SAMPLES)) if text]
    print(environment())
    with tempfile.TemporaryDirectory() as folder:
        for size in COUNTS:
            measure(size, texts, folder)


if __name__ == "__main__":
    main()
