"""Runs whose routing is made up, so that what a study must find is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from libmoe.analysis import Trace, TraceRecorder
from libmoe.analysis.series import Series
from libmoe.analysis.studies import Quality, Run
from libmoe.core.context import ForwardContext, options
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing
from routed import trace_of

DOMAINS = ("code", "prose")
DOMAIN_B = torch.tensor([0, 0, 1, 1])


def series_of(states: Mapping[int, Tensor], num_experts: int = 4, layers: int = 2) -> Series:
    """Experts ``[4, L, K]`` by step, alike in all layers; the first two sequences are code, the others prose."""
    traces = [
        trace_of(
            dict.fromkeys(range(layers), experts),
            num_experts,
            ids=torch.arange(experts.shape[0] * experts.shape[1]).view(experts.shape[:2]),
            side={"domain": DOMAIN_B},
            labels={"domain": DOMAINS},
        )
        for experts in states.values()
    ]
    return Series(list(states), traces)


def scored_trace(scores_BLN: Tensor) -> Trace:
    """Top-1 routing by scores that sum to 1, one layer."""
    batch, length, num_experts = scores_BLN.shape
    scores_TN = scores_BLN.reshape(-1, num_experts)
    recorder = TraceRecorder(side=["domain"], labels={"domain": DOMAINS})
    with options(side={"domain": DOMAIN_B[:batch]}):
        context = ForwardContext({"input_ids": torch.arange(batch * length).view(batch, length)})
    best = scores_TN.max(1, keepdim=True)
    plan = SparsePlan.from_topk(best.indices, best.values, num_experts)
    recorder(context.layer(0, (batch, length), False), Routing(plan, None, scores_TN))
    return recorder.trace()


def run_of(
    series: Series, method: str = "smoe", seed: int = 0, bits: Sequence[float] = (), **facts: Any
) -> Run:
    quality = {step: Quality(b, {"code": b / 2}) for step, b in zip(series.steps, bits)}
    return Run(method, seed, series, quality, facts)


def constant(expert: int, length: int = 6) -> Tensor:
    """Every token goes to one expert."""
    return torch.full((4, length, 1), expert)


def spread(length: int = 8, experts: int = 4) -> Tensor:
    """Experts in turn along each sequence."""
    return (torch.arange(length) % experts).repeat(4, 1).unsqueeze(-1)


def by_domain(length: int = 6) -> Tensor:
    """Expert 0 serves code, expert 1 prose."""
    return DOMAIN_B.view(4, 1, 1).expand(4, length, 1).clone()
