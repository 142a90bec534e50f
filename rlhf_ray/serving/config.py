"""What a service is told: which policy, where it listens, what it allows, and how its engine runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from rlhf_ray.serving.place import DEFAULT_STORE, store_url
from rlhf_ray.strict import Strict


class LimitsConfig(Strict):
    """What one request and one key may ask for. Everything above is refused with an error that names the limit."""

    body_bytes: PositiveInt = 1 << 20
    messages: PositiveInt = 64
    message_chars: PositiveInt = 32_000
    max_tokens: PositiveInt = 512
    """Of a reply; also what a request gets that does not say."""
    in_flight: PositiveInt = 48
    """Requests of one gateway that are generating or waiting; more are told to come back (503)."""
    requests_per_minute: PositiveInt = 240
    """Of one key; more are told to come back (429)."""
    tokens_per_minute: PositiveInt = 120_000
    """Of one key, prompts and replies together."""
    request_s: PositiveFloat = 300.0
    """The longest one reply may take."""


class EngineConfig(Strict):
    """One vLLM engine, and how many of them serve a policy."""

    replicas: PositiveInt = 1
    cpus: PositiveFloat = 1.0
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """A whole GPU for each engine, or 0."""
    threads: PositiveInt | None = None
    """CPU threads of an engine; null: all cores."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    context: PositiveInt = 2048
    """Tokens of prompt and reply together; less if the model has less."""
    max_concurrent: PositiveInt = 16
    """Replies decoded together."""
    kv_cache_gib: PositiveFloat = 1.0
    start_s: PositiveFloat = 600.0
    """The longest an engine may take to start."""


class ServingConfig(Strict):
    """A service, from one small YAML file or from the command line."""

    model: str
    """A run directory (its newest checkpoint that verifies), a model folder, or an embedded model."""
    canary: str | None = None
    """A second one, which gets `canary_weight` of the conversations."""
    canary_weight: Annotated[float, Field(gt=0, lt=1)] = 0.1
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = "policy"
    """The model name that clients ask for."""
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    allowed_hosts: tuple[str, ...] = ()
    """Names under which the service may be addressed beside `host` and, on loopback, localhost: a Host header of
    another name is refused, so that a web page cannot reach a local service under a name of its own."""
    store: Annotated[str, Field(repr=False)] = DEFAULT_STORE
    """Keys and feedback: a file, or the URL of a PostgreSQL database (postgresql+psycopg://...) for several nodes."""
    keep_unrated_minutes: PositiveFloat = 60.0
    """How long the text of a reply is kept so that it can be rated; then it is deleted unless somebody rated it."""
    gateways: PositiveInt = 1
    force: bool = False
    """Serve a run whose gate did not pass. It is recorded in the store."""
    limits: LimitsConfig = LimitsConfig()
    engine: EngineConfig = EngineConfig()

    @field_validator("store")
    @classmethod
    def _wherever_a_process_is(cls, store: str) -> str:
        return store if "://" in store else str(Path(store).expanduser().absolute())

    @model_validator(mode="after")
    def _one_gpu(self) -> ServingConfig:
        if self.engine.gpus not in (0.0, 1.0):
            raise ValueError(f"engine.gpus = {self.engine.gpus:g}: give an engine one whole GPU, or 0")
        return self

    @property
    def store_url(self) -> str:
        """`store` as a database URL."""
        return store_url(self.store)
