import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForTokenClassification,
    MPNetConfig,
    MPNetModel,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForTokenClassification,
)

from lightmem_core.config import Component
from lightmem_core.encoders.hashing import HashEmbedder, WordTokenizer
from lightmem_core.encoders.joint_reading import (
    JointReader,
    Marks,
    attention,
    retention_and_attention,
)
from lightmem_core.encoders.pooled_attention import prepare
from lightmem_core.errors import ConfigError
from lightmem_core.plugins import load
from lightmem_core.sensory.attention import (
    AttentionSegmenter,
    Mode,
    attention_peaks,
    tolerant_places,
)
from lightmem_core.types import Message

SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "intermediate_size": 48,
    "initializer_range": 0.5,  # attention far from even
}
MARKS = Marks(cls=0, sep=2, pad=1)
MODES: tuple[Mode, ...] = ("paper", "tolerant", "attention", "similarity")


def bert() -> BertForTokenClassification:
    torch.manual_seed(0)
    return BertForTokenClassification(BertConfig(**SMALL)).eval()


def xlm_roberta() -> XLMRobertaForTokenClassification:
    torch.manual_seed(0)
    config = XLMRobertaConfig(**SMALL, type_vocab_size=1, max_position_embeddings=514)
    return XLMRobertaForTokenClassification(config).eval()


def groups() -> list[list[list[int]]]:
    """Buffers of different sizes: one of more texts than a head is wide, one of a single text."""
    draw = np.random.default_rng(0)
    sizes = [[5, 3, 8, 1], [4], [2] * 11, [], [7, 0, 6, 30, 9]]
    return [[draw.integers(5, 60, size).tolist() for size in group] for group in sizes]


def by_definition(model: torch.nn.Module, group: list[list[int]], layers: Sequence[int]):
    """M from whole attention matrices: mean over heads and layers, then token by token."""
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")  # pyright: ignore[reportCallIssue]
    ids, owners = (np.array(of_tokens) for of_tokens in MARKS.joined(group))
    with torch.inference_mode():
        maps = eager(input_ids=torch.tensor(ids)[None], output_attentions=True).attentions
    heads = torch.stack([maps[layer][0].mean(0) for layer in layers]).mean(0).numpy()
    found = np.zeros((len(group), len(group)))
    for k in range(1, len(group)):
        row = [heads[owners == k][:, owners == j].sum() for j in range(k)]
        found[k, :k] = row / np.sum(row)
    return found


# --- attention between texts -------------------------------------------------------------------


@pytest.mark.parametrize("make", [bert, xlm_roberta])
@pytest.mark.parametrize("layers", [(0, 1), (3,), (1, 3), (-1, -4)])
def test_pooled_attention_is_that_of_the_whole_matrices(make: Callable, layers: tuple[int, ...]):
    model = prepare(make())
    for group, found in zip(groups(), attention(model, MARKS, groups(), layers), strict=True):
        expected = by_definition(model, group, layers) if group else np.zeros((0, 0))
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_rows_of_m_are_shares_of_the_attention_to_earlier_texts():
    for matrix in attention(prepare(bert()), MARKS, groups(), (2,)):
        np.testing.assert_allclose(matrix.sum(1)[1:], 1, atol=1e-5)
        assert not np.triu(matrix).any()


def test_layers_after_the_last_chosen_one_are_not_run():
    model = prepare(bert())
    expected = attention(model, MARKS, groups(), (0, 1))
    run = []
    for number, layer in enumerate(model.bert.encoder.layer):
        layer.register_forward_hook(lambda *_, number=number: run.append(number))
    found = attention(model, MARKS, groups(), (0, 1))
    assert set(run) == {0}  # of the last one, only what comes before its attention
    for matrix, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(matrix, other)


def test_little_of_what_is_read_jointly_is_padding():
    draw = np.random.default_rng(0)
    many = [[draw.integers(5, 60, n).tolist()] * 3 for n in draw.integers(1, 120, 200)]
    model, sizes = prepare(bert()), []
    model.register_forward_pre_hook(
        lambda _, _args, given: sizes.append(given["input_ids"].numel()), with_kwargs=True
    )
    attention(model, MARKS, many, (0,))
    read = sum(len(MARKS.joined(group)[0]) for group in many)
    assert read <= sum(sizes) <= 1.1 * read


@pytest.mark.parametrize("make", [bert, xlm_roberta])
def test_a_prepared_model_answers_as_before(make: Callable):
    ids = torch.tensor([[0, 7, 8, 9, 2, 1], [0, 17, 18, 19, 20, 2]])
    with torch.inference_mode():
        before, after = (model(ids, ids != 1).logits for model in (make(), prepare(make())))
    torch.testing.assert_close(before, after, rtol=0, atol=0)


@pytest.mark.parametrize("make", [bert, xlm_roberta])
@pytest.mark.parametrize("between", [None, 2])
def test_one_pass_gives_what_two_give(make: Callable, between: int | None):
    model, marks = prepare(make()), Marks(0, 2, 1, between)
    found = retention_and_attention(model, marks, groups(), (2, 3))
    alone = attention(model, marks, groups(), (2, 3))
    for group, (retained, matrix), other in zip(groups(), found, alone, strict=True):
        np.testing.assert_allclose(matrix, other, atol=1e-5)
        ids, owners = (np.array(of_tokens) for of_tokens in marks.joined(group))
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor(ids)[None]).logits[0]
        expected = logits.softmax(-1)[:, 1].numpy()
        assert [len(text) for text in retained] == [len(text) for text in group]
        for k, text in enumerate(retained):
            np.testing.assert_allclose(text, expected[owners == k][: len(text)], atol=1e-5)


def test_a_model_whose_attention_cannot_be_pooled_is_named():
    model = MPNetModel(MPNetConfig(**SMALL | {"num_hidden_layers": 1}))
    with pytest.raises(ValueError, match="MPNetModel computes attention in a way of its own"):
        prepare(model)


# --- the rules ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shares", "places"),
    [
        ([], []),
        ([0, 1], []),
        ([0, 1, 0.9, 0.1], []),  # M(1, 0) is 1 always: no peak beside it
        ([0, 1, 0.2, 0.5, 0.3], [3]),
        ([0, 1, 0.2, 0.3, 0.5], []),  # the last message has no neighbour
        ([0, 1, 0.2, 0.5, 0.5, 0.1], []),  # a plateau is no peak
        ([0, 1, 0.2, 0.5, 0.3, 0.6, 0.1], [3, 5]),
    ],
)
def test_b1_is_where_attention_to_the_previous_message_peaks(
    shares: list[float], places: list[int]
):
    assert np.flatnonzero(attention_peaks(np.array(shares))).tolist() == places


def segmenter(mode: Mode, **options) -> AttentionSegmenter:
    return AttentionSegmenter(mode=mode, embedder=HashEmbedder(), **options)


curves = st.lists(st.tuples(st.floats(0, 1), st.floats(-1, 1)), max_size=12)


@settings(max_examples=60, deadline=None)
@given(curves, st.floats(-1, 1))
def test_the_paper_cuts_where_both_sets_hold(curve: list[tuple[float, float]], tau: float):
    m, sim = ([pair[i] for pair in curve] for i in (0, 1))
    b1 = {k for k in range(2, len(m) - 1) if m[k - 1] < m[k] > m[k + 1]}
    b2 = {k for k in range(1, len(m)) if sim[k] < tau}
    for mode, places in ("paper", b1 & b2), ("attention", b1), ("similarity", b2):
        assert segmenter(mode, tau=tau).places(np.array(m), np.array(sim)) == sorted(places)


PEAK_AT_5 = [0, 1, 0.3, 0.2, 0.1, 0.6, 0.2, 0.1, 0.05, 0.04, 0.03, 0.02]


@pytest.mark.parametrize(
    ("similarity", "tau", "places"),
    [
        ({4: 0.1, 9: 0.1}, 0.5, [4]),  # the peak at 5 speaks for 4, and for up to 3 beside it
        ({7: 0.1, 9: 0.1}, 0.5, [7]),
        ({8: 0.1, 9: 0.1}, 0.5, [8, 9]),  # none is near: all of them
        ({2: 0.44, 5: 0.33}, 0.5, [5]),  # found at 0.35: no higher threshold is tried
        ({2: 0.44, 5: 0.33}, 0.3, []),
        ({}, 0.5, []),
    ],
)
def test_the_tolerant_rule_looks_for_low_similarity_near_a_peak(
    similarity: dict[int, float], tau: float, places: list[int]
):
    curve = np.array([similarity.get(k, 0.9) for k in range(len(PEAK_AT_5))])
    assert tolerant_places(np.array(PEAK_AT_5), curve, tau) == places
    assert tolerant_places(np.zeros(len(curve)), curve, tau) == []


# --- the segmenter -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small XLM-R with a tokenizer of words, as a folder."""
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3} | {f"w{n}": n for n in range(4, 60)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, cls_token="<s>", sep_token="</s>", pad_token="<pad>",
        unk_token="<unk>",
    )  # fmt: skip
    path: Path = tmp_path_factory.mktemp("model")
    tokenizer.save_pretrained(path)
    xlm_roberta().save_pretrained(path)
    return str(path)


@pytest.fixture
def sessions(message: Callable[..., Message]) -> list[tuple[Message, ...]]:
    """Random words; the third repeats itself, so that its curves are flat up to rounding."""
    draw = np.random.default_rng(1)

    def text(length: int) -> str:
        return " ".join(f"w{n}" for n in draw.integers(4, 60, length))

    said = [[text(int(n)) for n in draw.integers(0, 40, size)] for size in (40, 1, 0, 25)]
    said.insert(2, [text(12)] * 20)
    return [tuple(message(t, i, f"s{s}") for i, t in enumerate(of)) for s, of in enumerate(said)]


@pytest.mark.parametrize("mode", MODES)
def test_cuts_do_not_depend_on_the_batch(
    mode: Mode, folder: str, sessions: list[tuple[Message, ...]]
):
    cutter = segmenter(mode, model=folder, layers=(1, 2), capacity=150, tau=0.3)
    found = cutter.cut(sessions)
    assert found == [cutter.cut([session])[0] for session in sessions]
    assert found == cutter.cut(sessions[::-1])[::-1]
    assert sum(map(len, found)) > 5
    assert cutter.cut([]) == []


@pytest.mark.parametrize("mode", ["paper", "tolerant", "attention"])
def test_what_rounding_could_turn_is_decided_on_the_buffer_alone(
    mode: Mode, folder: str, message: Callable[..., Message], unsteady: type[JointReader]
):
    cutter = segmenter(mode, model=folder, layers=(0,), capacity=400, tau=0.5)
    cutter.reader = unsteady(folder, layers=(0,))
    even = tuple(message("w5", i) for i in range(40))
    others = [tuple(message("w6 w7", i) for i in range(n)) for n in (5, 9)]
    assert cutter.cut([even, *others])[0] == cutter.cut([even])[0]


def test_a_message_that_fills_more_than_the_model_is_read_in_part(
    folder: str, message: Callable[..., Message]
):
    cutter = segmenter("attention", model=folder, layers=(0,), capacity=5000)
    long = tuple(message("w5 w9 w11 " * n, i) for i, n in enumerate((400, 2, 900, 3, 1)))
    assert cutter.cut([long]) == cutter.cut([long])
    assert segmenter("attention", model=folder, layers=(0,), capacity=10).cut([long]) == [
        [1, 2, 3, 4]
    ]


def test_the_buffer_is_counted_by_the_tokenizer_of_the_configuration(
    folder: str, message: Callable[..., Message]
):
    said = tuple(message("don't-you w5", i) for i in range(9))
    options = {"model": folder, "capacity": 4, "tau": -1}
    assert segmenter("similarity", **options).cut([said]) == [list(range(1, 9))]
    by_words = segmenter("similarity", tokenizer=WordTokenizer(), **options)
    assert by_words.cut([said]) == [[2, 4, 6, 8]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mode": "printed"}, "mode is one of paper, tolerant, attention, similarity"),
        ({"capacity": 0}, "capacity must be a number from 1 on, got 0"),
        ({"capacity": 1.5}, "capacity must be a whole number, got 1.5"),
        ({"tau": "x"}, "tau must be a number from -1 to 1, got 'x'"),
        ({"dtype": "int8"}, "dtype must be float32 or bfloat16, got 'int8'"),
        ({"embedder": "minilm"}, "embedder must be 'configured', .* got 'minilm'"),
        ({"layers": [6]}, "has 6 layers, layers names"),
        ({"layers": []}, "layers must name at least one layer"),
        ({"model": "/nowhere"}, "/nowhere is neither a folder with a model"),
    ],
)
def test_a_wrong_option_is_named(options: dict, said: str):
    with pytest.raises(ConfigError, match=said):
        load("segmenter", Component(use="attention", options=options))
