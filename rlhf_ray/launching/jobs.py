"""Ray's Jobs service: reach it, start a job that nobody has to wait for, follow it, stop it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from rlhf_ray.errors import RunError, UserError

if TYPE_CHECKING:  # loads Ray
    from ray.job_submission import JobSubmissionClient

STOP_WAIT_S = 3600
"""From the signal that ends a job to the one that kills it: a step has to end and commit. Ray's own default is 3."""
_ANSWER_S = 10.0
_RECONNECT_S = 120.0
_TRIES = 4
_STARTING = "No available agent"
"""What a cluster says, after ten seconds, of which the head is still starting."""
_AUTH = "RAY_AUTH_MODE"
_TOKENS = "RAY_AUTH_TOKEN, the file in RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token"
_SECRET = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|KEY)S?$", re.IGNORECASE)
JOB_SETTINGS = {
    "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S),
    "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",  # what the run sets for its actors wins, where both set a variable
}


@dataclass(frozen=True, slots=True)
class Job:
    """What is submitted. `name` is the job's id, or the stem of it if the cluster has seen that id."""

    name: str
    entrypoint: str
    working_dir: Path
    env: Mapping[str, str]
    run_dir: Path


@dataclass(frozen=True, slots=True)
class Ended:
    """How a job ended: SUCCEEDED, FAILED or STOPPED, and the exit code of its command, if that ran."""

    status: str
    exit_code: int | None
    message: str


class Jobs:
    """The Jobs service of one cluster."""

    def __init__(self, client: JobSubmissionClient, secured: bool) -> None:
        """Use `connect`. `secured` says whether the cluster asks for a token."""
        self._client, self.secured = client, secured
        self.address = client.get_address()

    def submit(self, job: Job) -> tuple[str, bool]:
        """Starts `job`, or finds it running already; returns its id and whether it is new.

        `UserError` if a job of that name is running with another command.
        """
        taken = {known.submission_id: known for known in self._client.list_jobs() if known.submission_id}
        for name, known in taken.items():
            if known.status.is_terminal() or not re.fullmatch(rf"{re.escape(job.name)}(-\d+)?", name):
                continue
            if known.entrypoint == job.entrypoint:
                return name, False
            raise UserError(
                f"job {name} is running another command ({known.entrypoint}); stop it with `ray job stop {name}`, or "
                "give this one another --name"
            )
        names = itertools.chain([job.name], (f"{job.name}-{number}" for number in itertools.count(2)))
        fresh = next(name for name in names if name not in taken)
        for attempt in range(_TRIES):
            try:
                self._start(fresh, job)
                break
            except RuntimeError as error:
                if _STARTING not in str(error) or attempt == _TRIES - 1:
                    raise RunError(f"{self.address} did not take the job: {error}") from error
        return fresh, True

    def _start(self, name: str, job: Job) -> None:
        self._client.submit_job(
            entrypoint=job.entrypoint,
            submission_id=name,
            runtime_env={"working_dir": str(job.working_dir), "env_vars": {**JOB_SETTINGS, **job.env}},
            metadata={"run_dir": str(job.run_dir)},
        )

    def stop(self, job: str) -> None:
        """Asks `job` to end: its command gets a SIGTERM, and is killed if it has not ended after `STOP_WAIT_S`.

        `RunError` if the cluster does not take it.
        """
        try:
            self._client.stop_job(job)
        except (RuntimeError, OSError) as error:
            raise RunError(f"{self.address} did not take the stop, so job {job} goes on: {error}") from error

    def follow(self, job: str, log: LogTail) -> Ended:
        """Hands on the log of `job` until it is over, through lost connections. `RunError` if the cluster is lost."""
        from aiohttp import ClientError

        lost: float | None = None
        while True:
            try:
                asyncio.run(log.read(self._client, job))
                details = self._client.get_job_info(job)
                if details.status.is_terminal():
                    return Ended(str(details.status), details.driver_exit_code, details.message or "")
                lost = None
            except (RuntimeError, OSError, ClientError) as error:  # those of requests are OSErrors
                lost = lost or time.monotonic()
                if time.monotonic() - lost > _RECONNECT_S:
                    raise RunError(
                        f"the cluster has not answered for {_RECONNECT_S:.0f} s ({error}); unless it is gone, job "
                        f"{job} goes on, and the same command follows it again"
                    ) from error
            time.sleep(1)


class LogTail:
    """What of a job's log has been handed on: the service sends it from its beginning each time."""

    def __init__(self, write: Callable[[str], object]) -> None:
        """`write` gets what is new."""
        self._write = write
        self._seen = 0

    async def read(self, client: JobSubmissionClient, job: str) -> None:
        """Hands on the log until the job or the connection ends."""
        position = 0
        async for text in client.tail_job_logs(job):
            new = text[max(0, self._seen - position) :]
            position += len(text)
            if new:
                self._write(new)
            self._seen = max(self._seen, position)


def connect(address: str) -> Jobs:
    """The Jobs service at `address`, `[http[s]://]host:port` of a dashboard.

    `UserError` if nothing or something else answers there, if the token is missing or wrong, or if the cluster runs
    another version of Ray.
    """
    url = address.rstrip("/") if "://" in address else f"http://{address.rstrip('/')}"
    if not re.match(r"https?://[^/]", url):
        raise UserError(f"--address {address}: give the dashboard's, such as http://127.0.0.1:8265")
    secured = _asks_for_a_token(url)
    if secured:
        os.environ[_AUTH] = "token"  # before Ray is imported, which reads it once
    os.environ["RAY_API_SERVER_ADDRESS"] = url  # or RAY_ADDRESS would win over the address that was asked for
    logging.disable(logging.WARNING)  # Ray says what it uploads and that a log has ended
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(url)
    except AuthenticationError as error:
        if "Authentication failed" in str(error):
            raise UserError(f"{url} refuses the token; give the cluster's in {_TOKENS}") from None
        raise UserError(f"{url} asks for a token, and there is none; give the cluster's in {_TOKENS}") from None
    theirs, ours = client._server_ray_version, metadata.version("ray")
    if theirs != ours:
        raise UserError(f"{url} runs Ray {theirs}, but this is Ray {ours}: install the same version on both sides")
    return Jobs(client, secured)


def _asks_for_a_token(url: str) -> bool:
    """Whether the dashboard at `url` does; no token is shown to find out."""
    try:
        answer = httpx.get(f"{url}/api/version", timeout=_ANSWER_S)
        if answer.status_code in (401, 403):
            return True
        answer.json()["ray_version"]
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        raise UserError(
            f"no Ray dashboard answers at {url} ({reason}): is the cluster up, and that port reachable from here?"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{url} answers ({answer.status_code}), but not as a Ray dashboard: its port is 8265 unless somebody chose"
        ) from None
    return False


def passed(names: Sequence[str]) -> dict[str, str]:
    """The variables `names` of this environment; `UserError` for one that is not set, or that holds a secret."""
    secret = [name for name in names if _SECRET.search(name)]
    if secret:
        raise UserError(
            f"--env {secret[0]}: Ray writes a job's variables in its logs, so no secret is passed; set it on the "
            "nodes, or pass the path of a file on shared storage, such as HF_TOKEN_PATH"
        )
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise UserError(f"--env {missing[0]}: no such variable here; give the name of one that is exported")
    return {name: os.environ[name] for name in names}
