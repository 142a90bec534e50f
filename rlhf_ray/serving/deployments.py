"""The Serve deployments of a service: one of vLLM for each policy, and the gateway in front of them."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from rlhf_ray.machine import cpu_cores
from rlhf_ray.serving.config import ServingConfig
from rlhf_ray.serving.gateway import make_app
from rlhf_ray.serving.meters import RayMeters
from rlhf_ray.serving.replies import EngineGone, Part
from rlhf_ray.serving.service import Service
from rlhf_ray.serving.state import ServiceState
from rlhf_ray.serving.traffic import Policy, Traffic
from rlhf_ray.serving.writer import writer_handle

_LOG = logging.getLogger(__name__)
_REFRESH_S = 1.0
_FORGET_S = 60.0
_LOOK_S = 2.0
_PREFILL_TOKENS = 4096


class RayEngines:
    """`replies.Engines`: the deployments of policies, by version."""

    def __init__(self, handles: Mapping[str, DeploymentHandle[Any]]) -> None:
        self._application = serve.get_replica_context().app_name
        self._looking: asyncio.Future[Any] | None = None
        self._looked = 0.0
        self._handles = {version: handle.options(stream=True) for version, handle in handles.items()}

    async def reply(self, version: str, reply_id: str, body: Mapping[str, Any]) -> AsyncIterator[Part]:
        """As `Engines` says. Whoever stops listening stops the engine's work too."""
        parts: Any = self._handles[version].reply.remote(reply_id, body)
        try:
            found = await self._first(version, parts)
            while found is not None:
                for part in found:
                    yield part
                found = await anext(parts, None)
        finally:
            parts.cancel()

    async def _first(self, version: str, parts: Any) -> Sequence[Part] | None:
        """Serve lets a request wait for ever for a deployment that was removed: looks whether it is still there."""
        coming = asyncio.ensure_future(anext(parts, None))
        try:
            while not (await asyncio.wait({coming}, timeout=_LOOK_S))[0]:
                if version not in await self._deployments():
                    raise EngineGone(version)
            return await coming
        finally:
            coming.cancel()

    async def _deployments(self) -> Collection[str]:
        """Those of this application, asked for by all that wait together; if Serve does not say, those it had."""
        now = asyncio.get_running_loop().time()
        if self._looking is None or now - self._looked >= _LOOK_S:
            self._looking, self._looked = asyncio.ensure_future(asyncio.to_thread(serve.status)), now
        try:
            status = await asyncio.shield(self._looking)
        except Exception as error:
            _LOG.warning("Serve's status could not be read: %s", type(error).__name__)
            return self._handles
        application = status.applications.get(self._application)
        return application.deployments if application else ()


class RayWriter:
    """`replies.Writer`: the actor that owns the store."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def keep_reply(self, reply: Any) -> None:
        await self._actor.keep_reply.remote(reply)

    async def add_feedback(self, item: Any) -> Any:
        return await self._actor.add_feedback.remote(item)

    async def add_preference(self, item: Any) -> Any:
        return await self._actor.add_preference.remote(item)

    async def delete(self, reply_id: str) -> int:
        return int(await self._actor.delete.remote(reply_id))

    async def summary(self, since: float | None) -> Mapping[str, Any]:
        found: Mapping[str, Any] = await self._actor.summary.remote(since)
        return found

    async def forget(self, older_than: float) -> int:
        return int(await self._actor.forget.remote(older_than))


@serve.ingress()
class Gateway:
    """One gateway. It loads no model and imports no torch, so it starts at once and stays small."""

    def __init__(self, config: ServingConfig, policies: Sequence[Policy], **handles: DeploymentHandle[Any]) -> None:
        """`handles` are the engines of `policies`, in their order: `stable` and, if there is one, `canary`."""
        self._config, self._state = config, ServiceState(config.store_url)
        versions = [policy.version for policy in policies]
        canary = versions[1] if len(versions) > 1 else None
        start = Traffic(versions[0], canary, config.canary_weight if canary else 0.0)
        self._deployment = hashlib.sha256(repr([asdict(policy) for policy in policies]).encode()).hexdigest()[:32]
        self._service = Service(
            config,
            policies,
            self._state,
            self._state.start(config.name, self._deployment, start),
            RayEngines(dict(zip(versions, handles.values(), strict=True))),
            RayWriter(writer_handle(config.name, config.store_url)),
            RayMeters(),
        )
        self._following: asyncio.Task[None] | None = None

    async def __serve_build_asgi_app__(self) -> Any:
        self._following = asyncio.create_task(self._follow())
        return make_app(self._service)

    async def _follow(self) -> None:
        """What other gateways and the command line change in the store: keys and traffic; and old replies go."""
        name, deployment, seconds = self._config.name, self._deployment, 0.0
        while True:
            await asyncio.sleep(_REFRESH_S)
            seconds += _REFRESH_S
            try:
                changes = self._service.changes
                keys = await asyncio.to_thread(self._state.keys)
                traffic = await asyncio.to_thread(self._state.traffic, name, deployment)
                self._service.refresh(keys, traffic, changes)
                if seconds >= _FORGET_S:
                    seconds = 0.0
                    await self._service.forget_unrated()
            except Exception as error:  # the service goes on with what it knows
                _LOG.warning("keys and traffic could not be read: %s", type(error).__name__)


def gateway(config: ServingConfig, policies: Sequence[Policy]) -> Any:
    """The application: a gateway with an engine for each of `policies`, the stable one first."""
    names = ("stable", "canary")
    engines = {name: _engine(config, policy) for name, policy in zip(names, policies, strict=False)}
    deployment: Any = serve.deployment(
        Gateway,
        name="gateway",
        num_replicas=config.gateways,
        max_ongoing_requests=4 * config.limits.in_flight,  # the limits answer, not a silent queue
        ray_actor_options={"num_cpus": 0.1},
        graceful_shutdown_timeout_s=config.limits.request_s,
    )
    return deployment.bind(config, list(policies), **engines)


def _engine(config: ServingConfig, policy: Policy) -> Any:
    from ray.serve.llm import LLMConfig, build_llm_deployment

    from rlhf_ray.models.folder import max_positions
    from rlhf_ray.serving.engine import PolicyServer

    settings = config.engine
    context = min(settings.context, max_positions(Path(policy.folder)) or settings.context)
    llm = LLMConfig(
        model_loading_config={"model_id": config.name, "model_source": policy.folder},
        accelerator_config={"kind": "gpu" if settings.gpus else "cpu"},  # type: ignore[arg-type]  # pydantic reads it
        deployment_config={
            "num_replicas": settings.replicas,
            "max_ongoing_requests": 2 * config.limits.in_flight,
            "health_check_period_s": 5,
            "graceful_shutdown_timeout_s": config.limits.request_s,
            "ray_actor_options": {"num_cpus": settings.cpus},
        },
        engine_kwargs=vllm_settings(config, context),
        runtime_env={"env_vars": environment(config)},
        # Of vLLM's worker, which on a CPU is in the engine's own process: its cores are asked for above.
        placement_group_config=None if settings.gpus else {"bundles": [{"CPU": 0.001}]},
        log_engine_metrics=False,
    )
    return build_llm_deployment(
        llm,
        deployment_cls=PolicyServer,
        bind_kwargs={"folder": policy.folder, "context": context},
        override_serve_options={"name": policy.version},
    )


def vllm_settings(config: ServingConfig, context: int) -> dict[str, Any]:
    """What vLLM's engine is told."""
    settings = config.engine
    dtype = {"auto": "bfloat16" if settings.gpus else "float32"}.get(settings.dtype, settings.dtype)
    common = {
        "dtype": dtype,
        "max_model_len": context,
        "max_num_seqs": settings.max_concurrent,
        "enable_prefix_caching": True,
        "generation_config": "vllm",
    }
    if settings.gpus:
        return common
    return common | {
        "enforce_eager": True,
        "kv_cache_memory_bytes": int(settings.kv_cache_gib * 2**30),
        # As for rollouts: vLLM 0.32 cannot split the prefill of a seeded request on a CPU.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(_PREFILL_TOKENS, context),
    }


def environment(config: ServingConfig) -> dict[str, str]:
    """What is in the environment of an engine's process; vLLM reads it when it is imported."""
    settings = {
        "PYTHONPATH": os.pathsep.join(path for path in (os.getcwd(), os.environ.get("PYTHONPATH", "")) if path),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_SERVER_DEV_MODE": "0",  # whatever the shell says: doors that ask for no key, and pickle on sockets
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "0",
    }
    if config.engine.gpus:
        return settings
    return settings | {
        "OMP_NUM_THREADS": str(config.engine.threads or cpu_cores()),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": str(max(1, round(config.engine.kv_cache_gib))),
    }
