"""Two configurations of one fingerprint give the same memories: a run of the one may go on with the
other, and only then."""

from pathlib import Path
from typing import Any

import pytest

from lightmem_core import factory
from lightmem_core.config import MemoryConfig
from lightmem_core.fingerprint import fingerprint


def memory(prompt: Path, kind: str = "generator", use: str = "openai", **options: Any) -> str:
    option = "chat_prompt" if kind == "generator" else "prompt"
    parts = {
        "tokenizer": {"use": "words"},
        kind: {"use": "llm", "options": {option: str(prompt)}},
        "llm": {"use": use, "options": {"model": "tiny", **options}},
    }
    names = ("updater", "queue") if kind == "updater" else ()
    return fingerprint(MemoryConfig.model_validate(parts), *names)


@pytest.fixture
def prompt(tmp_path: Path) -> Path:
    path = tmp_path / "mine.md"
    path.write_text("Note symptoms.")
    return path


@pytest.mark.parametrize("kind", ["generator", "updater"])
def test_an_edited_prompt_is_another_configuration(prompt: Path, kind: str):
    before = memory(prompt, kind)
    assert memory(prompt, kind) == before
    prompt.write_text("Note symptoms and drugs.")
    assert memory(prompt, kind) != before


@pytest.mark.parametrize(
    ("use", "options"),
    [
        ("openai", {"model": "large"}),
        ("openai", {"temperature": 1}),
        ("openai", {"structured": "none"}),
        ("openai", {"extra_body": {"top_k": 1}}),
        ("vllm", {"lora": "/adapters/notes"}),
        ("vllm", {"template": {"enable_thinking": False}}),
        ("vllm", {"engine": {"quantization": "fp8"}}),
    ],
)
def test_what_shapes_a_reply_is_another_configuration(prompt: Path, use: str, options: dict):
    assert memory(prompt, use=use, **options) != memory(prompt, use=use)


@pytest.mark.parametrize(
    ("use", "options"),
    [
        ("openai", {"concurrency": 3, "base_url": "http://there/v1", "timeout_s": 7}),
        ("vllm", {"gpu_memory_utilization": 0.5, "tensor_parallel_size": 2}),
    ],
)
def test_how_a_model_is_reached_is_not(prompt: Path, use: str, options: dict):
    assert memory(prompt, use=use, **options) == memory(prompt, use=use)


def test_prompts_that_are_read_once_need_no_files_elsewhere(prompt: Path):
    parts = {"updater": {"use": "llm", "options": {"prompt": str(prompt)}}, "llm": {"use": "echo"}}
    read = factory.with_prompts(
        MemoryConfig.model_validate(parts | {"tokenizer": {"use": "words"}})
    )
    before = factory.consolidation(read).updater
    prompt.unlink()
    plain = MemoryConfig.model_validate(read.model_dump(mode="json"))
    again = factory.consolidation(factory.with_prompts(plain)).updater
    assert again.prompt == before.prompt  # pyright: ignore[reportAttributeAccessIssue]
    assert again.prompt.text == "Note symptoms."  # pyright: ignore[reportAttributeAccessIssue]
    assert again.prompt.name.startswith("mine@")  # pyright: ignore[reportAttributeAccessIssue]
