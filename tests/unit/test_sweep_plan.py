"""What a sweep file says, what it cannot say, and which trials come of it."""

from __future__ import annotations

import asyncio
import pickle
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from rlhf_ray.actors.shared import Lease, Shared
from rlhf_ray.config import PreferenceConfig, RunConfig
from rlhf_ray.errors import UserError
from rlhf_ray.sweep.plan import Plan, candidates, load_sweep
from rlhf_ray.sweep.sharing import check_room, shared_roles, unshared
from rlhf_ray.sweep.trial import data_key, trial_of
from rlhf_ray.sweep.watch import Watch

TUNE_CONFIGS = Path(__file__).parents[2] / "tune_configs"
DPO = {
    "name": "beta",
    "recipe": "dpo.yaml",
    "space": {"method.beta": {"grid": [0.1, "3e-1"]}},
    "metric": "heldout_accuracy",
}
PPO = {
    "name": "clip",
    "recipe": "demo.yaml",
    "space": {"algorithm.clip_range": {"uniform": [0.1, 0.3]}},
    "metric": "reward_after",
}


def _plan(folder: Path, tree: dict[str, object], *overrides: str) -> Plan:
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(tree))
    return load_sweep(file, overrides)


@pytest.mark.parametrize("name", sorted(file.name for file in TUNE_CONFIGS.glob("*.yaml")))
def test_a_shipped_sweep_is_sound(name: str) -> None:
    plan = load_sweep(TUNE_CONFIGS / name, [])
    for values in candidates(plan.config.space):
        config = plan.trial(values, 0, "trial")
        assert plan.values_in(config) == values


def test_a_trial_has_its_values_its_seed_and_its_number(tmp_path: Path) -> None:
    plan = _plan(tmp_path, DPO, "seed=7", "seeds=2", "train.max_steps=3")
    trial = trial_of({"method.beta": "3e-1", "seed": 1}, plan, tmp_path, "00004")
    assert isinstance(trial.config, PreferenceConfig) and trial.config.method.beta == 0.3
    assert trial.values == {"method.beta": 0.3}, "numbers that YAML takes for text are numbers in the report"
    assert (trial.config.seed, trial.seed, trial.number) == (1, 1, 4) and trial.config.train.max_steps == 3
    assert trial.folder == tmp_path / "runs" / "00004" and plan.seeds == [0, 1]


def test_overrides_go_where_they_belong(tmp_path: Path) -> None:
    plan = _plan(
        tmp_path, DPO, "seeds=3", "space.method.beta={log_uniform: [0.1, 1.0]}", "set.data.limit=9", "lora=null"
    )
    assert plan.config.seeds == 3 and plan.config.space["method.beta"].log_uniform == (0.1, 1.0)
    assert plan.base.data.limit == 9 and plan.base.lora is None  # type: ignore[union-attr]  # a preference config


@pytest.mark.parametrize(
    ("tree", "override", "message"),
    [
        (DPO, "space.method.betta={grid: [1.0]}", r"space method.betta = 1.0 has 1 mistake.*did you mean beta\?"),
        (DPO, "space.method.beta={grid: [-1.0]}", r"space method.beta = -1.0 .*greater than 0"),
        (DPO, "space.method.beta={uniform: [-1.0, 1.0]}", r"space method.beta = -1.0 "),
        (DPO, "space.method.beta={grid: []}", "at least 1 item"),
        (DPO, "space={}", "space: .*at least 1 item"),
        (DPO, "space.method.beta={uniform: [2.0, 1.0]}", r"uniform = \[2.0, 1.0\] is empty"),
        (DPO, "space.method.beta={uniform: [1.0, 2.0], grid: [1.0]}", "give exactly one of"),
        (DPO, "space.method.beta={grid: [1.0, 1.0]}", "grid names a value twice"),
        (DPO, "space.seed={grid: [1]}", "the seed is no value to vary"),
        (DPO, "set.method.beta=1.0", "method.beta is in `set` and in `space`"),
        (DPO, "trials=3", "trials above 1 would repeat the same grid"),
        (DPO, "search=optuna", "method.beta cannot be a grid"),
        (DPO, "metric=heldout_acuracy", r"metric = heldout_acuracy is nothing .* did you mean heldout_accuracy\?"),
        (DPO, "metric=reward_after", "metric = reward_after is nothing that a run of kind preference reports"),
        (DPO, "recipe=nothing.yaml", "nothing.yaml does not exist"),
        (DPO, "data.lmit=3", "unknown key; did you mean limit"),
        (DPO, "scheduler={type: asha}", "heldout_accuracy is known at the end only.*scheduler.metric"),
        (DPO, "scheduler={type: asha, metric: heldout/los}", "did you mean heldout/loss"),
        (DPO, "concurrent=0", "concurrent: should be greater than 0"),
        (DPO, "mood=max", r"unknown key; did you mean"),
        (PPO, "space.critic.learning_rate={uniform: [1.0e-5, 1.0e-3]}", None),
        (PPO, "train.eval_prompts=0", "train.eval_prompts = 0; set some 48"),
        (PPO, "scheduler={type: pbt, metric: reward/mean}", "pbt needs a population"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(
    tmp_path: Path, tree: dict[str, object], override: str, message: str | None
) -> None:
    if message is None:
        _plan(tmp_path, tree, override)
        return
    with pytest.raises(UserError) as caught:
        _plan(tmp_path, tree, override)
    assert re.search(message, str(caught.value), re.DOTALL), str(caught.value)


def test_a_value_that_nothing_reads_is_refused(tmp_path: Path) -> None:
    tree = PPO | {"recipe": "grpo.yaml", "space": {"critic.learning_rate": {"uniform": [1e-5, 1e-3]}}}
    with pytest.raises(UserError, match=r"critic.learning_rate has no effect: grpo's algorithm has no critic"):
        _plan(tmp_path, tree)


def test_pbt_is_for_online_runs_and_keeps_its_commits(tmp_path: Path) -> None:
    pbt = "scheduler={type: pbt, metric: heldout/loss, mode: min}"
    with pytest.raises(UserError, match="pbt works on online runs only"):
        _plan(tmp_path, DPO, pbt, "trials=4", "space.method.beta={uniform: [0.1, 1.0]}")
    plan = _plan(tmp_path, PPO, "scheduler={type: pbt, metric: reward/mean, every: 3}", "trials=4")
    train = plan.trial({"algorithm.clip_range": 0.2}, 0, "x").train
    assert train.checkpoint_every == 3 and train.keep_checkpoints >= 8 // 3 + 1


@pytest.mark.parametrize(
    ("space", "own"),
    [
        ({"algorithm.clip_range": {"grid": [0.1]}, "rollout.samples_per_prompt": {"grid": [2, 4]}}, set()),
        ({"rollout.temperature": {"grid": [0.5, 1.0]}}, {"rollout", "reference"}),
        ({"model.path": {"grid": ["smollm2-135m"]}}, {"rollout", "reference"}),
        ({"reward.sources.0.weight": {"grid": [0.5, 1.0]}}, {"reward"}),
        ({"reward.truncated.penalty": {"grid": [0.5, 1.0]}}, set()),
        ({"prompts.max_prompt_tokens": {"grid": [64, 96]}}, {"rollout"}),
    ],
)
def test_what_varies_is_not_shared(tmp_path: Path, space: dict[str, object], own: set[str]) -> None:
    plan = _plan(tmp_path, PPO | {"space": space})
    assert set(unshared(plan)) == own and set(shared_roles(plan)) == {"rollout", "reference", "reward"} - own
    assert all(next(iter(space)) in reason for reason in unshared(plan).values())


def test_rollouts_ahead_keep_their_engines(tmp_path: Path) -> None:
    plan = _plan(tmp_path, PPO, "train.max_lag=1", "algorithm.importance=token")
    assert isinstance(plan.base, RunConfig) and set(unshared(plan)) == {"rollout"}


def test_token_ids_are_shared_by_what_makes_the_same(tmp_path: Path) -> None:
    plan = _plan(tmp_path, DPO, "method.precompute_reference=true")
    one, two, other_seed = (
        plan.trial({"method.beta": beta}, seed, "x") for beta, seed in ((0.1, 0), (0.3, 0), (0.1, 1))
    )
    assert data_key(one) == data_key(two) != data_key(other_seed), "the seed decides which prompts are held out"  # type: ignore[arg-type]  # fixed data
    assert shared_roles(plan) == ["token ids", "reference log-probs"]
    longer = _plan(tmp_path, DPO, "data.max_tokens=99").trial({"method.beta": 0.1}, 0, "x")
    assert data_key(longer) != data_key(one)  # type: ignore[arg-type]  # fixed data


def test_a_cluster_that_holds_fewer_trials_is_named_with_how_many(tmp_path: Path) -> None:
    plan = _plan(tmp_path, PPO, "concurrent=3")
    has = {"CPUs": 9.0, "GPUs": 0.0, "GiB of memory": 64.0}
    check_room(plan, has)
    with pytest.raises(
        UserError, match=r"asks for 2 CPUs \(policy 1, critic 1\) beside 3 .* has 8, so it holds 2 at a time"
    ):
        check_room(plan, has | {"CPUs": 8.0})
    with pytest.raises(UserError, match=r"concurrent = 3: a trial asks for .* GiB of memory .* lower concurrent"):
        check_room(plan, has | {"GiB of memory": 2.0})
    own = _plan(tmp_path, PPO | {"space": {"rollout.temperature": {"grid": [0.5, 1.0]}}}, "concurrent=2")
    with pytest.raises(
        UserError, match=r"asks for 4 CPUs .*beside 1 that all share, and the cluster has 8.5, so it holds 1"
    ):
        check_room(own, has | {"CPUs": 8.5})
    gpus = _plan(
        tmp_path, PPO, "policy.gpus_per_worker=1", "critic.gpus_per_worker=1", "rollout.gpus=0.5", "concurrent=2"
    )
    with pytest.raises(UserError, match=r"asks for 2 GPUs \(policy 1, critic 1\) beside 0.5 .* has 4"):
        check_room(gpus, has | {"GPUs": 4.0})


def test_a_metric_that_nobody_reports_ends_the_sweep(tmp_path: Path) -> None:
    watch = Watch(_plan(tmp_path, DPO, "metric=beta_last"), Shared())
    steps, early = {"step": 3, "heldout/loss": 0.5}, {"step": 1, "heldout/loss": 0.7}
    assert pickle.loads(pickle.dumps(watch)) is watch, "Tune pickles it, and must get this one back"
    watch.on_trial_complete(0, [], _ended("00000", early))
    assert not watch.stop_all() and watch.complaint is None, "one that was ended early could not report it"
    watch.on_trial_complete(
        0, [], _ended("00001", steps | {"seconds_total": 1.0, "heldout_loss": 0.4, "beta_last": 0.1})
    )
    assert not watch.stop_all()
    watch.on_trial_complete(0, [], _ended("00002", steps | {"seconds_total": 1.0, "heldout_loss": 0.4}))
    assert watch.stop_all() and watch.complaint is not None
    assert (
        "no trial reports metric = beta_last; what trial 00002 reported: heldout/loss, heldout_loss" in watch.complaint
    )


def _ended(name: str, result: dict[str, float]) -> Any:
    """What a callback reads of Tune's trial."""

    class Told:
        config: ClassVar = {"method.beta": 0.1, "seed": 0}
        last_result = result

        def __str__(self) -> str:
            return name

    return Told()


def test_the_lease_has_one_holder_and_says_whose_weights_are_there() -> None:
    async def play() -> None:
        lease = Lease()
        assert not await lease.acquire("a#1"), "nobody's weights are there at first"
        assert await lease.acquire("a#1"), "the holder may ask again"
        waiting = asyncio.create_task(lease.acquire("b#1"))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await lease.release("a#1")
        assert not await waiting and await lease.holder() == "b#1"
        again = asyncio.create_task(lease.acquire("a#1"))
        await asyncio.sleep(0.01)
        await lease.release("b#1")
        assert not await again, "b has been there meanwhile"
        await lease.release("b#1")
        assert await lease.holder() == "a#1", "only the holder gives it back"

    asyncio.run(play())


def test_a_run_that_died_neither_holds_nor_gets_the_engines() -> None:
    async def play() -> None:
        lease = Lease()
        await lease.acquire("dead#1")
        queued = asyncio.create_task(lease.acquire("dead#2"))
        alive = asyncio.create_task(lease.acquire("alive#1"))
        await asyncio.sleep(0.01)
        await lease.bury("dead")
        assert not await asyncio.wait_for(alive, 1) and await lease.holder() == "alive#1"
        assert not await asyncio.wait_for(queued, 1)
        assert await lease.holder() == "alive#1", "the other attempt of the dead run did not take them"

    asyncio.run(play())
