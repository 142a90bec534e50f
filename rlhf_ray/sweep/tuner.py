"""The sweep in Ray Tune's terms: search space, search algorithm, scheduler, and the tuner itself, new or restored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.repeater import Repeater

from rlhf_ray.actors.shared import Shared
from rlhf_ray.errors import UserError
from rlhf_ray.sweep.config import ASHAConfig, Distribution, MedianConfig, PBTConfig, SweepConfig
from rlhf_ray.sweep.plan import Plan
from rlhf_ray.sweep.trial import SEED, run_trial
from rlhf_ray.sweep.watch import Watch

EXPERIMENT = "tune"
_TRIAL_CPU = 0.01  # a trial's actor waits for others; what computes asks for itself
_FAILURES = 1  # a trial that lost a process goes on from its newest commit, this often
_ENDLESS = 10**9


def make_tuner(plan: Plan, sweep_dir: Path, command: str, shared: Shared, watch: Watch) -> tune.Tuner:
    """A tuner for a sweep that has not started."""
    config = plan.config
    trainable = _trainable(plan, sweep_dir, command, shared)
    optuna = config.search == "optuna"
    space: dict[str, Any] = {path: _domain(one) for path, one in config.space.items()}
    if not optuna:
        space[SEED] = tune.grid_search(list(range(config.seeds)))
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            search_alg=_optuna(config)
            if optuna
            else BasicVariantGenerator(
                constant_grid_search=True, random_state=config.seed, max_concurrent=config.concurrent
            ),
            scheduler=_scheduler(plan),
            num_samples=config.trials * (config.seeds if optuna else 1),
            max_concurrent_trials=config.concurrent if optuna else None,
            time_budget_s=None if config.budget_minutes is None else 60 * config.budget_minutes,
            reuse_actors=True,
            trial_name_creator=_number,
            trial_dirname_creator=_number,
        ),
        run_config=tune.RunConfig(
            name=EXPERIMENT,
            storage_path=str(sweep_dir),
            failure_config=tune.FailureConfig(max_failures=_FAILURES),
            callbacks=[watch],
            stop=watch,
            verbose=0,
        ),
    )


def restore_tuner(plan: Plan, sweep_dir: Path, command: str, shared: Shared) -> tune.Tuner:
    """The tuner of a sweep whose driver died or that was stopped. Finished trials stay as they are, the others go on
    from their newest commits."""
    path = sweep_dir / EXPERIMENT
    if not tune.Tuner.can_restore(str(path)):
        raise UserError(f"{path} has no state of Ray Tune: the sweep ended before it began; remove {sweep_dir}")
    return tune.Tuner.restore(str(path), _trainable(plan, sweep_dir, command, shared), resume_errored=True)


def _number(trial: Trial) -> str:
    return str(trial.experiment_tag).partition("_")[0].zfill(5)


def _trainable(plan: Plan, sweep_dir: Path, command: str, shared: Shared) -> Any:
    function = tune.with_parameters(run_trial, plan=plan, sweep_dir=sweep_dir, command=command, shared=shared)
    return tune.with_resources(function, {"cpu": _TRIAL_CPU})


def _domain(one: Distribution) -> Any:
    if one.grid is not None:
        return tune.grid_search(list(one.grid))
    if one.choice is not None:
        return tune.choice(list(one.choice))
    if one.integer is not None:
        low, high = one.integer
        return tune.randint(low, high + 1)
    if one.log_uniform is not None:
        return tune.loguniform(*one.log_uniform)
    return tune.uniform(*one.ends)


def _optuna(config: SweepConfig) -> Repeater | OptunaSearch:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search = OptunaSearch(metric=config.metric, mode=config.mode, seed=config.seed)
    return Repeater(search, repeat=config.seeds) if config.seeds > 1 else search


def _scheduler(plan: Plan) -> TrialScheduler:
    scheduler = plan.config.scheduler
    metric, mode = plan.config.early_metric
    common: dict[str, Any] = {"time_attr": "step", "metric": metric, "mode": mode}
    if isinstance(scheduler, ASHAConfig):
        most = _ENDLESS if plan.steps is None else plan.steps
        return AsyncHyperBandScheduler(
            max_t=most, grace_period=scheduler.grace, reduction_factor=scheduler.factor, **common
        )
    if isinstance(scheduler, MedianConfig):
        return MedianStoppingRule(
            grace_period=scheduler.grace, min_samples_required=scheduler.min_trials, hard_stop=True, **common
        )
    if isinstance(scheduler, PBTConfig):
        return PopulationBasedTraining(
            perturbation_interval=scheduler.every,
            quantile_fraction=scheduler.quantile,
            hyperparam_mutations={path: _domain(one) for path, one in plan.config.space.items()},
            synch=True,
            **common,
        )
    return FIFOScheduler()
