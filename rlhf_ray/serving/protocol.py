"""What clients may send, in OpenAI's words, and how errors look. Whatever is not listed here is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rlhf_ray.serving.config import LimitsConfig

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """An answer that is an error. `retry_after` is in seconds."""

    def __init__(self, status: int, message: str, param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.retry_after = status, message, param, retry_after

    def body(self) -> dict[str, object]:
        """As OpenAI's."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": None}}


class _Sent(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TextPart(_Sent):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(_Sent):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        """All of it."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)

    def plain(self) -> dict[str, str]:
        """Role and text, as chat templates know them."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.text}


class StreamOptions(_Sent):
    """How a reply is streamed."""

    include_usage: bool = False


class ChatRequest(_Sent):
    """`POST /v1/chat/completions`. Templates, embeddings, logit biases and the like cannot be sent."""

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(gt=0)] | None = None
    max_completion_tokens: Annotated[int, Field(gt=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    stop: Annotated[str, Field(min_length=1, max_length=64)] | list[Annotated[str, Field(max_length=64)]] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] = 1
    user: Annotated[str, Field(max_length=128)] | None = None

    @model_validator(mode="after")
    def _sound(self) -> ChatRequest:
        if self.messages[-1].role != "user":
            raise ValueError("the last message must be the user's")
        if any(message.role in ("system", "developer") for message in self.messages[1:]):
            raise ValueError("a system message must be the first one")
        if isinstance(self.stop, list) and not (0 < len(self.stop) <= 4 and all(self.stop)):
            raise ValueError("stop takes one to four texts that are not empty")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream = true")
        return self

    def check(self, limits: LimitsConfig, model: str) -> None:
        """Raises `ApiError` for what the service does not allow."""
        if self.model != model:
            raise ApiError(404, f"there is no model {self.model!r:.80}; this service has {model!r}", "model")
        if len(self.messages) > limits.messages:
            raise ApiError(400, f"{len(self.messages)} messages: at most {limits.messages}", "messages")
        longest = max(len(message.text) for message in self.messages)
        if longest > limits.message_chars:
            raise ApiError(400, f"a message has {longest} characters: at most {limits.message_chars}", "messages")
        if not self.messages[-1].text.strip():
            raise ApiError(400, "the last message is empty", "messages")
        if (self.max_completion_tokens or self.max_tokens or 0) > limits.max_tokens:
            raise ApiError(400, f"max_tokens: at most {limits.max_tokens}", "max_tokens")

    def for_engine(self, limits: LimitsConfig) -> dict[str, Any]:
        """The request as the engine gets it: nothing that it does not need."""
        body: dict[str, Any] = {
            "messages": [message.plain() for message in self.messages],
            "max_tokens": self.max_completion_tokens or self.max_tokens or limits.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "stream": self.stream,
        }
        return body | {key: value for key in ("stop", "seed") if (value := getattr(self, key)) is not None}
