"""Single experts are trained while their neighbours stay as they are, to the last bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import libmoe
from libmoe.core.errors import ConfigError
from libmoe.experts import FFNExperts
from libmoe.layers import moe_layers
from libmoe.models import moeify
from libmoe.models.trainable import check_parts, freeze_others, hold_rows

STACKED = ["smoe", "uni-moe"]


def model_of(tiny: Any, method: str = "smoe", **options: Any) -> Any:
    return moeify(tiny("llama"), method, options={"num_experts": 4, **options}, init="copy", seed=0).train()


def adamw(model: nn.Module) -> torch.optim.AdamW:
    """Two groups, one of them without decay; decay is strong, so that what it touches shows."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    plain = [p for name, p in trained.items() if "norm" in name]
    rest = [p for name, p in trained.items() if "norm" not in name]
    groups = [{"params": rest}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=0.01, weight_decay=0.5)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> Tensor:
    ids = torch.randint(0, 90, (2, 12), generator=torch.Generator().manual_seed(seed))
    model(input_ids=ids, labels=ids).loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    optimizer.zero_grad()
    return norm


def stacks(model: nn.Module) -> dict[str, Tensor]:
    """Tensors with a row for each expert."""
    prefixes = tuple(f"{path}.experts." for path, _ in moe_layers(model))
    return {name: p.detach().clone() for name, p in model.named_parameters() if name.startswith(prefixes)}


@pytest.mark.parametrize("method", STACKED)
def test_experts_frozen_in_a_stack_keep_their_bits_under_weight_decay(tiny: Any, method: str) -> None:
    model = model_of(tiny, method)
    before = stacks(model)
    freeze_others(model, ["experts:1", "experts:3", "routers"])
    assert set(model.trained_rows) == {name for name in before if ".base." not in name}
    optimizer = adamw(model)
    hold_rows(model, optimizer)
    for seed in range(4):
        step(model, optimizer, seed)
    after = stacks(model)
    for name, old in before.items():
        moved = [bool((after[name][e] != old[e]).any()) for e in range(4)]
        assert moved == ([False, True, False, True] if ".base." not in name else [False] * 4), name


def test_trained_rows_learn_as_if_their_neighbours_were_not_there(tiny: Any) -> None:
    """Against tensors of their own: the same experts in banks of one, the frozen ones without gradient."""
    method = "modality-static"
    apart = moeify(tiny("llama"), method, options={"num_experts": 2}, init="copy", seed=0).train()
    stacked = copy.deepcopy(apart)
    for _, layer in moe_layers(stacked):
        bank = FFNExperts(2, 32, 48)
        for e in range(2):
            bank.load_ffn(e, layer.experts.materialise(e))
        layer.experts = bank
    for model in (apart, stacked):
        freeze_others(model, ["experts:1", "*norm*"])
    assert not apart.trained_rows and stacked.trained_rows
    optimizers = [adamw(apart), adamw(stacked)]
    hold_rows(stacked, optimizers[1])
    side = {"modality": torch.arange(12).expand(2, -1) % 2}
    both = list(zip((apart, stacked), optimizers, strict=True))
    for seed in range(4):
        with libmoe.options(side=side):
            norms = [step(model, optimizer, seed) for model, optimizer in both]
        torch.testing.assert_close(norms[1], norms[0])  # what does not train is not clipped for
    for (_, one), (_, other) in zip(moe_layers(apart), moe_layers(stacked), strict=True):
        for e in range(2):
            for name, parameter in one.experts.materialise(e).named_parameters():
                torch.testing.assert_close(getattr(other.experts, name)[e], parameter, rtol=1e-5, atol=1e-6)


def test_an_optimizer_left_to_itself_would_decay_them(tiny: Any) -> None:
    """The test above can fail: frozen rows move when nobody holds them."""
    model = model_of(tiny)
    before = stacks(model)
    freeze_others(model, ["experts:1"])
    optimizer = adamw(model)
    step(model, optimizer, 0)
    assert any((after[0] != before[name][0]).any() for name, after in stacks(model).items())


def test_a_whole_part_takes_its_single_experts_in(tiny: Any) -> None:
    model = model_of(tiny)
    trained = freeze_others(model, ["experts:1", "experts"])
    assert not model.trained_rows and trained == sorted(stacks(model))


def test_what_a_method_keeps_frozen_stays_frozen(tiny: Any) -> None:
    """The experts beside adapters, whatever words or patterns cover them, and also at the next stage."""
    model = tiny("llama")
    freeze_others(model, ["*.norm.*"])  # as a stage before did
    moeify(model, "uni-moe", options={"num_experts": 4}, init="copy")
    for parts in (["experts"], ["language"], ["*"], ["experts:0"]):
        trained = freeze_others(model, parts)
        assert trained and not any(".base." in name or "proj.linear" in name for name in trained)
    with pytest.raises(ConfigError, match=r"has no parameters of '\*\.base\.\*'"):
        freeze_others(model, ["*.base.*"])
    assert "model.embed_tokens.weight" in freeze_others(model, ["language"])


def test_what_is_not_there_is_named(tiny: Any) -> None:
    with pytest.raises(ConfigError, match="has no parameters of 'experts:4'"):
        freeze_others(model_of(tiny), ["experts:4"])
    with pytest.raises(ConfigError, match=r"unknown train\.trainable 'expert:1'; did you mean 'experts:0'"):
        check_parts(["expert:1"])
    check_parts(["experts:12", "vision", "*.self_attn.*"])
