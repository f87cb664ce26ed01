"""Online rerouting (arXiv 2510.14853): vectors on router logits, moved by the loss of the text itself."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from libmoe.core.context import options
from libmoe.core.errors import ConfigError
from libmoe.core.shares import row_confidence
from libmoe.peft.rerouted_generation import generate
from libmoe.peft.rerouting import Rerouting
from trained_lm import DOMAINS, trained_lm, windows


@functools.cache
def _reader(options: tuple[tuple[str, object], ...]) -> nn.Module:
    return trained_lm(1 if options else 100, **dict(options))


def reader(**options: object) -> nn.Module:
    """Two layers of four experts that have read four domains for a hundred steps; with options, for one."""
    return _reader(tuple(options.items()))


def text(domain: str = "novel", rows: int = 1, length: int = 48) -> Tensor:
    """Held-out tokens ``[rows, length]``."""
    return windows(domain, rows, seq_len=length)[0]["input_ids"]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_before_it_adapts_the_model_is_the_same_bit_for_bit() -> None:
    model, ids = reader(), text(rows=2)
    with torch.no_grad():
        plain = model(ids).logits
        with Rerouting(model) as routing:
            assert torch.equal(model(ids).logits, plain)
            routing.reset(2)
            assert torch.equal(model(ids).logits, plain)


@pytest.mark.parametrize("options", [{}, {"method__options__renormalise": False}], ids=["renormalised", "plain"])
def test_gradients_of_a_layers_vector_sum_to_zero(options: dict) -> None:
    with Rerouting(reader(**options)) as routing:
        routing.reset(2)
        gradients = torch.autograd.grad(routing.losses(text(rows=2)).sum(), list(routing.delta.values()))
    for gradient_BN in gradients:
        assert gradient_BN.abs().max() > 1e-4
        assert gradient_BN.sum(1).abs().max() < 1e-6


def test_a_step_is_plain_gradient_descent_on_the_mean_loss_of_each_row() -> None:
    model, ids = reader(), text(rows=2)
    with Rerouting(model, steps=1, lr=0.3, select="all") as routing:
        routing.reset(2)
        expected = []
        for row in range(2):
            loss = model(ids, labels=ids).logits[row, :-1].log_softmax(-1).gather(1, ids[row, 1:, None]).mean().neg()
            expected.append([-0.3 * g[row] for g in torch.autograd.grad(loss, list(routing.delta.values()))])
        routing.adapt(ids)
        for layer, delta_BN in routing.delta.items():
            for row in range(2):
                torch.testing.assert_close(delta_BN[row].detach(), expected[row][layer], rtol=1e-4, atol=1e-7)


def chosen(model: nn.Module, ids: Tensor) -> list[list[int]]:
    plans = []
    with torch.no_grad(), options(recorders=[lambda ctx, routing: plans.append(routing.plan.expert_A.tolist())]):
        model(ids)
    return plans


def test_the_loss_of_the_context_falls_with_small_steps_while_nobody_chooses_other_experts() -> None:
    fell = 0
    for domain in DOMAINS:
        with Rerouting(reader(), lr=0.01, select="all") as routing, torch.no_grad():
            before = chosen(reader(), text(domain))
            (first, *_), after = routing.adapt(text(domain)), routing.losses(text(domain))
            same = chosen(reader(), text(domain)) == before
        assert after < first if same else after < first + 0.02
        fell += int(same)
    assert fell >= 2


def test_the_loss_of_the_context_falls_by_more_with_steps_that_move_logits() -> None:
    fall = []
    for domain in DOMAINS:
        with Rerouting(reader(), optimizer="adam", select="all", steps=8) as routing, torch.no_grad():
            fall.append(float(routing.adapt(text(domain))[0] - routing.losses(text(domain))))
        assert all(0.1 < delta.abs().max() <= 0.41 for delta in routing.delta.values())
    assert sum(fall) / len(fall) > 0.01


def test_leaving_restores_the_model_and_the_next_prompt_begins_anew() -> None:
    model, ids = reader(), text()
    before = weights(model)
    with torch.no_grad():
        plain = model(ids).logits
        with Rerouting(model, lr=5.0) as routing:
            routing.adapt(ids)
            first = {layer: delta.detach().clone() for layer, delta in routing.delta.items()}
            assert not torch.equal(model(ids).logits, plain)
        assert torch.equal(model(ids).logits, plain)
        with Rerouting(model, lr=5.0) as routing:
            routing.adapt(text("math"))
            routing.reset()
            routing.adapt(ids)
    assert all(torch.equal(routing.delta[layer], delta) for layer, delta in first.items())
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("select", ["decisive", "indecisive"])
def test_layers_that_are_not_selected_stay_exactly_zero(select: str) -> None:
    ids, confidence = text(), {}

    def record(ctx, routing) -> None:
        confidence[ctx.index] = row_confidence(ctx, routing).item()

    model = reader(backbone__num_hidden_layers=4)
    with torch.no_grad(), options(recorders=[record]):
        model(ids)
    for optimizer in ("sgd", "adam"):
        with Rerouting(model, select=select, fraction=0.5, optimizer=optimizer) as routing:
            routing.adapt(ids)
        moved = {layer for layer, delta in routing.delta.items() if delta.any()}
        assert moved == set(sorted(confidence, key=confidence.get, reverse=select == "decisive")[:2])


def test_soft_selection_weighs_gradients_by_confidence() -> None:
    ids, confidence = text(), {}

    def record(ctx, routing) -> None:
        plan, log_TN = routing.plan, routing.logits_TN.log_softmax(-1)
        confidence[ctx.index] = sum(
            log_TN[t, e].item() for t, e in zip(plan.token_A.tolist(), plan.expert_A.tolist())
        ) / len(plan.token_A)

    model = reader()
    with torch.no_grad(), options(recorders=[record]):
        model(ids)
    found = {}
    for name, chosen in {"soft": {"soft": True}, "all": {"select": "all"}}.items():
        with Rerouting(model, steps=1, **chosen) as routing:
            routing.adapt(ids)
        found[name] = routing.delta
    best = max(confidence.values())
    for layer, delta in found["all"].items():
        torch.testing.assert_close(found["soft"][layer], delta * torch.tensor(confidence[layer] - best).exp())


def padded(prompts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """On the left."""
    width = max(map(len, prompts))
    rows = [torch.cat([torch.ones(width - len(p), dtype=torch.long), p]) for p in prompts]
    masks = [torch.cat([torch.zeros(width - len(p), dtype=torch.long), torch.ones_like(p)]) for p in prompts]
    return torch.stack(rows), torch.stack(masks)


def test_prompts_in_a_batch_are_continued_like_each_alone() -> None:
    model = reader()
    prompts = [text("novel")[0, :30], text("code")[0, :19], text("math")[0, :24]]
    with Rerouting(model, lr=3.0, steps=3) as routing:
        ids, mask = padded(prompts)
        together = generate(routing, ids, mask, max_new_tokens=12, every=5, eos_token_id=None, pad_token_id=0)
        deltas = [delta.detach().clone() for delta in routing.delta.values()]
        for row, prompt in enumerate(prompts):
            alone = generate(routing, prompt[None], max_new_tokens=12, every=5, eos_token_id=None, pad_token_id=0)
            assert alone[0, len(prompt) :].tolist() == together[row, ids.shape[1] :].tolist()
            for one, delta in zip(routing.delta.values(), deltas, strict=True):
                torch.testing.assert_close(one[0].detach(), delta[row], rtol=1e-3, atol=1e-5)


def test_without_steps_it_is_greedy_decoding_and_with_them_text_is_read_again() -> None:
    model, ids = reader(), text("legal")[:, :20]
    more = {"eos_token_id": None, "pad_token_id": 0}
    plain = model.generate(ids, max_new_tokens=12, do_sample=False, **more)
    for every in (12, 5, 1):
        with Rerouting(model, steps=0) as routing:
            assert torch.equal(generate(routing, ids, max_new_tokens=12, every=every, **more), plain)
    with Rerouting(model, lr=20.0) as routing:
        found = generate(routing, ids, max_new_tokens=8, every=4, **more)
        # The second part is what the model says with the new vectors about the whole text, without a stale cache.
        with torch.no_grad():
            again = model(found).logits.argmax(-1)
    assert found.shape == (1, 28) and again[0, 23:27].tolist() == found[0, 24:].tolist()


def test_a_text_that_ends_is_padded_and_leaves_the_others_alone() -> None:
    model, ids = reader(), torch.stack([text("novel")[0, :16], text("code")[0, :16]])
    more = {"max_new_tokens": 10, "pad_token_id": 7}
    with Rerouting(model) as routing:
        free = generate(routing, ids, every=3, eos_token_id=None, **more)
        end = int(free[0, 18])  # the first text ends with its third new token
        found = generate(routing, ids, every=3, eos_token_id=end, **more)
    until = free[0].tolist().index(end, 16) + 1
    assert found[0, :until].tolist() == free[0, :until].tolist()
    assert set(found[0, until:].tolist()) <= {7}


def test_it_works_where_gradients_are_off() -> None:
    with torch.inference_mode(), Rerouting(reader(), lr=5.0) as routing:
        ids = text().clone()
        assert routing.adapt(ids).shape == (5, 1)
        assert any(delta.any() for delta in routing.delta.values())


def test_bad_options_are_one_line() -> None:
    with pytest.raises(ConfigError, match=r"Linear has no MoE layer of LibMoE"):
        Rerouting(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match=r"fraction=0 in \(0, 1\]"):
        Rerouting(reader(), fraction=0)
    with pytest.raises(ConfigError, match=r"unknown select 'decided'.*'decisive'"):
        Rerouting(reader(), select="decided")
    with pytest.raises(ConfigError, match="inside its with block"):
        Rerouting(reader()).adapt(text())
    with Rerouting(reader()) as routing, pytest.raises(ConfigError, match="every=0"):
        generate(routing, text(), max_new_tokens=3, every=0)
