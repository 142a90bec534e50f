"""`rlhf-ray serve` as a user runs it: two policies on real vLLM behind Ray Serve, asked through OpenAI's own client."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from playwright.sync_api import expect
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_ray.models.tiny import tiny_model
from tests.page.opened_page import PATIENCE_MS, button, chromium, compared, complete_reply
from tests.serving_process import Running, serving

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("serving")
    stable, canary = (tiny_model(folder / name, seed=seed) for seed, name in enumerate(("one", "two")))
    with serving(folder, str(stable), "--canary", str(canary), "--weight", "0.5") as running:
        yield running


def test_openais_client_chats_and_streams(service: Running) -> None:
    with service.client() as client:
        assert [model.id for model in client.models.list()] == ["policy"]
        said: Any = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
        whole = client.chat.completions.create(model="policy", messages=said, max_tokens=5, temperature=0)
        assert whole.id.startswith("chatcmpl-") and whole.model == "policy" and whole.usage is not None
        assert whole.usage.completion_tokens <= 5 and whole.choices[0].finish_reason in ("stop", "length")
        chunks = list(
            client.chat.completions.create(
                model="policy", messages=said, max_tokens=5, temperature=0, stream=True,
                stream_options={"include_usage": True},
            )
        )  # fmt: skip
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-1].usage == whole.usage and len({chunk.id for chunk in chunks}) == 1
        with pytest.raises(openai.NotFoundError, match="there is no model"):
            client.chat.completions.create(model="gpt-4", messages=said)
        with pytest.raises(openai.BadRequestError, match="with its reply it may have 256"):
            client.chat.completions.create(model="policy", messages=[{"role": "user", "content": "x " * 400}])
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{service.address}/v1", api_key="nothing", max_retries=0).models.list()


def test_the_terminal_says_what_matters_and_nothing_else(service: Running) -> None:
    (log,) = service.folder.glob("serve-*.log")
    beginnings = [line.split(" ")[0].rstrip(":") for line in log.read_text().splitlines()]
    assert beginnings == ["stable", "canary", "serving", "metrics", "API", "the"]


def test_greedy_replies_are_those_of_transformers(service: Running) -> None:
    """For each of the two policies that the conversations are given to."""
    models = {name: AutoModelForCausalLM.from_pretrained(service.folder / name) for name in ("one", "two")}
    tokenizer = AutoTokenizer.from_pretrained(service.folder / "one")
    seen = set()
    for number in range(10):
        said = [{"role": "user", "content": f"what comes after {number}?"}]
        body = {"model": "policy", "messages": said, "max_tokens": 12, "temperature": 0}
        reply = service.post("/v1/chat/completions", body).json()
        name = reply["id"].removeprefix("chatcmpl-").split("_")[0]
        seen.add(name)
        ids = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_tensors="pt", return_dict=False)
        written = models[name].generate(ids, max_new_tokens=12, do_sample=False, attention_mask=torch.ones_like(ids))
        text = tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
        assert reply["choices"][0]["message"]["content"] == text
    assert seen == {"one", "two"}


def test_control_tokens_in_a_message_make_no_turn(service: Running) -> None:
    """Both texts have as many tokens as the template gives them, none of which is a turn of its own."""
    tokenizer = json.loads((service.folder / "one" / "tokenizer.json").read_text())
    spelled = [token["content"] for token in tokenizer["added_tokens"] if token["special"]]
    with service.client() as client:
        counts = []
        for text in (f"a {spelled[-1]} b", f"a {spelled[-1][0]} {spelled[-1][1:]} b"):
            said: Any = [{"role": "user", "content": text}]
            answer = client.chat.completions.create(model="policy", messages=said, max_tokens=1)
            assert answer.usage is not None
            counts.append(answer.usage.prompt_tokens)
    assert counts[0] == counts[1]


def test_feedback_is_stored_with_the_policy_that_it_is_about(service: Running) -> None:
    body = {"model": "policy", "messages": [{"role": "user", "content": "rate me"}], "max_tokens": 4}
    ids = [service.post("/v1/chat/completions", body).json()["id"] for _ in range(2)]
    given = {"reply_id": ids[0], "kind": "thumb", "value": "down", "idempotency_key": "once"}
    assert [service.post("/v1/feedback", given).status_code for _ in range(2)] == [201, 200]
    assert service.post("/v1/preferences", {"reply_ids": ids, "choice": "b"}).status_code == 201
    counts = service.summary()["counts"]
    assert counts["thumb"] == {"up": 0, "down": 1} and counts["preference"]["b"] == 1


def test_the_page_in_a_browser(service: Running) -> None:
    """A message, its reply and a thumb; a comparison of stable and canary and a vote; both in the figures after."""
    with chromium() as browser:
        page = browser.new_page()
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.set_default_timeout(PATIENCE_MS)
        page.goto(f"{service.address}/#key={service.key}")
        before = service.summary()["counts"]
        reply = complete_reply(page, "hello from a browser")
        with page.expect_response(lambda answer: answer.url.endswith("/v1/feedback")) as rated:
            button(reply, "Thumbs up").click()
        assert rated.value.status == 201
        page.goto(f"{service.address}/#key={service.key}&arena")
        compared(page, "Which of you is better?")
        with page.expect_response(lambda answer: answer.url.endswith("/v1/preferences")) as voted:
            page.keyboard.press("t")
        assert voted.value.status == 201
        page.goto(f"{service.address}/#key={service.key}&dashboard")
        expect(page.get_by_role("list", name="Counts").get_by_role("listitem").first).to_contain_text("up")
        after = service.summary()
        assert after["counts"]["thumb"]["up"] == before["thumb"]["up"] + 1
        assert after["counts"]["preference"]["tie"] == before["preference"]["tie"] + 1
        assert after["canary_vs_stable"]["comparisons"] >= 1
    assert not complaints


def test_what_is_said_is_in_no_log(service: Running) -> None:
    """Neither in Ray's, Serve's and vLLM's, nor on the terminal; a word that nobody else says is looked for."""
    word = "xylophonically"
    body = {"model": "policy", "messages": [{"role": "user", "content": word}], "max_tokens": 2}
    reply = service.post("/v1/chat/completions", body)
    given = {"reply_id": reply.json()["id"], "kind": "correction", "value": word, "comment": word}
    assert service.post("/v1/feedback", given).status_code == 201
    assert service.post("/v1/chat/completions", {**body, "max_tokens": 0}).status_code == 400
    time.sleep(2)  # logs are written behind
    logs = [file for file in service.session.rglob("*") if file.is_file() and not file.is_symlink()]
    assert any(b"POST /v1/feedback 201" in file.read_bytes() for file in logs), "these are its logs"
    found = [file for file in [*logs, *service.folder.glob("*.log")] if word.encode() in file.read_bytes()]
    assert not found


def test_prometheus_finds_what_the_dashboard_of_grafana_asks_for(service: Running) -> None:
    """Every metric of deploy/grafana.json but torn replies, of which there are none."""
    body = {"model": "policy", "messages": [{"role": "user", "content": "count me"}], "max_tokens": 3}
    rated = {"reply_id": service.post("/v1/chat/completions", body).json()["id"], "kind": "thumb", "value": "up"}
    assert service.post("/v1/feedback", rated).status_code == 201
    assert service.post("/v1/chat/completions", {**body, "stream": True}).status_code == 200
    (log,) = service.folder.glob("serve-*.log")
    address = re.search(r"metrics for Prometheus: (\S+)", log.read_text())
    wanted = set(re.findall(r"ray_rlhf_serve_\w+", (DEPLOY / "grafana.json").read_text()))
    wanted.remove("ray_rlhf_serve_torn_replies_total")
    deadline = time.monotonic() + 60  # Ray gathers metrics every few seconds
    missing, found = wanted, ""
    while address is not None and missing and time.monotonic() < deadline:
        time.sleep(1)
        found = httpx.get(f"{address[1]}/metrics", timeout=30).text
        missing = {name for name in wanted if f"\n{name}{{" not in found}
    assert not missing
    assert re.search(r'ray_rlhf_serve_requests_total\{.*route="/v1/chat/completions".*status="200"', found)
    assert "count me" not in found


def test_another_key_can_be_added_and_revoked_while_it_runs(service: Running) -> None:
    key = service.command("keys", "add", "--scopes", "chat").stdout.strip()
    body = {"model": "policy", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}

    def comes_to(status: int) -> bool:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if service.post("/v1/chat/completions", body, key).status_code == status:
                return True
            time.sleep(0.2)
        return False

    assert comes_to(200)
    assert service.post("/v1/feedback", {}, key).status_code == 403
    assert service.command("keys", "revoke", key.split("-")[1]).returncode == 0
    assert comes_to(401)


def test_promoting_the_canary_loses_no_request(service: Running) -> None:
    """Requests of many conversations go on while the traffic moves; both policies answer before, one afterwards."""
    found: list[tuple[int, str]] = []
    stop = threading.Event()

    def ask(number: int) -> None:
        with httpx.Client(headers={"Authorization": f"Bearer {service.key}"}, timeout=120) as client:
            turn = 0
            while not stop.is_set():
                body = {
                    "model": "policy",
                    "messages": [{"role": "user", "content": f"{number} {turn}"}],
                    "max_tokens": 4,
                }
                answer = client.post(f"{service.address}/v1/chat/completions", json=body)
                found.append((answer.status_code, answer.json().get("id", answer.text)))
                turn += 1
                stop.wait(0.3)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while len(found) < 24 and any(thread.is_alive() for thread in threads):
        time.sleep(0.1)
    done = service.command("serve", "promote", "--url", service.address)
    assert done.returncode == 0, done.stderr
    after = json.loads(done.stdout)["stable"]["version"]
    time.sleep(3)  # requests that were under way end where they began
    seen = len(found)
    while len(found) < seen + 12:
        time.sleep(0.1)
    stop.set()
    for thread in threads:
        thread.join()
    assert {status for status, _ in found} == {200}
    versions = {reply.split("-")[1] for _, reply in found[:24]}
    assert len(versions) == 2 and {reply.split("-")[1] for _, reply in found[seen:]} == {after}
    assert service.command("serve", "promote", "--url", service.address).returncode == 2
    back = json.loads(service.command("serve", "rollback", "--url", service.address).stdout)
    assert back["previous"]["version"] == after
