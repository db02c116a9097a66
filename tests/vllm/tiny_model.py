"""A Qwen3 of random weights with a tokenizer of its own: less than a megabyte, and real to vLLM.

It leans to closing strings, and lists that hold one thing: else it would write until it is cut off.

Run as `python tiny_model.py FOLDER TEXT...`: the texts are files to learn the words from.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

VOCABULARY = 2048
START, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
LEANING = {'"': 36.0, "]": -20.0, ",": -40.0}  # to tokens, by their first character
TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny_model(folder: Path, texts: Iterable[str]) -> None:
    """Save the model to `folder`, and an adapter for it to the folder `adapter` within; `texts` are
    what the tokenizer learns its words from."""
    tokenizer = _tokenizer(texts)
    tokenizer.save_pretrained(folder)
    _model(tokenizer.get_vocab()).save_pretrained(folder)
    _write_adapter(folder / "adapter")


def _tokenizer(texts: Iterable[str]):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 48,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, pad_token=PAD, chat_template=TEMPLATE
    )


def _model(vocabulary: dict[str, int]):
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=8192,
        initializer_range=0.2,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=vocabulary[END],
        pad_token_id=vocabulary[PAD],
    )
    model = Qwen3ForCausalLM(config)
    _lean(model, vocabulary)
    return model.to(torch.bfloat16)


def _lean(model, vocabulary: dict[str, int]) -> None:
    """The first dimension is the same at every token: its output weights are preferences."""
    import torch

    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 4.0
        for layer in model.model.layers:
            layer.self_attn.q_norm.weight[:] = 4.0  # what it writes depends on what it reads
            layer.self_attn.k_norm.weight[:] = 4.0
            layer.self_attn.o_proj.weight[0] = 0.0
            layer.mlp.down_proj.weight[0] = 0.0
        model.lm_head.weight[:, 0] = 0.0
        for token, number in vocabulary.items():
            model.lm_head.weight[number, 0] = LEANING.get(token[0], 0.0) / 4.0


def _write_adapter(folder: Path) -> None:
    """A LoRA, of random weights too, in the form of the library peft."""
    import torch
    from safetensors.torch import save_file

    sizes = {"q_proj": (64, 128), "v_proj": (64, 64), "o_proj": (128, 64)}  # in, out
    weights = {}
    for layer in range(2):
        for module, (size_in, size_out) in sizes.items():
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            weights[f"{name}.lora_A.weight"] = torch.randn(8, size_in).bfloat16()
            weights[f"{name}.lora_B.weight"] = torch.randn(size_out, 8).bfloat16()
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 64, "target_modules": sorted(sizes)}
    (folder / "adapter_config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    paths = [Path(name) for name in sys.argv[1:]]
    write_tiny_model(paths[0], (path.read_text(encoding="utf-8") for path in paths[1:]))
