"""The shape of the code and of its documents: layers, sizes, reading path, forbidden calls, links, commands."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from rlhf_ray.cli.main import app

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rlhf_ray"
SOURCES = sorted(PACKAGE.rglob("*.py"))
DOCUMENTS = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "SECURITY.md")]
DOCUMENTS += [
    ROOT / "docs" / f"{name}.md" for name in ("preferences", "compare", "conformance", "serving", "cluster", "sweeps")
]
DOCUMENTS += [ROOT / folder / "README.md" for folder in ("benchmarks", "deploy", "tune_configs")]
# What runs code that it was given as data. `torch.load` unpickles; yaml's safe loader is a class handed to `yaml.load`.
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_BUILTINS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_CALLS = {"torch.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen"}
CREATED = ("runs/", "~/")  # paths that a document may name although a fresh clone does not have them
COMMANDS = typer.main.get_command(app)


def test_import_layers() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as lint; lint()", "--no-cache"]
    linted = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout + linted.stderr
    assert "0 broken" in linted.stdout


def test_the_reading_path_is_short_and_counted() -> None:
    rows = re.findall(r"^\| (.+?) \| \[(.+?)\]\((.+?)\) \| (\d+) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    stages = " ".join(stage for stage, *_ in rows)
    for word in ("prompt", "rollout", "reward", "advantage", "update", "weight push"):
        assert word in stages, f"the reading path has no file for: {word}"
    total = 0
    for _, name, link, stated in rows:
        assert name == link
        lines = _lines(ROOT / link)
        assert abs(lines - int(stated)) <= 10, f"{name} has {lines} lines, README says {stated}"
        total += lines
    assert total < 600, f"the reading path has {total} lines"


def test_the_loop_fits_on_one_screen() -> None:
    tree = ast.parse((PACKAGE / "loop.py").read_text())
    (train,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "train"]
    assert train.end_lineno is not None
    assert train.end_lineno - train.lineno + 1 <= 85
    branches = [node for node in ast.walk(train) if isinstance(node, ast.If | ast.IfExp)]
    assert len(branches) <= 5


@pytest.mark.parametrize("recipe", sorted(PACKAGE.glob("recipes/*.yaml")), ids=lambda path: path.name)
def test_recipes_are_short(recipe: Path) -> None:
    assert _lines(recipe) <= 40


def test_files_are_small() -> None:
    large = {str(path.relative_to(ROOT)): _lines(path) for path in SOURCES if _lines(path) > 300}
    assert not large


def test_every_package_is_seen_by_the_import_linter() -> None:
    """A folder without `__init__.py` would be invisible to it, and so free of all rules."""
    folders = {path.parent for path in SOURCES}
    assert not [str(folder) for folder in folders if not (folder / "__init__.py").is_file()]


def test_nothing_runs_code_from_data() -> None:
    found = [f"{path.relative_to(ROOT)}:{what}" for path in SOURCES for what in unsafe_uses(path.read_text())]
    assert not found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "import cloudpickle as c", "eval('1')", "exec(text)",
        "import torch\ntorch.load(f)", "from torch import load", "import torch as t\nt.load(f)",
        "import yaml\nyaml.load(f)", "import yaml\nyaml.load(f, yaml.Loader)", "import yaml\nyaml.unsafe_load(f)",
        "import subprocess\nsubprocess.run('ls', shell=True)", "import os\nos.system('ls')",
        "f(trust_remote_code=True)", "f(weights_only=False)", "f(allow_pickle=True)",
    ],
)  # fmt: skip
def test_unsafe_uses_are_found(source: str) -> None:
    assert unsafe_uses(source)


@pytest.mark.parametrize("source", ["re.compile('a')", "model.eval()", "safetensors.load(f)", "f(shell=False)"])
def test_safe_uses_are_not(source: str) -> None:
    assert not unsafe_uses(source)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_file_names_exist(document: Path) -> None:
    text = document.read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in link]
    names = [name for name in re.findall(r"`([^`\s]+)`", text) if "/" in name and not name.startswith(CREATED)]
    paths = [name for name in names if re.match(r"[\w.]+/|.*\.(py|md|toml|yaml|lock)$", name)]
    files = {name.partition("::")[0] for name in [*links, *paths]}  # `tests/x.py::test_y`
    missing = [file for file in files if not _exists(document.parent, file)]
    assert not missing


def _exists(folder: Path, name: str) -> bool:
    """Documents may name a module as the layers do: `actors/rollout.py`. Names inside a run directory are patterns."""
    inside_a_run = {"policy/", "model/", "critic/", "state/critic/", "state/policy/", "quarantine/"}
    inside_a_run |= {"busy/...", "time/overhead"}
    return name in inside_a_run or (folder / name).exists() or (PACKAGE / name).exists()


def _commands_of_readme() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.mark.parametrize("line", _commands_of_readme())
def test_commands_of_the_readme_parse(line: str) -> None:
    program, *arguments = shlex.split(line)
    if program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert arguments[0] in targets
        return
    assert program == ".venv/bin/rlhf-ray"
    assert isinstance(COMMANDS, TyperGroup)
    verb, *rest = arguments
    COMMANDS.commands[verb].make_context(verb, rest)  # parses, runs nothing, and fails on an unknown option


def test_the_readme_has_commands() -> None:
    assert any(line.startswith("make demo") for line in _commands_of_readme())


@pytest.mark.parametrize(
    "verb", ["demo", "train", "submit", "render", "doctor", "compare", "report", "data check", "data make"]
)
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    shown = CliRunner().invoke(app, [*verb.split(), "--help"])
    assert shown.exit_code == 0
    assert f"Example: rlhf-ray {verb}" in shown.output


def test_the_command_line_starts_without_heavy_imports() -> None:
    heavy = "torch ray vllm transformers deepspeed trl"
    code = f"import sys, rlhf_ray.cli.main; print(*(set(sys.modules) & set('{heavy}'.split())))"
    started = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert started.stdout.strip() == ""


def unsafe_uses(source: str) -> list[str]:
    """`line: name` of everything in `source` that could run code from data, or a shell."""
    found = []
    tree = ast.parse(source)
    imported = _imported_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"{node.lineno}: {name}" for name in names if name.split(".")[0] in FORBIDDEN_MODULES]
            if isinstance(node, ast.ImportFrom):
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
                found += [f"{node.lineno}: {name}" for name in whole if name in FORBIDDEN_CALLS]
        elif isinstance(node, ast.Call):
            name = _full_name(node.func, imported)
            if name in FORBIDDEN_BUILTINS | FORBIDDEN_CALLS or _loads_unsafe_yaml(name, node):
                found.append(f"{node.lineno}: {name}")
            found += [f"{node.lineno}: {switch}" for switch in _bad_switches(node)]
    return found


def _imported_names(tree: ast.Module) -> dict[str, str]:
    """`{"t": "torch"}` for `import torch as t`."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
    return {alias.asname: alias.name for node in imports for alias in node.names if alias.asname}


def _full_name(function: ast.expr, imported: dict[str, str]) -> str:
    if isinstance(function, ast.Name):
        return imported.get(function.id, function.id)
    if isinstance(function, ast.Attribute):
        return f"{_full_name(function.value, imported)}.{function.attr}"
    return "?"


def _loads_unsafe_yaml(name: str, call: ast.Call) -> bool:
    """`yaml.load` is safe with one of this package's own loaders only, which derive from `SafeLoader`."""
    loader = next((word.value for word in call.keywords if word.arg == "Loader"), (*call.args[1:2], None)[0])
    own = isinstance(loader, ast.Name) and loader.id == "_UniqueKeyLoader"
    return name in ("yaml.load", "yaml.load_all") and not own


def _bad_switches(call: ast.Call) -> list[str]:
    bad = {"shell": True, "trust_remote_code": True, "allow_pickle": True, "weights_only": False}
    given = {word.arg: word.value.value for word in call.keywords if word.arg and isinstance(word.value, ast.Constant)}
    return [f"{name}={value}" for name, value in bad.items() if given.get(name, not value) is value]


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())
