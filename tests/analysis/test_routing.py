"""Summaries of routing: load, entropy, experts per token and what experts say of the domain."""

import math

import pytest
import torch

from libmoe.analysis import RoutingSummary
from libmoe.core.context import ForwardContext, Options
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing


def summary_of(expert_TK, num_experts, domain=None, names=(), kept_TK=None):
    side = {} if domain is None else {"domain": domain.view(1, -1)}
    context = ForwardContext(opts=Options(side=side))
    summary = RoutingSummary(names)
    plan = SparsePlan.from_topk(
        expert_TK, torch.ones_like(expert_TK, dtype=torch.float), num_experts, kept_TK
    )
    summary(context.layer(0, (1, len(expert_TK)), False), Routing(plan))
    return summary.layers()[0]


def test_uniform_use_has_full_entropy_and_no_violation():
    layer = summary_of(torch.arange(8).view(8, 1) % 4, 4)
    assert layer.normalised_entropy == pytest.approx(1.0)
    assert layer.max_violation == pytest.approx(0.0)
    assert layer.dead == 0


def test_collapse_has_no_entropy_and_dead_experts():
    layer = summary_of(torch.zeros(8, 1, dtype=torch.long), 4)
    assert layer.entropy == pytest.approx(0.0)
    assert layer.max_violation == pytest.approx(3.0)
    assert layer.dead == 3


def test_experts_that_are_domains_have_all_the_information():
    domain = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    layer = summary_of(domain.view(8, 1), 4, domain, ["a", "b", "c", "d"])
    assert layer.mutual_information_bits == pytest.approx(math.log2(4))
    assert layer.domain_load["c"] == pytest.approx([0, 0, 1, 0])


def test_dropped_assignments_count_as_load_but_not_as_work():
    kept_TK = torch.tensor([[True], [False]])
    layer = summary_of(torch.zeros(2, 1, dtype=torch.long), 2, kept_TK=kept_TK)
    assert layer.load == pytest.approx([1, 0])
    assert layer.experts_per_token == pytest.approx(0.5)


def test_an_expert_with_a_hundredth_of_its_share_is_not_dead_and_one_with_less_is():
    load = [994, 6, 0, 1000]
    layer = summary_of(torch.repeat_interleave(torch.arange(4), torch.tensor(load)).view(-1, 1), 4)
    assert layer.dead == 1
    assert (
        summary_of(torch.repeat_interleave(torch.arange(2), torch.tensor([999, 1])).view(-1, 1), 2).dead == 1
    )
