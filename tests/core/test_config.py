"""Mappings into dataclasses: what converts, and errors that name the field and the fix."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from libmoe.core.config import build, override, to_dict
from libmoe.core.errors import ConfigError


@dataclass
class Inner:
    rate: float = 0.5
    mode: Literal["cosine", "linear"] = "cosine"
    limit: int | None = None


@dataclass
class Outer:
    name: str
    inner: Inner = field(default_factory=Inner)
    sizes: list[int] = field(default_factory=list)
    betas: tuple[float, ...] = (0.9, 0.95)
    extra: dict[str, Any] = field(default_factory=dict)
    mixed: int | float | str = 0
    folder: Path | None = None
    on: bool = False
    parts: list[Inner] = field(default_factory=list)


def test_a_tree_is_built_and_written_back() -> None:
    values = {
        "name": "a",
        "inner": {"rate": 1, "mode": "linear", "limit": 3},
        "sizes": [1, 2],
        "betas": [0, 1],
        "extra": {"x": [1]},
        "mixed": 2,
        "folder": "here",
        "on": True,
        "parts": [{"rate": "1e-4"}],
    }
    made = build(Outer, values)
    assert made.inner == Inner(1.0, "linear", 3)
    assert (made.betas, made.folder, made.parts[0].rate) == ((0.0, 1.0), Path("here"), 1e-4)
    assert type(made.mixed) is int and type(made.inner.rate) is float
    assert build(Outer, to_dict(made)) == made


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "missing 'name'"),
        ({"name": "a", "iner": {}}, "unknown key 'iner'; did you mean 'inner'"),
        ({"name": "a", "inner": {"modes": 1}}, "unknown key 'inner.modes'; did you mean 'mode'"),
        (
            {"name": "a", "inner": {"mode": "cosin"}},
            "inner.mode: 'cosin' is not allowed; did you mean 'cosine'",
        ),
        ({"name": "a", "inner": {"rate": "fast"}}, "inner.rate: expected float, got 'fast'"),
        ({"name": "a", "inner": {"rate": True}}, "inner.rate: expected float, got True"),
        ({"name": "a", "inner": {"limit": True}}, "inner.limit: expected int, got True"),
        ({"name": "a", "inner": {"limit": 2.5}}, "inner.limit: expected int, got 2.5"),
        ({"name": "a", "inner": 3}, "inner: expected a mapping, got 3"),
        ({"name": "a", "sizes": "12"}, "sizes: expected"),
        ({"name": "a", "sizes": [1, "b"]}, r"sizes\[1\]: expected int, got 'b'"),
        ({"name": "a", "on": 1}, "on: expected bool, got 1"),
        ({"name": 3}, "name: expected str, got 3"),
        ({"name": "a", "extra": [1]}, "extra: expected"),
    ],
)
def test_errors_name_the_field_and_the_fix(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(Outer, values)


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("a.b=3", {"a": {"b": 3}}),
        ("a.b=1e-4", {"a": {"b": 1e-4}}),
        ("a.b=[1, 2]", {"a": {"b": [1, 2]}}),
        ("a.b=True", {"a": {"b": True}}),
        ("a.b=none of it", {"a": {"b": "none of it"}}),
        ("c.d.e=x=y", {"a": {"b": 0}, "c": {"d": {"e": "x=y"}}}),
    ],
)
def test_overrides(assignment: str, expected: dict) -> None:
    values: dict = {"a": {"b": 0}}
    override(values, assignment)
    assert values == {"a": {"b": 0}} | expected


@pytest.mark.parametrize("assignment", ["a.b", "=3", "a.b.c=1"])
def test_overrides_that_make_no_sense(assignment: str) -> None:
    with pytest.raises(ConfigError, match="override"):
        override({"a": {"b": 0}}, assignment)
