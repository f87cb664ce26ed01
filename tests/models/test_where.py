"""Which feed-forward networks become MoE layers."""

from __future__ import annotations

import pytest

from libmoe.core.errors import ConfigError
from libmoe.models import find_ffns, moeify
from libmoe.models.where import select


@pytest.fixture(scope="module")
def six(tiny):
    return find_ffns(tiny("llama", num_hidden_layers=6))


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("all", [0, 1, 2, 3, 4, 5]),
        ("every:2", [1, 3, 5]),
        ("every:3", [2, 5]),
        ("every:2:0", [0, 2, 4]),
        ("every:2:1", [1, 3, 5]),
        ("every:3:1", [1, 4]),
        ("first_half", [0, 1, 2]),
        ("second_half", [3, 4, 5]),
        ("last:2", [4, 5]),
        ("first:2", [0, 1]),
        ("first_dense:1", [1, 2, 3, 4, 5]),
        ("*.layers.[0-2].*", [0, 1, 2]),
        ("model.layers.4.mlp", [4]),
        ([5, 0], [0, 5]),
    ],
)
def test_rules_name_places(six, where, expected) -> None:
    assert [six.index(ffn) for ffn in select(six, where)] == expected


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("encoder", [0, 1]),
        ("decoder", [2, 3]),
        ("decoder:every:2", [3]),
        ("decoder:every:2:0", [2]),
        ("last:1", [1, 3]),
        ("first_half", [0, 2]),
        ("second_half", [1, 3]),
    ],
)
def test_rules_count_in_each_stack(tiny, where, expected) -> None:
    found = find_ffns(tiny("t5"))
    assert [found.index(ffn) for ffn in select(found, where)] == expected


def test_the_halves_of_an_odd_stack_are_all_of_it_and_the_second_is_larger(tiny) -> None:
    found = find_ffns(tiny("llama", num_hidden_layers=5))
    halves = [[found.index(ffn) for ffn in select(found, where)] for where in ("first_half", "second_half")]
    assert halves == [[0, 1], [2, 3, 4]]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("evry:2", "did you mean 'every'"),
        ("every", "cannot read where='every'"),
        ("every:two", "expected one whole number"),
        ("every:0", "selects none"),
        ("every:0:1", "selects none"),
        ("every:2:6", "selects none"),
        ("every:2:0:1", "expected one whole number"),
        ("last:2:0", "cannot read where='last:2:0'"),
        ("first_half:2", "cannot read where='first_half:2'"),
        ("all:1", "cannot read where='all:1'"),
        ("frist_half", "did you mean 'first_half'"),
        ("encoder", "selects none of the 6"),
        ("*.blocks.*", "selects none of the 6"),
        ([6], "list places from 0 to 5"),
        ([], "list places from 0 to 5"),
        ([True], "list places from 0 to 5"),
    ],
)
def test_mistakes_are_named(six, where, message) -> None:
    with pytest.raises(ConfigError, match=message):
        select(six, where)


def test_only_the_selected_layers_change(tiny) -> None:
    model = moeify(tiny("llama", num_hidden_layers=4), "smoe", where="every:2")
    kinds = [type(layer.mlp).__name__ for layer in model.model.layers]
    assert kinds == ["LlamaMLP", "MoELayer", "LlamaMLP", "MoELayer"]
    assert [layer.mlp.index for layer in model.model.layers[1::2]] == [0, 1]
