"""A rollout engine in plain PyTorch, with the methods of vLLM's that `RolloutActor` calls.

It starts in a second and computes each sequence by itself, so an answer has the same bits whatever is sampled beside
it. vLLM is many times as fast; this one is for tests, for chaos runs and for models that vLLM does not know.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_ray.models.causal_lm import load_causal_lm
from rlhf_ray.models.device import compute_dtype, device
from rlhf_ray.models.reward_model import load_tokenizer
from rlhf_ray.weight_sync.receiver import WeightReceiver


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one response is sampled. Temperature 0 is greedy, whose log-probs are those of temperature 1."""

    temperature: float
    max_tokens: int
    seed: int = 0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """As vLLM's `Logprob`."""

    logprob: float


@dataclass
class Response:
    """One response under way; vLLM's `CompletionOutput`."""

    prompt: list[int]
    sampling: Sampling
    generator: torch.Generator
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, TokenLogprob]] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    cache: Any = None


@dataclass(frozen=True, slots=True)
class Output:
    """As vLLM's `RequestOutput`."""

    request_id: str
    outputs: list[Response]
    finished: bool


class TorchEngine(WeightReceiver):
    """Steps all responses by one token at a time."""

    rank = 0

    def __init__(self, folder: Path, dtype: str, max_concurrent: int) -> None:
        self._model = load_causal_lm(folder, compute_dtype(dtype)).to(device()).eval()
        self._tokenizer = load_tokenizer(folder)
        self._max_concurrent = max_concurrent
        self._sequences: dict[str, Response] = {}

    def add_request(self, request_id: str, prompt: dict[str, list[int]], sampling: Sampling) -> None:
        """A response to `prompt["prompt_token_ids"]` from now on."""
        generator = torch.Generator().manual_seed(sampling.seed)
        self._sequences[request_id] = Response(prompt["prompt_token_ids"], sampling, generator)

    def has_unfinished_requests(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self._sequences)

    def abort_request(self, request_ids: Iterable[str]) -> None:
        """Those that are not there any more are no error."""
        for request_id in request_ids:
            self._sequences.pop(request_id, None)

    def reset_prefix_cache(self, reset_running_requests: bool) -> None:
        """What the tokens of running sequences attend to is computed again."""
        for sequence in self._sequences.values():
            sequence.cache = None

    def collective_rpc(self, method: str, args: Sequence[object] = ()) -> list[Any]:
        """What its one worker, itself, gives back."""
        return [getattr(self, method)(*args)]

    @torch.inference_mode()
    def step(self) -> list[Output]:
        """One more token of each of the `max_concurrent` oldest sequences."""
        running = list(self._sequences.items())[: self._max_concurrent]
        for _, sequence in running:
            self._extend(sequence)
        for request_id, sequence in running:
            if sequence.finish_reason:
                del self._sequences[request_id]
        return [Output(request_id, [sequence], sequence.finish_reason is not None) for request_id, sequence in running]

    def _extend(self, sequence: Response) -> None:
        so_far = sequence.prompt + sequence.token_ids
        new = so_far if sequence.cache is None else so_far[-1:]
        out = self._model(torch.tensor([new], device=device()), past_key_values=sequence.cache, use_cache=True)
        sequence.cache = out.past_key_values
        token, logprob = _sample(out.logits[0, -1].float().cpu(), sequence.sampling, sequence.generator)
        sequence.token_ids.append(token)
        sequence.logprobs.append({token: TokenLogprob(logprob)})
        if token == self._tokenizer.eos_token_id:
            sequence.finish_reason = "stop"
        elif len(sequence.token_ids) == sequence.sampling.max_tokens:
            sequence.finish_reason = "length"
        if sequence.finish_reason:
            sequence.text = str(self._tokenizer.decode(sequence.token_ids, skip_special_tokens=True))

    @torch.no_grad()
    def _load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Into the parameters, in place. A tensor of an unknown name is a `KeyError`."""
        parameters = dict(self._model.named_parameters())
        for name, tensor in weights:
            parameters[name].copy_(tensor)


def _sample(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> tuple[int, float]:
    logprobs = torch.log_softmax(logits / (sampling.temperature or 1.0), dim=-1)
    if sampling.temperature == 0:
        token = int(logprobs.argmax())
    else:
        token = int(torch.multinomial(logprobs.exp(), 1, generator=generator))
    return token, float(logprobs[token])
