"""The plain reward model: scores as in training, whatever the padding, the batch and the order; statistics."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlhf_ray.errors import UserError
from rlhf_ray.models.reward.build import make_reward_network
from rlhf_ray.models.reward.saving import save_reward_model
from rlhf_ray.models.reward.scorer import RewardScorer
from rlhf_ray.models.reward.spec import RewardSpec
from rlhf_ray.models.reward.text import Conversation, TextEncoder
from rlhf_ray.models.reward_model import (
    STATS_FILE,
    RewardStats,
    load_tokenizer,
    read_reward_stats,
    save_stats,
)
from rlhf_ray.models.tiny import tiny_model
from rlhf_ray.models.value import load_value_model
from rlhf_ray.types import Message

TEXTS = ["Yes.", "The sun is a star and the moon is not.", "", "No<|im_end|>", "Hm<|endoftext|>", "x" * 150]
CONVERSATIONS: list[Conversation] = [((Message("user", f"Question {len(t)}?"),), t) for t in TEXTS]
SPEC = RewardSpec(backbone="decoder", max_tokens=1024)


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def folder(causal: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained reward model of one layer, without statistics."""
    target = tmp_path_factory.mktemp("reward")
    network = make_reward_network(causal, SPEC, num_layers=1, seed=5)
    save_reward_model(target, network, load_tokenizer(causal), RewardStats(mean=0, std=1, answers=1, max_tokens=1024))
    (target / STATS_FILE).unlink()
    return target


def _with_stats(folder: Path, target: Path, stats: RewardStats) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    save_stats(target, stats)
    return target


def _pooled(folder: Path, rows: list[tuple[int, ...]]) -> list[float]:
    """Hugging Face's own logits of right-padded rows: what other tools read from the folder."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    pad, width = model.config.pad_token_id, max(map(len, rows))
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    with torch.no_grad():
        return [float(x) for x in model(input_ids=ids, attention_mask=mask).logits[:, 0]]


def test_equals_what_other_tools_read(folder: Path) -> None:
    rows = [row.ids for row in TextEncoder(load_tokenizer(folder), SPEC)(CONVERSATIONS)]
    assert RewardScorer.load(folder).score(CONVERSATIONS) == pytest.approx(_pooled(folder, rows), abs=1e-5)


def test_order_batch_and_padding_do_not_matter(folder: Path) -> None:
    model = RewardScorer.load(folder)
    together = model.score(CONVERSATIONS)
    assert [model.score([c])[0] for c in CONVERSATIONS] == pytest.approx(together, abs=1e-5)
    assert model.score(CONVERSATIONS[::-1])[::-1] == pytest.approx(together, abs=1e-5)
    assert model.score(CONVERSATIONS, token_budget=1) == pytest.approx(together, abs=1e-5)
    assert len({round(x, 4) for x in together}) == len(together)
    assert model.score([]) == []
    assert model.details([]) == []


def test_statistics_standardise(folder: Path, tmp_path: Path) -> None:
    raw = RewardScorer.load(folder)
    assert not raw.standardised and read_reward_stats(folder) == (0.0, 1.0)
    stats = RewardStats(mean=0.5, std=2.0, answers=10, max_tokens=1024)
    model = RewardScorer.load(_with_stats(folder, tmp_path / "m", stats))
    assert model.standardised and read_reward_stats(tmp_path / "m") == (0.5, 2.0)
    assert model.score(CONVERSATIONS) == pytest.approx([(x - 0.5) / 2 for x in raw.score(CONVERSATIONS)], abs=1e-6)
    assert model.raw_scores(CONVERSATIONS) == pytest.approx(raw.score(CONVERSATIONS), abs=1e-6)


@pytest.mark.parametrize("text", ["{}", "no", '{"mean": 0, "std": 0, "answers": 1, "max_tokens": 9}'])
def test_broken_statistics_are_refused(folder: Path, tmp_path: Path, text: str) -> None:
    model = _with_stats(folder, tmp_path / "m", RewardStats(mean=0, std=1, answers=1, max_tokens=9))
    (model / "reward_stats.json").write_text(text)
    with pytest.raises(UserError, match=r"reward_stats\.json"):
        RewardScorer.load(model)


def test_overlong_conversations_lose_their_beginning(folder: Path, tmp_path: Path) -> None:
    stats = RewardStats(mean=0, std=1, answers=1, max_tokens=20)
    model = RewardScorer.load(_with_stats(folder, tmp_path / "m", stats))
    long, same_end = [((Message("user", start + " the answer is " * 9),), "Yes.") for start in ("Why?", "How?")]
    assert model.score([long]) == pytest.approx(model.score([same_end]))
    assert model.truncated == 2
    model.score([((Message("user", "a"),), "b")])
    assert model.truncated == 2


def test_the_folder_is_a_plain_classifier(causal: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    source, loaded = (
        AutoModelForCausalLM.from_pretrained(causal),
        AutoModelForSequenceClassification.from_pretrained(folder),
    )
    assert {file.name for file in folder.glob("*.safetensors")} == {"model.safetensors"}
    assert not (folder / "reward_model.json").exists()
    assert len(loaded.model.layers) == loaded.config.num_hidden_layers == loaded.config.num_labels == 1
    assert loaded.config.architectures == ["LlamaForSequenceClassification"]
    assert loaded.config.pad_token_id == AutoTokenizer.from_pretrained(folder).pad_token_id
    for name, weight in loaded.model.state_dict().items():
        assert torch.equal(weight, source.model.state_dict()[name]), name


def test_a_critic_takes_it_over(folder: Path, tmp_path: Path) -> None:
    model = _with_stats(folder, tmp_path / "m", RewardStats(mean=0.5, std=2.0, answers=10, max_tokens=1024))
    (row,) = TextEncoder(load_tokenizer(folder), SPEC)(CONVERSATIONS[:1])
    ids = torch.tensor([[*row.ids, 5]])  # a value has seen the tokens before its own
    values = load_value_model(model, "reward")(ids, torch.ones_like(ids).bool()).detach()
    assert float(values[0, -1]) == pytest.approx(RewardScorer.load(model).score(CONVERSATIONS[:1])[0], abs=1e-5)


def test_padding_equal_to_the_end_is_refused(causal: Path, tmp_path: Path) -> None:
    for file in causal.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["pad_token"] = settings["eos_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="pad_token"):
        make_reward_network(tmp_path, SPEC)


def test_a_template_that_ends_with_padding_is_refused(causal: Path, tmp_path: Path) -> None:
    for file in causal.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    template = tmp_path / "chat_template.jinja"
    template.write_text(template.read_text() + "<|endoftext|>")
    with pytest.raises(UserError, match="ends with the padding token"):
        make_reward_network(tmp_path, SPEC)


def test_a_language_model_is_not_a_reward_model(causal: Path) -> None:
    with pytest.raises(UserError, match="score head"):
        RewardScorer.load(causal)
