"""Med-MoE and MoE-TinyMed (arXiv 2404.10237): a frozen classifier as router, and an expert that is always on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import libmoe
from libmoe.core.context import ForwardContext, checkpoint_contexts
from libmoe.core.errors import ConfigError
from libmoe.core.site import Site
from libmoe.layers import MoELayer, moe_layers
from libmoe.methods.med_moe import set_classifier
from libmoe.models import account, load, save
from libmoe.models.accounting import flop_counter
from libmoe.models.backbones import BackboneConfig, build_backbone
from libmoe.models.encoders import VisionConfig
from libmoe.models.trainable import freeze_others

N, WIDTH = 4, 32
IMAGE, PATCHES = 96, 16
Write = Callable[..., str]


@pytest.fixture
def classifier(tmp_path: Path) -> Write:
    """``classifier(scale)``: a file with the weights of a classifier of four domains."""

    def write(scale: float = 1.0, width: int = WIDTH, prefix: str = "", **more: Tensor) -> str:
        generator = torch.Generator().manual_seed(3)
        weight = scale * torch.randn(N, width, generator=generator)
        bias = scale * torch.randn(N, generator=generator)
        path = tmp_path / f"{prefix}router-{scale}-{width}.safetensors"
        save_file({f"{prefix}weight": weight, f"{prefix}bias": bias, **more}, path)
        return str(path)

    return write


def llava() -> Any:
    vision = VisionConfig(None, "clip_vision_model", hidden_size=48, num_hidden_layers=2, image_size=56)
    shape = {"hidden_size": WIDTH, "num_hidden_layers": 4, "intermediate_size": 48}
    return build_backbone(BackboneConfig(**shape, vocab_size=IMAGE + 1, vision=vision))


def batch() -> dict[str, Tensor]:
    ids = torch.randint(0, IMAGE, (2, 28))
    ids[:, 3 : 3 + PATCHES] = IMAGE
    return {"input_ids": ids, "pixel_values": torch.randn(2, 3, 56, 56)}


def upcycled(model: Any, method: str = "med-moe", **options: Any) -> Any:
    return libmoe.moeify(
        copy.deepcopy(model), method, options=options, where="language:every:2:0", init="copy", seed=0
    )


def layers(model: Any) -> list[MoELayer]:
    return [layer for _, layer in moe_layers(model)]


def test_upcycled_tinymed_equals_the_dense_model_where_no_token_is_dropped() -> None:
    model, given = llava(), batch()
    dense = model(**given).logits
    for moe in (
        upcycled(model, "moe-tinymed").eval(),  # a factor of 2 holds all tokens of 4 experts
        upcycled(model, "moe-tinymed", capacity_factor=None).train(),
    ):
        assert (moe(**given).logits - dense).abs().max() < 1e-5
    tight = upcycled(model, "moe-tinymed", capacity_factor=0.25).train()
    assert (tight(**given).logits - dense).abs().max() > 1e-3, "dropping shows"


def test_tinymed_has_moe_llavas_published_settings() -> None:
    method = libmoe.create("moe-tinymed")
    assert (method.num_experts, method.top_k, method.balance) == (4, 2, 0.01)
    assert (method.capacity_factor, method.eval_capacity_factor) == (1.5, 2.0)


def test_at_the_start_the_output_is_one_plus_p_times_the_dense_ffns(classifier: Write) -> None:
    """So it is not the dense model's; twice of it where the classifier is certain."""
    model, x_TD = llava(), torch.randn(40, WIDTH)
    ffn = model.model.language_model.layers[0].mlp
    for scale, certain in ((0.2, False), (1e4, True)):
        layer = layers(upcycled(model, router_weights=classifier(scale)))[0]
        routing = layer.route(x_TD, ForwardContext().layer(0, (1, 40), False))
        p_T1 = routing.scores_TN.max(1, keepdim=True).values
        torch.testing.assert_close(layer(x_TD[None])[0], (1 + p_T1) * ffn(x_TD), rtol=1e-4, atol=1e-6)
        assert torch.equal(routing.plan.weight_A.unsqueeze(1), p_T1)
        assert bool((p_T1 == 1).all()) == certain
        if certain:
            torch.testing.assert_close(layer(x_TD[None])[0], 2 * ffn(x_TD), rtol=1e-5, atol=1e-7)


def test_half_keeps_the_function_of_the_dense_model(classifier: Write) -> None:
    model, given = llava(), batch()
    dense, file = model(**given).logits, classifier(0.2)
    assert (upcycled(model, router_weights=file, scale="half")(**given).logits - dense).abs().max() < 1e-5
    assert (upcycled(model, router_weights=file)(**given).logits - dense).abs().max() > 1e-2
    several = upcycled(model, router_weights=file, scale="half", top_k=3)
    assert (several(**given).logits - dense).abs().max() < 1e-5


def test_the_frozen_router_gets_no_gradient_and_routes_alike_after_training(classifier: Write) -> None:
    """The first MoE layer's inputs stay too, where only experts train; nothing asked to train reaches the router."""
    moe, given = upcycled(llava(), router_weights=classifier()).train(), batch()
    with pytest.raises(ConfigError, match="has no parameters of 'routers'"):
        freeze_others(moe, ["experts", "routers"])
    freeze_others(moe, ["experts"])
    gates = [layer.router.gate for layer in layers(moe)]
    assert not [name for name, _ in moe.named_parameters() if ".router." in name]

    def chosen() -> list[Tensor]:
        seen: list[Tensor] = []
        with libmoe.options(recorders=[lambda ctx, routing: seen.append(routing.plan.expert_A)]), torch.no_grad():
            moe(**given)
        return seen

    before, weights = chosen(), [gate.weight.clone() for gate in gates]
    optimizer = torch.optim.AdamW([p for p in moe.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        moe(**batch()).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(gate.weight, weight) for gate, weight in zip(gates, weights, strict=True))
    after = chosen()
    assert torch.equal(after[0], before[0])
    assert not torch.equal(after[1], before[1]), "later layers see what experts made of it"


def test_only_experts_and_the_meta_expert_train_in_the_third_stage() -> None:
    moe = upcycled(llava())
    kept = freeze_others(moe, ["experts"])
    assert kept == sorted(name for name, p in moe.named_parameters() if p.requires_grad)
    assert {name.partition(".mlp.")[2].split(".")[0] for name in kept} == {"experts", "shared"}
    assert {name.partition(".mlp.")[0] for name in kept} == {f"model.language_model.layers.{i}" for i in (0, 2)}


def test_experts_and_the_meta_expert_begin_as_copies_and_part_in_training() -> None:
    layer = layers(upcycled(llava()))[0].train()
    meta = layer.shared.ffn
    for expert in range(N):
        copied = layer.experts.materialise(expert)
        assert all(torch.equal(p, meta.get_parameter(name)) for name, p in copied.named_parameters())
    layer(torch.randn(2, 20, WIDTH)).square().sum().backward()
    assert not torch.allclose(meta.w_out.grad, layer.experts.w_out.grad.sum(0))


def test_tokens_of_a_domain_that_the_classifier_tells_share_one_expert(classifier: Write) -> None:
    """Purity of routing is the classifier's accuracy: 100 per cent here."""
    layer = layers(upcycled(llava()))[0]
    set_classifier(layer, 5 * torch.eye(N, WIDTH), torch.zeros(N))
    domain_T = torch.randint(N, (200,))
    x_TD = torch.randn(200, WIDTH) * 0.1 + 3 * torch.eye(N, WIDTH)[domain_T]
    routing = layer.route(x_TD, ForwardContext().layer(0, (1, 200), False))
    assert torch.equal(routing.plan.expert_A, domain_T)
    with_bias = torch.tensor([0.0, 0.0, 1e3, 0.0])
    set_classifier(layer, 5 * torch.eye(N, WIDTH), with_bias)
    assert (layer.route(x_TD, ForwardContext().layer(0, (1, 200), False)).plan.expert_A == 2).all()


def test_all_layers_share_the_classifier_of_the_file_by_either_name(classifier: Write) -> None:
    for prefix in ("", "fc1."):
        gates = [layer.router.gate for layer in layers(upcycled(llava(), router_weights=classifier(prefix=prefix)))]
        weight = torch.randn(N, WIDTH, generator=torch.Generator().manual_seed(3))
        assert len(gates) == 2 and all(torch.equal(gate.weight, weight) for gate in gates)
        assert all(gate.bias.abs().min() > 0 for gate in gates)


def test_a_saved_model_needs_the_file_no_more(classifier: Write, tmp_path: Path) -> None:
    file, given = classifier(), batch()
    model = upcycled(llava(), router_weights=file)
    save(model, tmp_path / "model")
    Path(file).unlink()
    assert torch.equal(load(tmp_path / "model")(**given).logits, model(**given).logits)


def test_what_is_no_classifier_for_the_layer_is_named(classifier: Write, tmp_path: Path) -> None:
    moe = libmoe.moeify(llava(), "med-moe", options={"router_weights": "nowhere.safetensors"}, where="language")
    with pytest.raises(ConfigError, match=r"router_weights='nowhere\.safetensors' does not exist"):
        moe(**batch())
    with pytest.raises(ConfigError, match=r"weight has shape \(4, 8\); this layer needs \(4, 32\)"):
        upcycled(llava(), router_weights=classifier(width=8))
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(ConfigError, match="is no safetensors file"):
        upcycled(llava(), router_weights=str(tmp_path / "text"))
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="holds a, b; it needs weight and bias"):
        upcycled(llava(), router_weights=str(tmp_path / "other.safetensors"))
    with pytest.raises(ConfigError, match="has no frozen gate"):
        set_classifier(upcycled(llava(), "smoe"), torch.zeros(N, WIDTH), torch.zeros(N))
    with pytest.raises(ConfigError, match=r"balance=0\.01: this router is frozen"):
        libmoe.create("med-moe", balance=0.01)


@pytest.mark.parametrize("scale", ["sum", "half"])
def test_equals_a_plain_reference_with_all_gradients_also_when_recomputed(scale: str, classifier: Write) -> None:
    options = {"router_weights": classifier(0.5), "scale": scale}
    layer = libmoe.create("med-moe", options).build_layer(Site(WIDTH, 48, seed=0)).double().train()
    x_TD = torch.randn(30, WIDTH, dtype=torch.double, requires_grad=True)
    p_TN = torch.softmax(x_TD @ layer.router.gate.weight.T + layer.router.gate.bias, dim=1)
    rows = [
        (p_TN[t, e] if scale == "sum" else 0.5) * layer.experts.materialise(int(e))(x_TD[t])
        for t, e in enumerate(p_TN.argmax(1))
    ]
    meta = layer.shared.ffn
    expected = torch.stack(rows) + (1.0 if scale == "sum" else 0.5) * meta(x_TD)
    for recompute in (False, True):
        context = {"use_reentrant": False, "context_fn": checkpoint_contexts}
        y_TD = (torch.utils.checkpoint.checkpoint(layer, x_TD[None], **context) if recompute else layer(x_TD[None]))[0]
        torch.testing.assert_close(y_TD, expected, rtol=1e-10, atol=1e-12)
        for ours, plain in zip(
            torch.autograd.grad(y_TD.square().sum(), [x_TD, meta.w_in]),
            torch.autograd.grad(expected.square().sum(), [x_TD, meta.w_in], retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(ours, plain, rtol=1e-8, atol=1e-10)


def test_both_active_ffns_are_paid_for() -> None:
    """FLOPs of a forward pass are torch's count, within what routing and mixing cost."""
    model = upcycled(llava())
    ids = torch.cat([torch.full((1, PATCHES), IMAGE), torch.zeros(1, 12, dtype=torch.long)], 1)
    dense = account(llava(), 12)
    more = account(model, 12).flops_per_token - dense.flops_per_token
    assert more == pytest.approx(2 * 2 * 3 * WIDTH * 48, rel=0.1)  # one FFN more in each of two layers
    with flop_counter() as counter, torch.no_grad():
        model(input_ids=ids, pixel_values=torch.zeros(1, 3, 56, 56), use_cache=False)
    counted = account(model, 12)
    assert counted.flops_per_token * counted.tokens == pytest.approx(counter.get_total_flops(), rel=0.01)
