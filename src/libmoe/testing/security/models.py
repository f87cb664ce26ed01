"""The audit of a whole model: from token ids to logits, as it is served."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from libmoe.core.errors import ConfigError
from libmoe.testing.audits import TOLERANCE, Auditor, AuditReport, Batch
from libmoe.testing.probes import Side, default_side, per_token, run


class ModelAuditor(Auditor):
    """Changes token ids rather than hidden states, and compares logits and the plans of all MoE layers.

    Rounding grows with the model: in less than float64 only differences above the square root of its precision count.
    """

    def __init__(self, model: nn.Module, side: Side = default_side) -> None:
        self.model, self.dim, self.side = model, 1, side
        parameter = next(model.parameters())
        self.device = parameter.device
        self.tolerance = max(TOLERANCE, torch.finfo(parameter.dtype).eps ** 0.5)
        self.vocabulary = int(getattr(model.config, "vocab_size", None) or model.config.get_text_config().vocab_size)

    def observe(self, batch: Batch, rows: slice | None = None) -> dict[str, Tensor]:
        def side(size: int) -> dict[str, Tensor]:
            values = self.side(size if rows is None else 3)
            return {k: (v if rows is None else v[rows]).to(self.device) for k, v in values.items()}

        inputs = {k: None if v is None else v.to(self.device) for k, v in batch.inputs().items()}
        ids_BL = inputs.pop("input_ids") % self.vocabulary  # type: ignore[operator]
        with torch.no_grad():
            output, plans = run(self.model, ids_BL, side, **inputs)
        logits_BLV = getattr(output, "logits", None)
        if logits_BLV is None or logits_BLV.dim() != 3:
            raise ConfigError(f"{type(self.model).__name__} gives no logits for each token; audit a language model")
        shape = logits_BLV.shape[:2]
        seen = {
            f"{name} of layer {i}": value.reshape(*shape, -1)
            for i, plan in enumerate(plans)
            if plan.num_tokens == shape.numel()
            for name, value in per_token(plan).items()
        }
        return seen | {"logits": logits_BLV}


def audit_model(model: nn.Module, side: Side = default_side) -> AuditReport:
    """Find out what the logits and the routing of a language model depend on, with the weights that it has.

    The model is put into evaluation mode for the time being.  float64 tells rounding from dependence best.

    Raises:
        ConfigError: it gives no logits for each token.
    """
    training = model.training
    model.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return ModelAuditor(model, side).report()
    finally:
        model.train(training)
