"""Compression and segmentation from one pass of the compressor's model.

A message is read beside those of its sensory buffer, and its words are judged there: that costs no
pass for the segmentation, but which words stay depends on the buffer. The messages that a cut
carries into the next buffer are read again, and their last reading counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightmem_core.encoders.joint_reading import retention_and_attention
from lightmem_core.protocols import Embedder, Tokenizer
from lightmem_core.sensory.attention import AttentionSegmenter, Mode, SessionReading, like
from lightmem_core.sensory.compress import Compression
from lightmem_core.sensory.segment import Segmentation, sessions_of
from lightmem_core.sensory.sensory_buffer import Span, cut_in_lockstep
from lightmem_core.sensory.token_classifier import TokenClassifierCompressor
from lightmem_core.types import History, Message, SegmentedHistory


class JointSegmenter(AttentionSegmenter):
    """Cuts by the attention of the compressor's own model, and compresses in the same pass.

    The compressor is a token classifier; the options are those of the attention segmenter, whose
    rules it follows.
    """

    compresses = True

    def __init__(
        self,
        compressor: TokenClassifierCompressor,
        *,
        mode: Mode = "paper",
        tau: float | None = None,
        capacity: int = 512,
        layers: Sequence[int] = (-4, -3, -2, -1),
        tokenizer: Tokenizer | None = None,
        embedder: Embedder | None = None,
    ):
        if not isinstance(compressor, TokenClassifierCompressor):
            raise ValueError(
                "one pass for both needs a compressor that classifies tokens: "
                "set memory.compressor to {use: token-classifier}"
            )
        if mode == "similarity" or compressor.reader.vocabulary.marks:
            raise ValueError(
                "one pass for both takes neither mode similarity nor force_tokens that are no "
                "single token: use the segmenter attention"
            )
        compute = compressor.forward.compute
        if compute.runtime != "torch":
            raise ValueError(
                f"one pass for both needs the attention, which {compute.runtime} does not give: "
                "set the compressor's runtime to torch"
            )
        super().__init__(
            mode=mode, tau=tau, capacity=capacity, model=compressor.forward.name, layers=layers,
            dtype=compute.dtype, device=compute.device, tokenizer=tokenizer, embedder=embedder,
        )  # fmt: skip
        self.compressor = compressor

    def read(self, sessions: Sequence[Sequence[Message]]) -> list[tuple[list[str], list[int]]]:
        """For each session its texts, compressed, and the places at which topics start."""
        reading = _JointReading(self, [[m.content for m in session] for session in sessions])
        cuts = cut_in_lockstep(reading.lengths, self.capacity, reading.cut)
        return list(zip(like(sessions, reading.compressed()), cuts, strict=True))


class JointSegmentation:
    """The segmentation stage that compresses, too: the compression stage before it keeps all."""

    def __init__(self, segmenter: JointSegmenter, tokenizer: Tokenizer):
        self.segmenter, self.tokenizer = segmenter, tokenizer

    def __call__(self, rows: Sequence[History]) -> list[SegmentedHistory]:
        read = self.segmenter.read([s for row in rows for s in sessions_of(row.messages)])
        texts = [text for of_session, _ in read for text in of_session]
        compressed = Compression(_Known(texts, []), self.tokenizer)(rows)
        return Segmentation(_Known([], [cuts for _, cuts in read]))(compressed)


class _Known:
    """A compressor and a segmenter that have the answers already."""

    def __init__(self, texts: list[str], cuts: list[list[int]]):
        self.texts, self.cuts = texts, cuts

    def compress(self, texts: Sequence[str]) -> list[str]:
        return self.texts

    def cut(self, sessions: Sequence[Sequence[Message]]) -> list[list[int]]:
        return self.cuts


class _JointReading(SessionReading):
    """Keeps the retention of each message's tokens while the buffers are cut."""

    def __init__(self, segmenter: JointSegmenter, sessions: Sequence[Sequence[str]]):
        self.compressor = segmenter.compressor
        super().__init__(segmenter, sessions)
        self.first = np.cumsum([0, *map(len, sessions)])
        self.read_in: dict[int, Span] = {}  # the last buffer of each message, and
        self.retained: dict[int, np.ndarray] = {}  # its tokens there, if it was read whole

    def tokenised(self, texts: Sequence[str]) -> list[list[int]]:
        """Those of the compressor, which judges words by them."""
        self.reading = self.compressor.reader.read(texts)
        found: list[list[int]] = [[] for _ in texts]
        for window in self.reading.windows:
            found[window.text].extend(window.ids.tolist())
        return found

    def attention(self, spans: Sequence[Span]) -> list[np.ndarray]:
        found = self._read(spans)
        for span, (retained, _) in zip(spans, found, strict=True):
            for message in self._messages(span):
                self.read_in[message] = span
            self._keep(span, retained)
        return [matrix for _, matrix in found]

    def compressed(self) -> list[str]:
        """The text of every message. What rounding could turn is judged on its buffer alone."""
        if self.compressor.rate == 1:
            return list(self.reading.texts)
        kept, doubtful = self.compressor._judge(self.reading, self._values())
        if doubtful and self.compressor.forward.compute.dtype == "float32":
            texts = {self.reading.windows[window].text for window in doubtful}
            for span in {self.read_in[text] for text in texts & self.retained.keys()}:
                self._keep(span, self._read([span])[0][0])
            kept, _ = self.compressor._judge(self.reading, self._values())
        return self.compressor._texts(self.reading, kept)

    def _read(self, spans: Sequence[Span]) -> list[tuple[list[np.ndarray], np.ndarray]]:
        reader, groups = self.segmenter.reader, [self.group(span) for span in spans]
        return retention_and_attention(reader.model, reader.marks, groups, reader.chosen)

    def _messages(self, span: Span) -> range:
        session, start, stop = span
        first = int(self.first[session])
        return range(first + start, first + stop)

    def _keep(self, span: Span, retained: Sequence[np.ndarray]) -> None:
        """Keep the retention of the messages whose last buffer this is, if they were read whole."""
        session, start, stop = span
        whole = self.ids[session][start:stop]
        for message, tokens, ids in zip(self._messages(span), retained, whole, strict=True):
            if self.read_in[message] == span and len(tokens) == len(ids):
                self.retained[message] = tokens

    def _values(self) -> np.ndarray:
        """P(retain) of all tokens, in order. A message with no room in a buffer is read apart."""
        windows, forward = self.reading.windows, self.compressor.forward
        apart = [n for n, window in enumerate(windows) if window.text not in self.retained]
        rows = [self.reading.rows[n] for n in apart]
        launched = forward.launch(rows, self.compressor.reader.pad, alone=True)
        read = dict(zip(apart, launched.values(), strict=True))
        found, seen = [np.zeros(0, np.float32)], set[int]()
        for n, window in enumerate(windows):
            if n in read:
                found.append(self.compressor.reader.inside([read[n]]))
            elif window.text not in seen:
                found.append(self.retained[window.text])
            seen.add(window.text)
        return np.concatenate(found)
