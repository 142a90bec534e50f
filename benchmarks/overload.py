"""A service that is asked for twice what it can do: `python benchmarks/overload.py [--seconds 60] [--model ...]`.

Measures the service's capacity (requests a second, 16 chats at once), then sends twice as many a second, whether or not
earlier ones were answered, and counts how they end: 200, 429 and 503 are right, anything else is not. Prints the
memory of all processes of the service (PSS) before, during and after.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
from serving import AT_ONCE, running_service

from rlhf_ray.evaluation.memory import memory_bytes

TOKENS = 16


def memory_gib(process: int) -> float:
    """Of the service and all its children, shared pages counted once (PSS)."""
    service = psutil.Process(process)
    return sum(memory_bytes(each.pid) for each in (service, *service.children(recursive=True))) / 2**30


async def overload(model: str, seconds: float, folder: Path) -> dict[str, Any]:
    """The whole measurement."""
    import httpx

    limits = [f"limits.in_flight={2 * AT_ONCE}", "limits.requests_per_minute=1000000"]
    limits += ["limits.tokens_per_minute=100000000"]
    async with running_service(model, folder, *limits) as (process, address, key):
        headers, most = {"Authorization": f"Bearer {key}"}, httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=address, headers=headers, timeout=120, limits=most) as client:

            async def ask(number: int) -> tuple[int, float]:
                said = [{"role": "user", "content": f"Tell me a story about the number {number}."}]
                body = {"model": "policy", "messages": said, "max_tokens": TOKENS, "seed": number}
                began = time.monotonic()
                try:
                    answer = await client.post("/v1/chat/completions", json=body)
                except httpx.HTTPError:
                    return 0, time.monotonic() - began
                right = answer.status_code != 503 or "retry-after" in answer.headers
                return answer.status_code if right else 1, time.monotonic() - began

            capacity = await _capacity(ask)
            before = memory_gib(process)
            during: list[float] = []
            sent: list[asyncio.Task[tuple[int, float]]] = []
            began = time.monotonic()
            while (now := time.monotonic() - began) < seconds:
                while len(sent) < 2 * capacity * now:
                    sent.append(asyncio.create_task(ask(len(sent))))
                if len(during) < now // 5:
                    during.append(await asyncio.to_thread(memory_gib, process))
                await asyncio.sleep(0.01)
            ends = await asyncio.gather(*sent)
            served = [taken for status, taken in ends if status == 200]
            return {
                "capacity_per_s": capacity,
                "sent_per_s": len(sent) / seconds,
                "statuses": dict(Counter(status for status, _ in ends)),
                "answered_per_s": len(served) / (time.monotonic() - began),
                "median_s": statistics.median(served),
                "median_refusal_s": statistics.median([taken for status, taken in ends if status != 200] or [0.0]),
                "memory_gib": {"before": before, "during": during, "after": memory_gib(process)},
            }


async def _capacity(ask: Any) -> float:
    """Answers a second with `AT_ONCE` chats at once, after a warm-up."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with places:
            await ask(number)

    await asyncio.gather(*map(one, range(AT_ONCE)))
    began = time.monotonic()
    await asyncio.gather(*map(one, range(4 * AT_ONCE)))
    return 4 * AT_ONCE / (time.monotonic() - began)


def main() -> None:
    """One line."""
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--seconds", type=float, default=60.0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asyncio.run(overload(asked.model, asked.seconds, Path(folder)))))


if __name__ == "__main__":
    main()
