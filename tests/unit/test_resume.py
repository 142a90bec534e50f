"""What a resumed run may change: by which means it computes, and nothing of what it has learned from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_folders import run_config

from rlhf_ray import resume
from rlhf_ray.config_file import dump_config, load_config
from rlhf_ray.errors import UserError
from rlhf_ray.resume import accept_changes


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"policy": {"num_workers": 2, "deepspeed": {"zero_stage": 2}, "microbatch_tokens": 64}}, ""),
        ({"rollout": {"engines": 2, "max_concurrent": 4, "max_new_tokens": 8}}, "rollout.max_new_tokens"),
        ({"train": {"num_steps": 99}, "reference": {"replicas": 2}}, ""),
        ({"policy": {"learning_rate": 1.0}, "critic": {"num_workers": 2}}, "policy.learning_rate"),
        ({"algorithm": {"kl_coef": 0.3}, "policy": {"lora": {"rank": 2}}}, "algorithm.kl_coef, policy.lora"),
        ({"seed": 7}, "seed"),
    ],
)
def test_means_may_change(tmp_path: Path, changes: dict[str, Any], refused: str) -> None:
    (tmp_path / "config.yaml").write_text(dump_config(run_config(tmp_path)))
    before, after = (tmp_path / "config.yaml").read_text(), run_config(tmp_path, **changes)
    if not refused:
        accept_changes(tmp_path, after)
        assert load_config(tmp_path / "config.yaml", []) == after != run_config(tmp_path)
        return
    with pytest.raises(UserError, match=rf"--resume: {refused} differ .*; a resumed run may change .*num_work"):
        accept_changes(tmp_path, after)
    assert (tmp_path / "config.yaml").read_text() == before


def test_the_means_are_keys_of_a_run(tmp_path: Path) -> None:
    """One that was renamed would be refused, and nobody would notice."""

    def keys(section: dict[str, Any]) -> set[str]:
        return set(section).union(*(keys(value) for value in section.values() if isinstance(value, dict)))

    assert keys(run_config(tmp_path).model_dump()) >= resume._MEANS
