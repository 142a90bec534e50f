"""One response on its way through an engine."""

from __future__ import annotations

import hashlib
from typing import Any

from rlhf_ray.types import Prompt, Rollout


class Request:
    """Remembers which weights sampled which of its tokens."""

    def __init__(self, prompt: Prompt, sample: int) -> None:
        self._prompt, self._sample = prompt, sample
        self._versions: list[tuple[int, int]] = []

    def note(self, version: int, output: Any) -> None:
        """`version` sampled what is new in vLLM's `output`."""
        new = len(output.outputs[0].token_ids) - sum(count for _, count in self._versions)
        if self._versions and self._versions[-1][0] == version:
            self._versions[-1] = (version, self._versions[-1][1] + new)
        elif new:
            self._versions.append((version, new))

    def rollout(self, output: Any) -> Rollout:
        """The finished response."""
        answer = output.outputs[0]
        ids = tuple(answer.token_ids)
        return Rollout(
            prompt=self._prompt,
            sample_index=self._sample,
            response_ids=ids,
            rollout_logprobs=tuple(step[token].logprob for step, token in zip(answer.logprobs, ids, strict=True)),
            text=answer.text,
            finish_reason="stop" if answer.finish_reason == "stop" else "length",
            policy_version=self._versions[0][0],
            versions=tuple(self._versions),
        )


def request_seed(*parts: object) -> int:
    """A 63-bit seed from the run's seed, the step, the prompt and the sample: the same parts, the same tokens."""
    digest = hashlib.blake2b("|".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
