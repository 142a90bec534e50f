"""A policy's engine: Ray Serve's LLM server on vLLM, asked for replies in this project's words."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer
from ray.serve.llm.openai_api_models import ChatCompletionRequest
from transformers import AutoTokenizer

from rlhf_ray.data.chat import disarm, render
from rlhf_ray.data.rows import PromptRow
from rlhf_ray.errors import UserError
from rlhf_ray.serving.replies import Finished, Part, Piece, Refused, Whole
from rlhf_ray.types import Message


class LocalEngine(VLLMEngine):
    """vLLM's engine for a folder that is there already, with its worker in the engine's process. Ray Serve would first
    start a process to download the model, and asks for one process more on a CPU: each imports everything again."""

    async def start(self) -> None:
        """As Ray Serve's, without the download."""
        callback: Any = self.llm_config.get_or_create_callback()
        callback.ctx.run_init_node = False
        await super().start()

    def _start_async_llm_engine(self, engine_args: Any, engine_config: Any, placement_group: Any) -> Any:
        if engine_config.parallel_config.world_size == 1:
            engine_config.parallel_config.distributed_executor_backend = "uni"
        return super()._start_async_llm_engine(engine_args, engine_config, placement_group)


class PolicyServer(LLMServer):
    """One replica. The tokenizer is here too, because a message must be measured, and its control tokens broken,
    before vLLM renders it."""

    _default_engine_cls = LocalEngine  # type: ignore[assignment]  # None in LLMServer, meant to be overridden

    async def __init__(  # type: ignore[misc]  # Serve awaits constructors
        self, llm_config: LLMConfig, folder: str, context: int
    ) -> None:
        self._tokenizer, self._context = AutoTokenizer.from_pretrained(folder), context
        await super().__init__(llm_config)

    async def reply(self, reply_id: str, body: Mapping[str, Any]) -> AsyncIterator[list[Part]]:
        """The parts of the reply to `ChatRequest.for_engine`, as many at a time as have come."""
        try:
            request = self._request(reply_id, body)
        except UserError as error:
            yield [Refused(400, str(error))]
            return
        read = _Reader()
        async for found in await self.chat(request):
            parts = [part for each in (found if isinstance(found, list) else [found]) for part in read(each)]
            if parts:
                yield parts
        if read.end is not None:
            yield [read.end]

    def _request(self, reply_id: str, body: Mapping[str, Any]) -> ChatCompletionRequest:
        messages = tuple(Message(message["role"], message["content"]) for message in body["messages"])
        (row,), _ = disarm([PromptRow("the conversation", "", messages)], self._tokenizer)
        tokens = len(render([row], self._tokenizer)[0])
        if tokens >= self._context:
            raise UserError(f"the conversation has {tokens} tokens; with its reply it may have {self._context}")
        streamed = {"stream_options": {"include_usage": True}} if body["stream"] else {}
        return ChatCompletionRequest.model_validate(
            {
                **body,
                **streamed,
                "model": self._llm_config.model_id,
                "messages": [message.as_dict() for message in row.messages],
                "max_tokens": min(body["max_tokens"], self._context - tokens),
                "request_id": reply_id,
            }
        )


class _Reader:
    """Makes parts of what the LLM server yields, and remembers the text."""

    def __init__(self) -> None:
        self.end: Finished | None = None
        self._text, self._reason = "", "stop"

    def __call__(self, found: Any) -> Iterator[Part]:
        """The parts in one thing that came."""
        if isinstance(found, str):
            for line in found.splitlines():
                data = line.removeprefix("data: ")
                if data != line and data != "[DONE]":
                    yield from self._chunk(json.loads(data))
        elif hasattr(found, "error"):
            yield _refused(found.error.model_dump())
        else:
            body = found.model_dump(mode="json")
            choice, usage = body["choices"][0], body["usage"]
            self._text, self._reason = choice["message"]["content"] or "", choice["finish_reason"]
            self._finish(usage)
            yield Whole(_openai(body, "message"))

    def _chunk(self, body: dict[str, Any]) -> Iterator[Part]:
        if "error" in body:
            yield _refused(body["error"])
        elif not body["choices"]:
            self._finish(body["usage"])
        else:
            choice = body["choices"][0]
            self._text += choice["delta"].get("content") or ""
            self._reason = choice["finish_reason"] or self._reason
            yield Piece(f"data: {json.dumps(_openai(body, 'delta'), ensure_ascii=False)}\n\n")

    def _finish(self, usage: Mapping[str, int]) -> None:
        self.end = Finished(self._text, self._reason, usage["prompt_tokens"], usage["completion_tokens"])


def _openai(body: Mapping[str, Any], said: str) -> dict[str, Any]:
    """What OpenAI's API has of `body`, without vLLM's own fields."""
    choice = body["choices"][0]
    message = {key: value for key in ("role", "content") if (value := choice[said].get(key)) is not None}
    kept = {key: body[key] for key in ("id", "object", "created", "model")}
    found = {"index": 0, said: message, "logprobs": None, "finish_reason": choice["finish_reason"]}
    usage = body.get("usage")
    counts = ("prompt_tokens", "completion_tokens", "total_tokens")
    return {**kept, "choices": [found]} | ({"usage": {key: usage[key] for key in counts}} if usage else {})


def _refused(error: Mapping[str, Any]) -> Refused:
    code = error.get("code")
    status = code if isinstance(code, int) and 400 <= code < 600 else 500
    return Refused(status, str(error.get("message")) if status < 500 else "the engine failed")
