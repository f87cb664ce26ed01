"""Contract checks of routers."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import partial

import safetensors.torch
import torch
from torch import Tensor

from libmoe.core.context import ForwardContext, LayerContext, options
from libmoe.core.errors import ConfigError
from libmoe.core.plan import MergePlan, Plan, SoftPlan, SparsePlan, plan_from_tensors
from libmoe.core.routing import Router, Routing
from libmoe.layers import MoELayer
from libmoe.methods import METHODS, create
from libmoe.testing.audits import audit, sees_the_future_in_training
from libmoe.testing.checks import Checks, Skip, assert_close
from libmoe.testing.probes import VOCABULARY, Side, Target, as_layers, default_side, site

SHAPES = ((2, 6), (1, 1), (1, 0), (3, 5))


def check_router(make: Target, *, dim: int = 16, side: Side = default_side) -> list[str]:
    """Check everything a router promises; returns the names of the checks.

    Args:
        make: a function without arguments that makes the router, a router, or the name of a method.
        dim: the width D it was made for.
        side: from a batch size to the side inputs that the router needs, one number per sequence.

    Raises:
        ContractError: one line per broken promise.
    """
    router = _router(make, dim)
    checks = Checks(type(router).__name__)
    if not isinstance(router, Router):
        with checks("is a Router"):
            raise AssertionError(f"{type(router).__name__} is not a subclass of libmoe.Router")
        return checks.finish()

    for shape in SHAPES:
        with checks(f"answers for a batch of {shape[0]} x {shape[1]} tokens"):
            for training in (False, True):
                check_routing(
                    _route(router, shape, dim, side, training=training), shape[0] * shape[1], router
                )
    with checks("decides the same twice in eval mode"):
        first, second = (_route(router, (2, 6), dim, side) for _ in range(2))
        _assert_same_plan(second.plan, first.plan)
    with checks("does not depend on the memory layout of its input"):
        x_TD = _tokens(12, dim)
        transposed = _route(router, (2, 6), dim, side, x_TD=x_TD.t().contiguous().t())
        _assert_same_plan(transposed.plan, _route(router, (2, 6), dim, side, x_TD=x_TD).plan)
    with checks("passes gradients from the plan to its parameters"):
        _check_gradients(router, dim, side)
    with checks("takes bfloat16"):
        half = copy.deepcopy(router).bfloat16()
        check_routing(_route(half, (2, 6), dim, side, x_TD=_tokens(12, dim).bfloat16()), 12, router)
    with checks("expects a sensible load"):
        _check_expected_load(router, dim, side)
    with checks("refuses more experts per token than there are"):
        _check_top_k(make, router, dim, side)
    with checks("makes plans that can be saved and read"):
        plan = _route(router, (2, 6), dim, side).plan
        stored = safetensors.torch.load(safetensors.torch.save(plan.to_tensors()))
        _assert_same_plan(plan_from_tensors(stored), plan)
    with checks("decides the same when recomputed"):
        _check_recompute(router, dim, side)
    with checks("can be audited"):
        check_declarations(checks, router, router.causal, router.batch_independent, dim=dim, side=side)
    return checks.finish()


def check_declarations(
    checks: Checks, target: Target, causal: bool, batch_independent: bool, *, dim: int, side: Side
) -> None:
    """Compare what was declared with what an audit finds; each comparison is a check of its own.

    Of what is not causal it is enough that it is not in training: likelihoods have seen the future then already.
    """
    report = audit(target, dim=dim, side=side)
    evidence = iter(report.evidence.splitlines())
    promised = {"causal": causal, "batch_independent": batch_independent, "padding_invariant": True}
    leaks = {name: None if getattr(report, name) else next(evidence) for name in promised}
    if not causal and leaks["causal"] is None:
        leaks["causal"] = sees_the_future_in_training(target, dim=dim, side=side)
    for name, declared in promised.items():
        leak = leaks[name]
        with checks(f"is {name} as declared" if declared else f"declares {name}=False and is not"):
            assert leak is None or not declared, f"{leak}, and it does not declare {name}=False"
            assert declared or leak is not None, f"declares {name}=False but no leak found"


def check_routing(routing: Routing, num_tokens: int, router: Router) -> None:
    """The output contract, for one routing."""
    assert isinstance(routing, Routing), f"route() returned {type(routing).__name__}, not a Routing"
    plan, num_experts = routing.plan, router.num_experts
    assert isinstance(plan, Plan), f"the plan is a {type(plan).__name__}, not a Plan"
    assert plan.num_tokens == num_tokens, f"the plan is for {plan.num_tokens} tokens, not {num_tokens}"
    assert plan.num_experts == num_experts, (
        f"the plan has {plan.num_experts} experts, the router {num_experts}"
    )
    for name in ("logits_TN", "scores_TN"):
        value = getattr(routing, name)
        if value is not None:
            assert value.shape[:1] == (num_tokens,), (
                f"{name} has shape {tuple(value.shape)} for {num_tokens} tokens"
            )
            assert not value.isnan().any(), f"{name} has NaN"
    scores_TN = routing.scores_TN
    if scores_TN is not None:
        assert scores_TN.shape == (num_tokens, num_experts), f"scores_TN has shape {tuple(scores_TN.shape)}"
        assert scores_TN.dtype in (torch.float32, torch.float64), f"scores_TN has dtype {scores_TN.dtype}"
    if isinstance(plan, SparsePlan):
        _check_sparse(plan)
    elif isinstance(plan, SoftPlan):
        groups, length, slots = plan.dispatch_GLS.shape
        assert plan.combine_GLS.shape == (groups, length, slots), "dispatch and combine differ in shape"
        assert slots % num_experts == 0, f"{slots} slots cannot be shared out to {num_experts} experts"
        assert plan.dispatch_GLS.isfinite().all() and plan.combine_GLS.isfinite().all(), (
            "mixing weights not finite"
        )
    elif isinstance(plan, MergePlan):
        assert plan.gate_GN.isfinite().all(), "gates not finite"
        groups = plan.gate_GN.shape[0]
        assert num_tokens % max(groups, 1) == 0, f"{groups} groups do not divide {num_tokens} tokens"
    load_N = plan.load_N()
    assert load_N.shape == (num_experts,) and load_N.isfinite().all(), (
        "load_N() is not one finite number per expert"
    )


def _check_sparse(plan: SparsePlan) -> None:
    size = plan.token_A.shape
    assert plan.token_A.dtype == plan.expert_A.dtype == torch.int64, "token_A and expert_A must be int64"
    assert plan.expert_A.shape == plan.weight_A.shape == size and len(size) == 1, (
        "token_A, expert_A, weight_A: [A]"
    )
    assert plan.kept_A is None or (plan.kept_A.dtype == torch.bool and plan.kept_A.shape == size), (
        "kept_A: bool [A]"
    )
    assert plan.weight_A.is_floating_point() and plan.weight_A.isfinite().all(), (
        "weights are not finite numbers"
    )
    for name, value_A, limit in (
        ("token", plan.token_A, plan.num_tokens),
        ("expert", plan.expert_A, plan.num_experts),
    ):
        if len(value_A):
            low, high = int(value_A.min()), int(value_A.max())
            assert low >= 0 and high < limit, f"{name} numbers {low}..{high} are not in 0..{limit - 1}"
    if plan.k is not None:
        rectangular_A = torch.arange(plan.num_tokens).repeat_interleave(plan.k)
        assert torch.equal(plan.token_A, rectangular_A), f"k={plan.k} is set but token_A is not rectangular"


def _router(make: Target, dim: int) -> Router:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = as_layers(make, dim)[0]
    return layer.router if isinstance(layer, MoELayer) else layer


def _tokens(count: int, dim: int) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(1))


def _context(shape: tuple[int, int], side: Side, training: bool) -> LayerContext:
    ids_BL = torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(2))
    with options(side=dict(side(shape[0]))):
        context = ForwardContext({"input_ids": ids_BL})
    return context.layer(0, shape, training)


def _route(
    router: Router,
    shape: tuple[int, int],
    dim: int,
    side: Side,
    *,
    training: bool = False,
    x_TD: Tensor | None = None,
    ctx: LayerContext | None = None,
) -> Routing:
    x_TD = _tokens(shape[0] * shape[1], dim) if x_TD is None else x_TD
    return router.train(training)(x_TD, ctx or _context(shape, side, training))


def _assert_same_plan(plan: Plan, expected: Plan) -> None:
    ours, theirs = plan.to_tensors(), expected.to_tensors()
    assert ours.keys() == theirs.keys(), f"plan has {sorted(ours)} instead of {sorted(theirs)}"
    for name, value in theirs.items():
        if value.is_floating_point():
            assert_close(ours[name], value, name, 1e-5)
        else:
            assert torch.equal(ours[name], value), f"{name} differs"


def _check_gradients(router: Router, dim: int, side: Side) -> None:
    params = [p for p in router.parameters() if p.requires_grad]
    if not params:
        raise Skip
    plan = _route(router, (2, 6), dim, side, training=True).plan
    outputs = [t for t in vars(plan).values() if isinstance(t, Tensor) and t.requires_grad]
    assert outputs, "nothing in the plan has a gradient although the router has parameters"
    weighted = torch.stack([(t * torch.randn_like(t)).sum() for t in outputs]).sum()
    grads = [g for g in torch.autograd.grad(weighted, params, allow_unused=True) if g is not None]
    assert grads, "no parameter of the router receives a gradient from the plan"
    assert all(g.isfinite().all() for g in grads), "a gradient is not finite"


def _check_expected_load(router: Router, dim: int, side: Side) -> None:
    load_N = router.expected_load()
    assert len(load_N) == router.num_experts, (
        f"expected_load() has {len(load_N)} entries for {router.num_experts}"
    )
    assert all(0 <= load <= router.num_experts for load in load_N), (
        f"expected_load() is out of range: {load_N}"
    )
    assert sum(load_N) > 0, "expected_load() is zero for every expert"
    plan = _route(router, (2, 6), dim, side).plan
    if isinstance(plan, SparsePlan) and plan.k is not None and plan.kept_A is None:
        assert abs(sum(load_N) - plan.k) < 1e-6, (
            f"expected_load() sums to {sum(load_N):g} but each token gets {plan.k}"
        )


def _check_top_k(make: Target, router: Router, dim: int, side: Side) -> None:
    """By the options of a method, or by the arguments of a router's class; others have no fixed k to refuse."""
    attempt: Callable[[], object]
    if getattr(_route(router, (2, 6), dim, side).plan, "k", None) is None:
        raise Skip
    if isinstance(make, str):
        if "top_k" not in inspect.signature(METHODS.get(make)).parameters:
            raise Skip
        attempt = partial(_build_method, make, dim, num_experts=4, top_k=5)
    else:
        parameters = inspect.signature(type(router)).parameters
        needed = {n for n, p in parameters.items() if p.default is p.empty and p.kind not in (p.VAR_KEYWORD,)}
        if "top_k" not in parameters or not needed <= {"dim", "num_experts", "top_k"}:
            raise Skip
        known = {"dim": dim, "num_experts": 4, "top_k": 5}
        attempt = partial(type(router), **{k: v for k, v in known.items() if k in parameters})
    try:
        attempt()
    except ConfigError:
        return
    raise AssertionError("top_k=5 of 4 experts is accepted; raise ConfigError")


def _build_method(name: str, dim: int, **values: int) -> None:
    create(name, values).build_layer(site(dim))


def _check_recompute(router: Router, dim: int, side: Side) -> None:
    ctx = _context((2, 6), side, training=True)
    saved: list[list[Tensor]] = []
    routings = []
    for recomputing in (False, True):
        ctx.forward.recomputing = recomputing
        saved.append([])
        keep = saved[-1].append
        with torch.autograd.graph.saved_tensors_hooks(lambda t, keep=keep: keep(t) or t, lambda t: t):
            routings.append(_route(router, (2, 6), dim, side, training=True, ctx=ctx))
    first, again = routings
    _assert_same_plan(again.plan, first.plan)
    assert len(saved[0]) == len(saved[1]), f"{len(saved[1])} tensors are saved instead of {len(saved[0])}"
