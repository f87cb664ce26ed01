"""Typed configuration: plain mappings into dataclasses, with errors that name the field and the fix.

``build(cls, mapping)`` fills a dataclass tree.  An unknown key fails with the nearest valid one, a wrong type
with the type that was expected.  ``override(mapping, "a.b=3")`` edits a mapping the way ``--set`` does.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from libmoe.core.errors import ConfigError, nearest

C = TypeVar("C")


def build(cls: type[C], values: Mapping[str, Any], where: str = "") -> C:
    """Make a ``cls`` from ``values``; nested dataclasses are built from nested mappings.

    Raises:
        ConfigError: unknown key, missing key, or a value of the wrong type (one line each).
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or cls.__name__}: expected a mapping, got {values!r}")
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            guess = nearest(key, known)
            hint = f"did you mean {guess!r}?" if guess else f"valid keys: {', '.join(known)}"
            raise ConfigError(f"unknown key {_join(where, key)!r}; {hint}")
    made = {key: coerce(value, hints[key], _join(where, key)) for key, value in values.items()}
    required = [
        f.name
        for f in known.values()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.name not in made
    ]
    if required:
        raise ConfigError(f"{where or cls.__name__}: missing {', '.join(repr(r) for r in required)}")
    return cls(**made)


def coerce(value: Any, hint: Any, where: str) -> Any:
    """Check ``value`` against a type hint and convert the harmless cases (int to float, list to tuple)."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        failures = []
        # An exact type wins over a convertible one: 1 stays an int in ``int | float``.
        for option in sorted((a for a in args if a is not type(None)), key=lambda a: type(value) is not a):
            try:
                return coerce(value, option, where)
            except ConfigError as error:
                failures.append(error)
        if len(failures) == 1:
            raise failures[0]
        raise _wrong(value, hint, where)
    if origin is typing.Literal:
        if value in args:
            return value
        guess = nearest(value, [str(a) for a in args])
        hint_text = f"did you mean {guess!r}? " if guess else ""
        raise ConfigError(f"{where}: {value!r} is not allowed; {hint_text}choose one of {', '.join(map(repr, args))}")
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, where)  # type: ignore[arg-type]
    if origin in (list, tuple):
        if not isinstance(value, (list, tuple)):
            raise _wrong(value, hint, where)
        item = args[0] if args else Any
        items = [coerce(v, item, f"{where}[{i}]") for i, v in enumerate(value)]
        return items if origin is list else tuple(items)
    if origin in (dict, Mapping) or hint is dict:
        if not isinstance(value, Mapping):
            raise _wrong(value, hint, where)
        item = args[1] if len(args) == 2 else Any
        return {k: coerce(v, item, _join(where, str(k))) for k, v in value.items()}
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML reads 1e-4 (no dot) as text
        try:
            return float(value)
        except ValueError:
            raise _wrong(value, hint, where) from None
    if hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise _wrong(value, hint, where)


def _wrong(value: Any, hint: Any, where: str) -> ConfigError:
    name = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
    return ConfigError(f"{where}: expected {name}, got {value!r}")


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else str(key)


def to_dict(config: Any) -> Any:
    """Plain mapping (JSON types only) of a dataclass tree."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config) if f.init}
    if isinstance(config, Mapping):
        return {str(k): to_dict(v) for k, v in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_dict(v) for v in config]
    return str(config) if isinstance(config, Path) else config


def override(values: dict[str, Any], assignment: str) -> None:
    """Apply ``a.b.c=value`` in place; the value is read as JSON, else as text.

    Raises:
        ConfigError: there is no ``=``, or the path runs through something that is not a mapping.
    """
    path, equals, text = assignment.partition("=")
    if not equals or not path.strip():
        raise ConfigError(f"cannot read override {assignment!r}; write it as key.sub=value")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = {"True": True, "False": False, "None": None}.get(text, text)
    *parents, last = path.strip().split(".")
    node = values
    for part in parents:
        if node.get(part) is None:
            node[part] = {}
        node = node[part]
        if not isinstance(node, dict):
            raise ConfigError(f"override {assignment!r}: {part!r} is a value, not a group of keys")
    node[last] = value
