"""What serving costs: `python benchmarks/serving.py [--rounds 3] [--requests 64] [--model smollm2-135m]`.

Starts `rlhf-ray serve`, measures, stops it; then vLLM's asynchronous engine alone with the same settings, prompts and
seeds. Prints the time to the first answer, tokens a second with 16 chats at once and their ratio, and the median time
of a request for one token with what it takes more than the engine alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

AT_ONCE = 16
TOKENS = 48
Ask = Callable[[str, int, int], Awaitable[int]]
"""A prompt, its seed, and the most tokens; how many came."""


async def throughput(ask: Ask, requests: int) -> float:
    """Tokens a second of `requests` chats, 16 at once."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> int:
        async with places:
            return await ask(f"Tell me a short story about the number {number}.", number, TOKENS)

    began = time.perf_counter()
    tokens = sum(await asyncio.gather(*(one(number) for number in range(requests))))
    return tokens / (time.perf_counter() - began)


async def latency(ask: Ask, requests: int = 30) -> float:
    """The median milliseconds of a request for one token, one after another, each with a prompt of its own."""
    found = []
    for number in range(requests):
        began = time.perf_counter()
        await ask(f"What is {number} plus {number}?", number, 1)
        found.append(1000 * (time.perf_counter() - began))
    return statistics.median(found)


async def measured(ask: Ask, rounds: int, requests: int) -> dict[str, Any]:
    """Both, after a warm-up."""
    await throughput(ask, AT_ONCE)
    return {
        "tokens_per_second": [await throughput(ask, requests) for _ in range(rounds)],
        "one_token_ms": [await latency(ask) for _ in range(rounds)],
    }


@contextlib.asynccontextmanager
async def running_service(model: str, folder: Path, *words: str) -> AsyncIterator[tuple[int, str, str]]:
    """`rlhf-ray serve` in `folder`: its process, address and first key. It is stopped at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "log"
    command = [sys.executable, "-m", "rlhf_ray.cli.main", "serve", model, "--port", str(port), *words]
    with log.open("w") as stream:
        process = subprocess.Popen(command, cwd=folder, stdout=stream, stderr=stream)
    try:
        key = None
        while key is None:
            if process.poll() is not None:
                raise RuntimeError(log.read_text())
            key = next((line.split()[-1] for line in log.read_text().splitlines() if line.startswith("API")), None)
            await asyncio.sleep(0.1)
        yield process.pid, f"http://127.0.0.1:{port}", key
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


async def served(model: str, rounds: int, requests: int) -> dict[str, Any]:
    """Through the gateway."""
    import httpx

    began, limits = time.perf_counter(), ("limits.requests_per_minute=1000000", "limits.tokens_per_minute=100000000")
    with tempfile.TemporaryDirectory() as folder:
        async with running_service(model, Path(folder), *limits) as (_, address, key):
            headers = {"Authorization": f"Bearer {key}"}
            async with httpx.AsyncClient(base_url=address, headers=headers, timeout=300) as client:

                async def ask(prompt: str, seed: int, tokens: int) -> int:
                    said = [{"role": "user", "content": prompt}]
                    body = {"model": "policy", "messages": said, "max_tokens": tokens, "seed": seed}
                    answer = (await client.post("/v1/chat/completions", json=body)).json()
                    return int(answer["usage"]["completion_tokens"])

                await ask("Hello!", 0, 1)
                start = time.perf_counter() - began
                return {"first_answer_s": start, **await measured(ask, rounds, requests)}


async def raw(model: str, rounds: int, requests: int) -> dict[str, Any]:
    """vLLM's asynchronous engine, with the chat template and nothing else."""
    from rlhf_ray.models.folder import resolve_model
    from rlhf_ray.serving.app import serving_config
    from rlhf_ray.serving.deployments import environment, vllm_settings

    config = serving_config({"model": model})
    os.environ.update(environment(config))
    from transformers import AutoTokenizer
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    folder = str(resolve_model(model))
    settings = vllm_settings(config, config.engine.context)
    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(model=folder, distributed_executor_backend="uni", disable_log_stats=True, **settings)
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)

    async def ask(prompt: str, seed: int, tokens: int) -> int:
        said = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=False)
        sampling = SamplingParams(temperature=1.0, max_tokens=tokens, seed=seed)
        name = f"{prompt} {time.monotonic_ns()}"
        outputs = [output async for output in engine.generate({"prompt_token_ids": ids}, sampling, name)]
        return len(outputs[-1].outputs[0].token_ids)

    try:
        return await measured(ask, rounds, requests)
    finally:
        engine.shutdown()


def main() -> None:
    """Both halves and one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=64)
    asked = parser.parse_args()
    gateway = asyncio.run(served(asked.model, asked.rounds, asked.requests))
    engine = asyncio.run(raw(asked.model, asked.rounds, asked.requests))
    ratio = statistics.median(gateway["tokens_per_second"]) / statistics.median(engine["tokens_per_second"])
    overhead = statistics.median(gateway["one_token_ms"]) - statistics.median(engine["one_token_ms"])
    print(json.dumps({"served": gateway, "raw": engine, "throughput_ratio": ratio, "overhead_ms": overhead}))


if __name__ == "__main__":
    main()
