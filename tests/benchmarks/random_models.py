"""Token classifiers of random weights in the published sizes, their tokenizers learned from texts.

The learned tokenizers cut as the published ones do, with fewer tokens in their vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Size:
    """The shape of a model."""

    name: str
    layers: int
    width: int
    heads: int

    @property
    def operations(self) -> int:
        """Of the linear layers, for a token."""
        return self.layers * 2 * 12 * self.width**2


BERT_BASE = Size("bert-base-multilingual-cased", 12, 768, 12)
XLMR_LARGE = Size("xlm-roberta-large", 24, 1024, 16)


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


def gemm_rate(
    width: int,
    dtype: torch.dtype,
    clock: Callable[[], float] = time.process_time,
    device: str = "cpu",
    tokens: int = 2048,
    seconds: float = 1.5,
) -> float:
    """Operations per second, by `clock`, of products shaped as those of a layer."""
    layers = [
        torch.nn.Linear(a, b, dtype=dtype, device=device)
        for a, b in [(width, width)] * 4 + [(width, 4 * width), (4 * width, width)]
    ]
    inputs = {n: torch.randn(tokens, n, dtype=dtype, device=device) for n in (width, 4 * width)}
    done = 0
    with torch.inference_mode():
        for layer in layers:
            layer(inputs[layer.in_features])
        started = clock()
        while (spent := clock() - started) < seconds:
            for layer in layers:
                layer(inputs[layer.in_features])
            done += 2 * tokens * 12 * width**2
    return done / spent
