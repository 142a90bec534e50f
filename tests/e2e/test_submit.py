"""`rlhf-ray submit` on a cluster of three nodes with tokens: clients that go, jobs that stop, nodes that die."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoTokenizer

from rlhf_ray.config import RunConfig
from rlhf_ray.config_file import dump_config, load_config
from rlhf_ray.data.prompts import ShuffledPrompts, load_prompts
from rlhf_ray.models.tiny import tiny_model
from rlhf_ray.rundir.commit import latest_commit
from rlhf_ray.rundir.rollout_table import read_rollouts
from tests.builders import interruptible, run_config
from tests.local_cluster import TOKEN, LocalCluster, local_cluster, token_environment

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "cluster.md"
STEPS, EVERY, PROMPTS, A_STEP = 14, 4, 24, 4
PATIENCE_S = 600
SHARE = 0.4
"""Of a CPU for each role, so that all fit on the node that is left. Ray starts a process in advance for each CPU."""
REWARD = """import time

def vowels(prompt, response, reference):
    time.sleep(0.15)  # a stop must come before the end of the run
    return sum(c in "aeiou" for c in response) / 10
"""


@dataclass(frozen=True)
class World:
    """A cluster, and a working directory with a run in it."""

    cluster: LocalCluster
    folder: Path

    def command(self, run: str, *words: str) -> list[str]:
        """The command of the guide, for the run `run` on this cluster."""
        (line,) = re.findall(r"^rlhf-ray (submit .*)$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
        places = {"http://127.0.0.1:8265": self.cluster.dashboard, "/shared/runs/first": str(self.folder / run)}
        guided = [places.pop(word, word) for word in shlex.split(line)]
        assert not places
        return [sys.executable, "-m", "rlhf_ray.cli.main", *guided, f"name={run}", *words]

    def submit(self, run: str, *words: str, token: str | None = TOKEN) -> subprocess.CompletedProcess[str]:
        """The same to its end."""
        return subprocess.run(
            self.command(run, *words),
            cwd=self.folder / "work",
            env=self._environment(token),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def start(self, run: str, log: str) -> subprocess.Popen[str]:
        """The same in the background; its output is in LOG."""
        with (self.folder / log).open("w") as file:
            return subprocess.Popen(
                self.command(run),
                cwd=self.folder / "work",
                env=self._environment(),
                stdout=file,
                stderr=file,
                text=True,
                preexec_fn=interruptible,
            )

    def said(self, log: str) -> str:
        """What it has said so far."""
        return (self.folder / log).read_text()

    def _environment(self, token: str | None = TOKEN) -> dict[str, str]:
        """Without the token of whoever runs the tests; the package is found from the working directory too."""
        return token_environment(token) | {"HOME": str(self.folder), "PYTHONPATH": str(ROOT)}

    def lines(self, run: str, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
        """The lines of a file of a run, so far."""
        file = self.folder / run / name
        return (
            [json.loads(line) for line in file.read_text().splitlines(True) if line.endswith("\n")]
            if file.exists()
            else []
        )

    def prompts(self, run: str) -> list[list[str]]:
        """The ids of the prompts of each step."""
        tables = sorted((self.folder / run / "rollouts").glob("step-*.parquet"))
        return [sorted(str(row["prompt_id"]) for row in read_rollouts(table)) for table in tables]

    def worker_node(self) -> str:
        """The node that has most of the run's actors and is not the head."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        url = f"{self.cluster.dashboard}/api/v0/actors?limit=1000&detail=1"
        found = httpx.get(url, headers=headers, timeout=60).json()["data"]["result"]["result"]
        nodes = Counter(
            one["node_id"] for one in found if one["state"] == "ALIVE" and one["required_resources"].get("CPU")
        )
        return str(max(nodes.keys() - {self.cluster.head}, key=nodes.__getitem__))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("submit")
    (folder / "work").mkdir()
    (folder / "work" / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": f"say {i}"}) + "\n" for i in range(PROMPTS))
    )
    (folder / "work" / "vowels.py").write_text(REWARD)
    config = run_config(
        tiny_model(folder / "tiny"),
        "prompts.jsonl",
        policy={"cpus_per_worker": SHARE},
        critic={"cpus_per_worker": SHARE},
        reference={"cpus": SHARE},
        reward={"cpus": SHARE, "sources": [{"type": "function", "path": "vowels:vowels"}]},
        rollout={"cpus": SHARE},
        train={"num_steps": STEPS, "prompts_per_step": A_STEP, "checkpoint_every": EVERY},
    )
    (folder / "work" / "run.yaml").write_text(dump_config(config))
    with local_cluster([1, 2, 2]) as cluster:
        yield World(cluster, folder)


def _until(true: Callable[[], object], client: subprocess.Popen[str], said: Callable[[], str]) -> None:
    """Waits while the client lives; if it does not, or for too long, fails with the end of what it `said`."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert client.poll() is None and time.monotonic() < deadline, said()[-8000:]
        time.sleep(0.05)


@dataclass(frozen=True)
class Story:
    """A run whose first client was killed, that lost a node, was stopped with Ctrl-C, and submitted again."""

    seen: int
    """Steps done when the second client had come and the node was killed."""
    stopped: int
    committed: int
    """The newest commit after the stop, and the last step of the metrics."""
    last: int
    third: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def story(world: World) -> Story:
    client = world.start("run", "first.log")
    _until(lambda: "Running entrypoint" in world.said("first.log"), client, partial(world.said, "first.log"))
    client.kill()
    client.wait(10)
    client, said = world.start("run", "second.log"), partial(world.said, "second.log")
    _until(lambda: len(world.lines("run")) > EVERY, client, said)
    seen = len(world.lines("run"))
    os.kill(world.cluster.raylets[world.worker_node()], signal.SIGKILL)
    _until(lambda: len(world.lines("run")) > seen + 2, client, said)
    client.send_signal(signal.SIGINT)
    stopped = client.wait(PATIENCE_S)
    commit = latest_commit(world.folder / "run" / "checkpoints")
    committed = int(commit.meta["step"]) if commit else 0
    return Story(seen, stopped, committed, len(world.lines("run")), world.submit("run"))


def test_a_job_outlives_the_machine_that_submitted_it(world: World, story: Story) -> None:
    """The same command again follows the job, from the beginning of its log."""
    said = world.said("second.log")
    assert "job run is running already" in said
    assert all(f"step {step}/{STEPS}" in said for step in range(1, story.seen + 1))


def test_a_run_goes_on_after_the_loss_of_a_node(world: World, story: Story) -> None:
    """Its actors are started on the other nodes; controller and inboxes are on the driver's."""
    events = world.lines("run", "events.jsonl")
    assert not [event for event in events if event["kind"] in ("lost", "restart")]
    assert [event for event in events if event["kind"] == "resume"] == events[-1:], "only after the stop"


def test_a_stopped_job_has_committed_its_last_step(world: World, story: Story) -> None:
    assert story.stopped == 130
    assert EVERY < story.committed == story.last < STEPS, "no step is lost"
    assert "stopping the job: its step ends and commits first" in world.said("second.log")


def test_submitted_again_it_goes_on_to_the_end(world: World, story: Story) -> None:
    assert story.third.returncode == 0, story.third.stdout + story.third.stderr
    assert "job run-2 is submitted" in story.third.stderr
    (resumed,) = [event["sentence"] for event in world.lines("run", "events.jsonl") if event["kind"] == "resume"]
    assert resumed == f"Continuing after step {story.committed}."
    assert json.loads((world.folder / "run" / "summary.json").read_text())["finished"]
    assert [line["step"] for line in world.lines("run")] == list(range(1, STEPS + 1))


def test_no_prompt_is_lost_and_none_is_used_twice(world: World, story: Story) -> None:
    """Loss, recovery, stop and resume do not change which prompts a step takes: those of the plan."""
    work = world.folder / "work"
    config = load_config(work / "run.yaml", [f"prompts.path={work / 'prompts.jsonl'}"])
    assert isinstance(config, RunConfig)
    tokenizer = AutoTokenizer.from_pretrained(config.model.path)
    plan = ShuffledPrompts(load_prompts(config.prompts, tokenizer, config.train.eval_prompts)[0], config.seed)
    used = world.prompts("run")
    assert used == [sorted(2 * [prompt.id for prompt in plan.take(A_STEP)]) for _ in range(STEPS)]
    epoch = [prompt for step in used[: PROMPTS // A_STEP] for prompt in set(step)]
    assert len(epoch) == len(set(epoch)) == PROMPTS


@pytest.mark.parametrize(
    ("token", "said"), [("wrong", "refuses the token"), (None, "asks for a token, and there is none")]
)
def test_a_wrong_or_missing_token(world: World, token: str | None, said: str) -> None:
    refused = world.submit("refused", token=token)
    assert refused.returncode == 2 and said in refused.stderr and "RAY_AUTH_TOKEN" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert not (world.folder / "refused").exists()
