"""The summarizer on Ray Serve: ray.serve.llm's vLLM, for OpenAI's clients and for our handles.

`serve deploy serve/llm.yaml` brings it up beside the retrieval.
"""

from __future__ import annotations

import time
from typing import Any

from ray.serve import Application
from ray.serve.llm import LLMConfig, build_openai_app
from ray.serve.llm.deployment import LLMServer

from lightmem_core.llm.chat import ChatRequest, Rejected, Reply, TooLong
from lightmem_core.llm.responses import TOO_LONG, shown, told

NAME = "llm"  # the deployment is Summarizer:llm
ENGINE = {
    "enable_prefix_caching": True,
    "enable_prompt_tokens_details": True,
    "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
}


class Summarizer(LLMServer):
    """Ray's own deployment of vLLM, with one call more that needs no vLLM where it comes from."""

    async def complete(self, request: ChatRequest) -> Reply:
        """Raise TooLong or Rejected for this request, ConnectionError if the engine is dead: the
        health check then has the replica replaced."""
        started = time.perf_counter()
        answer = await self._answered(request)
        if hasattr(answer, "error"):
            raise _refusal(answer.error)
        (choice,), usage = answer.choices, answer.usage
        details = usage.prompt_tokens_details
        return Reply(
            text=choice.message.content or "",
            model=answer.model,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens or 0,
            cached_tokens=(details.cached_tokens if details else 0) or 0,
            seconds=time.perf_counter() - started,
            finish="stop" if choice.finish_reason == "stop" else "length",
        )

    async def _answered(self, request: ChatRequest) -> Any:
        from ray.serve.llm.openai_api_models import ChatCompletionRequest

        config: Any = self._llm_config
        asked = ChatCompletionRequest(
            model=config.model_id,
            messages=list(request.messages),
            max_completion_tokens=request.max_tokens,
            temperature=request.temperature,
            structured_outputs={"json": request.schema} if request.schema else None,
        )
        try:
            (answer,) = [part async for part in await self.chat(asked)]
        except Exception as error:
            await self._confirm_alive()
            raise Rejected(told(error)) from error
        return answer

    async def _confirm_alive(self) -> None:
        try:
            await self.check_health()
        except Exception as error:
            raise ConnectionError(shown(f"the engine is dead: {error}")) from error


def build_app(args: dict[str, Any]) -> Application:
    """`args` are those of ray.serve.llm's LLMConfig, for one model; what is not said is set for
    memories. `ingress` holds Serve's options of the deployment that answers HTTP."""
    given = dict(args)
    ingress = given.pop("ingress", {})
    given["engine_kwargs"] = ENGINE | given.get("engine_kwargs", {})
    given["deployment_config"] = {"name": NAME} | given.get("deployment_config", {})
    config = LLMConfig.model_validate({"server_cls": Summarizer, **given})
    return build_openai_app({"llm_configs": [config], "ingress_deployment_config": ingress})


def _refusal(error: Any) -> Exception:
    words = shown(str(error.message))
    return TooLong(words) if TOO_LONG.search(words) else Rejected(words)
