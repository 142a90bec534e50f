"""The test models: small, deterministic, loadable, with an end of sequence that is not the padding."""

import hashlib
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from rlhf_ray.models.tiny import tiny_encoder, tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


def _digest(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def test_loads_and_is_small(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.num_parameters() < 2_000_000
    assert model.config.hidden_size // model.config.num_attention_heads == 32  # vLLM's CPU attention takes 32 and 64
    assert model.dtype == torch.float32


def test_every_id_of_the_model_is_a_token(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = AutoModelForCausalLM.from_pretrained(folder).config
    assert config.vocab_size == len(tokenizer) <= 512
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}) == 3
    assert (config.pad_token_id, config.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)


def test_any_text_round_trips(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "What is the capital of France? Zürich, 東京 \n 42"
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_template_closes_every_turn_with_the_end_of_sequence(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    ids = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    assert ids.count(tokenizer.eos_token_id) == 2
    opened = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert opened == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


def test_same_seed_same_files(folder: Path, tmp_path: Path) -> None:
    again, other = tiny_model(tmp_path / "again"), tiny_model(tmp_path / "other", seed=1)
    assert _digest(again) == _digest(folder)
    assert _digest(other)["model.safetensors"] != _digest(folder)["model.safetensors"]
    assert _digest(other)["tokenizer.json"] == _digest(folder)["tokenizer.json"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


def test_the_encoder_loads_and_is_small(encoder: Path) -> None:
    model, tokenizer = AutoModel.from_pretrained(encoder), AutoTokenizer.from_pretrained(encoder)
    weights = sum(parameter.numel() for name, parameter in model.named_parameters() if "pooler" not in name)
    assert weights < 500_000
    assert model.config.vocab_size == len(tokenizer) <= 512 and model.dtype == torch.float32
    assert model.config.pad_token_id == tokenizer.pad_token_id == 0


def test_the_encoder_marks_one_text_and_two(encoder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    assert tokenizer.decode(tokenizer("hello").input_ids) == "[CLS]hello[SEP]"
    pair = tokenizer("the sun", "the moon", return_token_type_ids=True)
    assert tokenizer.decode(pair.input_ids) == "[CLS]the sun[SEP]the moon[SEP]"
    first = tokenizer("the sun").input_ids
    assert pair.token_type_ids == [0] * len(first) + [1] * (len(pair.input_ids) - len(first))


def test_the_encoder_comes_from_its_seed(encoder: Path, tmp_path: Path) -> None:
    again, other = tiny_encoder(tmp_path / "again"), tiny_encoder(tmp_path / "other", seed=1)
    assert _digest(again) == _digest(encoder)
    assert _digest(other)["model.safetensors"] != _digest(encoder)["model.safetensors"]
