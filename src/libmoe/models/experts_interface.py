"""LibMoE's kernels inside transformers' own MoE models.

The MoE models of transformers keep the parameters of a layer's experts stacked and let a function registered in its
experts interface compute with them.  The one registered here, ``libmoe``, hands them to :mod:`libmoe.ops`: experts of
the common form in one fused call, and experts with a gate or a norm of their own as grouped products around these.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from libmoe.core.errors import ConfigError, unknown
from libmoe.core.plan import SparsePlan
from libmoe.ops import AUTO, Rows, StackedFFN, backends, ffn, grouped_linear
from libmoe.ops.activations import ACTIVATIONS
from libmoe.ops.base import FLOATS

NAME = "libmoe"


def register_experts() -> None:
    """Make ``libmoe`` a name that ``experts_implementation`` and ``set_experts_implementation`` accept."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(NAME, experts_forward)


def accelerate(model: nn.Module, backend: str = AUTO) -> nn.Module:
    """Let the experts of a transformers model compute with LibMoE's kernels, in training and in generation.

    ``model.set_experts_implementation("grouped_mm")`` or ``("eager")`` gives them back to transformers.

    Args:
        model: an MoE model of transformers, or anything that contains one.
        backend: a name of :func:`libmoe.ops.backends`, or ``auto``.

    Returns:
        The same model.

    Raises:
        ConfigError: unknown backend, no experts that transformers' experts interface serves, or experts whose
            weights are quantised.
    """
    if backend not in (AUTO, *backends()):
        raise unknown("backend", backend, [AUTO, *backends()])
    served = [m for m in model.modules() if hasattr(m, "_apply_gate") and hasattr(m, "is_transposed")]
    if not served:
        raise ConfigError(
            f"{type(model).__name__} has no experts that transformers' experts interface serves "
            "(layers of libmoe.moeify need none: they use LibMoE's kernels as they are)"
        )
    for module in served:
        if module.down_proj.dtype not in FLOATS:
            raise ConfigError(
                f"{type(module).__name__} holds {str(module.down_proj.dtype).removeprefix('torch.')} weights; "
                "LibMoE's kernels compute with float64, float32, bfloat16 and float16 ones"
            )
    register_experts()
    for module in served:
        module.libmoe_backend = backend
        # What the module reads in every forward; the model's own setter would miss classes defined by the user.
        module.config._experts_implementation = NAME
    return model


@torch.compiler.disable(reason="LibMoE's kernels run between compiled graphs, never inside one")
def experts_forward(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Experts of a transformers MoE layer: tokens ``[T, D]``, choices and weights ``[T, K]`` to ``[T, D]``.

    ``self`` is the experts module; its ``libmoe_backend`` names the backend.  As in transformers, a module whose
    experts are spread over processes marks choices that are computed elsewhere by an index behind its last expert.
    """
    # Releases of transformers that lack a flag behave as with these values.
    gated = getattr(self, "has_gate", True)
    norm = self.post_expert_norm if getattr(self, "has_post_expert_norm", False) else None
    spread = getattr(self, "_is_expert_parallel", True)
    backend = getattr(self, "libmoe_backend", AUTO)

    w_in, w_out = self.gate_up_proj if gated else self.up_proj, self.down_proj
    b_in = b_out = None
    if self.has_bias:
        b_in, b_out = self.gate_up_proj_bias if gated else self.up_proj_bias, self.down_proj_bias
    if self.is_transposed:
        w_in, w_out = w_in.transpose(1, 2), w_out.transpose(1, 2)

    x_TD = hidden_states.to(w_in.dtype)
    kept_TK = top_k_index < self.num_experts if spread else None
    plan = SparsePlan.from_topk(top_k_index, top_k_weights, self.num_experts, kept_TK)
    dispatch = plan.dispatch

    plain = norm is None and (not gated or _has_default_gate(self))
    if plain and (activation := _activation_name(self.act_fn)):
        experts = StackedFFN(w_in, w_out, b_in, b_out, activation, gated)
        return ffn(x_TD, experts, Rows.of(dispatch), plan.weight_A, backend).to(hidden_states.dtype)

    h_RH = grouped_linear(dispatch.gather(x_TD), w_in, dispatch.segments, b_in, backend)
    h_RH = self._apply_gate(h_RH) if gated else self.act_fn(h_RH)
    y_RD = grouped_linear(h_RH.to(w_out.dtype), w_out, dispatch.segments, b_out, backend)
    if norm is not None:
        y_RD = norm(y_RD)
    return dispatch.sum_rows(y_RD, plan.weight_A).to(hidden_states.dtype)


def _has_default_gate(module: Any) -> bool:
    """Whether hidden units are ``act(first half) * second half``."""
    from transformers.integrations.moe import _default_apply_gate

    return getattr(module._apply_gate, "__func__", None) is _default_apply_gate


def _activation_name(act: Any) -> str | None:
    """The name under which kernels know ``act``; ``None`` if they do not, or if hooks want to see it called."""
    if isinstance(act, nn.Module):
        return None if act._forward_hooks or act._forward_pre_hooks else _activation_classes().get(type(act))
    return next((name for name, function in ACTIVATIONS.items() if function is act), None)


@cache
def _activation_classes() -> dict[type, str]:
    from transformers.activations import ACT2FN

    return {type(ACT2FN[name]): name for name in ACTIVATIONS}
