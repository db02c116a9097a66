"""What `use: vllm` says before an engine is started. The engine itself: tests/vllm."""

import asyncio
import pickle
from importlib.util import find_spec

import pytest

from lightmem_core.config import Component
from lightmem_core.errors import ConfigError
from lightmem_core.llm.chat import ChatRequest
from lightmem_core.llm.vllm import VLLMChat
from lightmem_core.plugins import load

HELLO = ChatRequest(({"role": "user", "content": "hello"},), "{}", 16)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, "model: Field required"),
        ({"model": "m", "tensor_parallel": 2}, "no option 'tensor_parallel'; .*tensor_parallel_si"),
        ({"model": "m", "gpu_memory_utilization": 90}, "gpu_memory_utilization: .*equal to 1"),
        ({"model": "m", "concurrency": 0}, "concurrency: .*equal to 1"),
    ],
)
def test_a_wrong_option_is_named(options: dict, problem: str):
    with pytest.raises(ConfigError, match=f"llm 'vllm': .*{problem}"):
        load("llm", Component(use="vllm", options=options))


def test_what_is_stored_with_an_entry_names_the_adapter_too():
    assert VLLMChat(model="qwen").name == "qwen"
    assert VLLMChat(model="qwen", lora="/adapters/notes").name == "qwen+/adapters/notes"


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is here")
def test_it_is_made_where_there_is_no_vllm_and_the_first_request_says_what_to_install():
    chat = pickle.loads(pickle.dumps(VLLMChat(model="qwen")))
    with pytest.raises(ConfigError, match=r"pip install 'lightmem-ray\[vllm\]'"):
        asyncio.run(chat.complete(HELLO))
