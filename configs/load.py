"""YAML to a frozen `Config`: inheritance, `key=value` overrides, and errors that fit in one line."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from configs.schema import Config

_KINDS = (
    "hub",
    "folder",
    "gguf",
    "wheel",
    "trace",
    "poisson",
    "closed",
)  # pydantic names them in a path, YAML does not


class ConfigError(ValueError):
    """The configuration cannot be used: path, value, rule and way out in one line."""


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe.

    Args:
        path: a YAML file. Its key `extends` names another one, relative to it, whose values it changes.
        overrides: `dotted.path=value` each; the value is YAML ("null", "8", "[1, 2]"). A number in the path is an index.

    Raises:
        ConfigError: the file is missing or is not YAML, or a value breaks a rule.
    """
    raw = _read(path)
    for override in overrides:
        _override(raw, override)
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_one_line(error)}") from error


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ConfigError(f"{path}: extends itself through {seen[-1]}; break the circle")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise ConfigError(f"{path}: no such file; here are {', '.join(near) or 'no YAML files'}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must be a mapping of settings, is {type(raw).__name__}")
    parent = raw.pop("extends", None)
    if parent is None:
        return raw
    if not isinstance(parent, str):
        raise ConfigError(f"{path}: extends = {parent!r}: must be the name of a YAML file beside this one")
    return _merged(_read(path.parent / parent, (*seen, path.resolve())), raw)


def _merged(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings merge key by key; everything else, lists too, is replaced, and so is a mapping of another `kind`."""
    if above.get("kind", below.get("kind")) != below.get("kind"):
        return dict(above)
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _override(raw: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise ConfigError(
            f"{override!r}: an override is written path=value, for example quality.tasks.items=800"
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{dotted} = {text!r}: the value is not YAML: {' '.join(str(error).split())}"
        ) from error
    *parents, last = dotted.split(".")
    node: Any = raw
    for part in parents:
        if isinstance(node, list):
            node = node[_index(node, part, dotted)]
            continue
        if node.get(part) is None:
            node[part] = {}
        node = node[part]
        if not isinstance(node, dict | list):
            raise ConfigError(f"{dotted}: {part} is {node!r}, which has no parts; override {part} itself")
    if isinstance(node, list):
        node[_index(node, last, dotted)] = value
    else:
        node[last] = value


def _index(node: list[Any], part: str, dotted: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise ConfigError(
            f"{dotted}: {part!r} is not a place in a list of {len(node)}; use 0 to {len(node) - 1}"
        )
    return int(part)


def _one_line(error: ValidationError) -> str:
    first, *others = error.errors()
    where = ".".join(str(part) for part in first["loc"] if part not in _KINDS) or "config"
    more = f" (and {len(others)} more)" if others else ""
    match first["type"]:
        case "extra_forbidden":
            known = _known_keys(first["loc"])
            near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
            return f"{where}: unknown setting; {hint}{more}"
        case "missing":
            return f"{where}: must be given; add it{more}"
        case "value_error":
            return f"{where}: {first['msg'].removeprefix('Value error, ')}{more}"
        case _:
            value = f"{first['input']!r}"
            value = value if len(value) <= 80 else value[:77] + "..."
            return f"{where} = {value}: {first['msg'][0].lower()}{first['msg'][1:]}; change it{more}"


def _known_keys(loc: tuple[int | str, ...]) -> list[str]:
    """Names of the settings beside the unknown one, found by walking the schema's types."""
    place: Any = Config
    for part in loc[:-1]:
        fields = getattr(_section_in(place, None), "model_fields", {})
        place = fields[part].annotation if part in fields else _section_in(place, part)
    section = _section_in(place, None)
    return sorted(section.model_fields) if hasattr(section, "model_fields") else []


def _section_in(annotation: Any, tag: int | str | None) -> Any:
    """The section class inside an annotation such as `tuple[X, ...]`, `X | None` or a tagged union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = [_section_in(part, tag) for part in getattr(annotation, "__args__", ())]
    found = [part for part in inner if part is not None]
    if isinstance(tag, str):
        tagged = [
            p for p in found if "kind" in p.model_fields and tag in str(p.model_fields["kind"].annotation)
        ]
        found = tagged or found
    return found[0] if found else None
