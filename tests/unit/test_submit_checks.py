"""What `rlhf-ray submit` finds wrong before anything starts, and how it reads a job's log and end. No cluster."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobStatus

from rlhf_ray.cli import submit as submit_cli
from rlhf_ray.cli.main import main
from rlhf_ray.cli.submit import Where
from rlhf_ray.errors import GateError, RunError, UserError
from rlhf_ray.launching import jobs, upload
from rlhf_ray.launching.jobs import Ended, Job, Jobs, LogTail, connect, passed

RUN = "name: a\nprompts: {path: demo}\nreward: {sources: [{type: function, path: 'builtins:len'}]}\n"
NOBODY = "http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`connect` sets variables that Ray reads, and quiets its logs."""
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_ADDRESS"):
        monkeypatch.setenv(name, "")
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def site() -> Iterator[Any]:
    """A server on loopback: set `answer` to (status, body), and read `asked`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.asked.append(dict(self.headers))
            self.send_response(server.answer[0])
            self.end_headers()
            self.wfile.write(server.answer[1].encode())

        def log_message(self, *arguments: object) -> None:
            pass

    server: Any = HTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def _url(site: Any) -> str:
    return f"http://127.0.0.1:{site.server_port}"


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "auto://", "http://", "ftp://there:8265"])
def test_an_address_of_another_kind(address: str) -> None:
    with pytest.raises(UserError, match=r"give the dashboard's, such as http://127.0.0.1:8265"):
        connect(address)


@pytest.mark.parametrize("address", [NOBODY, "127.0.0.1:1", "http://no-such-host.invalid:8265"])
def test_an_address_that_does_not_answer(address: str) -> None:
    with pytest.raises(UserError, match=r"no Ray dashboard answers at http://.* is the cluster up"):
        connect(address)


@pytest.mark.parametrize("answer", [(200, "<html>"), (200, "[]"), (404, "no"), (200, '{"version": "4"}')])
def test_something_else_answers(site: Any, answer: tuple[int, str]) -> None:
    site.answer = answer
    with pytest.raises(UserError, match=f"answers \\({answer[0]}\\), but not as a Ray dashboard"):
        connect(_url(site))


def test_another_version_of_ray(site: Any) -> None:
    site.answer = (200, json.dumps({"version": "4", "ray_version": "2.9.3"}))
    with pytest.raises(UserError, match=r"runs Ray 2.9.3, but this is Ray .*: install the same version on both sides"):
        connect(_url(site))


def test_no_token_is_shown_to_a_site_that_does_not_ask(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the-secret-of-another-cluster")
    site.answer = (200, "<html>")
    with pytest.raises(UserError):
        connect(_url(site))
    assert site.asked and not [request for request in site.asked if "secret" in str(request)]


def test_a_folder_over_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted by Ray's own rules; what they leave out does not count."""
    monkeypatch.setattr("ray._private.ray_constants.DASHBOARD_CLIENT_MAX_SIZE", 5 * 2**20)
    for name, mib in (("data.bin", 3), ("models/a/weights", 2), ("left-out/x", 9), (".venv/y", 9), ("runs/z", 9)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(mib * 2**20))
    (tmp_path / ".gitignore").write_text("left-out/\n")
    (tmp_path / ".rayignore").write_text("runs\n")
    with pytest.raises(UserError) as error:
        upload.check_upload(tmp_path)
    assert "holds 5 MiB, and Ray's Jobs service takes 5 MiB. The biggest: data.bin 3 MiB, models 2 MiB." in str(
        error.value
    )
    assert ".rayignore" in str(error.value)
    (tmp_path / ".rayignore").write_text("runs\nmodels\n")
    upload.check_upload(tmp_path)
    with pytest.raises(UserError, match="is no folder"):
        upload.check_upload(tmp_path / "data.bin")


def test_what_is_counted_is_what_ray_packs(tmp_path: Path) -> None:
    from zipfile import ZipFile

    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    for name in ("a.py", "b/c.py", "b/skip.log", ".git/config", "d/e/f.txt", "d/.rayignore"):
        (tmp_path / "w" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "w" / name).write_text(name * 10)
    (tmp_path / "w" / ".gitignore").write_text("*.log\n")
    (tmp_path / "w" / "d" / ".rayignore").write_text("e/\n")
    excludes = get_runtime_env_default_excludes()
    create_package(str(tmp_path / "w"), tmp_path / "p.zip", include_gitignore=True, excludes=excludes)
    packed = {info.filename: info.file_size for info in ZipFile(tmp_path / "p.zip").infolist() if not info.is_dir()}
    assert sum(upload.upload_sizes(tmp_path / "w").values()) == sum(packed.values()) > 0
    assert not [name for name in packed if "skip" in name or "f.txt" in name or ".git/" in name]


@pytest.mark.parametrize("name", ["HF_TOKEN", "RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "my_api_key"])
def test_no_secret_is_passed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "hf_secret")
    with pytest.raises(UserError, match="no secret is passed") as error:
        passed([name])
    assert "hf_secret" not in str(error.value)


def test_variables_are_passed_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN_PATH", "/shared/token")
    monkeypatch.delenv("NOT_THERE", raising=False)
    assert passed(["HF_TOKEN_PATH"]) == {"HF_TOKEN_PATH": "/shared/token"} and passed([]) == {}
    with pytest.raises(UserError, match="--env NOT_THERE: no such variable here"):
        passed(["HF_TOKEN_PATH", "NOT_THERE"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["demo.yaml", "--run-dir", "runs/x"], "give an absolute path"),
        (["demo.yaml", "train.num_stesp=3"], "did you mean num_steps?"),
        (["demo.yaml", "placement.address=10.0.0.1:6379"], "joins the cluster that it is submitted to"),
        (["elsewhere.yaml", "--working-dir", "work"], "is not below --working-dir work"),
        (["demo.yaml", "--env", "HF_TOKEN"], "no secret is passed"),
        (["demo.yaml"], "no Ray dashboard answers"),
        (["absent.yaml"], "does not exist"),
    ],
)
def test_errors_before_anything_starts(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work").mkdir()
    (tmp_path / "elsewhere.yaml").write_text(RUN)
    run_dir = [] if "--run-dir" in words else ["--run-dir", str(tmp_path / "run")]
    assert main(["submit", *words, "--address", NOBODY, *run_dir]) == 2
    assert said in capsys.readouterr().err


def test_the_command_on_the_cluster(tmp_path: Path) -> None:
    """The same whenever the run is submitted, so that it starts or resumes; what has spaces stays one word."""
    from rlhf_ray.config_file import load_config

    (tmp_path / "my runs").mkdir()
    file = tmp_path / "my runs" / "a.yaml"
    file.write_text(RUN)
    where = Where("x", Path("/shared/runs/a"), tmp_path, None, (), 2)
    job = submit_cli._job(str(file), ["name=b c"], load_config(file), where)
    assert job.entrypoint == (
        "exec python -m rlhf_ray.cli.main train 'my runs/a.yaml' 'name=b c' --run-dir /shared/runs/a "
        "--resume-if-exists --max-failures 2"
    )
    assert job.name == "a" and job.env == {}


class _Client:
    """Of Ray's, what `Jobs` uses."""

    def __init__(self, known: dict[str, tuple[JobStatus, str]]) -> None:
        self.known, self.submitted, self.refuse = known, dict[str, Any](), list[str]()

    def get_address(self) -> str:
        return NOBODY

    def list_jobs(self) -> list[Any]:
        def details(name: str) -> Any:
            status, entrypoint = self.known[name]
            return type("Details", (), {"submission_id": name, "status": status, "entrypoint": entrypoint})

        return [details(name) for name in self.known]

    def submit_job(self, **arguments: Any) -> None:
        if self.refuse:
            raise RuntimeError(self.refuse.pop())
        self.submitted = arguments

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        for text in ("one\n", "two\n", "three\n"):
            yield text


def _job(name: str = "a", entrypoint: str = "run it") -> Job:
    return Job(name, entrypoint, Path("."), {"MINE": "1"}, Path("/shared/run"))


def test_ids_of_jobs_follow_the_name() -> None:
    done, running = JobStatus.FAILED, JobStatus.RUNNING
    client: Any = _Client(
        {"a": (done, "run it"), "a-2": (done, "run it"), "ab": (running, "other"), "a-b": (running, "o")}
    )
    assert Jobs(client, True).submit(_job()) == ("a-3", True)
    assert client.submitted["runtime_env"]["env_vars"]["MINE"] == "1"
    wait = int(client.submitted["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"])
    assert wait >= 1800, "a step may take as long as train.deadline_s, and commits after it"


def test_a_job_that_is_running_is_followed_or_in_the_way() -> None:
    client: Any = _Client({"a": (JobStatus.FAILED, "run it"), "a-2": (JobStatus.RUNNING, "run it")})
    assert Jobs(client, True).submit(_job()) == ("a-2", False) and not client.submitted
    with pytest.raises(UserError, match="job a-2 is running another command"):
        Jobs(client, True).submit(_job(entrypoint="run it otherwise"))


def test_a_head_that_is_still_starting_is_asked_again() -> None:
    client: Any = _Client({})
    client.refuse = ["No available agent to submit job"] * (jobs._TRIES - 1)
    assert Jobs(client, True).submit(_job()) == ("a", True)
    client.refuse = ["anything else"]
    with pytest.raises(RunError, match="did not take the job: anything else"):
        Jobs(client, True).submit(_job())


def test_a_log_is_shown_once_however_often_it_is_read() -> None:
    client: Any = _Client({})
    shown: list[str] = []
    log = LogTail(shown.append)
    for _ in range(3):
        asyncio.run(log.read(client, "a"))
    assert "".join(shown) == "one\ntwo\nthree\n"


@pytest.mark.parametrize(
    ("ended", "error"),
    [
        (Ended("FAILED", 1, "..."), RunError),
        (Ended("FAILED", 2, "..."), UserError),
        (Ended("FAILED", 3, "..."), GateError),
        (Ended("FAILED", None, "the working directory was not there"), RunError),
        (Ended("STOPPED", None, ""), RunError),
    ],
)
def test_a_job_ends_with_the_exit_code_of_its_command(ended: Ended, error: type[Exception]) -> None:
    with pytest.raises(error):
        submit_cli._outcome("a", ended, Path("/shared/run"))
    assert submit_cli._outcome("a", Ended("SUCCEEDED", 0, ""), Path("/shared/run")) == "SUCCEEDED"
