"""What the service and the loaders must never do. `SECURITY.md` says for whom; each test fails without its control."""

from __future__ import annotations

import ast
import asyncio
import hmac
import inspect
import json
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from serving_world import ServingWorld, chat
from starlette.routing import Mount, Route
from tiny_folders import model_folder, run_config, tiny_tokenizer

from rlhf_ray.cli.serve import _first_key
from rlhf_ray.cluster import _embedded, _environment
from rlhf_ray.config import PlacementConfig
from rlhf_ray.data.chat import render
from rlhf_ray.data.rows import PromptRow
from rlhf_ray.errors import UserError
from rlhf_ray.models.folder import check_backbone, check_causal_lm, check_reward_model
from rlhf_ray.models.reward.saving import save_reward_model
from rlhf_ray.preflight import preflight
from rlhf_ray.serving.config import LimitsConfig, ServingConfig
from rlhf_ray.serving.database import open_database
from rlhf_ray.serving.gateway import make_app
from rlhf_ray.serving.keys import SCOPES, Keyring, new_key
from rlhf_ray.serving.policies import find_policy
from rlhf_ray.serving.protocol import ChatRequest
from rlhf_ray.serving.state import ServiceState
from rlhf_ray.types import Message
from tests.unit.reward_networks import made, reward_spec, scale_of

ROOT = Path(__file__).parents[2]
CHAT = "/v1/chat/completions"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND")
OPEN = {("GET", "/"), ("GET", "/health"), ("GET", "/page/app.js"), ("HEAD", "/page/app.js")}
ELSEWHERE = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}


@pytest.fixture
def world(tmp_path: Path) -> ServingWorld:
    return ServingWorld(tmp_path)


async def _ask(world: ServingWorld, method: str, path: str, key: str | None = None, **more: Any) -> httpx.Response:
    async with world.client(key) as client:
        address = httpx.URL(client.base_url, raw_path=path.encode())  # as it stands: a client would tidy `..` away
        return await client.request(method, address, **more)


def _paths(world: ServingWorld) -> list[str]:
    """An address for each route of the service; a route of a kind that is not known here is an error."""
    found = []
    for route in make_app(world.service).routes:
        assert isinstance(route, Route | Mount), f"how is {route} guarded?"
        found.append(re.sub(r"{\w+}", "x", route.path) + ("/app.js" if isinstance(route, Mount) else ""))
    return found


def test_every_method_of_every_route_asks_for_a_key_and_no_other_site_may_read_an_answer(world: ServingWorld) -> None:
    async def answers() -> dict[tuple[str, str], httpx.Response]:
        places = [(method, path) for path in _paths(world) for method in METHODS]
        return {(m, path): await _ask(world, m, path, json=chat(), headers=ELSEWHERE) for m, path in places}

    found = asyncio.run(answers())
    assert {place for place, answer in found.items() if answer.status_code not in (401, 405)} == OPEN
    assert len(found) >= 12 * len(METHODS) and not world.engines.seen
    assert not [place for place, answer in found.items() if any("access-control" in name for name in answer.headers)]
    inside = asyncio.run(_ask(world, "POST", CHAT, "all", json=chat(), headers=ELSEWHERE))
    assert inside.status_code == 200 and not any("access-control" in name for name in inside.headers)


def test_without_keys_in_the_store_nobody_is_let_in(world: ServingWorld) -> None:
    world.service.refresh([], None, 0)
    for path in ("/v1/models", "/v1/feedback/summary", "/admin/policies"):
        assert asyncio.run(_ask(world, "GET", path, "all")).status_code == 401


def test_the_first_start_makes_a_key_and_later_ones_none(tmp_path: Path) -> None:
    config = ServingConfig(model="m", store=str(tmp_path / "serving.sqlite"))
    text = _first_key(config)
    (key,) = ServiceState(config.store_url).keys()
    assert text is not None and Keyring([key]).find(text) == key and key.scopes == set(SCOPES)
    assert _first_key(config) is None


def test_secrets_are_compared_as_hashes_and_for_an_unknown_id_too(monkeypatch: pytest.MonkeyPatch) -> None:
    text, key = new_key({"chat"}, "alice")
    ring, compared, compare = Keyring([key]), [], hmac.compare_digest

    def comparing(first: str, second: str) -> bool:
        compared.append((first, second))
        return compare(first, second)

    monkeypatch.setattr(hmac, "compare_digest", comparing)
    assert ring.find(text) is key
    assert ring.find(text[:-1] + "x") is None and ring.find(f"rk-{'0' * 12}-{'0' * 64}") is None
    assert len(compared) == 3 and all(re.fullmatch("[0-9a-f]{64}", side) for pair in compared for side in pair)
    assert not any(side in text for pair in compared for side in pair)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8000", "10.0.0.1"])
def test_no_route_answers_under_another_name(world: ServingWorld, host: str) -> None:
    """Not even the open ones: a page that was loaded under that name would be of the same origin as the service."""

    async def statuses() -> set[int]:
        async with world.client("all", host) as client:
            return {(await client.get(path)).status_code for path in _paths(world)}

    assert asyncio.run(statuses()) == {403}


@pytest.mark.parametrize(
    "path",
    [
        "/page/../config.py", "/page/..%2fconfig.py", "/page/%2e%2e/config.py", "/page/%2e%2e%2fconfig.py",
        "/page/..%5cconfig.py", "/page//etc/hostname", "/page/%2fetc%2fhostname", "/page/app.js%00", "/config.py",
    ],
)  # fmt: skip
def test_nothing_beside_the_page_can_be_read(world: ServingWorld, path: str) -> None:
    answer = asyncio.run(_ask(world, "GET", path))
    assert answer.status_code == 404 and "import" not in answer.text


REFUSED = [  # a template of one's own, what is deserialised, what steers decoding, what is compiled, and all the rest
    "chat_template", "chat_template_kwargs", "add_generation_prompt", "continue_final_message", "documents",
    "prompt_embeds", "mm_processor_kwargs", "media_io_kwargs", "kv_transfer_params", "vllm_xargs", "logit_bias",
    "logits_processors", "allowed_token_ids", "bad_words", "stop_token_ids", "repetition_penalty", "ignore_eos",
    "min_tokens", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs",
    "response_format", "tools", "tool_choice", "functions", "logprobs", "top_logprobs", "prompt_logprobs", "best_of",
    "use_beam_search", "request_id", "cache_salt", "priority", "store", "metadata", "anything_else",
]  # fmt: skip


@pytest.mark.parametrize("field", REFUSED)
def test_what_only_the_engine_should_decide_is_refused_by_name(world: ServingWorld, field: str) -> None:
    answer = asyncio.run(_ask(world, "POST", CHAT, "chat", json=chat(**{field: "x"})))
    assert answer.status_code == 400 and answer.json()["error"]["param"] == field, answer.text
    assert "not supported here" in answer.json()["error"]["message"] and not world.engines.seen


@pytest.mark.parametrize(
    "message",
    [
        {"content": [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]},
        {"content": [{"type": "text", "text": "a", "url": "http://169.254.169.254/"}]},
        {"content": "a", "tool_calls": []},
    ],
)
def test_a_message_is_text_and_fetches_nothing(world: ServingWorld, message: dict[str, object]) -> None:
    body = chat() | {"messages": [{"role": "user", **message}]}
    assert asyncio.run(_ask(world, "POST", CHAT, "chat", json=body)).status_code == 400


def test_the_engine_gets_nothing_that_is_not_named_here() -> None:
    everything = chat(stop=["a"], seed=1, stream=True, stream_options={"include_usage": True}, user="u", top_p=0.5)
    sent = ChatRequest.model_validate(everything).for_engine(LimitsConfig())
    sampling = {"max_tokens", "temperature", "top_p", "presence_penalty", "frequency_penalty", "stop", "seed"}
    assert set(sent) == {"messages", "stream"} | sampling and set(sent["messages"][0]) == {"role", "content"}


def _name_code(folder: Path, name: str, *below: str) -> None:
    """Makes a config ask for Python code, under the keys `below`."""
    code: dict[str, object] = {"auto_map": {"AutoModel": "evil.Model"}}
    for key in reversed(below):
        code = {key: [code]}
    file = folder / name
    file.write_text(json.dumps({**(json.loads(file.read_text()) if file.exists() else {}), **code}))


@pytest.mark.parametrize("check", [check_causal_lm, check_backbone, lambda folder: find_policy(str(folder), True)])
@pytest.mark.parametrize(
    "place",
    [
        ("config.json",), ("config.json", "vision_config"), ("config.json", "parts", "one"), ("tokenizer_config.json",),
        ("processor_config.json",), ("preprocessor_config.json", "image_processor"),
    ],
)  # fmt: skip
def test_a_models_own_code_is_refused(tmp_path: Path, place: tuple[str, ...], check: Callable[[Path], object]) -> None:
    """To be trained and to be served. transformers asks at the terminal whether to run a tokenizer's code."""
    folder = model_folder(tmp_path / "model", model_type="llama")
    check(folder)
    _name_code(folder, *place)
    with pytest.raises(UserError, match=rf"{place[0]} has auto_map.*never run"):
        check(folder)


def test_no_run_starts_with_a_models_own_code(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    preflight(config, tmp_path / "run", False)
    for name in ("reward", "policy"):
        _name_code(tmp_path / name, "tokenizer_config.json")
        with pytest.raises(UserError, match="auto_map"):
            preflight(config, tmp_path / "run", False)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "backbone-0/processor_config.json"])
def test_every_part_of_a_reward_model_is_searched(bases: dict[str, Path], tmp_path: Path, file: str) -> None:
    network, encoder = made(bases["encoder"], reward_spec("encoder", "separate"))
    save_reward_model(tmp_path / "reward", network, encoder.tokenizer, scale_of(network, encoder))
    check_reward_model(tmp_path / "reward")
    _name_code(tmp_path / "reward", file, "part")
    with pytest.raises(UserError, match="auto_map"):
        check_reward_model(tmp_path / "reward")


@pytest.mark.parametrize("hole", ["{{ messages.__class__.__mro__ }}", "{% set _ = messages.append(1) %}"])
def test_a_models_template_reaches_no_python_and_changes_nothing(hole: str) -> None:
    tokenizer = tiny_tokenizer()
    rows = [PromptRow("row 1", "", (Message("user", "hi"),))]
    assert render(rows, tokenizer)
    tokenizer.chat_template += hole
    with pytest.raises(UserError, match=r"template refuses this conversation.*unsafe"):
        render(rows, tokenizer)


def test_the_store_is_its_owners_alone(tmp_path: Path) -> None:
    """Prompts, replies and the hashes of keys lie in it, and in SQLite's log beside it."""
    file = tmp_path / "serving.sqlite"
    state = ServiceState(f"sqlite:///{file}")
    with state._engine.connect() as connection:  # while one is open, the log is there
        state.add_key({"chat"}, "")
        connection.exec_driver_sql("select * from api_keys")
        modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in tmp_path.iterdir()}
    assert len(modes) == 3 and set(modes.values()) == {0o600}, modes
    file.chmod(0o640)
    ServiceState(f"sqlite:///{file}")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640, "who shares it on purpose may"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://u:sesame@host:port/name", "postgresql+psycopg://u:open@sesame:sesame@host/name",
        "mysql://u:sesame@host/name", "postgresql+nodriver://u:sesame@host/name", "u:sesame@host",
    ],
)  # fmt: skip
def test_a_password_is_in_no_error(url: str) -> None:
    with pytest.raises(UserError) as caught:
        open_database(url)
    assert "sesame" not in str(caught.value)
    assert caught.value.__context__ is None or caught.value.__suppress_context__, "a traceback would show it"
    assert "sesame" not in repr(open_database("postgresql+psycopg://u:sesame@host/name"))


def test_nothing_listens_to_other_machines_unasked() -> None:
    assert ServingConfig(model="m").host == "127.0.0.1"
    assert inspect.signature(ray.init).parameters["dashboard_host"].default == "127.0.0.1"
    assert not {"dashboard_host", "_node_ip_address"} & set(_embedded(PlacementConfig(), 1))
    in_pods = ROOT / "rlhf_ray" / "launching" / "manifests.py"  # on a loopback nobody could reach a service's pod
    for file in sorted({*(ROOT / "rlhf_ray").rglob("*.py")} - {in_pods}):
        tree = ast.parse(file.read_text())
        asked = {id(part) for node in ast.walk(tree) if isinstance(node, ast.Compare) for part in ast.walk(node)}
        given = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value in ("0.0.0.0", "::")]
        assert all(id(node) in asked for node in given), f"{file.name} names all interfaces as an address"


def test_rays_tokens_are_left_on() -> None:
    """Ray asks for a token on clusters that it starts; whoever can start a job there can run anything."""
    submitting = (ROOT / "rlhf_ray" / "launching" / "jobs.py").read_text()
    words = {"RAY_AUTH_MODE", "AUTH_MODE", "RAY_DATA_AUTOLOAD_PICKLE_OBJECT_SCALAR"}
    assert not words & {*_environment(), *_embedded(PlacementConfig(), 1)["_system_config"]}
    sources = {file: file.read_text() for file in (ROOT / "rlhf_ray").rglob("*.py")}
    asked = 'environ.get("RAY_AUTH_MODE")'  # doctor looks whether there is the token that a cluster wants
    named = [
        file.name for file, text in sources.items() if any(f'"{word}"' in text.replace(asked, "") for word in words)
    ]
    assert named == ["jobs.py"] and re.findall(r"\[_AUTH\] = (.*?)  #", submitting) == ['"token"'], "it turns them on"


def test_engines_are_started_without_doors() -> None:
    from rlhf_ray.serving.deployments import environment, vllm_settings

    doors = {"trust_remote_code", "enable_prompt_embeds", "allowed_local_media_path", "allowed_media_domains"}
    doors |= {"VLLM_ALLOW_INSECURE_SERIALIZATION", "VLLM_SERVER_DEV_MODE", "RAY_SERVE_ENABLE_HA_PROXY"}
    for gpus in (0, 1):
        config = ServingConfig(model="m", engine={"gpus": gpus})
        given: dict[str, object] = vllm_settings(config, 64) | environment(config)
        assert given["HF_HUB_OFFLINE"] == "1" and not [door for door in doors if given.get(door) not in (None, "0")]


def test_every_package_of_the_lock_is_known_by_its_hash() -> None:
    lock = (ROOT / "requirements" / "cpu.lock").read_text().replace("\\\n", " ")
    packages = [line for line in lock.splitlines() if re.match(r"[a-z0-9]", line)]
    assert len(packages) > 100 and all("==" in line and "--hash=sha256:" in line for line in packages)
    assert "--require-hashes" in (ROOT / "Makefile").read_text()


def test_every_test_that_the_threat_table_names_exists() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    named = re.findall(r"(tests/[\w/]+\.py)::(\w+)", text)
    rows = [line for line in text.splitlines() if re.match(r"\| (?!actor|-)", line)]
    assert len(rows) >= 12 and all("::test_" in row for row in rows), "a control without a test is no control"
    missing = [
        name for file, name in named if not re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE)
    ]
    assert not missing
