"""The shipped catalogue is complete, well formed and worded within its rules."""

from __future__ import annotations

import pytest

from libmoe.core.errors import ConfigError
from libmoe.papers import KINDS, STATUSES, coverage, paper, papers, search
from libmoe.papers.entry import SUMMARY_WORDS


def test_the_catalogue_has_each_of_the_146_papers_once() -> None:
    assert [entry.number for entry in papers()] == list(range(1, 147))
    for name in ("key", "title", "arxiv", "summary"):
        values = [getattr(entry, name) for entry in papers()]
        assert all(values), f"an empty {name}"
        assert len(set(values)) == 146, f"two papers share a {name}"


def test_every_kind_and_status_is_in_the_vocabulary_and_every_kind_is_used() -> None:
    assert {kind for entry in papers() for kind in entry.kinds} == set(KINDS)
    assert {entry.status for entry in papers()} <= set(STATUSES)
    assert all(entry.kinds and len(set(entry.kinds)) == len(entry.kinds) for entry in papers())


def test_summaries_are_sentences_within_the_word_limit() -> None:
    for entry in papers():
        assert 8 <= len(entry.summary.split()) <= SUMMARY_WORDS, entry.key
        assert entry.summary[0].isupper() and entry.summary.endswith("."), entry.key


def test_the_year_of_the_venue_fits_the_preprint() -> None:
    for entry in papers():
        preprint = 2000 + int(entry.arxiv[:2])
        assert preprint - 1 <= entry.year <= preprint + 2, entry.key
        assert entry.venue != "arXiv" or entry.year == preprint, entry.key


def test_what_is_built_names_its_parts_and_its_checks_and_what_is_planned_claims_nothing() -> None:
    for entry in papers():
        if entry.status == "built":
            assert (entry.methods or entry.parts) and entry.checks, entry.key
        if entry.status == "planned":
            assert not entry.methods and not entry.checks, entry.key
        assert all(path.startswith("tests/") and path.endswith(".py") for path in entry.checks), entry.key


def test_a_method_realises_one_paper() -> None:
    methods = [name for entry in papers() for name in entry.methods]
    assert len(set(methods)) == len(methods)


@pytest.mark.parametrize("name", [119, "119", "switch", "Switch"])
def test_a_paper_is_found_by_number_or_key(name: int | str) -> None:
    entry = paper(name)
    assert entry.number == 119 and entry.arxiv == "2101.03961"


def test_a_number_with_leading_zeros_is_a_number() -> None:
    assert paper("004").key == "moe-plus-plus"


@pytest.mark.parametrize(("name", "hint"), [("swich", "'switch'"), (147, "1 to 146"), ("zzzz", "1 to 146")])
def test_an_unknown_paper_is_refused_with_the_nearest_choice(name: int | str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint) as caught:
        paper(name)
    assert str(name) in str(caught.value) and "\n" not in str(caught.value)


def test_search_needs_all_words_in_any_order_and_case() -> None:
    found = {entry.number for entry in search("relu ROUTING")}
    assert 42 in found
    assert found == {entry.number for entry in search("routing ReLU")}
    assert found < {entry.number for entry in search("relu")}
    assert search("no such words anywhere") == ()


def test_search_conditions_narrow_each_other() -> None:
    built_routers = search(kind="router", status="built")
    assert {entry.number for entry in built_routers} == {
        entry.number for entry in papers() if "router" in entry.kinds and entry.status == "built"
    }
    assert search() == papers()


@pytest.mark.parametrize("condition", [{"kind": "ruoter"}, {"status": "bilt"}])
def test_search_refuses_an_unknown_condition_with_the_nearest(condition: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"did you mean '(router|built)'"):
        search(**condition)


def test_coverage_counts_every_paper_by_status_and_by_kind() -> None:
    counts = coverage()
    assert set(counts["status"]) == set(STATUSES)
    assert sum(counts["status"].values()) == 146
    for kind in KINDS:
        assert sum(counts["kind"][kind].values()) == len(search(kind=kind))
