"""Cosine gates: logits from the angle between a projected token and an expert embedding."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libmoe.core.errors import ConfigError
from libmoe.routers.topk import TopKRouter


class CosineGate(nn.Module):
    """``logit_i = <u / |u|, e_i>`` with ``u = P x`` and ``|e_i| = norm`` (X-MoE, arXiv 2204.09179 §3).

    The published code rescales the embeddings in place before each use.  Here the parameter keeps its own
    length and the forward pass uses ``norm * v_i / |v_i|``: the same values, nothing is written during a
    forward (recomputation, evaluation and several forwards before one backward are safe), and only the part
    of the gradient across ``v_i`` counts, which is all that survives a rescaling.

    Args:
        dim, num_experts: D and N.
        projection: width of u; ``None`` takes N / 2.
        norm: length of an embedding in use.
    """

    def __init__(self, dim: int, num_experts: int, projection: int | None = None, norm: float = 1.5) -> None:
        super().__init__()
        width = projection if projection is not None else max(1, num_experts // 2)
        if width < 1:
            raise ConfigError(f"projection={projection} must be at least 1")
        self.norm = norm
        self.projection = nn.Parameter(torch.randn(width, dim) * dim**-0.5)
        embedding_NP = nn.init.orthogonal_(torch.empty(num_experts, width))
        self.embedding = nn.Parameter(norm * F.normalize(embedding_NP, dim=-1))

    def embeddings(self) -> Tensor:
        """``[N, P]``: the expert embeddings in use."""
        return self.norm * F.normalize(self._wide(self.embedding), dim=-1)

    def directions(self, u_TP: Tensor) -> Tensor:
        """``[T, P]``: projected tokens reduced to their direction."""
        return F.normalize(u_TP, dim=-1)

    def forward(self, x_TD: Tensor) -> Tensor:
        """``logits_TN`` in at least float32, under autocast too, within ``[-norm, norm]``."""
        with torch.autocast(x_TD.device.type, enabled=False):
            u_TP = F.linear(self._wide(x_TD), self._wide(self.projection))
            return F.linear(self.directions(u_TP), self.embeddings())

    @staticmethod
    def _wide(x: Tensor) -> Tensor:
        return x.to(torch.promote_types(x.dtype, torch.float32))


class PerturbedCosineGate(CosineGate):
    """``logit_i = norm <u, v_i> / ((|u| + t1) (|v_i| + t2))`` with t1, t2 > 0 (arXiv 2405.14131 §3).

    The plain cosine discards the lengths of u and v, which makes its experts slow to estimate; the
    perturbation lets a little of them through.

    Args:
        dim, num_experts, projection, norm: as in :class:`CosineGate`.
        perturbation: t1 and t2 at the start.
        learned: train both, through their logarithm so that they stay positive.
    """

    log_t: Tensor

    def __init__(
        self,
        dim: int,
        num_experts: int,
        projection: int | None = None,
        norm: float = 1.5,
        *,
        perturbation: float = 0.1,
        learned: bool = False,
    ) -> None:
        super().__init__(dim, num_experts, projection, norm)
        if perturbation <= 0:
            raise ConfigError(f"perturbation={perturbation} must be greater than 0")
        log_t = torch.tensor([perturbation, perturbation]).log()
        if learned:
            self.log_t = nn.Parameter(log_t)
        else:
            self.register_buffer("log_t", log_t)

    def embeddings(self) -> Tensor:
        return self.norm * self._shrink(self._wide(self.embedding), self.log_t[1])

    def directions(self, u_TP: Tensor) -> Tensor:
        return self._shrink(u_TP, self.log_t[0])

    @staticmethod
    def _shrink(v: Tensor, log_t: Tensor) -> Tensor:
        return v / (v.norm(dim=-1, keepdim=True) + log_t.exp().to(v.dtype))


class TemperedCosineGate(CosineGate):
    """``logit_i = cos(P x, v_i) exp(min(tau, log 100))`` with a learned tau (Swin V2's form; Tutel, arXiv 2206.03382).

    tau begins at ``log 2``, and v is drawn from ``N(0, 0.01^2)``.

    Args:
        projection: width of P x; 256 in Tutel, which has nothing to do with N.
        bias: of the projection; with one the length of x plays a part.
        temperature: of the softmax at the start.
    """

    def __init__(
        self, dim: int, num_experts: int, projection: int = 256, *, bias: bool = True, temperature: float = 0.5
    ) -> None:
        super().__init__(dim, num_experts, projection, norm=1.0)
        if temperature <= 0:
            raise ConfigError(f"temperature={temperature} must be greater than 0")
        nn.init.normal_(self.embedding, std=0.01)
        self.projection_bias = nn.Parameter(torch.zeros(projection)) if bias else None
        self.tau = nn.Parameter(torch.tensor([math.log(1 / temperature)]))  # of one dimension, as FSDP wants

    def directions(self, u_TP: Tensor) -> Tensor:
        bias = self.projection_bias
        return super().directions(u_TP if bias is None else u_TP + self._wide(bias))

    def forward(self, x_TD: Tensor) -> Tensor:
        """``logits_TN`` in at least float32, within ``[-100, 100]`` at the most."""
        return super().forward(x_TD) * self._wide(self.tau).clamp_max(math.log(100)).exp()


class CosineRouter(TopKRouter):
    """Softmax at a fixed temperature over a cosine gate's logits; the chosen probabilities pass it again.

    ``p = softmax(s / temperature)``; ``weight = softmax(top-k of p)``.  The second softmax, over numbers in
    [0, 1], flattens the gates: for k = 2 they lie between 0.27 and 0.73 (LIBMoE, arXiv 2411.00918).

    Args:
        gate: a :class:`CosineGate` for N experts.
        temperature: of the first softmax.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int = 2,
        *,
        gate: CosineGate,
        temperature: float = 0.3,
        **options: Any,
    ) -> None:
        super().__init__(dim, num_experts, top_k, gate=gate, **options)
        if temperature <= 0:
            raise ConfigError(f"temperature={temperature} must be greater than 0")
        self.temperature = temperature

    def score(self, logits_TN: Tensor) -> Tensor:
        return (logits_TN / self.temperature).softmax(dim=-1)

    def weigh(self, scores_TN: Tensor, logits_TN: Tensor, expert_TK: Tensor) -> Tensor:
        return scores_TN.gather(1, expert_TK).softmax(dim=-1)
