"""What reads texts: tokens of any characters, little padding, one copy of a model in memory."""

import subprocess
import sys
from collections.abc import Callable
from threading import Barrier, Thread

import numpy as np
import pytest

from lightmem_core.encoders.forward import overlapped
from lightmem_core.encoders.hashing import HashEmbedder
from lightmem_core.encoders.joint_reading import JointReader
from lightmem_core.encoders.loading import load_model, shared_tokenizer
from lightmem_core.encoders.minilm import (
    PART,
    Encoder,
    MiniLMEmbedder,
    MiniLMTokenizer,
    packaged_model,
)

HALVES = ["\ud83d", "a\udc4db", "I went \ud83d to the river"]


def test_half_a_character_is_read_as_one_unknown_character(tiny_model: Callable[[str], str]):
    embedder = MiniLMEmbedder(tiny_model("bert"))
    whole = [text.translate({0xD83D: "\ufffd", 0xDC4D: "\ufffd"}) for text in HALVES]
    assert MiniLMTokenizer().count(HALVES) == MiniLMTokenizer().count(whole)
    np.testing.assert_array_equal(embedder.encode(HALVES), embedder.encode(whole))
    reader = JointReader(tiny_model("bert"))
    assert reader.token_ids(HALVES) == reader.token_ids(whole)
    assert np.isfinite(HashEmbedder(8).encode(HALVES)).all()


def test_what_a_text_says_is_no_special_token():
    encoder, said = Encoder(), "[CLS] what [SEP] [PAD]"
    (ids,) = encoder.token_ids([said])
    assert not {encoder.cls, encoder.sep, 0} & set(ids)
    assert MiniLMTokenizer().count([said]) == [len(ids)]
    assert JointReader().token_ids([said]) == [ids]


def test_little_of_what_is_embedded_is_padding(tiny_model: Callable[[str], str]):
    draw = np.random.default_rng(0)
    ids = [draw.integers(5, 60, n).tolist() for n in draw.integers(1, 200, 300)]
    batches = [batch for _, batch in Encoder(tiny_model("bert")).batches(ids)]
    read = sum(len(of_text) + 2 for of_text in ids)
    assert read <= sum(batch.numel() for batch in batches) <= 1.1 * read


def test_texts_are_embedded_alike_in_every_part(tiny_model: Callable[[str], str]):
    embedder = MiniLMEmbedder(tiny_model("bert"))
    texts = [f"I went to the river {n}" for n in range(PART + 5)]
    found = embedder.encode(texts)
    np.testing.assert_allclose(found[-7:], embedder.encode(texts[-7:]), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    assert embedder.encode([]).shape == (0, 32)


@pytest.mark.parametrize(("dtype", "apart"), [("float32", 1e-5), ("bfloat16", 0.05)])
def test_openvino_gives_the_vectors_that_torch_gives(
    tiny_model: Callable[[str], str], dtype: str, apart: float
):
    draw, model = np.random.default_rng(1), tiny_model("bert")
    texts = [
        " ".join(draw.choice(["river", "went", "to", "I"], n)) for n in draw.integers(1, 90, 60)
    ]
    torch, openvino = (MiniLMEmbedder(model, dtype, runtime=r) for r in ("torch", "openvino"))
    found = openvino.encode(texts)
    np.testing.assert_allclose(found, MiniLMEmbedder(model).encode(texts), atol=apart)
    np.testing.assert_allclose(found, [openvino.encode([text])[0] for text in texts], atol=apart)
    layers = (1, -1)
    np.testing.assert_array_equal(
        openvino.encode_layers(texts, layers), torch.encode_layers(texts, layers)
    )


@pytest.mark.parametrize(
    ("runtime", "device", "why"),
    [("onnx", "cpu", "torch or openvino"), ("openvino", "cuda", "does not take device cuda")],
)
def test_a_runtime_that_cannot_be_had_is_refused(runtime: str, device: str, why: str):
    with pytest.raises(ValueError, match=why):
        MiniLMEmbedder(runtime=runtime, device=device)


def test_the_next_texts_are_prepared_while_others_are_computed():
    meet = Barrier(2, timeout=20)  # which one thread alone never passes
    done = overlapped(
        ["first", "second"],
        prepare=lambda item: (item, meet.wait() if item == "second" else None)[0],
        launch=lambda item: (item, meet.wait() if item == "first" else None)[0],
        finish=lambda item, launched: (item, launched),
    )
    assert list(done) == [("first", "first"), ("second", "second")]


def test_embedder_reader_and_compressor_share_a_model_and_a_tokenizer(
    tiny_model: Callable[[str], str],
):
    model = tiny_model("bert")
    shared = load_model(model, "float32", "cpu")
    assert JointReader(model).model is shared
    assert MiniLMEmbedder(model).model is shared.base_model
    assert Encoder(model).tokenizer is shared_tokenizer(model)
    assert JointReader().model is MiniLMEmbedder().model


def test_threads_that_ask_at_once_get_one_model(tiny_model: Callable[[str], str]):
    found: list[object] = []
    model = tiny_model("xlm-r")
    threads = [
        Thread(target=lambda: found.append(load_model(model, "bfloat16", "cpu"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(map(id, found))) == 1


AT_ONCE = """
from threading import Thread
from lightmem_core.encoders.loading import load_tokenizer, model_config
from lightmem_core.encoders.minilm import packaged_model

done = []
threads = [
    Thread(target=lambda ask=ask: done.append(ask(packaged_model())))
    for ask in (load_tokenizer, model_config) * 2
]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(done) == 4
"""


def test_threads_may_be_the_first_to_need_transformers():
    subprocess.run([sys.executable, "-c", AT_ONCE], check=True, timeout=600)


@pytest.mark.parametrize("most", [2, 513])
def test_pieces_that_a_model_cannot_read_are_refused(most: int):
    with pytest.raises(ValueError, match="max_tokens must be from 3 to 512"):
        MiniLMEmbedder(packaged_model(), max_tokens=most)
