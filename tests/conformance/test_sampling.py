"""What is sampled has the log-probabilities that are trained on: by temperature alone, from the whole distribution."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlhf_ray.actors import rollout as rollout_actor
from rlhf_ray.actors.local import LocalRollout
from rlhf_ray.actors.vllm_engine import EngineSpec, make_engine
from rlhf_ray.config import RolloutConfig
from rlhf_ray.conformance import oracles
from rlhf_ray.models.causal_lm import CausalLM, load_causal_lm
from rlhf_ray.models.tiny import tiny_model
from rlhf_ray.types import Message, Prompt, Rollout
from tests.builders import run_config
from tests.conformance.policies import answers_batch, table_policy

TEMPERATURE = 0.7
PROMPT = Prompt("p", (Message("user", "hi"),), (5, 9, 14))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    return load_causal_lm(tiny_model(tmp_path_factory.mktemp("models") / "tiny"), torch.float32)


def _sampled(model: Any, samples: int, tokens: int) -> list[Rollout]:
    config = run_config(
        Path("unused"), rollout={"temperature": TEMPERATURE, "max_new_tokens": tokens, "max_concurrent": samples}
    )
    learner: Any = SimpleNamespace(engine=SimpleNamespace(module=CausalLM(model, TEMPERATURE)))
    tokenizer = SimpleNamespace(pad_token_id=0, decode=lambda *_, **__: "text")
    return list(LocalRollout(config, learner, tokenizer).generate([PROMPT], samples, 1))


def test_the_local_sampler_draws_from_the_whole_distribution(model: Any) -> None:
    """Whatever the model's own generation settings say; by brute force over the vocabulary."""
    own = {"top_p": 0.05, "top_k": 3, "temperature": 0.1, "min_p": 0.9}
    for name, value in own.items():
        setattr(model.generation_config, name, value)
    with torch.no_grad():
        logits = model(torch.tensor([PROMPT.token_ids])).logits[0, -1].double().tolist()
    found = _sampled(model, 400, 1)
    assert {name: getattr(model.generation_config, name) for name in own} == own, "they are the model's, and stay"
    nucleus = oracles.top_p_log_softmax(logits, TEMPERATURE, 0.5)
    outside = sum(math.isinf(nucleus[one.response_ids[0]]) for one in found) / len(found)
    whole = oracles.log_softmax(logits, TEMPERATURE)
    tail = sum(math.exp(p) for p, q in zip(whole, nucleus, strict=True) if math.isinf(q))
    assert outside == pytest.approx(tail, abs=0.1), "four standard deviations"
    for one in found[:20]:
        assert one.rollout_logprobs[0] == pytest.approx(whole[one.response_ids[0]], abs=1e-4)


def test_the_local_sampler_says_the_log_probs_that_the_learner_finds(model: Any) -> None:
    for one in _sampled(model, 4, 6):
        ids = torch.tensor([[*PROMPT.token_ids, *one.response_ids]])
        mask = torch.arange(ids.shape[1])[None] >= len(PROMPT.token_ids)
        with torch.no_grad():
            found = CausalLM(model, TEMPERATURE)(ids, torch.ones_like(mask), mask)[0][mask]
        assert one.rollout_logprobs == pytest.approx(found.tolist(), abs=1e-4)


@pytest.mark.parametrize("top_p", [0.4, 0.8, 1.0])
def test_the_trained_log_probs_are_those_of_sampling_without_top_p_only(top_p: float) -> None:
    """Why `top_p` is refused: the sampler's log-probs would all be larger, by minus the log of what it kept."""
    table = torch.randn(5, 4, generator=torch.Generator().manual_seed(3)) * 2
    answers = torch.arange(4)[:, None]
    batch = answers_batch(4, answers, torch.zeros(4))
    with torch.no_grad():
        found: Tensor = table_policy(table, TEMPERATURE)(batch.token_ids, batch.attention_mask, batch.response_mask)[0]
    sampler = np.array(oracles.top_p_log_softmax(table[4].tolist(), TEMPERATURE, top_p))
    drawn = np.isfinite(sampler)
    gap = (sampler - found[:, 1].numpy())[drawn]
    kept = float(found[:, 1].exp().numpy()[drawn].sum())
    assert gap == pytest.approx(-math.log(kept), abs=1e-5)
    assert (kept < 0.999) == (top_p < 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("top_p", 0.9), ("top_k", 50), ("min_p", 0.1), ("repetition_penalty", 1.1), ("presence_penalty", 0.5),
     ("frequency_penalty", 0.5), ("logit_bias", {"1": 2.0})],
)  # fmt: skip
def test_what_would_sample_from_another_distribution_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} would sample from another distribution"):
        run_config(Path("unused"), rollout={name: value})


def test_the_engine_is_asked_for_temperature_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class Arguments:
        def __init__(self, **settings: Any) -> None:
            asked.update(settings)

    engine = SimpleNamespace(
        from_engine_args=lambda _: engine,
        add_request=lambda request, prompt, sampling: asked.update(sampling.__dict__),
        abort_request=lambda requests: asked.update(dropped=len(requests)),
    )
    vllm = SimpleNamespace(
        EngineArgs=Arguments, LLMEngine=engine, SamplingParams=lambda **settings: SimpleNamespace(**settings)
    )
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    settings = RolloutConfig(temperature=TEMPERATURE, max_new_tokens=9)
    spec = EngineSpec(Path("model"), "float32", 64, torch.get_num_threads(), False, settings)
    monkeypatch.setattr(rollout_actor, "make_engine", make_engine)
    actor = rollout_actor.RolloutActor(spec)
    with pytest.raises(Exception, match="no weights have been pushed yet"):
        next(actor.generate([(PROMPT, 0)], (0,)))
    assert asked["temperature"] == TEMPERATURE and asked["max_tokens"] == 9 and asked["dropped"] == 1
    assert asked["logprobs_mode"] == "processed_logprobs", "those of logits / temperature, as the learner's"
    assert asked["generation_config"] == "vllm", "not the sampling settings of the model's folder"
    assert not set(asked) & {"top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"}
