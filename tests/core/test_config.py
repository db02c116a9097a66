import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from lightmem_core import factory
from lightmem_core.config import STEPS, Component, Config, MemoryConfig, load_config
from lightmem_core.encoders.hashing import HashEmbedder, WordTokenizer
from lightmem_core.errors import ConfigError
from lightmem_core.fingerprint import fingerprint
from lightmem_core.llm.chat import NoReplies
from lightmem_core.plugins import BUILTIN, find, load

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "pipelines" / "configs").glob("*.yaml"))


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_the_laptop_configuration_is_the_built_in_one():
    laptop = load_config(next(path for path in CONFIGS if path.stem == "laptop"))
    assert laptop == Config()
    assert fingerprint(laptop.memory) == fingerprint(Config().memory)


# --- the file ----------------------------------------------------------------------------------


def test_without_a_file_there_is_one_default():
    assert load_config() == Config()
    assert [step for pool in Config().pipelines.pools for step in pool.steps] == list(STEPS)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("memroy: {}", "memroy"),
        ("memory: {buffer_token: 3}", r"memory\.buffer_token"),
        ("memory: {store: {shard: 3}}", r"memory\.store\.shard"),
        ("memory: {queue: {k: 0}}", r"memory\.queue\.k"),
        ("memory: {queue: {theta: 1.5}}", r"memory\.queue\.theta"),
        ("memory: {embedder: minilm}", r"memory\.embedder"),
        ("memory:", "memory"),
        ("memory: {store: }", r"memory\.store"),
        ("pipelines: {pools: [{steps: [embedd]}]}", r"pipelines\.pools\.0\.steps\.0"),
        ("pipelines: {pools: [{steps: [embed], actors: [3, 1]}]}", "no range of at least one"),
        ("serve: {replicas: -1}", r"serve\.replicas"),
    ],
)
def test_a_bad_key_is_named_with_its_file(written: Callable[[str], Path], text: str, problem: str):
    path = written(text)
    for overrides in ({}, {"uri": "elsewhere"}):
        with pytest.raises(ConfigError, match=f"{path} is not a valid configuration.*{problem}"):
            load_config(path, **overrides)


def test_all_bad_keys_are_named_at_once(written: Callable[[str], Path]):
    with pytest.raises(ConfigError, match=r"memory\.a: .*; serve\.b: "):
        load_config(written("memory: {a: 1}\nserve: {b: 2}"))


@pytest.mark.parametrize("text", ["[1, 2]", "memory", "a: [", "\x00", "a: b: c"])
def test_a_file_that_is_no_mapping_is_named(written: Callable[[str], Path], text: str):
    path = written(text)
    with pytest.raises(ConfigError, match=str(path)) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*nothing\.yaml"):
        load_config(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    "pools",
    [
        "[{steps: [compress, segment, buffer, extract]}]",
        "[{steps: [segment, compress, buffer, extract, embed]}]",
        "[{steps: [compress, segment]}, {steps: [segment, buffer, extract, embed]}]",
        "[]",
    ],
)
def test_pools_name_each_step_once_and_in_order(written: Callable[[str], Path], pools: str):
    with pytest.raises(ConfigError, match="pools must name each step once and in order"):
        load_config(written(f"pipelines: {{pools: {pools}}}"))


def test_the_store_may_be_named_beside_the_file(written: Callable[[str], Path]):
    path = written("memory: {buffer_tokens: 9, store: {uri: a, shards: 3}}")
    store = load_config(path, uri="b").memory.store
    assert (store.uri, store.shards) == ("b", 3)
    assert load_config(path, uri=None).memory.store.uri == "a"
    assert load_config(None, uri="b").memory.store.uri == "b"
    with pytest.raises(ConfigError, match=r"memory\.store\.shards"):
        load_config(path, shards=0)


def test_there_are_shipped_configurations():
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_configuration_loads_and_its_parts_exist(
    path: Path, tiny_model: Callable[[str], str]
):
    memory = load_config(path).memory
    if "model" in memory.compressor.options:  # on a hub, which no test asks
        here = {"model": tiny_model("bert")}
        options = memory.compressor.options | here
        compressor = memory.compressor.model_copy(update={"options": options})
        memory = memory.model_copy(update={"compressor": compressor})
    factory.check(memory)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_what_computes_on_a_gpu_runs_on_actors_that_have_one(path: Path):
    config = load_config(path)
    first = config.pipelines.pools[0]
    parts = (config.memory.compressor, config.memory.segmenter)
    on_gpu = {part.options.get("device", "cpu") for part in parts if part.use != "none"}
    assert len(on_gpu) == 1  # one actor builds both
    assert (on_gpu == {"cuda"}) == (first.gpus > 0)
    assert first.steps[:2] == ("compress", "segment")


def test_there_is_a_configuration_for_each_kind_of_machine():
    pools = {p.stem: load_config(p).pipelines.pools[0] for p in CONFIGS}
    assert (pools["one-gpu"].gpus, pools["one-gpu"].actors) == (1, (1, 1))
    assert 0 < pools["many-gpus"].gpus < 1 < pools["many-gpus"].actors[1]
    assert pools["cpu-only"].gpus == 0


# --- parts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(BUILTIN))
def test_an_unknown_part_is_answered_with_the_known_ones(kind: str):
    with pytest.raises(ConfigError, match=f"unknown {kind} 'nonesuch'") as caught:
        find(kind, Component(use="nonesuch"))
    assert all(name in str(caught.value) for name in BUILTIN[kind])


@pytest.mark.parametrize("kind", list(BUILTIN))
def test_every_builtin_part_can_be_imported(kind: str):
    for name in BUILTIN[kind]:
        assert find(kind, Component(use=name)).__module__.startswith("lightmem_")


def test_another_package_gives_a_part_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    point = "[lightmem.segmenter]\npauses = lightmem_core.sensory.segment:FixedSegmenter\n"
    (info / "entry_points.txt").write_text(point)
    monkeypatch.syspath_prepend(tmp_path)
    assert find("segmenter", Component(use="pauses")) is find("segmenter", Component(use="fixed"))
    with pytest.raises(ConfigError, match=r"'fixed', .*'pauses'"):
        find("segmenter", Component(use="nonesuch"))


def test_the_names_that_this_project_adds_lead_to_their_classes():
    """Read from the project's own file: what is installed may be older."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    points = pyproject["project"]["entry-points"]
    assert points == {"lightmem.llm": {"serve": "lightmem_pipelines.served:ServedChat"}}
    component = Component(use=points["lightmem.llm"]["serve"], options={"model": "tiny"})
    assert find("llm", component).__name__ == "ServedChat"


@pytest.mark.parametrize("part", [{"use": "hash", "options": {"dims": 8}}, {"use": "hsh"}])
def test_a_bad_part_is_found_before_anything_starts(part: dict):
    config = MemoryConfig.model_validate({"embedder": part})
    with pytest.raises(ConfigError, match=r"it accepts: dim|use one of"):
        factory.check(config)


def test_an_unknown_option_is_answered_with_the_known_ones():
    component = Component(use="fixed", options={"length": 3, "siz": 1})
    expected = r"segmenter 'fixed' has no option \['length', 'siz'\]; it accepts: size"
    with pytest.raises(ConfigError, match=expected):
        load("segmenter", component)


def test_an_option_without_meaning_is_refused_with_the_reason():
    component = Component(use="self-information", options={"rate": 7})
    with pytest.raises(ConfigError, match="compressor 'self-information': rate must be above 0"):
        load("compressor", component, tokenizer=WordTokenizer())


@pytest.mark.parametrize(
    "path", ["nonesuch.module:Class", "lightmem_core.types:Nonesuch", ":Class", ".types:Entry"]
)
def test_a_path_that_cannot_be_imported_is_named(path: str):
    with pytest.raises(ConfigError, match=f"embedder '{path}' cannot be imported"):
        find("embedder", Component(use=path))


OWN = """
class Shouting:
    def __init__(self, tokenizer, times: int = 1, **more):
        self.tokenizer, self.times, self.more = tokenizer, times, more

    def compress(self, texts):
        return [text.upper() + "!" * self.times for text in texts]
"""


def test_a_class_of_ones_own_needs_no_registration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my_team_compress.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    use = {"use": "my_team_compress:Shouting", "options": {"times": 2, "other": 5}}
    config = MemoryConfig.model_validate({"tokenizer": {"use": "words"}, "compressor": use})
    factory.check(config)
    stage = factory.compression(config)
    assert stage.compressor.compress(["hey"]) == ["HEY!!"]
    assert isinstance(stage.compressor.tokenizer, WordTokenizer)  # pyright: ignore[reportAttributeAccessIssue]


def test_the_stages_are_built_from_the_configuration():
    tree = {
        "tokenizer": {"use": "words"},
        "compressor": {"use": "self-information", "options": {"rate": 0.25, "languages": ["en"]}},
        "segmenter": {"use": "fixed", "options": {"size": 2}},
        "generator": {"use": "verbatim"},
        "embedder": {"use": "hash", "options": {"dim": 16}},
        "updater": {"use": "rules", "options": {"near": 0.9}},
        "buffer_tokens": 77,
        "queue": {"k": 3, "theta": 0.6},
    }
    config = MemoryConfig.model_validate(tree)
    compression = factory.compression(config)
    assert compression.compressor.rate == 0.25  # pyright: ignore[reportAttributeAccessIssue]
    assert compression.compressor.tokenizer is compression.tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    assert factory.segmentation(config).segmenter.size == 2  # pyright: ignore[reportAttributeAccessIssue]
    assert factory.extraction(config).generator.name == "verbatim"
    assert factory.buffering(config).tokens == 77
    embedder = factory.embedding(config).embedder
    assert isinstance(embedder, HashEmbedder)
    assert (embedder.name, embedder.dim) == ("hash-16", 16)
    consolidation = factory.consolidation(config)
    assert (consolidation.k, consolidation.theta) == (3, 0.6)
    assert consolidation.updater.near == 0.9  # pyright: ignore[reportAttributeAccessIssue]


# --- the language model ------------------------------------------------------------------------

ECHO = {"tokenizer": {"use": "words"}, "generator": {"use": "llm"}, "updater": {"use": "llm"}}


@pytest.mark.parametrize("part", ["generator", "updater"])
def test_a_part_that_asks_a_language_model_needs_one(part: str):
    config = MemoryConfig.model_validate({"tokenizer": {"use": "words"}, part: {"use": "llm"}})
    with pytest.raises(ConfigError, match=r"names no language model: add one under memory"):
        factory.check(config)


def test_generator_and_updater_ask_the_configured_model():
    config = MemoryConfig.model_validate(ECHO | {"llm": {"use": "echo"}})
    factory.check(config)
    generator = factory.extraction(config).generator
    assert generator.name == "echo"
    assert isinstance(generator.asking.chat.tokenizer, WordTokenizer)  # pyright: ignore[reportAttributeAccessIssue]
    saved = Replies()
    for stage in (
        factory.extraction(config, saved).generator,
        factory.consolidation(config, saved).updater,
    ):
        assert stage.asking.saved is saved  # pyright: ignore[reportAttributeAccessIssue]


class Replies(NoReplies):
    """Told apart from those of a part that was given none."""


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        ({"llm": {"use": "ecco"}}, "unknown llm 'ecco': use one of"),
        ({"llm": {"use": "echo", "options": {"latency": 1}}}, r"no option \['latency'\]"),
        ({"generator": {"use": "llm", "options": {"prompt": "x"}}}, "it accepts: .*chat_prompt"),
        ({"updater": {"use": "llm", "options": {"prompt": "/no/x.md"}}}, "cannot read the prompt"),
        ({"updater": {"use": "llm", "options": {"retries": -1}}}, "retries must be 0 or more"),
    ],
)
def test_a_bad_option_of_a_part_that_asks_is_found_at_once(part: dict, problem: str):
    config = MemoryConfig.model_validate(ECHO | {"llm": {"use": "echo"}} | part)
    with pytest.raises(ConfigError, match=problem):
        factory.check(config)


def test_a_model_has_prices_and_no_more_keys_than_it_knows(written: Callable[[str], Path]):
    text = "memory: {llm: {use: echo, prices: {prompt: 0.4, cached: 0.1, completion: 1.6}}}"
    llm = load_config(written(text)).memory.llm
    assert llm is not None
    assert (llm.prices.prompt, llm.prices.cached, llm.prices.completion) == (0.4, 0.1, 1.6)
    with pytest.raises(ConfigError, match=r"memory\.llm\.prices\.input"):
        load_config(written("memory: {llm: {use: echo, prices: {input: 1}}}"))
