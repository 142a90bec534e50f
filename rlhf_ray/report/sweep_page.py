"""`report.html` of a sweep: what to take and how sure that is, what it cost, and what each parameter does."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from rlhf_ray.report.content import Verdict
from rlhf_ray.report.facts import Tile, duration, figure, number, plural, split
from rlhf_ray.report.html import render
from rlhf_ray.report.sweep import Recommendation, Sweep, cells, columns, read_sweep, recommended
from rlhf_ray.report.sweep_charts import effect_pictures, front_picture
from rlhf_ray.report.sweep_curves import curve_chart
from rlhf_ray.report.sweep_parallel import parallel_picture
from rlhf_ray.report.sweep_ranking import Configuration
from rlhf_ray.report.sweep_trials import State
from rlhf_ray.report.sweep_words import in_words, mean_text, text_of
from rlhf_ray.rundir.commit import replace_file
from rlhf_ray.rundir.lines import finite

_NAMED = 2  # parameters whose best values fit into the headline
_STATES: tuple[tuple[State, str], ...] = (
    ("finished", "finished"), ("stopped", "stopped early"), ("running", "unfinished"), ("failed", "failed"),
)  # fmt: skip
_TONES = {"up": "Clearly the best", "same": "Not clearly the best", "unknown": "Not known to be the best"}


@dataclass(frozen=True, slots=True)
class Link:
    """To the page of a trial's run, relative to the sweep's."""

    trial: int
    seed: int
    href: str


def write_sweep_report(path: Path) -> Path:
    """Writes `report.html` into the folder `path` of a sweep, finished or not, and returns the file's path.

    `UserError` as `read_sweep`.
    """
    sweep = read_sweep(path)
    advice, curves, front, parallel = (
        recommended(sweep),
        curve_chart(sweep),
        front_picture(sweep),
        parallel_picture(sweep),
    )
    effects = effect_pictures(sweep)
    pictures = [picture for picture in (front, parallel, *effects) if picture is not None]
    told, missing = split(tiles(sweep))
    variables = {
        "plan": sweep.plan,
        "headline": headline(sweep),
        "verdict": verdict(sweep, advice),
        "notices": notices(sweep),
        "tiles": told,
        "missing": missing,
        "sharing": sharing(sweep.files.cost),
        "columns": columns(sweep),
        "rows": list(zip(cells(sweep), map(links, sweep.configurations), strict=True)),
        "curves": curves,
        "front": front,
        "parallel": parallel,
        "effects": effects,
        "advice": [] if advice is None else [(name, text_of(value)) for name, value in advice.values.items()],
        "train": _train(path),
        "pictures": finite([{"id": one.id, "kind": one.kind, "data": one.data} for one in pictures]),
    }
    file = path / "report.html"
    replace_file(file, render("sweep.html.j2", [] if curves is None else [curves], variables))
    return file


def headline(sweep: Sweep) -> str:
    """The best figure and whose it is, or why there is none."""
    plan, complete = sweep.plan, sweep.complete
    if not sweep.trials:
        return "No trial has begun"
    if sweep.unreported:
        return f"No trial reported {plan.metric}"
    mean = complete[0].mean if complete else None
    if mean is None:
        return "No configuration has finished with all its seeds"
    best = complete[0]
    where = (
        f" with {in_words(best.values)}"
        if len(best.values) <= _NAMED
        else f", of {plural(len(complete), 'configuration')}"
    )
    return f"Best {plan.metric}: {mean_text(mean).replace('(', '(95% interval ', 1)}{where}"


def verdict(sweep: Sweep, advice: Recommendation | None) -> Verdict:
    """How sure the headline is."""
    if advice is None:
        return Verdict(
            "unknown", "Nothing to recommend", "Only a configuration that finished with all its seeds can be."
        )
    note = ""
    if len(sweep.complete) > 1:
        note = " The best of several means is partly so by luck: new seeds will bring it a little closer to the others."
    return Verdict(advice.tone, _TONES[advice.tone], advice.sureness + note)


def notices(sweep: Sweep) -> list[str]:
    """What a reader must know before believing anything."""
    plan, found = sweep.plan, []
    counts = {state: sum(trial.state == state for trial in sweep.trials) for state, _ in _STATES}
    if counts["running"]:
        going = f" Go on with it: {plan.command} --resume" if plan.command and "--resume" not in plan.command else ""
        found.append(f"{plural(counts['running'], 'trial')} unfinished: the sweep is under way, or was ended.{going}")
    if sweep.files.unknown:
        found.append(f"Ended before they began: {', '.join(sweep.files.unknown)} in runs.")
    if sweep.unreported:
        names = ", ".join(sweep.reported) or "nothing"
        found.append(f"The metric {plan.metric} is in no trial's summary.json or metrics.jsonl. Reported: {names}.")
    if counts["failed"]:
        found.append(f"{plural(counts['failed'], 'trial')} failed; the table has the reason.")
    if plan.scheduler == "pbt":
        found.append(
            "Population based training changes values while training; shown are those that a trial ended with."
        )
    return found


def tiles(sweep: Sweep) -> list[Tile | str]:
    """Key figures of result and cost."""
    plan, trials, cost = sweep.plan, sweep.trials, sweep.files.cost
    counts = [(sum(trial.state == state for trial in trials), word) for state, word in _STATES]
    states = ", ".join(f"{count} {word}" for count, word in counts if count) or "none has begun"
    total = len(sweep.configurations)
    finished = f"finished with {plural(len(plan.seeds), 'seed')}"
    found: list[Tile | str] = [
        Tile("Trials", f"{len(trials)}", states),
        Tile("Configurations", f"{len(sweep.complete)} of {total}", finished),
        figure(
            cost, "Total time", "seconds", duration, "since it was resumed" if cost.get("resumed") else "wall clock"
        ),
    ]
    core = number(cost, "core_seconds")
    if core is None or not trials:
        found.append("Cost of a trial (core_seconds)")
    elif cost.get("resumed"):
        found.append(Tile("Cost", f"{core:,.0f} core-s", "since the sweep was resumed"))
    else:
        found.append(Tile("Cost of a trial", f"{core / len(trials):,.0f} core-s", "mean over all trials"))
    found.append(figure(cost, "Peak memory", "peak_rss_gib", "{:.1f} GiB".format, "all processes together"))
    return found


def sharing(cost: Mapping[str, object]) -> list[str]:
    """What trials had in common and what not, a sentence each."""
    shared, not_shared = cost.get("shared"), cost.get("not_shared")
    found = []
    if isinstance(shared, list):
        found.append(f"Shared by all trials: {', '.join(map(str, shared)) or 'nothing'}.")
    if isinstance(not_shared, Mapping):
        found += [f"Each trial has its own {role}: {str(reason).rstrip('.')}." for role, reason in not_shared.items()]
    return found


def links(configuration: Configuration) -> list[Link]:
    """The pages of its runs that are there."""
    return [
        Link(trial.number, trial.seed, f"runs/{quote(trial.folder.name)}/report.html")
        for trial in configuration.trials
        if (trial.folder / "report.html").is_file()
    ]


def _train(path: Path) -> str | None:
    recipe = path / "recommended.yaml"
    return shlex.join(["rlhf-ray", "train", str(recipe)]) if recipe.is_file() else None
