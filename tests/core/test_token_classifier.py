"""The words kept are those of the package llmlingua, and where it loses something, more.

Run alone: pytest tests/core/test_token_classifier.py
"""

import importlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightmem_core import factory
from lightmem_core.config import Component, MemoryConfig
from lightmem_core.encoders.hashing import WordTokenizer
from lightmem_core.encoders.loading import load_model
from lightmem_core.encoders.minilm import packaged_model
from lightmem_core.errors import ConfigError
from lightmem_core.sensory.joint import JointSegmenter
from lightmem_core.sensory.token_classifier import TokenClassifierCompressor

CONVENTIONS = ("bert", "xlm-r")
KNOWN = """I we went to the river yesterday with 3 friends; didn't swim. Where does Caroline live
now? In Lisbon, think! price 4.50 https://example.org/a?b=1 (see) {"name": 12} Ich habe gestern
gekocht, río 我昨天搬到了里斯本。 أين الآن؟ a . , ? ## ...""".split()
ODD = ["😀", "👍👍", "zzyzx", "Ω", "§§", "\n", "\n\n", "  ", "[SEP]x", "<s>"]


class Quarters:
    """A token for every four characters: words weigh differently."""

    def count(self, texts: Sequence[str]) -> list[int]:
        return [1 + len(text) // 4 for text in texts]

    def encode(self, text: str) -> list[int]:
        return [0] * self.count([text])[0]


def compressor(model: str, rate: float = 0.5, **options: Any) -> TokenClassifierCompressor:
    return TokenClassifierCompressor(Quarters(), model, rate, **options)


@pytest.fixture(scope="module", params=CONVENTIONS)
def model(request: pytest.FixtureRequest, tiny_model: Callable[[str], str]) -> str:
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def package(model: str) -> Callable[..., str]:
    """The package's own compression of one text: it wants no network, and counts as we do."""
    llmlingua = pytest.importorskip("llmlingua")
    tiktoken = importlib.import_module("tiktoken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiktoken, "encoding_for_model", lambda _: Quarters())
        made = llmlingua.PromptCompressor(model, device_map="cpu", use_llmlingua2=True)

    def compress(text: str, rate: float, **options: Any) -> str:
        try:
            return made.compress_prompt([text], rate=rate, **options)["compressed_prompt"]
        except IndexError:  # it has found no word at all
            return ""

    return compress


OPTIONS = (
    {},
    {"token_to_word": "first", "force_reserve_digit": True},
    {"force_tokens": ["?", ".", "Caroline"]},
    {"force_tokens": ["\n", "live now", ","], "force_reserve_digit": True},
    {"force_tokens": ["\n", ".", "?", ","], "drop_consecutive": True},
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    words=st.lists(st.sampled_from([*KNOWN, *ODD]), min_size=1, max_size=70),
    options=st.sampled_from(OPTIONS),
    rate=st.sampled_from([0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9]),
)
def test_the_words_kept_are_those_of_the_package(
    model: str, package: Callable[..., str], words: list[str], options: dict[str, Any], rate: float
):
    text = " ".join(words).replace("[SEP]", "SEP").replace("<s>", "s")
    expected = package(text, rate, **options)
    ours = compressor(model, rate, as_llmlingua=True, **options)
    (found,) = ours.compress([text])
    assert not expected.strip() or found == expected


def unhurt(tokenizer: Any, total: int) -> str:
    """Sentences of so many tokens or a few more, of which the package loses none.

    Where a full stop would be the first token of the next window, it takes that one, too, and then
    drops it, as the window is full.
    """
    said = ["I went to the river yesterday .", "Where does Caroline live now .", "In Lisbon ."]
    for before in range(20):
        text = "swim " * before
        while len(found := tokenizer.encode(text, add_special_tokens=False).tokens) < total:
            text += said[len(text) % 3] + " "
        start, lost = 0, False
        while start + 510 < len(found):
            lost |= found[start + 510].endswith(".")
            start += 510 - next(i for i in range(510) if found[start + 509 - i].endswith("."))
        if not lost:
            return text
    raise AssertionError("no such text")


@pytest.mark.parametrize("total", [505, 700, 1600])
def test_long_texts_are_cut_where_the_package_cuts_them(
    model: str, package: Callable[..., str], total: int
):
    ours = compressor(model, 0.6, as_llmlingua=True, chunk_end_tokens=(".", "\n"))
    text = unhurt(ours.reader.tokenizer, total)
    assert len(ours.reader.read([text]).windows) == 1 + total // 512
    assert ours.compress([text]) == [package(text, 0.6)]


# --- what the package would lose -----------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.3, 0.7])
def test_what_the_vocabulary_lacks_stays(model: str, rate: float):
    (kept,) = compressor(model, rate).compress(["I went 😀 to the river ΩΩ yesterday with friends"])
    assert "ΩΩ" in kept
    assert "😀" in kept


def test_kept_words_stand_as_they_stood(model: str):
    text = "Where does Caroline live? See https://example.org/a?b=1, (it's 4.50)."
    ours = compressor(model, 0.95)
    (kept,) = ours.compress([text])
    place = 0
    for piece in kept.split():  # nothing was put inside a piece, and none is out of order
        place = text.index(piece, place) + len(piece)
    assert len(kept) > 0.6 * len(text)


@pytest.mark.parametrize("rate", [0.3, 0.5, 0.7, 0.9])
def test_the_share_is_that_of_the_tokens(model: str, rate: float):
    ours = compressor(model, rate)

    def weights(text: str) -> list[int]:
        names = ours.reader.read([text]).words.names
        return Quarters().count([name for name in names if name])

    text = " ".join(KNOWN[:25])
    whole, left = weights(text), weights(ours.compress([text])[0])
    assert rate * sum(whole) - 2 * max(whole) < sum(left) <= math.ceil(rate * sum(whole))


@pytest.mark.parametrize("rate", [0.991, 0.995, 0.999])
def test_a_share_near_one_drops_next_to_nothing(model: str, rate: float):
    text = " ".join(KNOWN[:25] * 4)
    ours = compressor(model, rate)
    (kept,) = ours.compress([text])
    weights = ours.reader.read([text]).words.weights
    lost = sum(Quarters().count(text.split())) - sum(Quarters().count(kept.split()))
    assert len("".join(kept.split())) < len("".join(text.split()))
    assert lost <= (1 - rate) * weights.sum() + 2 * weights.max()


def test_nothing_is_cut_off_a_text_of_many_windows(model: str):
    ours = compressor(model, 0.5)
    for text in ("I went to the river. " * 400, "river " * 1500, "riverlive" * 400, "x9 " * 1000):
        reading = ours.reader.read([text])
        assert all(len(row) <= 512 for row in reading.rows)
        covered = np.zeros(len(text), bool)
        for window in reading.windows:
            for a, b in window.spans.tolist():
                covered[a:b] = True
        assert not "".join(c for c, seen in zip(text, covered, strict=True) if not seen).strip()


def test_sentences_are_not_cut_apart(model: str):
    ours = compressor(model, 0.5)
    text = "Where does Caroline live now? I went to the river with friends! " * 60
    ends = [text[: w.spans[-1, 1]].rstrip()[-1] for w in ours.reader.read([text]).windows]
    assert len(ends) > 1
    assert set(ends) <= {"?", "!"}


# --- rules ---------------------------------------------------------------------------------------


def test_forced_tokens_stay_and_may_span_words(model: str):
    text = "I went to the river with friends. Where does Caroline live now?\nIn Lisbon, I think."
    forced = ["\n", "does Caroline", "."]
    (kept,) = compressor(model, 0.2, force_tokens=forced).compress([text])
    assert "does Caroline" in kept
    assert "\n" in kept
    assert kept.count(".") == 2


def test_digits_stay(model: str):
    text = "I went to the river yesterday with 3 friends and 12 others on 7 May 2023 to swim there"
    (kept,) = compressor(model, 0.2, force_reserve_digit=True).compress([text])
    assert {"3", "12", "7", "2023"} <= set(kept.split())


def test_a_forced_token_that_follows_itself_is_dropped(model: str):
    text = "Where ? ? ? ? does Caroline live ? ? ? now"
    options = {"force_tokens": ["?"], "drop_consecutive": True}
    (kept,) = compressor(model, 0.5, **options).compress([text])
    assert "? ?" not in kept
    assert "?" in kept


@pytest.mark.parametrize("text", ["", " ", "\n", "river", "😀", "😀 😀😀", "?", "\ud83d", "\u200b"])
def test_a_text_of_one_piece_stays_as_it_is(model: str, text: str):
    assert compressor(model, 0.01).compress([text]) == [text]


def test_rate_one_changes_nothing(model: str):
    text = " I  went\n to the river "
    assert compressor(model, 1).compress([text]) == [text]


# --- precision and sharing -----------------------------------------------------------------------


def test_bfloat16_keeps_nearly_the_same_words(model: str):
    texts = [" ".join(KNOWN[i:] + KNOWN[:i]) for i in range(len(KNOWN))]
    exact, fast = (
        compressor(model, 0.6, dtype=dtype).compress(texts) for dtype in ("float32", "bfloat16")
    )
    pairs = [(set(a.split()), set(b.split())) for a, b in zip(exact, fast, strict=True)]
    assert sum(len(a & b) for a, b in pairs) >= 0.9 * sum(len(a | b) for a, b in pairs)


@pytest.mark.parametrize("forced", [[], ["live now", "?"]])
def test_openvino_keeps_the_words_that_torch_keeps(model: str, forced: list[str]):
    texts = [" ".join(KNOWN[i:] + KNOWN[:i]) for i in range(len(KNOWN))]
    torch, openvino, fast = (
        compressor(model, 0.6, force_tokens=forced, runtime=runtime, dtype=dtype).compress(texts)
        for runtime, dtype in (
            ("torch", "float32"), ("openvino", "float32"), ("openvino", "bfloat16")
        )
    )  # fmt: skip
    assert openvino == torch
    pairs = [(set(a.split()), set(b.split())) for a, b in zip(torch, fast, strict=True)]
    assert sum(len(a & b) for a, b in pairs) >= 0.9 * sum(len(a | b) for a, b in pairs)


def test_what_openvino_cannot_do_is_refused(model: str):
    with pytest.raises(ValueError, match="runtime must be torch or openvino, got 'onnx'"):
        compressor(model, runtime="onnx")
    with pytest.raises(ValueError, match="computes on the cpu: it does not take device cuda"):
        compressor(model, runtime="openvino", device="cuda")
    with pytest.raises(ValueError, match="needs the attention, which openvino does not give"):
        JointSegmenter(compressor(model, runtime="openvino"))


def test_one_process_holds_one_copy_of_a_model(model: str):
    first, second = compressor(model, 0.3).forward, compressor(model, 0.9).forward
    assert first.model is second.model is load_model(model, "float32", "cpu")
    assert load_model(model, "bfloat16", "cpu") is not first.model


def test_little_is_padding(model: str):
    ours = compressor(model, 0.5, batch_tokens=1024)
    rng = np.random.default_rng(0)
    ours.compress([" ".join(rng.choice(KNOWN, n)) for n in rng.integers(1, 120, 300)])
    assert ours.forward.read <= ours.forward.padded < 1.1 * ours.forward.read


# --- configuration -------------------------------------------------------------------------------


def made(model: str, **options: Any) -> Any:
    component = Component(use="token-classifier", options={"model": model, **options})
    return factory.compression(MemoryConfig(tokenizer=Component(use="words"), compressor=component))


def test_it_is_chosen_by_name(model: str):
    stage = made(model, rate=0.5, force_tokens=["?"])
    assert isinstance(stage.compressor, TokenClassifierCompressor)
    assert isinstance(stage.compressor.reader.counter, WordTokenizer)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rate": 0}, "rate must be above 0"),
        ({"force_token": ["?"]}, "force_tokens, force_reserve_digit"),
        ({"force_tokens": [""]}, "none empty"),
        ({"token_to_word": "max"}, "mean or first"),
        ({"dtype": "int8"}, "dtype must be float32 or bfloat16, got 'int8'"),
        ({"batch_tokens": -5}, "batch_tokens must be at least 1, got -5"),
        ({"rate": "x"}, "rate must be above 0"),
        ({"model": "/no/such/folder"}, "neither a folder with a model"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_runs(
    model: str, options: dict[str, Any], said: str
):
    with pytest.raises(ConfigError, match=said):
        made(**{"model": model, **options})


def test_a_model_of_other_labels_is_refused(model: str, tmp_path: Path):
    config = json.loads(Path(model, "config.json").read_text()) | {"num_labels": 9}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="9 labels: name a token classifier of two labels"):
        made(str(tmp_path))


@pytest.mark.parametrize("kind", ["gpt", "reranker", "bert-lm"])
def test_a_model_of_another_kind_is_refused(tiny_model: Callable[[str], str], kind: str):
    with pytest.raises(ConfigError, match=r"is (GPT2|Bert).*: name a token classifier of two"):
        made(tiny_model(kind))


def test_a_model_without_a_head_is_refused():
    with pytest.raises(ConfigError, match="is BertModel: name a token classifier of two labels"):
        made(packaged_model())
