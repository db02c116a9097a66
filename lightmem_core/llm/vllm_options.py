"""What `memory.llm.options` of `use: vllm` may hold."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from lightmem_core.llm.options import Options


class VLLMOptions(Options):
    """`model` is a name of Hugging Face's or a path, `lora` the path of an adapter.

    `engine` holds further arguments of vLLM's AsyncEngineArgs, `template` those of the model's chat
    template, such as enable_thinking: false. `concurrency` requests at most are in flight in each
    process. An engine that died is started again after pauses that double from `pause_s`, until
    `give_up_s` passed without any reply. A request is given no more than `timeout_s` at a time; one
    that failed `attempts` times, by that or by the engine's death, while others were answered, is
    rejected.
    """

    shaping = ("lora", "dtype", "template", "engine")

    model: str = Field(min_length=1)
    tensor_parallel_size: int = Field(default=1, ge=1)
    dtype: str = "auto"
    max_model_len: int | None = Field(default=None, ge=1)
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    lora: str = ""
    concurrency: int = Field(default=64, ge=1)
    timeout_s: float = Field(default=600, gt=0)
    give_up_s: float = Field(default=1200, ge=0)
    attempts: int = Field(default=3, ge=1)
    pause_s: float = Field(default=1, gt=0)
    template: dict[str, Any] = Field(default={})
    engine: dict[str, Any] = Field(default={})

    @property
    def name(self) -> str:
        return f"{self.model}+{self.lora}" if self.lora else self.model
