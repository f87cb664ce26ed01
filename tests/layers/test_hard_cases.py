"""What methods yet to come will ask of the contracts, each in a few lines that touch nothing of the core."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from libmoe.core.context import ForwardContext, Options, options, use
from libmoe.core.interventions import ReplayPlans
from libmoe.core.plan import MergePlan, SparsePlan
from libmoe.core.routing import Router, Routing
from libmoe.experts import FFNExperts, UnionExperts
from libmoe.layers import MoELayer
from libmoe.losses import Loss
from libmoe.routers import TopKRouter

D, H, N, K = 8, 6, 4, 2


def experts(count: int = N) -> FFNExperts:
    return FFNExperts(count, D, H).double()


def router(k: int = K) -> TopKRouter:
    return TopKRouter(D, N, k).double()


def test_a_loss_can_use_the_gradient_of_the_main_loss_token_by_token():
    """Token-gradient conflict (arXiv 2406.19905) needs it to know which tokens pull an expert apart."""

    class PushAway(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y_TD, logits_TN):
            ctx.num_experts = logits_TN.shape[1]
            return y_TD.view_as(y_TD)

        @staticmethod
        def backward(ctx, grad_TD):
            against_T = (grad_TD @ grad_TD.mean(0)).lt(0).double()  # tokens that pull against the others
            return grad_TD, against_T.unsqueeze(1).expand(-1, ctx.num_experts)

    class ConflictLoss(Loss):
        name = "conflict"

        def attach_to(self, y_TD, routing, ctx, call):
            return PushAway.apply(y_TD, routing.logits_TN)

    layer = MoELayer(router(), experts(), losses=[ConflictLoss(1.0)])
    layer.execute = lambda x_TD, routing: x_TD * 1.0  # the router's only gradient is the loss's
    x = torch.randn(1, 3, D, dtype=torch.double, requires_grad=True)
    pull = torch.tensor([1.0, 1.0, -1.0], dtype=torch.double)
    (layer(x)[0].sum(1) * pull).sum().backward()
    expected = x.detach()[0, 2].expand(N, D)  # only the third token pulls against the mean
    torch.testing.assert_close(layer.router.gate.weight.grad, expected)


def test_the_plan_used_here_was_made_one_layer_earlier():
    """Pre-gating (arXiv 2308.12066): layer i decides for layer i + 1, so that experts can be fetched meanwhile."""

    class PreGate(Router):
        def __init__(self):
            super().__init__(N)
            self.now, self.ahead = router(), router()

        def route(self, x_TD, ctx):
            before = ctx.previous
            routing = before.extras["next"] if before else self.now.route(x_TD, ctx)
            return replace(routing, extras={"next": self.ahead.route(x_TD, ctx)})

    layers = [MoELayer(PreGate(), experts(), index=i) for i in range(2)]
    x = torch.randn(1, 5, D, dtype=torch.double)
    with use(ForwardContext()) as context:
        layers[1](layers[0](x))
    ahead = layers[0].router.ahead.route(x[0], ForwardContext().layer(0, (1, 5), True)).plan
    assert torch.equal(context.routings[1].plan.expert_A, ahead.expert_A)


def test_one_plan_for_all_layers_made_before_the_forward_pass():
    """Read-ME (arXiv 2410.19123) routes once, from a model of its own."""
    plan = SparsePlan.from_topk(torch.tensor([[0, 1], [2, 3], [1, 2]]), torch.full((3, 2), 0.5).double(), N)
    layers = [MoELayer(router(), experts(), index=i) for i in range(2)]
    x = torch.randn(1, 3, D, dtype=torch.double)
    with options(interventions=[ReplayPlans({0: plan, 1: plan})]), use(ForwardContext()):
        y = layers[1](layers[0](x))
    by_hand = layers[1].experts.execute(layers[0].experts.execute(x[0], plan), plan)
    torch.testing.assert_close(y[0], by_hand)


def test_the_routed_part_may_be_dispatched_on_an_earlier_activation():
    """Shortcut-connected experts (arXiv 2404.05019): route and execute are apart."""
    layer = MoELayer(router(), experts())
    early_TD, late_TD = torch.randn(2, 4, D, dtype=torch.double)
    ctx = ForwardContext().layer(0, (1, 4), False)
    routing = layer.route(early_TD, ctx)
    assert not torch.equal(layer.execute(late_TD, routing), layer.execute(early_TD, routing))


def test_an_expert_shared_by_a_group_is_computed_once_however_many_members_fire():
    """Grove MoE (arXiv 2508.07785): the adjugate expert of a group runs once, weighted by all members' gates."""

    class GroupedExperts(FFNExperts):
        def __init__(self):
            super().__init__(N, D, H)
            self.shared, self.rows = FFNExperts(N // 2, D, H), 0

        def execute(self, x_TD: Tensor, plan, x_AD=None):
            group_A = plan.expert_A // 2
            pair_A, where = torch.unique(plan.token_A * (N // 2) + group_A, return_inverse=True)
            weight_P = plan.weight_A.new_zeros(len(pair_A)).index_add(0, where, plan.weight_A)
            once = SparsePlan(pair_A // (N // 2), pair_A % (N // 2), weight_P, plan.num_tokens, N // 2)
            self.rows = len(pair_A)
            return super().execute(x_TD, plan, x_AD) + self.shared.execute(x_TD, once)

    bank = GroupedExperts().double()
    plan = SparsePlan.from_topk(torch.tensor([[0, 1], [1, 2]]), torch.full((2, 2), 0.5).double(), N)
    x_TD = torch.randn(2, D, dtype=torch.double)
    y_TD = bank.execute(x_TD, plan)
    assert bank.rows == 3  # token 0 fires two members of one group
    shared = [bank.shared.materialise(g) for g in range(2)]
    own = sum_of(bank, x_TD, plan)
    torch.testing.assert_close(y_TD[0], own[0] + shared[0](x_TD[0]))
    torch.testing.assert_close(y_TD[1], own[1] + 0.5 * shared[0](x_TD[1]) + 0.5 * shared[1](x_TD[1]))


def sum_of(bank: FFNExperts, x_TD: Tensor, plan: SparsePlan) -> Tensor:
    y_TD = torch.zeros_like(x_TD)
    for token, expert, weight in zip(plan.token_A.tolist(), plan.expert_A.tolist(), plan.weight_A.tolist()):
        y_TD[token] += weight * bank.materialise(expert)(x_TD[token])
    return y_TD


def test_one_bank_serves_two_layers_with_routers_and_inputs_of_their_own():
    """UMoE (arXiv 2505.07260): attention and FFN share experts; attention gives each assignment its own input."""
    bank = experts()
    attention, ffn = MoELayer(router(), bank, index=0), MoELayer(router(), bank, index=1)
    x_TD = torch.randn(3, D, dtype=torch.double)
    routing = attention.route(x_TD, ForwardContext().layer(0, (1, 3), False))
    x_AD = torch.randn(3 * K, D, dtype=torch.double)
    y_TD = bank.execute(x_TD, routing.plan, x_AD)
    by_hand = torch.stack(
        [
            sum(
                w * bank.materialise(int(e))(x_AD[t * K + j])
                for j, (e, w) in enumerate(
                    zip(routing.plan.expert_A[t * K : t * K + K], routing.plan.weight_A[t * K : t * K + K])
                )
            )
            for t in range(3)
        ]
    )
    torch.testing.assert_close(y_TD, by_hand)
    (y_TD.sum() + ffn(x_TD.unsqueeze(0)).sum()).backward()
    assert len({id(p) for layer in (attention, ffn) for p in layer.experts.parameters()}) == 2


def test_data_of_an_assignment_reaches_its_expert():
    """A precision chosen per token and expert (arXiv 2504.15299) travels with the plan."""

    class Rounded(FFNExperts):
        def forward_rows(self, x_RD, segments):
            step_R1 = 2.0 ** -segments.extra_R["bits"].unsqueeze(1)
            return super().forward_rows((x_RD / step_R1).round() * step_R1, segments)

    bank = Rounded(2, D, H).double()
    token_A, expert_A, bits_A = (
        torch.tensor([0, 0, 1]),
        torch.tensor([1, 0, 1]),
        torch.tensor([2.0, 50.0, 0.0]),
    )
    plan = SparsePlan(token_A, expert_A, torch.ones(3).double(), 2, 2, extra_A={"bits": bits_A.double()})
    x_TD = torch.randn(2, D, dtype=torch.double)
    y_TD = bank.execute(x_TD, plan)
    one, other = bank.materialise(0), bank.materialise(1)
    torch.testing.assert_close(y_TD[0], one(x_TD[0]) + other((x_TD[0] * 4).round() / 4))
    torch.testing.assert_close(y_TD[1], other(x_TD[1].round()))


def test_gates_over_parameters_merge_experts_for_a_group():
    """Merging experts into one (arXiv 2310.09832): one averaged expert per sequence."""

    class MergeRouter(Router):
        def __init__(self):
            super().__init__(N)
            self.gate = nn.Linear(D, N).double()

        def route(self, x_TD, ctx):
            groups, length = ctx.batch_shape
            gate_GN = self.gate(x_TD.view(groups, length, D).mean(1)).softmax(-1)
            return Routing(MergePlan(gate_GN, len(x_TD)), scores_TN=gate_GN)

    layer = MoELayer(MergeRouter(), experts())
    x = torch.randn(2, 3, D, dtype=torch.double)
    y = layer(x)
    y.sum().backward()
    assert layer.router.gate.weight.grad.abs().sum() > 0
    torch.testing.assert_close(y[:1], layer(x[:1]))  # sequences do not mix


def test_widths_may_differ_between_experts_and_layers():
    """HMoE (arXiv 2408.10681) and AutoMoE (arXiv 2210.07535): ragged widths are a union of kinds."""
    bank = UnionExperts([FFNExperts(1, D, width).double() for width in (2, 4, 6, 8)])
    layer = MoELayer(router(), bank)
    x = torch.randn(1, 6, D, dtype=torch.double)
    plan = layer.route(x[0], ForwardContext().layer(0, (1, 6), False)).plan
    torch.testing.assert_close(layer.eval()(x)[0], sum_of(bank, x[0], plan))
    assert bank.params_per_expert() == [3 * D * width for width in (2, 4, 6, 8)]


def test_side_inputs_route_by_task_or_timestep():
    class TaskRouter(Router):
        """One expert per task (arXiv 2110.03742)."""

        def route(self, x_TD, ctx):
            expert_T1 = ctx.side_T("task").unsqueeze(1)
            return Routing(
                SparsePlan.from_topk(expert_T1, torch.ones_like(expert_T1).double(), self.num_experts)
            )

    layer = MoELayer(TaskRouter(N), experts())
    x = torch.randn(2, 3, D, dtype=torch.double)
    with use(ForwardContext(opts=Options(side={"task": torch.tensor([3, 1])}))):
        y = layer(x)
    torch.testing.assert_close(y[0], layer.experts.materialise(3)(x[0]))
    torch.testing.assert_close(y[1], layer.experts.materialise(1)(x[1]))


@pytest.mark.parametrize("kept", [[0, 2, 3], [1]])
def test_experts_can_be_removed_between_steps(kept):
    """Growing and pruning while training (arXiv 2112.14397, 2405.14297): parts of a layer are replaced whole."""
    layer = MoELayer(router(1), experts())
    x = torch.randn(1, 6, D, dtype=torch.double)
    smaller = FFNExperts(len(kept), D, H).double()
    for new, old in enumerate(kept):
        smaller.load_ffn(new, layer.experts.materialise(old))
    gate = TopKRouter(D, len(kept), 1).double()
    with torch.no_grad():
        gate.gate.weight.copy_(layer.router.gate.weight[kept])
    layer.router, layer.experts = gate, smaller
    layer(x).sum().backward()
    assert smaller.w_in.grad is not None
