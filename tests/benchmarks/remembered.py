"""Models that read each text once, so that many segmenters can be tried on the same histories."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from lightmem_core.encoders.batching import batch_budget, length_batches
from lightmem_core.encoders.forward import padded
from lightmem_core.encoders.hashing import HashEmbedder
from lightmem_core.encoders.joint_reading import JointReader
from lightmem_core.encoders.loading import load_model, load_tokenizer, special_id, token_ids
from lightmem_core.encoders.minilm import MiniLMEmbedder
from lightmem_core.protocols import Embedder

EMBEDDER = os.environ.get("EMBEDDER", "")


class Remembered:
    """An embedder that reads each text once."""

    def __init__(self, embedder: Embedder):
        self.embedder, self.name, self.dim = embedder, embedder.name, embedder.dim
        self.known: dict[str, np.ndarray] = {}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        if missing := list(dict.fromkeys(text for text in texts if text not in self.known)):
            self.known.update(zip(missing, self.embedder.encode(missing), strict=True))
        return np.array([self.known[text] for text in texts])


class Layers(MiniLMEmbedder):
    """MiniLM after so many layers; after none of them: its static vectors of tokens."""

    def __init__(self, after: int):
        super().__init__()
        self.after, self.name = after, f"MiniLM, {after} layers"
        self.known: dict[tuple[str, tuple[int, ...]], np.ndarray] = {}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return self.encode_layers(texts, (self.after,))[:, 0]

    def encode_layers(self, texts: Sequence[str], after: Sequence[int]) -> np.ndarray:
        key = tuple(after)
        if missing := list(dict.fromkeys(t for t in texts if (t, key) not in self.known)):
            vectors = super().encode_layers(missing, after)
            self.known.update(zip(((t, key) for t in missing), vectors, strict=True))
        return np.array([self.known[text, key] for text in texts])


class Pooled:
    """Any encoder of Hugging Face's, by folder: the mean of its last states."""

    def __init__(self, model: str):
        self.name = Path(model).name
        self.tokenizer, named = load_tokenizer(model)
        self.opening, self.closing, self.pad = (
            special_id(named, *roles) or 0 for roles in (("cls", "bos"), ("sep", "eos"), ("pad",))
        )
        self.model = load_model(model).base_model
        self.dim = self.model.config.hidden_size

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        rows = [
            [self.opening, *ids[:254], self.closing] for ids in token_ids(self.tokenizer, texts)
        ]
        found = np.zeros((len(texts), self.dim), np.float32)
        for batch in length_batches([len(row) for row in rows], batch_budget("cpu")):
            ids = torch.from_numpy(padded([rows[i] for i in batch], self.pad))
            mask = torch.from_numpy(padded([[1] * len(rows[i]) for i in batch], 0))
            with torch.inference_mode():
                states = self.model(input_ids=ids, attention_mask=mask)[0]
            found[batch] = (states * mask[..., None]).sum(1).numpy()
        return found / np.linalg.norm(found, axis=1, keepdims=True)


class WordLlama:
    """Static vectors of tokens, learned apart from MiniLM: `pip install wordllama`, which brings
    them along."""

    name, dim = "WordLlama", 256

    def __init__(self):
        import wordllama  # pyright: ignore[reportMissingImports]

        place = Path(wordllama.__file__).parent  # where it looks for its tokenizer only if told to
        self.model = wordllama.WordLlama.load(dim=self.dim, cache_dir=place)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        found = self.model.embed(list(texts))
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)


class RememberedReader(JointReader):
    def attention(self, groups: Sequence[Sequence[Sequence[int]]]) -> list[np.ndarray]:
        keys = [tuple(map(tuple, group)) for group in groups]
        known = _matrices.setdefault((self.layers, self.name), {})
        missing = [key for key in dict.fromkeys(keys) if key not in known]
        known.update(zip(missing, super().attention(missing), strict=True))
        return [known[key] for key in keys]


_matrices: dict[object, dict] = {}
MINILM = Layers(-1)


@cache
def embedders() -> dict[str, Embedder]:
    more = {"another model": Remembered(Pooled(EMBEDDER))} if EMBEDDER else {}
    if find_spec("wordllama"):
        more["WordLlama"] = Remembered(WordLlama())
    return {
        **more,
        "MiniLM": Remembered(MINILM),
        "its first two layers": Remembered(Layers(2)),
        "its static vectors": Remembered(Layers(0)),
        "hashed words": Remembered(HashEmbedder()),
    }
