"""The forms in which Hugging Face transformers computes experts, driven through its Mixtral experts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from libmoe.bench.kernels.implementations import Implementation, Prepared, slow_copies, slow_indexing
from libmoe.bench.kernels.shapes import Case

FORMS = ("eager", "batched_mm", "grouped_mm")


class TransformersExperts(Implementation):
    """``MixtralExperts`` with ``experts_implementation`` set to ``form``."""

    kind = "peer"

    def __init__(self, form: str) -> None:
        self.name, self.form = f"hf-{form}", form

    def missing(self, device: str) -> str | None:
        from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

        if self.form != "eager" and self.form not in ALL_EXPERTS_FUNCTIONS:
            return f"this transformers has no experts implementation {self.form}"
        return None

    def refuses(self, case: Case) -> str | None:
        return {"eager": slow_indexing, "batched_mm": slow_copies}.get(self.form, lambda case: None)(case)

    def prepare(self, case: Case, w_in: Tensor, w_out: Tensor) -> Prepared:
        from transformers import MixtralConfig
        from transformers.models.mixtral.modeling_mixtral import MixtralExperts

        s = case.shape
        config = MixtralConfig(
            hidden_size=s.dim,
            intermediate_size=s.hidden,
            num_local_experts=s.num_experts,
            num_experts_per_tok=s.top_k,
            hidden_act="silu",
        )
        config._experts_implementation = self.form
        with torch.device("meta"):
            experts = MixtralExperts(config)
        experts.gate_up_proj = nn.Parameter(w_in, requires_grad=case.training)
        experts.down_proj = nn.Parameter(w_out, requires_grad=case.training)
        return Prepared(experts, (experts.gate_up_proj, experts.down_proj))
