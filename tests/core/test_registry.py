"""Names: registering, finding, and hints for misspelled ones."""

from __future__ import annotations

import pytest

from libmoe.core.errors import ConfigError, LibMoEError
from libmoe.core.registry import Info, Registry
from libmoe.core.seeding import derive_seed, seeded


def make() -> Registry[type]:
    registry: Registry[type] = Registry("method")
    registry.register(Info("deepseek-moe", "fine-grained", aliases=("dsmoe",)))(int)
    registry.register(Info("deepseek-v3"))(float)
    registry.register(Info("smoe"))(str)
    return registry


def test_entries_are_found_by_name_and_alias() -> None:
    registry = make()
    assert registry.get("deepseek-moe") is registry.get("dsmoe") is int
    assert registry.info("dsmoe").summary == "fine-grained"
    assert registry.names() == list(registry) == ["deepseek-moe", "deepseek-v3", "smoe"]
    assert registry.names("deepseek-*") == ["deepseek-moe", "deepseek-v3"]
    assert "dsmoe" in registry and "other" not in registry and len(registry) == 3


@pytest.mark.parametrize(
    ("name", "guess"), [("smo", "smoe"), ("DSMoE", "dsmoe"), ("deepsek-v3", "deepseek-v3")]
)
def test_a_misspelled_name_gets_the_nearest_one(name: str, guess: str) -> None:
    with pytest.raises(ConfigError, match=rf"unknown method '{name}'; did you mean '{guess}'"):
        make().get(name)


def test_a_name_like_no_other_gets_the_list() -> None:
    with pytest.raises(LibMoEError, match="choose one of: deepseek-moe, deepseek-v3, dsmoe, smoe"):
        make().get("zzzzzz")


@pytest.mark.parametrize(
    ("name", "aliases"), [("smoe", ()), ("dsmoe", ()), ("new", ("smoe",)), ("x", ("dsmoe",))]
)
def test_taken_names_are_refused_and_change_nothing(name: str, aliases: tuple) -> None:
    registry = make()
    with pytest.raises(ConfigError, match="registered already"):
        registry.register(Info(name, aliases=aliases))(bytes)
    assert registry.get("smoe") is str
    assert len(registry) == 3


def test_seeds_depend_on_names_alone() -> None:
    import torch

    assert derive_seed(0, "router", 1) == derive_seed(0, "router", 1)
    assert len({derive_seed(s, n) for s in (0, 1) for n in ("router", "experts")}) == 4
    with seeded(0, "router"):
        first = torch.rand(2)
    state = torch.get_rng_state()
    with seeded(0, "router"):
        assert torch.equal(torch.rand(2), first)
    assert torch.equal(torch.get_rng_state(), state)
    with seeded(None, "router"):
        torch.rand(1)
    assert not torch.equal(torch.get_rng_state(), state)
