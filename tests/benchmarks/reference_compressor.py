"""llmlingua's compressor, as the reference implementation makes and calls it."""

from __future__ import annotations

from collections.abc import Sequence

from lightmem_core.protocols import Tokenizer


class Counter:
    """The package's tokenizer wants the network: the package and we count with another."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    def count(self, texts: Sequence[str]) -> list[int]:
        return self.tokenizer.count(texts)

    def encode(self, text: str) -> list[int]:
        return [0] * self.count([text])[0]


class Package:
    """Raises ImportError where llmlingua is not installed."""

    def __init__(self, model: str, counter: Counter, rate: float, device: str = "cpu"):
        import tiktoken

        tiktoken.encoding_for_model = lambda _: counter  # pyright: ignore
        from llmlingua import PromptCompressor

        self.rate = rate
        self.compressor = PromptCompressor(model, device_map=device, use_llmlingua2=True)

    def compress(self, texts: Sequence[str], padded: bool = True) -> list[str]:
        """One after the other, each padded to 512 tokens or not at all."""
        return [self._compress(text, padded) for text in texts]

    def _compress(self, text: str, padded: bool) -> str:
        tokens = len(self.compressor.tokenizer.tokenize(text)) + 2
        self.compressor.max_seq_len = 512 if padded else min(tokens, 512)
        options = {"instruction": "", "rate": self.rate, "target_token": -1}
        try:
            return self.compressor.compress_prompt(context=[text], **options)["compressed_prompt"]
        except IndexError:  # it has found no word at all
            return ""
