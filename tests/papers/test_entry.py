"""Malformed entries are refused at load, each with one line that names the entry and the fix."""

from __future__ import annotations

from typing import Any

import pytest

from libmoe.core.errors import ConfigError
from libmoe.papers.entry import read_entries

GOOD: dict[str, Any] = {
    "number": 7,
    "key": "some-method",
    "title": "Some Method",
    "arxiv": "2401.00001",
    "venue": "arXiv",
    "year": 2024,
    "kinds": ["router"],
    "summary": "A router.",
}


def test_an_entry_without_status_is_planned_and_claims_nothing() -> None:
    (entry,) = read_entries([GOOD])
    assert entry.status == "planned" and entry.kinds == ("router",)
    assert entry.methods == entry.parts == entry.checks == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kinds": ["ruoter"]}, "'ruoter'; did you mean 'router'"),
        ({"kinds": []}, "paper 7: kinds is empty"),
        ({"kinds": "router"}, "paper 7: kinds must be a list"),
        ({"status": "bilt"}, "'bilt'; did you mean 'built'"),
        ({"sumary": "x"}, "field of paper 7 'sumary'; did you mean 'summary'"),
        ({"year": "2024"}, "paper 7: year must be int, not '2024'"),
        ({"arxiv": 2401.00001}, "paper 7: arxiv must be str"),
        ({"arxiv": "240.1"}, "paper 7: arxiv '240.1'"),
        ({"key": "Some Method"}, "paper 7: 'Some Method'"),
        ({"parts": ["a b"]}, "paper 7: 'a b'"),
        ({"summary": "word " * 41}, "paper 7: summary has 41 words; the limit is 40"),
        ({"title": ""}, "paper 7: title is empty"),
    ],
)
def test_a_wrong_field_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_entries([GOOD | change])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_field_is_refused_by_name() -> None:
    entry = {name: value for name, value in GOOD.items() if name != "venue"}
    with pytest.raises(ConfigError, match="paper 7: venue is missing"):
        read_entries([entry])


@pytest.mark.parametrize(("name", "other"), [("number", {"key": "other"}), ("key", {"number": 8})])
def test_two_entries_may_not_share_a_number_or_a_key(name: str, other: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"two papers of the catalogue have {name}"):
        read_entries([GOOD, GOOD | other])


@pytest.mark.parametrize("raw", [None, {"number": 7}, ["text"]])
def test_a_catalogue_of_another_shape_is_refused(raw: object) -> None:
    with pytest.raises(ConfigError, match="catalogue"):
        read_entries(raw)


def test_entries_come_in_order_of_number() -> None:
    second = GOOD | {"number": 3, "key": "other"}
    assert [entry.number for entry in read_entries([GOOD, second])] == [3, 7]
