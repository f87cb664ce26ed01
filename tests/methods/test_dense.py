"""The dense baseline."""

from __future__ import annotations

import pytest
import torch

import libmoe
from libmoe.core.errors import ConfigError
from libmoe.core.site import Site
from libmoe.experts import FFN


def test_without_a_width_the_models_own_ffn_stays() -> None:
    assert libmoe.create("dense").build_layer(Site(16, 32)) is None


def test_a_width_gives_a_plain_ffn_of_the_sites_form_and_seed() -> None:
    site = Site(16, 32, activation="gelu", gated=False, bias=True, seed=1)
    first, second = (libmoe.create("dense", hidden=24).build_layer(site) for _ in range(2))
    assert isinstance(first, FFN)
    assert (first.w_in.shape, first.activation, first.gated, first.b_in.shape) == (
        (24, 16),
        "gelu",
        False,
        (24,),
    )
    assert torch.equal(first.w_in, second.w_in)


@pytest.mark.parametrize("option", [{"num_experts": 8}, {"balance": 0.5}, {"expert_hidden": 4}])
def test_options_of_experts_are_refused(option: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(option))} has no meaning for 'dense'"):
        libmoe.create("dense", option)


def test_a_width_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="hidden=0"):
        libmoe.create("dense", hidden=0)
