"""Loading configs: what is accepted, what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_ray.config import RewardModelConfig, RunConfig
from rlhf_ray.config_file import RECIPES, dump_config, load_config
from rlhf_ray.errors import UserError

GOOD = """
name: test
prompts: {path: prompts.jsonl}
reward:
  sources:
    - {type: model, path: rm}
"""


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    return file


def mistake(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(write(tmp_path, text), overrides)
    return str(caught.value)


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_loads_and_is_short(recipe: Path) -> None:
    load_config(recipe)
    assert len(recipe.read_text().splitlines()) <= 40


def test_a_bundled_recipe_is_found_by_name_and_the_current_directory_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config("ppo_8gpu.yaml").name == "ppo-8gpu"
    (tmp_path / "ppo_8gpu.yaml").write_text(GOOD)
    assert load_config("ppo_8gpu.yaml").name == "test"


def test_missing_file_lists_the_recipes() -> None:
    with pytest.raises(UserError, match=r"does not exist.*ppo_8gpu\.yaml"):
        load_config("nothing.yaml")


def test_kind_chooses_the_class(tmp_path: Path) -> None:
    reward = "kind: reward\nname: rm\ndata: {path: pairs.jsonl}"
    assert isinstance(load_config(write(tmp_path, reward)), RewardModelConfig)
    assert isinstance(load_config(write(tmp_path, GOOD)), RunConfig)
    kinds = "online, reward, sft, preference"
    assert f"kind must be one of {kinds} (got 'onlin')" in mistake(tmp_path, GOOD + "kind: onlin")


def test_overrides_reach_every_depth(tmp_path: Path) -> None:
    overrides = ["reward.sources.0.path=other", "policy.lora.rank=4", "seed=7", "policy.learning_rate=1e-4"]
    config = load_config(write(tmp_path, GOOD), overrides)
    assert isinstance(config, RunConfig)
    assert config.reward.sources[0].path == "other"
    assert config.policy.lora is not None and config.policy.lora.rank == 4
    assert (config.seed, config.policy.learning_rate) == (7, 1e-4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "not of the form key.subkey=value"),
        ("a..b=1", "not of the form key.subkey=value"),
        ("reward.sources.1.path=x", "reward.sources is a list of 1"),
        ("reward.sources.first.path=x", "reward.sources is a list of 1"),
        ("name.first=x", "name is the value 'test' and has no keys below it"),
        ("seed=[1", "override 'seed=[1'"),
    ],
)
def test_bad_overrides(tmp_path: Path, override: str, message: str) -> None:
    assert message in mistake(tmp_path, GOOD, override)


def test_dump_loads_back_equal(tmp_path: Path) -> None:
    for recipe in sorted(RECIPES.glob("*.yaml")):
        config = load_config(recipe, ["seed=3"])
        assert load_config(write(tmp_path, dump_config(config))) == config
    assert "gae_lambda" in dump_config(load_config(write(tmp_path, GOOD)))


def test_all_mistakes_are_listed_at_once_each_with_its_key(tmp_path: Path) -> None:
    overrides = (
        "polcy.num_workers=2",
        "policy.num_wokers=2",
        "reward.sources.0.pth=x",
        "train.num_steps=0",
        "policy.deepspeed.zero_stage=5",
        "placement.mode=apart",
    )
    message = mistake(tmp_path, GOOD, *overrides)
    assert "6 mistakes" in message and "pydantic" not in message
    for line in (
        "polcy: unknown key; did you mean policy?",
        "policy.num_wokers: unknown key; did you mean num_workers?",
        "reward.sources.0.pth: unknown key; did you mean path?",
        "train.num_steps: should be greater than 0",
        "(got 0)",
        "policy.deepspeed.zero_stage: must be one of 0, 1, 2 or 3 (got 5)",
        "placement.mode: must be one of 'colocated' or 'separate' (got 'apart')",
    ):
        assert line in message


def test_unlike_keys_list_what_is_known(tmp_path: Path) -> None:
    assert "zzz: unknown key; known here: algorithm, critic" in mistake(tmp_path, GOOD, "zzz=1")


def test_missing_keys_and_union_tags(tmp_path: Path) -> None:
    text = "name: x\nprompts: {path: p}\nreward: {sources: [{path: rm}, {type: modl, path: rm}, {type: function}]}"
    message = mistake(tmp_path, text)
    assert "reward.sources.0: 'type' is required and missing" in message
    assert "reward.sources.1.type: must be one of 'model', 'function', 'overlong' (got 'modl')" in message
    assert "reward.sources.2.path: is required and missing" in message


def test_arithmetic_that_does_not_divide(tmp_path: Path) -> None:
    message = mistake(tmp_path, GOOD, "algorithm.num_minibatches=3", "train.prompts_per_step=16")
    assert "= 16 rollouts do not divide into algorithm.num_minibatches = 3" in message
    assert "(got" not in message


def test_yaml_that_cannot_be_read(tmp_path: Path) -> None:
    assert "line 7: the key 'name' is written twice (lines 2 and 7)" in mistake(tmp_path, GOOD + "name: again")
    assert "line" in mistake(tmp_path, "a: [1, 2\nb: 3")
    assert "instead of `key: value` lines" in mistake(tmp_path, "")
    assert "instead of `key: value` lines" in mistake(tmp_path, "- a\n- b")
    assert "could not determine a constructor" in mistake(tmp_path, "a: !!python/object/apply:os.system [ls]")


def test_a_value_where_a_section_belongs(tmp_path: Path) -> None:
    assert "policy.lora: must be a section with keys below it (got 3)" in mistake(tmp_path, GOOD, "policy.lora=3")
