"""Keys, quotas, traffic, gates: the parts of a service by themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from finished_runs import finished_run

from rlhf_ray.errors import GateError, UserError
from rlhf_ray.models.tiny import tiny_model
from rlhf_ray.rundir.commit import commit_directory
from rlhf_ray.serving.app import serving_config
from rlhf_ray.serving.config import ServingConfig
from rlhf_ray.serving.keys import Keyring, new_key
from rlhf_ray.serving.limits import Bucket, Places, Quotas
from rlhf_ray.serving.policies import find_policy
from rlhf_ray.serving.protocol import ApiError
from rlhf_ray.serving.state import ServiceState
from rlhf_ray.serving.traffic import Traffic


def test_a_key_opens_only_with_its_whole_text() -> None:
    text, key = new_key({"chat"}, "alice")
    other, second = new_key({"admin"}, "bob")
    ring = Keyring([key, second])
    assert ring.find(text) is key and ring.find(other) is second
    mixed = "-".join([*text.split("-")[:2], other.split("-")[2]])
    for wrong in (text[:-1], text + "0", text.upper(), mixed, "rk-" + text, text.replace("rk-", "sk-"), "", "rk--"):
        assert ring.find(wrong) is None, wrong
    assert text.split("-")[2] not in repr(key), "only a hash is kept"
    assert new_key({"chat"}, "alice")[1].digest != key.digest


def test_keys_live_in_the_store(tmp_path: Path) -> None:
    state = ServiceState(f"sqlite:///{tmp_path / 'deep' / 'serving.sqlite'}")
    text = state.add_key({"chat", "feedback"}, "alice")
    again = ServiceState(f"sqlite:///{tmp_path / 'deep' / 'serving.sqlite'}")
    (key,) = again.keys()
    assert Keyring([key]).find(text) == key and key.scopes == {"chat", "feedback"}
    secret = text.split("-")[2].encode()
    assert not any(secret in file.read_bytes() for file in (tmp_path / "deep").iterdir())
    again.revoke(key.id)
    assert state.keys() == []
    with pytest.raises(UserError, match="there is no key"):
        state.revoke(key.id)
    with pytest.raises(UserError, match="scopes root: give some of chat, feedback, admin"):
        state.add_key({"chat", "root"}, "eve")


def test_a_bucket_is_refilled_at_its_rate() -> None:
    now = 0.0
    bucket = Bucket(60, clock=lambda: now)
    bucket.take(60)
    assert bucket.wait() == pytest.approx(1.0)
    now = 0.5
    assert bucket.wait() == pytest.approx(0.5)
    now = 1.0
    assert bucket.wait() == 0.0
    bucket.take(31)  # what a reply cost is known afterwards
    assert bucket.wait() == pytest.approx(31.0)
    now = 1e6
    assert bucket.wait() == 0.0
    bucket.take(60)
    assert bucket.wait() == pytest.approx(1.0), "it holds no more than a minute's worth"


def test_each_key_has_a_quota_of_its_own() -> None:
    quotas = Quotas(1, 1000, clock=lambda: 0.0)
    quotas.admit("a")
    with pytest.raises(ApiError, match="requests a minute") as caught:
        quotas.admit("a")
    assert caught.value.status == 429 and caught.value.retry_after == pytest.approx(60.0)
    quotas.admit("b")


def test_places_are_given_back_whatever_happens() -> None:
    places = Places(1)
    with pytest.raises(KeyError), places:
        raise KeyError
    with places, pytest.raises(ApiError) as caught, places:
        pass
    assert caught.value.status == 503 and places.taken == 0


def test_traffic_moves_as_it_is_told() -> None:
    start = Traffic("one", "two", 0.25, salt="s")
    share = sum(start.version_for(f"c{i}") == "two" for i in range(4000)) / 4000
    assert share == pytest.approx(0.25, abs=0.03)
    assert replace(start, salt="t").version_for("c1") in ("one", "two")
    promoted = start.promoted()
    assert (promoted.stable, promoted.canary, promoted.previous) == ("two", None, "one")
    assert promoted.rolled_back().stable == "one" and promoted.rolled_back().rolled_back().stable == "two"
    assert start.rolled_back() == replace(start, canary=None, weight=0.0)
    with pytest.raises(UserError, match="nothing to roll back to"):
        Traffic("one").rolled_back()
    assert {Traffic("one").version_of_side(side, "c", 1) for side in "ab"} == {"one"}
    sides = [start.version_of_side("a", "c", turn) for turn in range(64)]
    assert 16 < sides.count("one") < 48, "drawn anew for each turn"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def _run(folder: Path, tiny: Path, **what: Any) -> Path:
    """A finished run with a checkpoint of the tiny model."""

    def write(into: Path) -> None:
        (into / "policy").mkdir()
        for file in tiny.iterdir():
            (into / "policy" / file.name).write_bytes(file.read_bytes())

    run = finished_run(folder, **what)
    commit_directory(run / "checkpoints", "step-000002", write, {})
    return run


GOOD: dict[str, object] = {
    "reward_gain": 0.4, "reward_gain_ci95": [0.1, 0.7], "perplexity_before": 3.0, "perplexity_after": 4.0,
}  # fmt: skip


def test_a_run_with_good_figures_is_served_from_its_newest_checkpoint(tmp_path: Path, tiny: Path) -> None:
    run = _run(tmp_path / "run", tiny, summary=GOOD)
    policy = find_policy(str(run), force=False)
    assert policy.folder == str(run / "checkpoints" / "step-000002" / "policy")
    assert policy.version.startswith("run_step_000002_") and "gain 0.4" in policy.gate
    assert policy.version.rsplit("_", 1)[1] == find_policy(str(tiny), False).version.rsplit("_", 1)[1], "same weights"


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"finished": False}, "not finished"),
        ({"reward_gain_ci95": [-0.1, 0.7]}, "held-out reward gain 0.4 .*must be above 0"),
        ({"kl_to_reference_per_token": 1.5}, "KL to the reference 1.5 a token"),
        ({"perplexity_after": 9.5}, "3.17 times that before"),
    ],
)
def test_a_gate_says_no_with_the_figure_and_can_be_forced(
    tmp_path: Path, tiny: Path, figures: dict[str, object], words: str
) -> None:
    run = _run(tmp_path / "run", tiny, summary=GOOD | figures)
    with pytest.raises(GateError, match=words):
        find_policy(str(run), force=False)
    assert "by force although" in find_policy(str(run), force=True).gate
    assert GateError.exit_code == 3


def test_the_bounds_are_those_of_the_runs_config(tmp_path: Path, tiny: Path) -> None:
    figures = {"summary": GOOD | {"kl_to_reference_per_token": 1.5}}
    find_policy(str(_run(tmp_path / "loose", tiny, gate={"max_kl_per_token": 2.0}, **figures)), force=False)
    blind = _run(tmp_path / "blind", tiny, summary={"kl_to_reference_per_token": None})
    with pytest.raises(GateError, match="no held-out figures"):
        find_policy(str(blind), force=False)
    find_policy(str(_run(tmp_path / "free", tiny, gate={"needs_evaluation": False})), force=False)


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (_without("tokenizer.json"), "tokenizer"),
        (_without("model.safetensors"), "safetensors"),
        (lambda folder: (folder / "config.json").write_text(json.dumps({"auto_map": {}})), "auto_map"),
    ],
)
def test_a_folder_that_cannot_be_served_is_refused(tmp_path: Path, harm: Callable[[Path], None], words: str) -> None:
    folder = tiny_model(tmp_path / "model")
    harm(folder)
    with pytest.raises(UserError, match=words):
        find_policy(str(folder), force=True)


def test_a_damaged_checkpoint_is_not_served(tmp_path: Path, tiny: Path) -> None:
    run = _run(tmp_path / "run", tiny, summary=GOOD)
    with (run / "checkpoints" / "step-000002" / "policy" / "config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(UserError, match="no checkpoint that verifies"):
        find_policy(str(run), force=True)
    with pytest.raises(UserError, match="does not exist"):
        find_policy(str(tmp_path / "nowhere"), force=False)


def test_a_config_is_checked_before_anything_starts() -> None:
    assert serving_config({"model": "m", "port": "8001"}).port == 8001, "command lines give text"
    with pytest.raises(UserError, match=r"limits\.max_token: unknown key; did you mean max_tokens"):
        serving_config({"model": "m", "limits": {"max_token": 5}})
    with pytest.raises(UserError, match="canary_weight: should be less than 1"):
        serving_config({"model": "m", "canary_weight": 1.5})
    assert ServingConfig(model="m").host == "127.0.0.1", "nobody else can reach it"


def test_traffic_belongs_to_a_deployment(tmp_path: Path) -> None:
    """Gateways that start at the same time agree, and a service started anew does not take over what another left."""
    url = f"sqlite:///{tmp_path / 'serving.sqlite'}"
    with ThreadPoolExecutor(8) as pool:
        states = list(pool.map(lambda _: ServiceState(url), range(8)))
        found = list(pool.map(lambda state: state.start("policy", "first", Traffic("one", "two", 0.5)), states))
    assert len(set(found)) == 1 and len(found[0].salt) == 32
    states[0].set_traffic("policy", found[0].promoted())
    assert states[1].start("policy", "first", Traffic("one")).stable == "two"
    assert states[1].start("policy", "second", Traffic("three")).stable == "three"
    assert states[2].traffic("policy", "first") is None, "its gateways keep what they know"
