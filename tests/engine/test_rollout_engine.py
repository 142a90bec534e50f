"""Both engines in this process, fed by a real weight group: sampling, pushes, and refusals."""

from __future__ import annotations

import copy
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_ray.actors.rollout import RolloutActor
from rlhf_ray.actors.torch_engine import Sampling, TorchEngine
from rlhf_ray.actors.vllm_engine import EngineSpec, engine_environment
from rlhf_ray.config import RolloutConfig
from rlhf_ray.models.tiny import tiny_model
from rlhf_ray.types import Message, Prompt, Rollout
from rlhf_ray.weight_sync.broadcast import Rendezvous, WeightGroup
from rlhf_ray.weight_sync.bucket import TensorSpec, WeightPushError, plan_buckets
from tests.ports import free_port

TEMPERATURE = 0.7
NEW_TOKENS = 12


class Sender:
    """Rank 0 of the group: a transformers model whose weights are pushed."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.tensors = {name: p.detach() for name, p in self.model.named_parameters()}
        specs = [TensorSpec(name, tuple(t.shape), "float32") for name, t in self.tensors.items()]
        self.buckets = plan_buckets(specs, 200_000)
        self.group: WeightGroup | None = None

    def send(self, version: int) -> None:
        assert self.group is not None
        for bucket in self.buckets:
            self.group.send(bucket, [self.tensors[s.name] for s in bucket.specs], version)


@pytest.fixture(scope="module", params=["vllm", "torch"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RolloutActor, Sender]]:
    folder = tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    rollout = RolloutConfig(
        engine=request.param,
        temperature=TEMPERATURE,
        max_new_tokens=NEW_TOKENS,
        kv_cache_gib=0.25,
        max_concurrent=16,
    )
    spec = EngineSpec(folder, "float32", max_model_len=64, threads=1, on_gpu=False, rollout=rollout)
    os.environ.update(engine_environment(spec))
    actor, sender = RolloutActor(spec), Sender(folder)
    _meet(actor, sender)
    yield actor, sender


def _meet(actor: RolloutActor, sender: Sender) -> None:
    meeting = Rendezvous("127.0.0.1", free_port(), 2, "gloo", 30.0)
    joining = threading.Thread(target=actor.join, args=(meeting, 1, sender.buckets))
    joining.start()
    sender.group = WeightGroup(meeting, 0)
    joining.join()


def _push(actor: RolloutActor, sender: Sender, version: int) -> None:
    sending = threading.Thread(target=sender.send, args=(version,))
    sending.start()
    try:
        actor.load_weights(version)
    finally:
        sending.join()


def _prompts(count: int) -> list[Prompt]:
    g = torch.Generator().manual_seed(1)
    return [
        Prompt(f"p{i}", (Message("user", "x"),), tuple(torch.randint(5, 250, (6 + i % 5,), generator=g).tolist()))
        for i in range(count)
    ]


def _generate(actor: RolloutActor, prompts: list[Prompt], samples: int = 1, seed: int = 0) -> dict[str, Rollout]:
    return {r.id: r for chunk in actor.generate(_asked(prompts, samples), (seed,)) for r in chunk}


def _asked(prompts: list[Prompt], samples: int) -> list[tuple[Prompt, int]]:
    return list(itertools.product(prompts, range(samples)))


def _change(sender: Sender, seed: int) -> None:
    """Moves every weight, the embedding and its tied head among them."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in sender.tensors.values():
            tensor.add_(0.3 * tensor.std() * torch.randn(tensor.shape, generator=g))


def test_an_engine_without_weights_refuses(pair: tuple[RolloutActor, Sender]) -> None:
    actor, _ = pair
    if actor._version is not None:
        pytest.skip("another test has pushed weights already")
    with pytest.raises(WeightPushError, match="no valid weights"):
        _generate(actor, _prompts(1))


def test_log_probs_are_those_of_the_pushed_weights_and_temperature(pair: tuple[RolloutActor, Sender]) -> None:
    actor, sender = pair
    _change(sender, 1)
    _push(actor, sender, 1)
    for rollout in _generate(actor, _prompts(4), samples=2).values():
        assert rollout.policy_version == 1
        whole = torch.tensor([[*rollout.prompt.token_ids, *rollout.response_ids]])
        with torch.no_grad():
            logits = sender.model(whole).logits[0, len(rollout.prompt.token_ids) - 1 : -1].float() / TEMPERATURE
        expected = torch.log_softmax(logits, -1).gather(-1, torch.tensor(rollout.response_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(rollout.rollout_logprobs), expected, atol=1e-4, rtol=1e-4)


def test_after_a_push_greedy_decoding_equals_transformers(pair: tuple[RolloutActor, Sender]) -> None:
    """20 prompts, all weights changed since the engine started."""
    actor, sender = pair
    _change(sender, 2)
    _push(actor, sender, 2)
    prompts = _prompts(20)
    for prompt in prompts:
        ours = _greedy(actor, prompt)
        with torch.no_grad():
            theirs = sender.model.generate(
                torch.tensor([prompt.token_ids]), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
            )[0, len(prompt.token_ids) :]
        assert ours == theirs.tolist(), prompt.id


def _greedy(actor: RolloutActor, prompt: Prompt) -> list[int]:
    from vllm import SamplingParams

    engine: Any = actor._engine
    kind: Any = Sampling if isinstance(engine, TorchEngine) else SamplingParams
    sampling = kind(temperature=0.0, max_tokens=NEW_TOKENS)
    engine.add_request(f"greedy-{prompt.id}", {"prompt_token_ids": list(prompt.token_ids)}, sampling)
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                return list(output.outputs[0].token_ids)
    raise AssertionError("no output")


def test_more_prompt_tokens_than_one_prefill_takes(pair: tuple[RolloutActor, Sender]) -> None:
    """Seeded requests whose prefill vLLM splits in two crash its CPU sampler, so none may be split."""
    actor, sender = pair
    if isinstance(actor._engine, TorchEngine):
        pytest.skip("it takes each sequence by itself")
    _push(actor, sender, 30)
    budget = actor._engine.vllm_config.scheduler_config
    before, budget.max_num_batched_tokens = budget.max_num_batched_tokens, 70
    actor._engine.engine_core.engine_core.scheduler.max_num_scheduled_tokens = 70
    long = [Prompt(f"l{i}", (Message("user", "x"),), tuple(range(5 + i, 50 + i))) for i in range(6)]
    try:
        assert len(_generate(actor, long)) == 6
    finally:
        budget.max_num_batched_tokens = before
        actor._engine.engine_core.engine_core.scheduler.max_num_scheduled_tokens = before


def test_samples_of_a_prompt_differ_and_seeds_repeat(pair: tuple[RolloutActor, Sender]) -> None:
    actor, sender = pair
    _push(actor, sender, 3)
    first = _generate(actor, _prompts(3), samples=4, seed=5)
    again = _generate(actor, _prompts(3), samples=4, seed=5)
    other = _generate(actor, _prompts(3), samples=4, seed=6)
    assert first.keys() == again.keys() and len(first) == 12
    assert {k: r.response_ids for k, r in first.items()} == {k: r.response_ids for k, r in again.items()}
    assert {k: r.response_ids for k, r in first.items()} != {k: r.response_ids for k, r in other.items()}
    for prompt in ("p0", "p1", "p2"):
        assert len({r.response_ids for r in first.values() if r.prompt.id == prompt}) == 4


def test_stop_and_truncation_are_told_apart(pair: tuple[RolloutActor, Sender]) -> None:
    actor, sender = pair
    eos = sender.model.config.eos_token_id
    _push(actor, sender, 4)
    for rollout in _generate(actor, _prompts(20), samples=8).values():
        if rollout.truncated:
            assert len(rollout.response_ids) == NEW_TOKENS and rollout.response_ids[-1] != eos
        else:
            assert rollout.response_ids[-1] == eos


def _push_in_the_middle(
    actor: RolloutActor, sender: Sender, version: int, before: Callable[[], None]
) -> dict[str, Rollout]:
    """Answers during whose sampling `before` was done and `version` pushed."""
    steps, step = itertools.count(), actor._step

    def stepping(owner: str) -> tuple[int, list[Any]]:
        found = step(owner)
        if next(steps) == 4:
            middle.set()
            assert pushing.wait(30)  # the engine's thread takes the push next
        return found

    middle, pushing = threading.Event(), threading.Event()
    answers: dict[str, Rollout] = {}
    actor._step = stepping  # type: ignore[method-assign]  # stops at a known place
    generating = threading.Thread(target=lambda: answers.update(_generate(actor, _prompts(6), samples=3, seed=9)))
    try:
        generating.start()
        assert middle.wait(30)
        before()
        sending = threading.Thread(target=sender.send, args=(version,))
        sending.start()
        loading = threading.Thread(target=actor.load_weights, args=(version,))
        loading.start()
        pushing.set()
        for thread in (loading, sending, generating):
            thread.join(60)
    finally:
        del actor._step  # type: ignore[attr-defined]  # the method is there again
    return answers


def test_a_push_in_the_middle_of_answers_keeps_them_and_the_rest_is_sampled_from_the_new_weights(
    pair: tuple[RolloutActor, Sender],
) -> None:
    """Of every token the log-prob is that of the weights that its span names, on the whole text before it."""
    actor, sender = pair
    old = copy.deepcopy(sender.model)
    _push(actor, sender, 50)
    answers = _push_in_the_middle(actor, sender, 51, lambda: _change(sender, 50))
    models = {50: old, 51: sender.model}
    both = [rollout for rollout in answers.values() if len(rollout.versions) == 2]
    assert len(answers) == 18 and len(both) >= 6
    for rollout in answers.values():
        assert sum(count for _, count in rollout.versions) == len(rollout.response_ids)
        assert rollout.policy_version == rollout.versions[0][0]
        start, done = len(rollout.prompt.token_ids), 0
        for version, count in rollout.versions:
            place = slice(done, done + count)
            with torch.no_grad():
                whole = models[version](torch.tensor([[*rollout.prompt.token_ids, *rollout.response_ids]]))
            logits = whole.logits[0, start - 1 : -1][place].float() / TEMPERATURE
            picked = torch.tensor(rollout.response_ids[place])[:, None]
            expected = torch.log_softmax(logits, -1).gather(-1, picked)[:, 0]
            torch.testing.assert_close(torch.tensor(rollout.rollout_logprobs[place]), expected, atol=1e-4, rtol=1e-4)
            done += count


def test_the_same_push_again_in_the_middle_of_answers_leaves_every_bit(pair: tuple[RolloutActor, Sender]) -> None:
    """It is for another engine, one that died."""
    actor, sender = pair
    _push(actor, sender, 52)
    first, alone = (_generate(actor, _prompts(6), samples=3, seed=9) for _ in range(2))
    assert first.keys() == alone.keys()  # the second finds the prompts in vLLM's cache, as the third does
    disturbed = _push_in_the_middle(actor, sender, 52, lambda: None)
    assert disturbed == alone


def test_a_push_of_the_wrong_version_leaves_the_engine_unusable_until_the_next_one(
    pair: tuple[RolloutActor, Sender],
) -> None:
    actor, sender = pair
    with pytest.raises(WeightPushError, match="expected weights of version 6, received version 5"):
        _push_first_bucket_only(actor, sender, 6, sealed_as=5)
    with pytest.raises(WeightPushError, match="push of version 6 failed"):
        _generate(actor, _prompts(1))
    _push(actor, sender, 7)
    assert all(r.policy_version == 7 for r in _generate(actor, _prompts(2)).values())


def _push_first_bucket_only(actor: RolloutActor, sender: Sender, version: int, sealed_as: int) -> None:
    """The receiver stops at the first bad bucket, so only that one is sent."""
    assert sender.group is not None
    bucket = sender.buckets[0]
    tensors = [sender.tensors[s.name] for s in bucket.specs]
    sending = threading.Thread(target=sender.group.send, args=(bucket, tensors, sealed_as))
    sending.start()
    try:
        actor.load_weights(version)
    finally:
        sending.join()


def test_answers_that_nobody_wants_any_more_are_dropped(pair: tuple[RolloutActor, Sender]) -> None:
    actor, sender = pair
    _push(actor, sender, 20)
    under_way = actor.generate(_asked(_prompts(4), 2), ("left",))
    next(under_way)
    under_way.close()
    assert not actor._engine.has_unfinished_requests() and len(_generate(actor, _prompts(2))) == 2


def test_a_claimed_engine_works_for_its_claimant_only(pair: tuple[RolloutActor, Sender]) -> None:
    """What another run has under way is dropped, and its weights are nobody's any more."""
    actor, sender = pair
    actor.claim("first")
    _meet(actor, sender)
    _push(actor, sender, 21)
    with pytest.raises(RuntimeError, match="second asks, but this engine works for first"):
        list(actor.generate(_asked(_prompts(1), 1), ("claim",), "second"))
    under_way = actor.generate(_asked(_prompts(4), 2), ("claim",), "first")
    next(under_way)
    with ThreadPoolExecutor(1) as thread:  # a push of the first, of which this engine has not been told
        sending = thread.submit(sender.send, 21)
        actor.claim("second")
        with pytest.raises(RuntimeError, match=r"Connection (closed|reset) by peer"):  # and not when its time is up
            sending.result()
    assert list(under_way) == [], "the run that was there before gets nothing more"
    with pytest.raises(WeightPushError, match="second has pushed none yet"):
        list(actor.generate(_asked(_prompts(1), 1), ("claim",), "second"))
    with pytest.raises(WeightPushError, match="in no weight group"):
        actor.load_weights(21)
    _meet(actor, sender)
    _push(actor, sender, 22)
    found = [rollout for chunk in actor.generate(_asked(_prompts(3), 2), ("claim",), "second") for rollout in chunk]
    assert len(found) == 6 and {rollout.policy_version for rollout in found} == {22}
    actor.claim("")  # as the other tests expect it
    _meet(actor, sender)
    _push(actor, sender, 23)
