"""The model wrappers against one forward pass a token: which logits, which temperature, which padding, which turn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rlhf_ray.conformance import oracles
from rlhf_ray.models.causal_lm import CausalLM, load_causal_lm
from rlhf_ray.models.tiny import tiny_model
from rlhf_ray.models.value import ValueHead, ValueModel

TEMPERATURE = 0.7
# Turns of the policy (1) with a tool's answer between them (0), after a prompt and before padding.
ROWS = ([7, 9, 4, 30, 31, 5, 6, 40, 41, 42], [8, 6, 50, 51, 52, 53, 2])
TURNS = ([0, 0, 0, 1, 1, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    return load_causal_lm(tiny_model(tmp_path_factory.mktemp("models") / "tiny"), torch.float32)


def _batch(pad: int) -> tuple[Tensor, Tensor, Tensor]:
    width = max(map(len, ROWS))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in ROWS])
    attention = torch.tensor([[t < len(row) for t in range(width)] for row in ROWS])
    turns = torch.tensor([turn + [0] * (width - len(turn)) for turn in TURNS], dtype=torch.bool)
    return ids, attention, turns


def _next_logits(model: nn.Module, prefix: list[int]) -> list[float]:
    with torch.no_grad():
        logits: Tensor = model(torch.tensor([prefix])).logits[0, -1]
    return logits.double().tolist()


@pytest.mark.parametrize("pad", [0, 2])  # 2 ends a sequence, and ends the second row
def test_every_log_prob_is_that_of_its_token_after_all_tokens_before_it(model: nn.Module, pad: int) -> None:
    logprobs, entropies = CausalLM(model, TEMPERATURE)(*_batch(pad))
    for row, (tokens, turn) in enumerate(zip(ROWS, TURNS, strict=True)):
        for t in range(logprobs.shape[1]):
            if t >= len(tokens) or not turn[t]:
                assert logprobs[row, t] == 0.0 and entropies[row, t] == 0.0
                continue
            logits = _next_logits(model, tokens[:t])
            want = oracles.log_softmax(logits, TEMPERATURE)[tokens[t]]
            assert float(logprobs[row, t].detach()) == pytest.approx(want, abs=2e-4)
            assert float(entropies[row, t].detach()) == pytest.approx(oracles.entropy(logits, TEMPERATURE), abs=2e-4)


def test_a_temperature_that_is_asked_for_replaces_that_of_sampling(model: nn.Module) -> None:
    found = CausalLM(model, TEMPERATURE)(*_batch(0), temperature=1.3)[0]
    want = oracles.log_softmax(_next_logits(model, ROWS[0][:3]), 1.3)[ROWS[0][3]]
    assert float(found[0, 3].detach()) == pytest.approx(want, abs=2e-4)


def test_a_value_has_seen_the_tokens_before_its_own_only(model: nn.Module) -> None:
    draw = torch.Generator().manual_seed(0)
    head = ValueHead(model.config.hidden_size)
    nn.init.normal_(head.weight, generator=draw)
    critic = ValueModel(model.get_decoder(), head)
    ids, attention, _ = _batch(0)
    values = critic(ids, attention)
    for row, tokens in enumerate(ROWS):
        for t in range(1, len(tokens)):
            hidden = model.get_decoder()(torch.tensor([tokens[:t]])).last_hidden_state[0, -1]
            assert float(values[row, t]) == pytest.approx(float(hidden @ head.weight), abs=1e-3)
    assert (values[:, 0] == 0).all()


def test_other_padding_changes_nothing(model: nn.Module) -> None:
    one, other = (CausalLM(model, TEMPERATURE)(*_batch(pad))[0] for pad in (0, 99))
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_rows_alone_are_what_they_are_together(model: nn.Module) -> None:
    wrapper = CausalLM(model, TEMPERATURE)
    together = wrapper(*_batch(0))[0]
    for row, tokens in enumerate(ROWS):
        ids, attention, turns = (x[row : row + 1, : len(tokens)] for x in _batch(0))
        torch.testing.assert_close(
            wrapper(ids, attention, turns)[0], together[row : row + 1, : len(tokens)], atol=1e-5, rtol=1e-5
        )
