"""Compression by a token classifier: the package llmlingua and ours, on the same random weights.

    make bench-sensory [LOCOMO=path/to/locomo10.json]

The package is called as the reference implementation calls it: a message at a time, each padded to
512 tokens; and again with no padding. Sizes are BERT-base and XLM-R-large; their tokenizers are
learned from the messages, as no published one is shipped. Tokens are those of the messages, without
padding. The share of the GEMM rate is that of the linear layers' operations for these tokens, over
what products of the same shapes reach in the same run.

Without LOCOMO the messages are the shipped samples. LoCoMo is not shipped (CC BY-NC 4.0).
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import tiktoken
import torch
from measure import environment
from transformers.utils import logging

from lightmem_core.encoders.minilm import MiniLMTokenizer
from lightmem_core.formats import Rejected, parse_file
from lightmem_core.sensory.token_classifier import TokenClassifierCompressor

RATE = 0.6
SAMPLES = Path(__file__).parents[2] / "pipelines" / "samples" / "chats.jsonl"


@dataclass(frozen=True)
class Size:
    """A model's shape, and how many messages each contestant gets: `slow` for the package."""

    name: str
    layers: int
    width: int
    heads: int
    slow: int
    fast: int

    @property
    def operations(self) -> int:
        """Of the linear layers, for a token."""
        return self.layers * 2 * 12 * self.width**2


SIZES = (
    Size("bert-base-multilingual-cased", 12, 768, 12, slow=6, fast=400),
    Size("xlm-roberta-large", 24, 1024, 16, slow=3, fast=120),
)


class Counter:
    """The package's tokenizer wants the network: both count with MiniLM's instead."""

    def __init__(self) -> None:
        self.tokenizer = MiniLMTokenizer()

    def count(self, texts: Sequence[str]) -> list[int]:
        return self.tokenizer.count(texts)

    def encode(self, text: str) -> list[int]:
        return [0] * self.count([text])[0]


def messages(path: str) -> list[str]:
    with open(path, "rb") as file:
        return [m.content for m in parse_file(file, path) if not isinstance(m, Rejected)]


def write_model(size: Size, texts: Sequence[str], folder: str) -> str:
    """A token classifier of random weights; its head is wide enough to tell words apart."""
    from transformers import (
        BertConfig,
        BertForTokenClassification,
        XLMRobertaConfig,
        XLMRobertaForTokenClassification,
    )

    bert = size.name.startswith("bert")
    tokenizer = _wordpiece(texts) if bert else _unigram(texts)
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": size.width, "num_labels": 2,
        "num_hidden_layers": size.layers, "num_attention_heads": size.heads,
        "intermediate_size": 4 * size.width,
    }  # fmt: skip
    torch.manual_seed(0)
    if bert:
        model = BertForTokenClassification(BertConfig(**shape))
    else:
        places = {"max_position_embeddings": 514, "pad_token_id": 1, "eos_token_id": 2}
        model = XLMRobertaForTokenClassification(XLMRobertaConfig(**shape, **places))
    path = str(Path(folder, size.name))
    tokenizer.save_pretrained(path)
    model.save_pretrained(path)
    return path


def _wordpiece(texts: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import BertTokenizer

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    learner.train_from_iterator(
        texts,
        trainers.WordPieceTrainer(vocab_size=8000, special_tokens=special, show_progress=False),
    )
    return BertTokenizer(vocab=learner.get_vocab(), do_lower_case=False)


def _unigram(texts: Sequence[str]) -> Any:
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import XLMRobertaTokenizer

    learner = Tokenizer(models.Unigram())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=8000, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    pieces = json.loads(learner.to_str())["model"]["vocab"]
    return XLMRobertaTokenizer(vocab=[(piece, score) for piece, score in pieces])


# --- measuring -----------------------------------------------------------------------------------


def cpu_seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    result = run()
    return time.process_time() - started, result


def gemm_rate(width: int, dtype: torch.dtype, seconds: float = 1.5) -> float:
    """Operations per CPU second of products shaped as those of a layer, 2,048 tokens at a time."""
    layers = [
        torch.nn.Linear(a, b, dtype=dtype)
        for a, b in [(width, width)] * 4 + [(width, 4 * width), (4 * width, width)]
    ]
    inputs = {n: torch.randn(2048, n, dtype=dtype) for n in (width, 4 * width)}
    done, started = 0, time.process_time()
    with torch.inference_mode():
        while (spent := time.process_time() - started) < seconds:
            for layer in layers:
                layer(inputs[layer.in_features])
            done += 2 * 2048 * 12 * width**2
    return done / spent


class Package:
    """llmlingua's compressor, as the reference implementation makes and calls it."""

    def __init__(self, model: str, counter: Counter):
        tiktoken.encoding_for_model = lambda _: counter  # pyright: ignore
        from llmlingua import PromptCompressor

        self.compressor = PromptCompressor(model, device_map="cpu", use_llmlingua2=True)

    def compress(self, texts: Sequence[str], padded: bool = True) -> list[str]:
        return [self._compress(text, padded) for text in texts]

    def _compress(self, text: str, padded: bool) -> str:
        tokens = len(self.compressor.tokenizer.tokenize(text)) + 2
        self.compressor.max_seq_len = 512 if padded else min(tokens, 512)
        options = {"instruction": "", "rate": RATE, "target_token": -1}
        return self.compressor.compress_prompt(context=[text], **options)["compressed_prompt"]


def compressor(model: str, counter: Counter, **options: Any) -> TokenClassifierCompressor:
    made = TokenClassifierCompressor(counter, model, RATE, **options)
    made.compress(["The weights are loaded, and memory is warm."])
    made.forward.read = made.forward.padded = 0
    return made


def decisions(made: TokenClassifierCompressor, texts: Sequence[str]) -> np.ndarray:
    """Whether each word of the texts stays."""
    reading = made.reader.read(list(dict.fromkeys(texts)))
    values = made.reader.inside(made._launch(reading).values())
    return made._judge(reading, values)[0]


# --- report --------------------------------------------------------------------------------------


def measure(size: Size, texts: Sequence[str], folder: str) -> None:
    counter = Counter()
    model = write_model(size, texts, folder)
    rng = np.random.default_rng(0)
    many = [texts[i] for i in rng.choice(len(texts), min(size.fast, len(texts)), replace=False)]
    few = many[: size.slow]
    rates = {d: gemm_rate(size.width, getattr(torch, d)) for d in ("float32", "bfloat16")}
    print(f"\n{size.name} size ({size.layers} layers of {size.width}), r = {RATE}")
    print(f"GEMM {rates['float32'] / 1e9:.0f} GFLOP per CPU second in float32, "
          f"{rates['bfloat16'] / 1e9:.0f} in bfloat16")  # fmt: skip
    print(f"{'':<44}{'tokens/cpu-s':>13}{'ratio':>8}{'padding':>9}{'of GEMM rate':>14}")
    package = Package(model, counter)
    exact, fast = (compressor(model, counter, dtype=d) for d in ("float32", "bfloat16"))
    length = exact.reader.tokenizer.encode_batch
    tokens = [len(e.ids) for e in length(many, add_special_tokens=False)]
    package.compress(few[:1], padded=False)

    def line(name: str, dtype: str, seen: int, spent: float, padding: float, base: float) -> None:
        speed = seen / spent
        share = speed * size.operations / rates[dtype]
        print(f"{name:<44}{speed:>13,.1f}{speed / base:>7.1f}x{padding:>9.1%}{share:>14.1%}")

    spent, theirs = cpu_seconds(lambda: package.compress(few))
    seen = sum(tokens[: len(few)])
    base = seen / spent
    line("llmlingua, as the reference calls it", "float32", seen, spent,
         1 - seen / (512 * len(few)), base)  # fmt: skip
    some = many[: 4 * len(few)]
    spent, _ = cpu_seconds(lambda: package.compress(some, padded=False))
    line("llmlingua, without padding", "float32", sum(tokens[: len(some)]), spent, 0, base)
    for made in (exact, fast):
        spent, _ = cpu_seconds(lambda made=made: made.compress(many))
        padding = 1 - made.forward.read / made.forward.padded
        line(f"ours, {made.forward.dtype}", made.forward.dtype, sum(tokens), spent, padding, base)
    agreement(model, counter, (few, many), theirs, (exact, fast))


def agreement(
    model: str,
    counter: Counter,
    texts: tuple[Sequence[str], Sequence[str]],
    theirs: Sequence[str],
    made: Sequence[TokenClassifierCompressor],
) -> None:
    few, many = texts
    alike = TokenClassifierCompressor(
        counter, model, RATE, as_llmlingua=True, chunk_end_tokens=(".", "\n")
    )
    same = [a == b for a, b in zip(alike.compress(few), theirs, strict=True)]
    print(f"float32 as_llmlingua, text identical to the package's: {sum(same)} of {len(same)}")
    sample = many[:100]
    a, b = (decisions(one, sample) for one in made)
    texts_alike = [x == y for x, y in zip(*(m.compress(sample) for m in made), strict=True)]
    print(f"bfloat16 against float32: {(a & b).sum() / a.sum():.2%} of the words kept, "
          f"{sum(texts_alike)} of {len(sample)} texts identical")  # fmt: skip


def main() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    texts = [text for text in messages(sys.argv[1] if len(sys.argv) > 1 else str(SAMPLES)) if text]
    print(environment())
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            measure(size, texts, folder)


if __name__ == "__main__":
    main()
