"""Modality-static experts of Mono-InternVL (arXiv 2410.08202, arXiv 2507.12566): a fixed rule chooses the expert."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import libmoe
from image_models import IMAGE, image_batch, image_model
from libmoe.core.context import ForwardContext, use
from libmoe.core.errors import ConfigError
from libmoe.core.interventions import BanExperts
from libmoe.core.site import Site
from libmoe.data.vision import tokens as data_tokens
from libmoe.layers import MoELayer, moe_layers
from libmoe.models import modality
from libmoe.models.accounting import flop_counter
from libmoe.models.trainable import freeze_others
from libmoe.routers.modality_static import ModalityStaticRouter

D = 16


def experts_of(model: Any, name: str = "modality-static") -> Any:
    return libmoe.moeify(copy.deepcopy(model), name, where="language", init="copy", seed=0)


def train(model: Any, parts: list[str], steps: int = 3, image: bool = True) -> None:
    freeze_others(model, parts)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.5)
    for _ in range(steps):
        given = image_batch(image)
        model(**given, labels=given["input_ids"].masked_fill(given["input_ids"] == IMAGE, -100)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def layer(num_experts: int = 2, **options: Any) -> MoELayer:
    method = libmoe.create("modality-static", num_experts=num_experts, **options)
    return method.build_layer(Site(D, 24, init_std=0.3))


def run(module: nn.Module, x_BLD: Tensor, mask: Tensor | None = None, **side: Tensor) -> Tensor:
    with libmoe.options(side=side), use(ForwardContext({"attention_mask": mask})):
        return module(x_BLD)


def test_right_after_cloning_any_mixed_input_gives_what_the_dense_model_does() -> None:
    model, given = image_model(), image_batch()
    dense = model(**given).logits
    assert (experts_of(model)(**given).logits - dense).abs().max() <= 1e-6 * dense.abs().max()


def test_text_alone_never_touches_visual_weights() -> None:
    """No gradient; and after the visual expert was trained on images, the same bits as before: nothing is forgotten."""
    dense = image_model()
    model, text = experts_of(dense), image_batch(image=False)
    before, base = model(**text).logits.detach(), dense(**text).logits
    model(**text, labels=text["input_ids"]).loss.backward()
    for _, own in moe_layers(model):
        language, visual = own.experts.parts
        assert all(not p.grad.any() for p in visual.parameters())
        assert all(p.grad.any() for p in language.parameters())
    model.zero_grad()
    picture = image_batch()
    first = model(**picture).logits.detach()
    train(model.train(), ["vision", "connector", "experts:1"])
    after = model.eval()(**text).logits
    assert torch.equal(after, before)
    assert (after - base).abs().max() <= 1e-6 * base.abs().max()
    assert (model(**picture).logits - first).abs().max() > 0.1, "the visual expert has learned"
    train(model.train(), ["vision", "connector", "experts:1", "*language_model*.self_attn.*"])
    assert (model.eval()(**text).logits - before).abs().max() > 0.01, "attention is shared, and was trained now"


def test_the_first_stage_trains_encoder_connector_and_visual_expert_alone() -> None:
    model = experts_of(image_model()).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, ["vision", "connector", "experts:1"])
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    parts = {"vision_tower", "multi_modal_projector", "parts.1"}
    meant = {name for name in before if any(part in name for part in parts)}
    assert moved <= meant and {part for part in parts for name in moved if part in name} == parts
    assert {name for name in before if "parts.1" in name} <= moved
    # What is frozen is a tensor without gradient: an optimiser neither keeps moments of it nor decays it.
    assert all(p.requires_grad == (name in meant) for name, p in model.named_parameters())


def test_gathering_gives_what_blending_does() -> None:
    """Every expert on every token, mixed by the mask: ``(1 - m) FFN_t(x) + m FFN_v(x)``, with its gradients."""
    own, x_BLD, m_BL = layer(), torch.randn(3, 7, D, requires_grad=True), torch.randint(0, 2, (3, 7))
    y_BLD = run(own, x_BLD, modality=m_BL)
    language, visual = (own.experts.materialise(e) for e in (0, 1))
    m_BL1 = m_BL.unsqueeze(-1)
    blended_BLD = language(x_BLD) * (1 - m_BL1) + visual(x_BLD) * m_BL1
    torch.testing.assert_close(y_BLD, blended_BLD, rtol=0, atol=1e-6)
    weight_BLD = torch.randn_like(y_BLD)
    (found,) = torch.autograd.grad((y_BLD * weight_BLD).sum(), x_BLD, retain_graph=True)
    (expected,) = torch.autograd.grad((blended_BLD * weight_BLD).sum(), x_BLD, retain_graph=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    ours = torch.autograd.grad((y_BLD * weight_BLD).sum(), list(own.experts.parameters()))
    theirs = torch.autograd.grad((blended_BLD * weight_BLD).sum(), [*language.parameters(), *visual.parameters()])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one[0], other, rtol=0, atol=1e-5)


@torch.no_grad()
def test_flops_do_not_depend_on_how_many_modalities_there_are() -> None:
    counts, x_BLD = {}, torch.randn(2, 15, D)
    for n in (1, 2, 5):
        own = layer(n)
        libmoe.experts.set_backend(own, "reference")
        with flop_counter() as counter:
            run(own, x_BLD, modality=torch.randint(0, n, (2, 15)))
        counts[n] = counter.get_total_flops()
        assert sum(own.router.expected_load()) == 1
    assert counts[1] == 2 * 30 * (3 * D * 24 + D)  # rows, three matrices, and the product with weights that are 1
    assert counts[2] == counts[5] == counts[1]


def test_padding_goes_to_expert_0_whatever_its_modality_is_called() -> None:
    own, x_BLD = layer(), torch.randn(2, 5, D)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    side = torch.tensor([[0, 1, 1, 0, 1], [1, 0, 1, 2, 2]])  # 2 is how batches call padding
    y_BLD = run(own, x_BLD, mask, modality=side)
    expected = own.experts.materialise(0)(x_BLD[1, 3:])
    torch.testing.assert_close(y_BLD[1, 3:], expected)
    with pytest.raises(ConfigError, match=r"'modality' says 2, but experts are 0 to 1; raise num_experts"):
        run(own, x_BLD, modality=side)


def test_any_number_that_is_known_before_can_stand_for_the_modality() -> None:
    own, x_BLD = layer(4, key="language"), torch.randn(3, 5, D)
    y_BLD = run(own, x_BLD, language=torch.tensor([2, 0, 3]))
    expected = torch.stack([own.experts.materialise(e)(x_BLD[row]) for row, e in enumerate([2, 0, 3])])
    torch.testing.assert_close(y_BLD, expected)
    with pytest.raises(ConfigError, match="no side input 'language'"):
        run(own, x_BLD)
    assumed = layer(4, key="language", missing=3)
    torch.testing.assert_close(run(assumed, x_BLD), assumed.experts.materialise(3)(x_BLD))


def test_a_model_tells_the_modality_of_its_tokens_itself() -> None:
    """From the image token, in training, in generation with a cache, and after a caller said otherwise."""
    model, given = experts_of(image_model()), image_batch()
    seen: list[Tensor] = []
    watch = {"recorders": [lambda ctx, routing: seen.append(routing.plan.expert_A.view(ctx.batch_shape))]}
    with libmoe.options(**watch):
        model(**given)
    expected = (given["input_ids"] == IMAGE).long()
    assert len(seen) == 2 and all(torch.equal(expert_BL, expected) for expert_BL in seen)
    with libmoe.options(side={"modality": torch.zeros(2, dtype=torch.long)}, **watch):
        model(**given)
    assert not seen[-1].any()
    one = {name: value[:1] for name, value in given.items()}
    with libmoe.options(**watch):
        model.generate(**one, max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert [expert_BL.shape[1] for expert_BL in seen[-6::2]] == [28, 1, 1]
    assert torch.equal(seen[-6], expected[:1]) and not seen[-1].any()


def test_numbers_of_modalities_are_those_of_the_batches() -> None:
    names = ("TEXT", "PATCH", "PADDING")
    assert [getattr(data_tokens, name) for name in names] == [modality.TEXT, modality.IMAGE, modality.PADDING]
    given = image_batch()
    told = modality.modality(given["input_ids"], given["attention_mask"], IMAGE)
    expected = torch.where(given["input_ids"] == IMAGE, 1, 0).masked_fill(given["attention_mask"] == 0, 2)
    assert torch.equal(told, expected)


def test_layers_share_one_plan_unless_somebody_intervenes() -> None:
    model, given = experts_of(image_model()), image_batch()
    plans: list[Any] = []
    watch = {"recorders": [lambda ctx, routing: plans.append(routing.plan)]}
    with libmoe.options(**watch):
        model(**given)
    assert plans[0] is plans[1]
    with libmoe.options(interventions=[BanExperts([1], layers=[1])], **watch):
        model(**given)
    assert plans[2].expert_A.any() != plans[3].expert_A.any()


def test_left_padding_and_cached_decoding_agree_with_one_pass() -> None:
    """Logits of the last token: all at once, and after a cache was filled with the rest of a padded row."""
    model, given = experts_of(image_model()), {k: v[:1] for k, v in image_batch().items()}
    with torch.no_grad():
        for _, own in moe_layers(model):
            for p in own.experts.parts[1].parameters():
                p.mul_(-1.5)
    whole = model(**given).logits[:, -1]
    junk = torch.randint(0, IMAGE, (1, 4))
    ids = torch.cat([junk, given["input_ids"]], 1)
    mask = torch.cat([torch.zeros_like(junk), torch.ones_like(given["input_ids"])], 1)
    places = (mask.cumsum(1) - 1).clamp_min(0)
    first = model(
        input_ids=ids[:, :-1], attention_mask=mask[:, :-1], position_ids=places[:, :-1],
        pixel_values=given["pixel_values"], use_cache=True,
    )  # fmt: skip
    last = model(
        input_ids=ids[:, -1:], attention_mask=mask, position_ids=places[:, -1:],
        past_key_values=first.past_key_values,
    )  # fmt: skip
    torch.testing.assert_close(last.logits[:, -1], whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wrong", [{"top_k": 2}, {"balance": 0.1}, {"z_loss": 0.1}, {"estimator": "straight-through"}])
def test_what_has_no_meaning_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        libmoe.create("modality-static", wrong)
    with pytest.raises(ConfigError, match="missing=2 must be an expert, 0 to 1"):
        ModalityStaticRouter(2, missing=2)
    with pytest.raises(ConfigError, match=r"all tokens of a connector have one modality"):
        libmoe.moeify(image_model(48), "modality-static", where="connector")
