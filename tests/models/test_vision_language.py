"""LLaVA's layout: composed of an encoder and a language model, with experts in any of its three parts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import libmoe
from libmoe.core.errors import ConfigError
from libmoe.layers import moe_layers
from libmoe.models import account, load, save
from libmoe.models.accounting import flop_counter
from libmoe.models.backbones import BackboneConfig, build_backbone
from libmoe.models.detect import find_ffns
from libmoe.models.encoders import VisionConfig, build_encoder

FIVE = ["smoe", "xmoe", "sigmoid", "hyper-router", "perturbed-cosine"]
ENCODERS = ["siglip_vision_model", "clip_vision_model", "dinov2", "vit"]
IMAGE, PATCHES = 96, 16


def built(architecture: str = "dinov2", **vision: Any) -> Any:
    shape = {"hidden_size": 48, "num_hidden_layers": 2, "image_size": 56} | vision
    return build_backbone(
        BackboneConfig(
            hidden_size=32, num_hidden_layers=2, vocab_size=IMAGE + 1, vision=VisionConfig(None, architecture, **shape)
        )
    )


def batch(rows: int = 2) -> dict[str, torch.Tensor]:
    """Text with the image near its beginning; the last row ends in padding."""
    ids = torch.randint(0, IMAGE, (rows, 28))
    ids[:, 3 : 3 + PATCHES] = IMAGE
    mask = torch.ones_like(ids)
    mask[-1, 24:] = 0
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.randn(rows, 3, 56, 56)}


def upcycled(model: Any, method: str = "smoe", where: str = "all", **options: Any) -> Any:
    new = copy.deepcopy(model)
    return libmoe.moeify(
        new, method, options={"num_experts": 4, "top_k": 2} | options, where=where, init="copy", seed=0
    )


@pytest.mark.parametrize("architecture", ENCODERS)
def test_any_encoder_and_language_model_make_a_llava(architecture: str) -> None:
    model, given = built(architecture), batch()
    assert model.config.image_seq_length == PATCHES
    given["attention_mask"][:] = 1
    first = model(**given).logits
    given["pixel_values"][0] += 1.0
    changed = (model(**given).logits - first).abs().amax(-1)
    assert changed[0, 3:].min() > 0, "the text does not see the image"
    assert changed[0, :3].max() == 0 and changed[1].max() == 0, "causal, and each row sees its own image"


@pytest.mark.parametrize("method", FIVE)
def test_upcycled_encoder_connector_and_language_model_compute_what_they_did(method: str) -> None:
    """Experts are copies and gates sum to 1: all methods begin with the loss of the dense model."""
    model, given = built(), batch()
    new = upcycled(model, method)
    assert [layer.experts.out_dim for _, layer in moe_layers(new)] == [48, 48, 32, 32, 32]
    assert (new(**given).logits - model(**given).logits).abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2", "vit"])
def test_saved_models_with_experts_come_back_equal(kind: str, tmp_path: Path) -> None:
    model = upcycled(built(f"{kind}_vision_model" if kind in ("clip", "siglip") else kind), where="vision+connector")
    save(model, tmp_path / "model")
    again, given = load(tmp_path / "model"), batch()
    assert torch.equal(again(**given).logits, model(**given).logits)
    new = again.generate(**{k: v[:1, :24] if v.dim() == 2 else v[:1] for k, v in given.items()}, max_new_tokens=3)
    assert new.shape[1] == 27


@pytest.mark.parametrize(
    ("where", "chosen"),
    [
        ("vision", [0, 1]), ("connector", [2]), ("language", [3, 4]), ("all", [0, 1, 2, 3, 4]),
        ("vision:last:1+connector", [1, 2]), ("language:first:1+vision:first:1", [0, 3]), ("*language*", [3, 4]),
    ],
)  # fmt: skip
def test_where_selects_encoder_connector_and_language_model(where: str, chosen: list[int]) -> None:
    model = built()
    paths = [ffn.path for ffn in find_ffns(model)]
    assert [site.path for site in upcycled(model, where=where).libmoe.sites] == [paths[i] for i in chosen]


def test_a_part_that_selects_nothing_is_named() -> None:
    with pytest.raises(ConfigError, match=r"where='vision:first_dense:9' selects none of the 5"):
        upcycled(built(), where="connector+vision:first_dense:9")
    with pytest.raises(ConfigError, match=r"cannot read where='visoin'"):
        upcycled(built(), where="visoin")


def test_experts_that_return_their_input_cannot_change_the_width() -> None:
    with pytest.raises(ConfigError, match=r"multi_modal_projector: zero, copy and constant .* turns 48 into 32"):
        libmoe.moeify(built(), "moe-plus-plus", where="connector", seed=0)
    with pytest.raises(ConfigError, match="overflow='identity'"):
        libmoe.moeify(built(), "switch", options={"overflow": "identity"}, where="connector", seed=0)


@pytest.mark.parametrize("method", ["smoe", "soft-moe", "expert-choice", "deepseek-moe"])
def test_a_connector_of_experts_is_the_sum_of_its_experts(method: str) -> None:
    """Against each expert's own FFN, weighted as the plan says, with all gradients."""
    model = libmoe.moeify(built(), method, where="connector", seed=0)
    (_, layer), x = next(iter(moe_layers(model))), torch.randn(2, PATCHES, 48, requires_grad=True)
    y = layer(x)
    assert y.shape == (2, PATCHES, 32)
    y.square().sum().backward()
    assert all(p.grad is not None for p in layer.experts.parameters()) and x.grad is not None
    if method == "smoe":
        p_TN = (x.detach().flatten(0, 1) @ layer.router.gate.weight.T).softmax(-1)
        weight, chosen = p_TN.topk(layer.router.top_k)
        weight = weight / weight.sum(-1, keepdim=True)
        bank = layer.experts
        outputs = torch.stack([bank.materialise(e)(x.flatten(0, 1)) for e in range(bank.num_experts)], 1)
        expected = (outputs.gather(1, chosen.unsqueeze(-1).expand(-1, -1, 32)) * weight.unsqueeze(-1)).sum(1)
        torch.testing.assert_close(y.flatten(0, 1), expected)


def test_patches_do_not_take_the_mask_of_the_text() -> None:
    """The connector's tokens are patches, all of them real, however the text is padded."""
    model, given = upcycled(built(), where="all"), batch()
    seen: dict[int, Any] = {}
    with libmoe.options(recorders=[lambda ctx, routing: seen.update({ctx.index: (ctx.tokens.apart, ctx.mask_T)})]):
        model(**given)
    assert [apart for apart, _ in seen.values()] == [True, True, True, False, False]
    assert all(seen[i][1] is None for i in (0, 1, 2))
    assert int((~seen[3][1]).sum()) == 4


def test_balance_losses_of_patches_do_not_depend_on_micro_batches() -> None:
    """Images are counted as items of the step, whatever the text's length."""
    model, given = upcycled(built(), where="all", balance=0.5, z_loss=0.1).train(), batch(4)
    given["attention_mask"][:] = 1

    def gradient(parts: list[slice]) -> torch.Tensor:
        model.zero_grad()
        totals = {"token": 4.0 * 28, "sequence": 4.0, "item": 4.0}
        for part in parts:
            with libmoe.options(totals=totals):
                logits = model(**{k: v[part] for k, v in given.items()}, use_cache=False).logits
                (0.0 * logits.sum()).backward()
        return torch.cat([layer.router.gate.weight.grad.flatten() for _, layer in moe_layers(model)])

    whole = gradient([slice(0, 4)])
    assert whole.abs().max() > 0
    torch.testing.assert_close(gradient([slice(0, 1), slice(1, 4)]), whole, rtol=1e-4, atol=1e-7)


def test_flops_are_those_of_a_real_forward_pass() -> None:
    model = built()
    counted = account(model, 12)
    ids = torch.cat([torch.full((1, PATCHES), IMAGE), torch.zeros(1, 12, dtype=torch.long)], 1)
    with flop_counter() as counter, torch.no_grad():
        model(input_ids=ids, pixel_values=torch.zeros(1, 3, 56, 56), use_cache=False)
    assert counted.tokens == PATCHES + 12
    assert counted.flops_per_token * counted.tokens == pytest.approx(counter.get_total_flops(), rel=1e-6)
    assert account(upcycled(model), 12).flops_per_token > counted.flops_per_token


@pytest.mark.parametrize("architecture", ENCODERS)
def test_an_encoder_is_cut_and_its_positions_are_interpolated(architecture: str) -> None:
    config = VisionConfig(None, architecture, hidden_size=32, num_hidden_layers=3, image_size=56)
    whole, small = build_encoder(config), build_encoder(config)
    from libmoe.models.encoders import _fitted

    small = _fitted(small, 2, 28)
    assert small.config.num_hidden_layers == 2 and small.config.image_size == 28
    pixels = torch.randn(1, 3, 28, 28)
    states = small(pixel_values=pixels, output_hidden_states=True).hidden_states
    assert len(states) == 3 and torch.isfinite(states[-1]).all()
    kept = [n for n, p in small.named_parameters() if "position" not in n]
    assert all(torch.equal(small.get_parameter(n), whole.get_parameter(n)) for n in kept)
    name = next(n for n, _ in whole.named_parameters() if "position" in n)
    grid = whole.get_parameter(name).reshape(-1, 32)[-16:].T.reshape(1, 32, 4, 4)
    expected = F.interpolate(grid, size=(2, 2), mode="bicubic", antialias=True, align_corners=False)
    found = small.get_parameter(name).reshape(-1, 32)[-4:].T.reshape(1, 32, 2, 2)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("vision", "words"),
    [
        ({"architecture": "dinov3"}, "did you mean 'dinov2'"),
        ({"architecture": "llama"}, "LlamaModel is no image encoder"),
        ({"layers": 9}, "backbone.vision.layers=9: the encoder has 2 blocks"),
        ({"image_size": 50, "layers": 1}, "not a multiple of the patch size 14"),
        ({"layers": 0}, "backbone.vision.layers must be at least 1, got 0"),
        ({"extra": {"num_chanels": 1}}, "did you mean 'num_channels'"),
    ],
)
def test_an_encoder_that_cannot_be_is_one_line(vision: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        built(**vision)
