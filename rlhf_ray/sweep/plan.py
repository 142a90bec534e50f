"""From a sweep file to the config of every trial; everything that can be known to be wrong is said here."""

from __future__ import annotations

import copy
import difflib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from rlhf_ray import metrics
from rlhf_ray.config import AnyConfig, RunConfig
from rlhf_ray.config_file import apply_override, config_of, dump_config, explain, find_recipe, read_tree, set_value
from rlhf_ray.errors import UserError
from rlhf_ray.sweep.config import Distribution, PBTConfig, SweepConfig, Value

FIGURES = {
    "online": (
        "reward_before", "reward_after", "reward_gain", "kl_to_reference_per_token", "perplexity_after",
        "distinct2_after", "truncated_after", "length_after",
    ),
    "preference": ("heldout_accuracy", "heldout_margin", "heldout_kl", "heldout_loss", "beta_last", "kl_last"),
    "reward": ("heldout_accuracy", "heldout_loss"),
    "sft": ("heldout_loss",),
}  # fmt: skip
"""What a finished run's summary.json may say, by kind."""
_MOST_CHECKED = 2000  # combinations of values; pydantic takes a fraction of a millisecond for each


@dataclass(frozen=True, slots=True)
class Plan:
    """A sweep that has been checked."""

    config: SweepConfig
    base: AnyConfig
    """The recipe with `set` laid over it."""
    tree: dict[object, object]
    """The same as it was written."""

    def trial(self, values: Mapping[str, object], seed: int, name: str) -> AnyConfig:
        """The config of one run: `values` by dotted path, and the seed that is `seed` after the recipe's."""
        tree = copy.deepcopy(self.tree)
        for path, value in values.items():
            set_value(tree, path, value, f"space {path}")
        tree |= {"seed": self.base.seed + seed, "name": name}
        self._between_commits(tree)
        return config_of(tree, "; ".join(f"space {path} = {value}" for path, value in values.items()))

    @property
    def seeds(self) -> list[int]:
        """Which seeds every configuration is run with."""
        return [self.base.seed + i for i in range(self.config.seeds)]

    @property
    def steps(self) -> int | None:
        """Steps of a trial, if the config says how many."""
        return self.base.train.num_steps if isinstance(self.base, RunConfig) else self.base.train.max_steps

    def values_in(self, config: AnyConfig) -> dict[str, Value]:
        """What `config` has at the paths of the space, as its fields read it (`1e-4` in YAML is a text)."""
        tree = config.model_dump(mode="json")
        return {path: _at(tree, path) for path in self.config.space}

    def recipe(self, values: Mapping[str, object]) -> str:
        """The recipe of these values as YAML, every default written out."""
        return dump_config(self.trial(values, 0, f"{self.config.name}-best"))

    def _between_commits(self, tree: dict[object, object]) -> None:
        """Population based training copies commits, so there must be one at every decision, and they must stay."""
        scheduler = self.config.scheduler
        if isinstance(scheduler, PBTConfig) and self.steps is not None:
            set_value(tree, "train.checkpoint_every", scheduler.every, "pbt")
            set_value(tree, "train.keep_checkpoints", self.steps // scheduler.every + 2, "pbt")


def load_sweep(path: Path, overrides: Sequence[str]) -> Plan:
    """The plan of the sweep file at `path`. An override `a.b=value` belongs to the sweep if it begins with one of its
    keys, and to the recipe otherwise. `UserError` for whatever could not run.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a sweep file such as tune_configs/dpo_beta.yaml")
    tree = read_tree(path)
    for override in overrides:
        _apply(tree, override)
    try:
        config = SweepConfig.model_validate(tree)
    except ValidationError as error:
        raise UserError("\n  ".join([f"{path} has mistakes:", *explain(error, SweepConfig)])) from None
    recipe = read_tree(find_recipe(config.recipe))
    for dotted, value in config.set.items():
        set_value(recipe, dotted, value, f"{path}: set {dotted}")
    laid = " with the values of `set`" if config.set else ""
    plan = Plan(config, config_of(recipe, f"{config.recipe}{laid}"), recipe)
    _check_space(plan, path)
    _check_metrics(plan, path)
    if isinstance(config.scheduler, PBTConfig) and not isinstance(plan.base, RunConfig):
        raise UserError(f"{path}: scheduler.type = pbt works on online runs only; {config.recipe} is {plan.base.kind}")
    return plan


def _apply(tree: dict[object, object], override: str) -> None:
    first, _, rest = override.partition("=")[0].partition(".")
    if first in ("space", "set") and rest:
        section = tree.setdefault(first, {})
        if isinstance(section, dict):
            parsed: dict[object, object] = {}
            apply_override(parsed, f"value={override.partition('=')[2]}")
            section[rest] = parsed["value"]
        return
    if first in SweepConfig.model_fields:
        apply_override(tree, override)
        return
    _apply(tree, f"set.{override}")


def candidates(space: Mapping[str, Distribution]) -> Iterator[dict[str, Value]]:
    """Combinations of what the values may be, of ranges both ends."""
    options = [one.values if one.values is not None else one.ends for one in space.values()]
    for values in itertools.islice(itertools.product(*options), _MOST_CHECKED):
        yield dict(zip(space, values, strict=True))


def _check_space(plan: Plan, file: Path) -> None:
    ignored = "critic" if isinstance(plan.base, RunConfig) and not plan.base.algorithm.needs_critic else None
    for path, one in plan.config.space.items():
        if path.partition(".")[0] == ignored:
            raise UserError(f"{file}: space {path} has no effect: {plan.base.name}'s algorithm has no critic")
        for value in one.values if one.values is not None else one.ends:
            tree = copy.deepcopy(plan.tree)
            where = f"{file}: space {path} = {value}"
            set_value(tree, path, value, where)
            config_of(tree, where)
    for values in candidates(plan.config.space):
        plan.trial(values, 0, plan.config.name)


def _check_metrics(plan: Plan, file: Path) -> None:
    kind, scheduler = plan.base.kind, plan.config.scheduler
    final, while_training = FIGURES[kind], sorted(_step_metrics())
    for key, name in (("metric", plan.config.metric), ("scheduler.metric", plan.config.early_metric[0])):
        if name not in final and not any(re.fullmatch(pattern, name) for pattern in while_training):
            known = [*final, *(pattern.replace(r"[a-z_0-9.-]+", "NAME") for pattern in while_training)]
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"at the end a run reports {', '.join(final)}"
            raise UserError(f"{file}: {key} = {name} is nothing that a run of kind {kind} reports; {hint}")
    if kind == "online" and plan.config.metric in final and not plan.base.train.eval_prompts:  # type: ignore[union-attr]
        raise UserError(
            f"{file}: metric = {plan.config.metric} is measured on held-out prompts, and train.eval_prompts = 0; "
            "set some 48 of them under `set`, or take reward/mean"
        )
    if scheduler is not None and plan.config.early_metric[0] in final:
        raise UserError(
            f"{file}: {plan.config.early_metric[0]} is known at the end only, so scheduler.type = {scheduler.type} "
            f"could end nothing early; set scheduler.metric to what is reported while training, such as "
            f"{'reward/mean' if kind == 'online' else 'heldout/loss with scheduler.mode: min'}"
        )


def _step_metrics() -> set[str]:
    """Patterns of the names that metrics.jsonl may have."""
    names = {value for key, value in vars(metrics).items() if key.isupper() and isinstance(value, str)}
    return {re.sub(r"\\\{\w+\\\}", "[a-z_0-9.-]+", re.escape(name)).replace(r"\-", "-") for name in names}


def _at(tree: object, path: str) -> Value:
    for part in path.split("."):
        tree = tree[int(part)] if isinstance(tree, list) else tree[part]  # type: ignore[index]  # `trial` set it
    assert tree is None or isinstance(tree, bool | int | float | str)  # what a distribution holds
    return tree
