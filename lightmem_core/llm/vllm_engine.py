"""One life of a vLLM engine: started once, asked until it dies. The one place that imports vLLM."""

from __future__ import annotations

import itertools
import os
import time
from inspect import isawaitable
from typing import Any

from lightmem_core.errors import ConfigError
from lightmem_core.llm.chat import ChatRequest, Rejected, Reply, TooLong
from lightmem_core.llm.responses import told
from lightmem_core.llm.vllm_options import VLLMOptions

_numbers = itertools.count()


class EngineDied(Exception):
    """The engine's process is gone. Every request that it held ends with this."""


class Engine:
    """An AsyncLLM on GPUs of this machine, in processes of its own. Made in a thread: it takes
    minutes for a large model."""

    def __init__(self, options: VLLMOptions):
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        from vllm.engine.arg_utils import AsyncEngineArgs  # pyright: ignore[reportMissingImports]
        from vllm.v1.engine.async_llm import AsyncLLM  # pyright: ignore[reportMissingImports]

        self.options = options
        self.llm: Any = AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_args(options)))
        self.lora: Any = _lora(options)
        self.context: int = self.llm.model_config.max_model_len

    async def complete(self, request: ChatRequest) -> Reply:
        """Raise TooLong, Rejected, EngineDied, or ConfigError for a model that cannot chat."""
        prompt = await self._rendered(request)
        if len(prompt) + request.max_tokens > self.context:
            raise TooLong(
                f"{len(prompt)} tokens and {request.max_tokens} for the reply, where the context "
                f"holds {self.context}"
            )
        started = time.perf_counter()
        answer = await self._answered(prompt, request)
        said = answer.outputs[0]
        if said.finish_reason not in ("stop", "length"):
            raise Rejected(f"vLLM ended it: {said.finish_reason}")
        return Reply(
            text=said.text,
            model=self.options.name,
            prompt_tokens=len(prompt),
            completion_tokens=len(said.token_ids),
            cached_tokens=answer.num_cached_tokens or 0,
            seconds=time.perf_counter() - started,
            finish=said.finish_reason,
        )

    def close(self) -> None:
        self.llm.shutdown()

    async def _rendered(self, request: ChatRequest) -> list[int]:
        """The tokens of the request, in the form that the model was trained on."""
        tokenizer = self.llm.get_tokenizer()
        if isawaitable(tokenizer):
            tokenizer = await tokenizer
        try:
            return tokenizer.apply_chat_template(
                list(request.messages),
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
                **self.options.template,
            )
        except Exception as error:
            raise ConfigError(
                f"the chat template of {self.options.model} does not take the prompts, which have "
                f"a system message ({told(error)}): name a model that follows instructions, or "
                "give a template of your own in memory.llm.options.template: {chat_template: ...}"
            ) from error

    async def _answered(self, prompt: list[int], request: ChatRequest) -> Any:
        from vllm.v1.engine.exceptions import (  # pyright: ignore[reportMissingImports]
            EngineDeadError,
        )

        number = f"{os.getpid()}-{next(_numbers)}"
        try:
            found = self.llm.generate(
                {"prompt_token_ids": prompt}, _sampling(request), number, lora_request=self.lora
            )
            *_, answer = [part async for part in found]
        except EngineDeadError as error:
            raise EngineDied(str(error)) from error
        except Exception as error:
            if self.llm.errored:
                raise EngineDied(str(error)) from error
            raise Rejected(told(error)) from error
        return answer


def engine_args(options: VLLMOptions) -> dict[str, Any]:
    """Arguments of vLLM's AsyncEngineArgs. Those of `engine` come first."""
    from vllm.config import StructuredOutputsConfig  # pyright: ignore[reportMissingImports]

    given = {
        "model": options.model,
        "tensor_parallel_size": options.tensor_parallel_size,
        "dtype": options.dtype,
        "max_model_len": options.max_model_len,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "enable_prefix_caching": True,
        "enable_lora": bool(options.lora),
        "distributed_executor_backend": "mp" if options.tensor_parallel_size > 1 else "uni",
        "disable_log_stats": True,
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    } | options.engine
    if isinstance(structured := given["structured_outputs_config"], dict):
        given["structured_outputs_config"] = StructuredOutputsConfig(**structured)
    return given


def _sampling(request: ChatRequest) -> Any:
    from vllm.sampling_params import (  # pyright: ignore[reportMissingImports]
        RequestOutputKind,
        SamplingParams,
        StructuredOutputsParams,
    )

    return SamplingParams(
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        output_kind=RequestOutputKind.FINAL_ONLY,
        structured_outputs=StructuredOutputsParams(json=request.schema) if request.schema else None,
    )


def _lora(options: VLLMOptions) -> Any:
    if not options.lora:
        return None
    from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

    return LoRARequest(lora_name=options.lora, lora_int_id=1, lora_path=options.lora)
