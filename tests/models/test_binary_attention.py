"""Binary linear attention in vision transformers (ShiftAddViT, arXiv 2306.06446)."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch

from libmoe.core.errors import ConfigError
from libmoe.models import account, add_binary_attention, load, moeify, save
from libmoe.models.binary_attention import BinaryAttention


def replaced(model: Any) -> dict[str, BinaryAttention]:
    return {path: module for path, module in model.named_modules() if isinstance(module, BinaryAttention)}


@torch.no_grad()
def test_projections_keep_their_weights_and_attention_is_the_layer_between_them(
    tiny: Any, answer: Any
) -> None:
    model = tiny("vit")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    new = add_binary_attention(copy.deepcopy(model), where="last:1", seed=0)
    assert set(replaced(new)) == {"vit.layers.1.attention"}
    after = new.state_dict()
    assert {name for name in after if name not in before} == {"vit.layers.1.attention.linear.conv.weight"}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert (answer(new) - answer(model)).abs().max() > 1e-4
    attention, x_BLD = new.vit.layers[1].attention, torch.randn(2, 5, 32)
    q, k, v = (
        getattr(model.vit.layers[1].attention, name)(x_BLD).view(2, 5, 4, 8).transpose(1, 2)
        for name in ("q_proj", "k_proj", "v_proj")
    )
    heads = attention.linear(q, k, v).transpose(1, 2).reshape(2, 5, 32)
    found, weights = attention(x_BLD)
    torch.testing.assert_close(found, model.vit.layers[1].attention.o_proj(heads))
    assert weights is None


@pytest.mark.parametrize(("architecture", "where"), [("vit", "all"), ("clip", "vision")])
def test_it_is_saved_and_loaded_beside_experts(
    architecture: str, where: str, tiny: Any, answer: Any, tmp_path: Any
) -> None:
    """With multiplication and shift experts in the FFNs, as in the paper."""
    model = moeify(tiny(architecture), "shiftadd-moe", where=where, init="copy", seed=0)
    dense = answer(model)
    new = add_binary_attention(model, kernel=3, mean="image", where=where, seed=0)
    assert len(replaced(new)) == 2 and (answer(new) - dense).abs().max() > 1e-5
    again = load(save(new, tmp_path / "model"))
    assert torch.equal(answer(again), answer(new)) and again.libmoe.edits == new.libmoe.edits
    section = json.loads((tmp_path / "model" / "config.json").read_text())["libmoe"]
    assert section["edits"] == [
        {"kind": "binary-attention", "options": {"kernel": 3, "mean": "image", "paths": list(replaced(new))}}
    ]


def test_the_convolution_depends_on_the_seed_alone(tiny: Any) -> None:
    def weights(seed: int) -> list[torch.Tensor]:
        torch.rand(seed + 1)
        return [
            part.linear.conv.weight
            for part in replaced(add_binary_attention(tiny("vit"), seed=seed)).values()
        ]

    one, same, other = weights(0), weights(0), weights(1)
    assert (
        all(map(torch.equal, one, same))
        and not torch.equal(one[0], one[1])
        and not torch.equal(one[0], other[0])
    )


def test_every_parameter_of_attention_is_trained(tiny: Any, batch_of: Any) -> None:
    new = add_binary_attention(tiny("vit")).train()
    given = batch_of(new)
    new(**given, labels=torch.tensor([0, 1])).loss.backward()
    assert all(
        p.grad is not None and p.grad.any() for part in replaced(new).values() for p in part.parameters()
    )


def test_its_cost_is_linear_in_the_tokens(tiny: Any) -> None:
    """``4 d^2`` a head and token in place of ``4 L d``, and the convolution's ``2 * 9 d``; L patches and the class."""
    for size, tokens in ((16, 5), (64, 65)):
        model = tiny("vit", extra={"image_size": size})
        dense, new = account(model), account(add_binary_attention(copy.deepcopy(model)))
        change = new.flops_per_token - dense.flops_per_token
        assert new.tokens == dense.tokens == tokens
        assert change == pytest.approx(2 * 4 * (4 * 8 * 8 + 2 * 9 * 8 - 4 * tokens * 8))


def test_masks_are_refused(tiny: Any, batch_of: Any) -> None:
    new = add_binary_attention(tiny("vit"))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with pytest.raises(
        ConfigError, match="attention_mask: binary linear attention sums over all tokens of an image"
    ):
        new(**batch_of(new), attention_mask=mask)


@pytest.mark.parametrize(
    ("architecture", "given", "message"),
    [
        ("llama", {}, "layers.0.self_attn is attention of text, which masks tokens"),
        ("clip", {}, r"text_model.*layers.0.self_attn is attention of text"),
        ("bert", {}, "no attention of a known form in Bert"),
        ("vit", {"where": "last:0"}, "where='last:0' selects none"),
        ("vit", {"kernel": 4}, "kernel=4: the convolution needs an odd number"),
        ("vit", {"mean": "token"}, "unknown value of mean 'token'"),
    ],
)
def test_what_cannot_be_is_said_and_changes_nothing(
    architecture: str, given: dict[str, Any], message: str, tiny: Any, answer: Any
) -> None:
    model = tiny(architecture)
    before = answer(model)
    with pytest.raises(ConfigError, match=message):
        add_binary_attention(model, **given)
    assert torch.equal(answer(model), before) and not replaced(model)


def test_attention_of_another_form_is_named(tiny: Any) -> None:
    model = tiny("vit")
    model.vit.layers[0].attention.is_causal = True
    with pytest.raises(ConfigError, match=r"vit.layers.0.attention \(ViTAttention\) cannot become binary"):
        add_binary_attention(model)
