"""Uni-MoE (arXiv 2405.11273): experts fine-tuned apart, assembled, frozen, and adapted with LoRA and a new router."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import libmoe
from libmoe.core.context import ForwardContext, use
from libmoe.core.site import Site
from libmoe.experts.lora import LoRAExperts
from libmoe.layers import MoELayer, moe_layers
from libmoe.models.assembling import assemble
from libmoe.models.backbones import BackboneConfig, build_backbone
from libmoe.models.encoders import VisionConfig
from libmoe.models.trainable import freeze_others

N, K, D, IMAGE = 4, 2, 16, 96
FFNS = ["*language_model*.mlp.*"]


def base_model() -> Any:
    """Reads images."""
    vision = VisionConfig(None, "siglip_vision_model", hidden_size=48, num_hidden_layers=1, image_size=56)
    return build_backbone(
        BackboneConfig(hidden_size=32, num_hidden_layers=2, vocab_size=IMAGE + 1, vision=vision), seed=0
    ).eval()


def batch() -> dict[str, Tensor]:
    ids = torch.randint(0, IMAGE, (2, 24))
    ids[:, 2:18] = IMAGE
    return {"input_ids": ids, "pixel_values": torch.randn(2, 3, 56, 56)}


def train(model: Any, parts: list[str], steps: int = 2) -> dict[str, Tensor]:
    """Names and old values of what has changed."""
    freeze_others(model, parts)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1)
    model.train()
    for _ in range(steps):
        given = batch()
        model(**given, labels=given["input_ids"].masked_fill(given["input_ids"] == IMAGE, -100)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return {name: old for name, old in before.items() if not torch.equal(old, model.state_dict()[name])}


def layer(**options: Any) -> MoELayer:
    """With adapters that do something and experts that differ."""
    own = libmoe.create("uni-moe", **options).build_layer(Site(D, 24, init_std=0.3)).double().eval()
    for parameter in own.parameters():
        nn.init.normal_(parameter, std=0.3)
    return own


def run(own: MoELayer, x_BLD: Tensor) -> Tensor:
    with use(ForwardContext()):
        return own(x_BLD)


def test_assembled_copies_give_what_the_base_does_under_any_router() -> None:
    base, given = base_model(), batch()
    dense = base(**given).logits
    for method in ({}, {"weights": "paper"}):
        model = assemble(copy.deepcopy(base), [base] * N, where="language", options=method).eval()
        for _, own in moe_layers(model):
            nn.init.normal_(own.router.gate.weight)
        error = float((model(**given).logits - dense).abs().max())
        if method:
            assert error > 1e-3, "probabilities of the chosen ones sum to less than 1"
        else:
            assert error <= 1e-5


@pytest.mark.parametrize("weights", ["renormalised", "paper"])
def test_weights_are_a_softmax_over_the_chosen_logits_or_over_all(weights: str) -> None:
    """Token by token: ``y = sum over the k largest logits of w_e E_e(x)``."""
    own, x_TD = layer(weights=weights), torch.randn(9, D).double()
    outputs = [own.experts.materialise(e)(x_TD) for e in range(N)]
    expected = []
    for t, row in enumerate(x_TD @ own.router.gate.weight.T):
        chosen = row.argsort(descending=True)[:K]
        w = row[chosen].softmax(-1) if weights == "renormalised" else row.softmax(-1)[chosen]
        expected.append(sum(w[i] * outputs[int(e)][t] for i, e in enumerate(chosen)))
    torch.testing.assert_close(run(own, x_TD.unsqueeze(0))[0], torch.stack(expected), rtol=1e-9, atol=1e-11)


def test_the_second_stage_changes_ffns_and_projection_alone() -> None:
    changed = train(base_model(), ["connector", *FFNS])
    assert {"multi_modal_projector", "mlp"} == {
        part for name in changed for part in ("multi_modal_projector", "mlp", "attn", "norm", "embed", "vision_tower")
        if part in name
    }  # fmt: skip
    assert all("multi_modal_projector" in name or ".mlp." in name for name in changed)


def test_the_third_stage_keeps_experts_and_attention_and_trains_adapters_routers_and_projection() -> None:
    base = base_model()
    sources = [base]
    for seed in range(3):
        torch.manual_seed(seed)
        sources.append(copy.deepcopy(base))
        train(sources[-1], FFNS, steps=1)
    model, given = assemble(base, sources, where="language", seed=0).eval(), batch()
    # Nothing is added at first: without adapters the same comes out.
    first = model(**given).logits
    without = copy.deepcopy(model)
    for module in without.modules():
        if hasattr(module, "scale") and hasattr(module, "product"):
            module.scale = 0.0
    assert torch.equal(without(**given).logits, first)
    changed = train(model, ["*.lora.*", "routers", "connector"])
    kinds = {"lora": ".lora.", "router": ".router.", "projection": "multi_modal_projector"}
    assert {kind for kind, part in kinds.items() if any(part in name for name in changed)} == set(kinds)
    assert all(any(part in name for part in kinds.values()) for name in changed)
    adapters = [name for name in model.state_dict() if name.endswith(".lora.b") or ".lora.down.b" in name]
    assert len(adapters) == 2 * (4 + 1) and set(adapters) <= changed.keys()
    assert (model(**given).logits - first).abs().max() > 1e-3


def test_nothing_is_dropped_so_tokens_do_not_depend_on_each_other() -> None:
    own, x_BLD = layer(), torch.randn(1, 40, D).double()
    together = run(own, x_BLD)
    alone = torch.cat([run(own, x_BLD[:, t : t + 1]) for t in range(40)], 1)
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-13)
    crowded = x_BLD[:, :1].expand(-1, 40, -1).clone()  # all want the experts of token 0
    crowded[:, 7] = x_BLD[:, 7]
    torch.testing.assert_close(run(own, crowded)[:, 7], together[:, 7], rtol=1e-12, atol=1e-13)


def test_the_balance_loss_of_the_ablation_counts_first_choices() -> None:
    """``N^2 * mean over e of (share of argmax e) * (mean probability of e)``, with coefficient 0 by default."""
    own, x_TD = layer(balance=1.0), torch.randn(30, D).double()
    assert [loss.coefficient for loss in libmoe.create("uni-moe").build_losses(Site(D, 24))] == [0.0, 0.0]
    ctx = ForwardContext().layer(0, (1, 30), True)
    numerator, denominator = own.losses[0].compute(own.route(x_TD, ctx), ctx)
    p_TN = (x_TD @ own.router.gate.weight.T).softmax(-1)
    share_N = torch.bincount(p_TN.argmax(-1), minlength=N) / 30
    expected = N**2 * (share_N * p_TN.mean(0)).mean()
    torch.testing.assert_close(numerator / denominator, expected)


def test_adapters_are_optional() -> None:
    assert isinstance(layer().experts, LoRAExperts) and layer().experts.lora["up"].a.shape == (N, 8, D)
    plain = libmoe.create("uni-moe", lora_rank=0)
    assert not isinstance(plain.build_layer(Site(D, 24)).experts, LoRAExperts) and plain.edits() == []
    assert libmoe.create("uni-moe", lora_attention=False).edits() == []


# -- specialised experts against copies --------------------------------------------------------------------
VALUES, MODALITIES = 16, 3


def rows(modality: int, count: int, generator: torch.Generator) -> Tensor:
    """Each modality has tokens of its own, and a table of its own that tells a token from the two before."""
    tables = torch.randint(0, VALUES, (MODALITIES, VALUES, VALUES), generator=torch.Generator().manual_seed(0))
    ids = torch.randint(0, VALUES, (count, 12), generator=generator)
    for place in range(2, 12):
        ids[:, place] = tables[modality][ids[:, place - 2], ids[:, place - 1]]
    return ids + modality * VALUES


def fit(model: Any, modalities: list[int], steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3, weight_decay=0.0)
    model.train()
    for _ in range(steps):
        ids = torch.cat([rows(m, 24 // len(modalities), generator) for m in modalities])
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@torch.no_grad()
def measure(model: Any) -> tuple[float, float]:
    """Mean loss, and the share of the favourite first choice of each modality, over modalities and layers."""
    losses, shares = [], []
    for m in range(MODALITIES):
        counts: list[Tensor] = []
        note = {"recorders": [lambda ctx, r: counts.append(torch.bincount(r.plan.expert_A[:: r.plan.k]).double())]}  # noqa: B023
        ids = rows(m, 48, torch.Generator().manual_seed(99))
        with libmoe.options(**note):
            losses.append(float(model(input_ids=ids, labels=ids).loss))
        shares += [float(count.max() / count.sum()) for count in counts]
    return sum(losses) / MODALITIES, sum(shares) / max(len(shares), 1)


@pytest.mark.slow
def test_experts_trained_apart_beat_copies_that_saw_as_many_steps() -> None:
    """Then only routers and adapters train, equally long for both; tokens of a modality find its expert."""
    base = build_backbone(
        BackboneConfig(
            hidden_size=32, num_hidden_layers=2, intermediate_size=32, num_attention_heads=2,
            vocab_size=MODALITIES * VALUES,
        ),
        seed=0,
    )  # fmt: skip
    fit(base, [0, 1, 2], 150, seed=1)

    def tuned(modalities: list[int], steps: int) -> Any:
        copied = copy.deepcopy(base)
        freeze_others(copied, ["*.mlp.*"])
        fit(copied, modalities, steps, seed=10 + sum(modalities))
        return copied

    apart = [tuned([m], 150) for m in range(MODALITIES)]
    copies = [tuned([0, 1, 2], 150 * MODALITIES)] * MODALITIES
    found = []
    for sources in (apart, copies):
        options = {"lora_rank": 2, "lora_dropout": 0.0, "lora_attention": False}
        model = assemble(copy.deepcopy(base), sources, options=options, seed=0)
        freeze_others(model, ["routers", "*.lora.*"])
        fit(model, [0, 1, 2], 60, seed=30)
        found.append(measure(model))
    (loss, purity), (loss_of_copies, _) = found
    assert loss < loss_of_copies - 0.04
    assert purity > 0.8
