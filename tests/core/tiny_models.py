"""Models of random weights with tokenizers of their own, of every convention, below a megabyte.

Weights are drawn wide, so that probabilities differ by more than rounding.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WIDE = 0.4  # standard deviation of the weights
SAMPLE = """I went to the river yesterday with 3 friends; we didn't swim, it was 12 degrees!
Where does Caroline live now? In Lisbon, I think. She moved there on 7 May 2023.
The price was 4.50 (see https://example.org/a?b=1&c=2), wasn't it? {"name": "Ada", "age": 36}
def add(a, b): return a + b  # the sum of both
Ich habe gestern im Garten gearbeitet, und danach haben wir zusammen gekocht.
Ayer fuimos a pasear junto al río y luego cenamos una sopa caliente en casa.
我昨天搬到了里斯本。你住在哪里？ 昨日は雨だった。 أين تسكن الآن؟ أعمل في لشبونة
""".splitlines()
SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def write(kind: str, folder: Path) -> str:
    """Save the model of a kind; its folder is named as the package llmlingua wants it."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    makers = {
        "bert": (_wordpiece, _bert, "bert-base-multilingual-cased"),
        "xlm-r": (_unigram, _xlmr, "xlm-roberta-large"),
        "gpt": (_byte_level, _gpt, "gpt"),
        "llama": (_unigram, _llama, "llama"),
        "bert-lm": (_wordpiece, _bert_lm, "bert-lm"),
        "reranker": (_wordpiece, _reranker, "reranker"),
    }
    make_tokenizer, make_model, name = makers[kind]
    tokenizer = make_tokenizer()
    path = str(folder / name)
    tokenizer.save_pretrained(path)
    make_model(len(tokenizer)).eval().save_pretrained(path)
    return path


def _wordpiece() -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import BertTokenizer

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    learner.train_from_iterator(
        SAMPLE, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special)
    )
    return BertTokenizer(vocab=learner.get_vocab(), do_lower_case=False)


def _unigram() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import XLMRobertaTokenizer

    learner = Tokenizer(models.Unigram())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    learner.train_from_iterator(
        SAMPLE,
        trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>"),
    )
    pieces = json.loads(learner.to_str())["model"]["vocab"]
    return XLMRobertaTokenizer(vocab=[(piece, score) for piece, score in pieces])


def _byte_level() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator(SAMPLE, trainer)
    # A decoder's tokenizer often pads on the left: no business of those who batch by themselves.
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|end|>", padding_side="left"
    )


def _bert(size: int) -> Any:
    from transformers import BertConfig, BertForTokenClassification

    return BertForTokenClassification(
        BertConfig(
            vocab_size=size, num_labels=2, intermediate_size=64, initializer_range=WIDE, **SMALL
        )
    )


def _xlmr(size: int) -> Any:
    from transformers import XLMRobertaConfig, XLMRobertaForTokenClassification

    config = XLMRobertaConfig(
        vocab_size=size, num_labels=2, intermediate_size=64, initializer_range=WIDE,
        max_position_embeddings=514, pad_token_id=1, bos_token_id=0, eos_token_id=2, **SMALL,
    )  # fmt: skip
    return XLMRobertaForTokenClassification(config)


def _gpt(size: int) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=size, n_positions=128, n_embd=32, n_layer=2, n_head=2, initializer_range=WIDE,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def _llama(size: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=size, intermediate_size=64, max_position_embeddings=256, initializer_range=WIDE,
        bos_token_id=0, eos_token_id=2, pad_token_id=1, **SMALL,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def _bert_lm(size: int) -> Any:
    from transformers import BertConfig, BertLMHeadModel

    config = BertConfig(
        vocab_size=size, intermediate_size=64, is_decoder=True, initializer_range=WIDE, **SMALL
    )
    return BertLMHeadModel(config)


def _reranker(size: int) -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=size, num_labels=1, intermediate_size=64, initializer_range=WIDE, **SMALL
    )
    return BertForSequenceClassification(config)
