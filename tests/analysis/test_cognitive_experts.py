"""From marker tokens to the experts that go with them, and to a model steered by these (arXiv 2505.14681)."""

from __future__ import annotations

import torch
from torch import Tensor

import libmoe
from experts_families import model_of
from libmoe.analysis import TraceRecorder
from libmoe.analysis.metrics.npmi import count_markers
from libmoe.analysis.observe import observe
from libmoe.core.interventions import Between, ScaleExperts

BEGIN, END = 90, 91


def traces() -> Tensor:
    """Texts with one stretch of thought each, token ids ``[40, 16]``."""
    ids_BL = torch.randint(3, 80, (40, 16), generator=torch.Generator().manual_seed(0))
    ids_BL[:, 4], ids_BL[:, 11] = BEGIN, END
    return ids_BL


def test_the_two_experts_that_go_with_the_markers_are_found_and_steer_what_lies_between_them() -> None:
    model, ids_BL = model_of("mixtral"), traces()
    recorder = TraceRecorder()
    with torch.no_grad(), observe(model):
        with libmoe.options(recorders=[recorder]):
            plain = model(input_ids=ids_BL).logits
        found = count_markers(recorder.trace(), [BEGIN, END]).ranked(2)
        assert len(found) == 2 and all(0 < score <= 1 for *_, score in found)
        pairs = [(layer, expert) for layer, expert, _ in found]
        with libmoe.options(interventions=[ScaleExperts(pairs, 1.0)]):
            assert torch.equal(model(input_ids=ids_BL).logits, plain)
        with libmoe.options(interventions=[ScaleExperts(pairs, 64.0, where=Between(BEGIN, END))]):
            steered = model(input_ids=ids_BL).logits
    assert torch.equal(steered[:, :4], plain[:, :4])  # nothing before the first marker
    assert not torch.allclose(steered[:, 4:12], plain[:, 4:12], atol=1e-3) and steered.isfinite().all()
