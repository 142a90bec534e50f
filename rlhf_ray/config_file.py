"""From a YAML file and dotted overrides to one typed config, and back; every mistake is listed at once."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml
from pydantic import BaseModel, ValidationError

from rlhf_ray.config import AnyConfig, PreferenceConfig, RewardModelConfig, RunConfig, SFTConfig
from rlhf_ray.errors import UserError

KINDS: dict[str, type[AnyConfig]] = {
    "online": RunConfig,
    "reward": RewardModelConfig,
    "sft": SFTConfig,
    "preference": PreferenceConfig,
}
RECIPES = Path(__file__).parent / "recipes"
Loc = tuple[int | str, ...]


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader, except that a key written twice is an error instead of a silent overwrite."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[typing.Hashable, object]:
        seen: dict[object, int] = {}
        for key_node, _ in node.value:
            key, line = key_node.value, key_node.start_mark.line + 1
            if isinstance(key_node, yaml.ScalarNode) and key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key!r} is written twice (lines {seen[key]} and {line}); keep one",
                    problem_mark=key_node.start_mark,
                )
            seen[key if isinstance(key_node, yaml.ScalarNode) else id(key_node)] = line
        return super().construct_mapping(node, deep=deep)


def find_recipe(path: str | Path) -> Path:
    """`path` itself, or the bundled recipe of that bare name; `UserError` if neither is a file."""
    asked = Path(path)
    if asked.is_file():
        return asked
    if asked.is_dir():
        raise UserError(f"{asked} is a folder; name the YAML file in it")
    if asked.name == str(path) and (RECIPES / asked.name).is_file():
        return RECIPES / asked.name
    bundled = ", ".join(sorted(recipe.name for recipe in RECIPES.glob("*.yaml")))
    raise UserError(f"{asked} does not exist; give a YAML file or one of the bundled recipes: {bundled}")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> AnyConfig:
    """The config in the YAML file `path` with `overrides` (`a.b=value`, the value read as YAML) laid over it.

    `kind: online | reward | sft | preference` chooses the class (online if absent). Relative paths inside stay as
    written and count from the current directory. Raises `UserError` with one line per mistake.
    """
    file = find_recipe(path)
    tree = read_tree(file)
    for override in overrides:
        apply_override(tree, override)
    return config_of(tree, str(file))


def config_of(tree: Mapping[object, object], where: str) -> AnyConfig:
    """The config that `tree` describes; `UserError` with one line per mistake, `where` in front."""
    kind = tree.get("kind", "online")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"{where}: kind must be one of {', '.join(KINDS)} (got {_short(kind)})")
    try:
        return KINDS[kind].model_validate(tree)
    except ValidationError as error:
        lines = explain(error, KINDS[kind])
        raise UserError("\n  ".join([f"{where} has {_count(len(lines), 'mistake')}:", *lines])) from None


def read_tree(file: Path) -> dict[object, object]:
    """The mapping in a YAML file; `UserError` if it is none."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as text: {error}") from error
    tree = _parse_yaml(text, str(file))
    if not isinstance(tree, dict):
        raise UserError(f"{file} holds {_short(tree)} instead of `key: value` lines")
    return tree


def dump_config(config: AnyConfig) -> str:
    """`config` as YAML with every default written out; `load_config` of it gives an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _parse_yaml(text: str, where: str) -> object:
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)  # _UniqueKeyLoader is a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{where}{line}: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not YAML: {' '.join(str(error).split())}") from None


def apply_override(tree: dict[object, object], override: str) -> None:
    """Sets one `a.b=value`, the value read as YAML, in `tree`, creating the mappings on the way."""
    dotted, equals, text = override.partition("=")
    if not equals or not all(dotted.split(".")):
        raise UserError(f"override {override!r} is not of the form key.subkey=value, e.g. policy.num_workers=2")
    where = f"override {override!r}"
    set_value(tree, dotted, _parse_yaml(text, where), where)


def set_value(tree: dict[object, object], dotted: str, value: object, where: str) -> None:
    """Sets `a.b` to `value` in `tree`, creating the mappings on the way; `where` names the place in errors."""
    parts = dotted.split(".")
    place: object = tree
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        so_far = ".".join(parts[:depth])
        if isinstance(place, dict):
            if last:
                place[part] = value
            elif place.get(part) is None:
                place[part] = {}
            place = place[part]
        elif isinstance(place, list):
            if not part.isdecimal() or int(part) >= len(place):
                raise UserError(f"{where}: {so_far} is a list of {len(place)}; use an index from 0")
            if last:
                place[int(part)] = value
            place = place[int(part)]
        else:
            raise UserError(f"{where}: {so_far} is the value {_short(place)} and has no keys below it")


def explain(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """A sentence for each mistake: its key, what is wrong, and the nearest key if there is no such one."""
    lines = []
    items = error.errors(include_url=False)
    for item in items:
        depth = len(item["loc"])
        if item["type"] == "too_short" and any(o["loc"][:depth] == item["loc"] != o["loc"] for o in items):
            continue  # pydantic does not count items that failed by themselves
        known, path = _walk(root, item["loc"])
        kind, context = item["type"], item.get("ctx", {})
        key, got = ".".join(map(str, path)), f" (got {_short(item['input'])})"
        if kind == "extra_forbidden":
            lines.append(f"{key}: unknown key; {nearest(str(path[-1]), known)}")
        elif kind == "missing":
            lines.append(f"{key}: is required and missing")
        elif kind == "value_error":
            # A validator of a whole section sees the section; repeating it would bury the sentence.
            shown = "" if isinstance(item["input"], Mapping | BaseModel) else got
            lines.append(f"{key}: {context['error']}{shown}" if key else f"{context['error']}")
        elif kind == "literal_error":
            lines.append(f"{key}: must be one of {context['expected']}{got}")
        elif kind in ("model_type", "model_attributes_type"):
            lines.append(f"{key}: must be a section with keys below it{got}")
        elif kind == "union_tag_not_found":
            lines.append(f"{key}: {context['discriminator']} is required and missing{got}")
        elif kind == "union_tag_invalid":
            tag = f"{key}.{str(context['discriminator']).strip(chr(39))}"
            lines.append(f"{tag}: must be one of {context['expected_tags']} (got {context['tag']!r})")
        else:
            lines.append(f"{key}: {item['msg'].replace('Input should', 'should')}{got}")
    return lines


def _walk(root: type[BaseModel], loc: Loc) -> tuple[set[str], Loc]:
    """The key names known at the level of `loc`'s last part, and `loc` without pydantic's union tags."""
    models: list[type[BaseModel]] = [root]
    known: set[str] = set(root.model_fields)
    path: list[int | str] = []
    for part in loc:
        known = {name for model in models for name in model.model_fields}
        tagged = [model for model in models if _tag(model) == part]
        if len(models) > 1 and tagged:
            models = tagged
            continue
        path.append(part)
        if isinstance(part, str):
            models = [
                inner
                for model in models
                if part in model.model_fields
                for inner in _models_in(model.model_fields[part].annotation)
            ]
    return known, tuple(path)


def _models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in typing.get_args(annotation) for model in _models_in(inner)]


def _tag(model: type[BaseModel]) -> object:
    field = model.model_fields.get("type")
    values = typing.get_args(field.annotation) if field else ()
    return values[0] if values else None


def nearest(key: str, known: Iterable[str]) -> str:
    """The one of `known` that `key` may have meant, as a question; or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else f"known here: {', '.join(names)}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
