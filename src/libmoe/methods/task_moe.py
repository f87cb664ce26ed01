"""``task-moe``: all tokens of a task, or of a sentence, use the same two experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from libmoe.core.errors import ConfigError, unknown
from libmoe.core.site import Site
from libmoe.methods.base import register_method
from libmoe.methods.gshard import GShard
from libmoe.routers.gates import LinearGate
from libmoe.routers.grouped_decision import IdGate, Pool, PooledGate, refuse_scope_of_sequences

Granularity = Literal["task", "sentence", "token"]
GRANULARITIES: tuple[Granularity, ...] = ("task", "sentence", "token")


@register_method(
    "task-moe",
    summary="all tokens of a task, or of a sentence, use the same two experts; a task can be cut out",
    paper=72,
    aliases=("task-level-moe",),
    causal=True,
    batch_independent=True,
    side_inputs=("task",),
)
@dataclass(kw_only=True)
class TaskMoE(GShard):
    """Task-level MoE (Kudugunta et al., arXiv 2110.03742 §3): GShard's gating on what a group of tokens has in common.

    ``g = softmax(W r)`` with r the learned embedding of the task's id (``task``), the pooled state of the sentence
    (``sentence``) or that of the token (``token``).  Every layer has its own W and embeddings.  The experts of a task
    are a function of its id alone: :func:`libmoe.models.extracting.extract_group` cuts them out as a dense model whose
    size does not depend on N.

    The second expert is left out by chance while training alone, token by token.  Train on batches of several tasks:
    one task sends all it has to two experts, which is why no capacity is the default.

    Attributes:
        granularity: what decides together.
        encoder_granularity: the same for layers of an encoder; ``None``: no other.  A decoder by task and an encoder by
            token is what the paper serves.
        tasks: number of ids.
        key: side input with the id: ``task``; ``language`` or ``domain`` make tasks of these.
        embedding_dim: width of the ids' embeddings; ``None`` takes the model's.
        pool: r of a sentence: its ``first`` real token, or the ``mean``, as published, by which a decoder sees the
            future and cannot generate with a cache.
    """

    capacity_factor: float | None = None
    granularity: Granularity = "task"
    encoder_granularity: Granularity | None = None
    tasks: int = 8
    key: str = "task"
    embedding_dim: int | None = None
    pool: Pool = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        used: set[Granularity] = {self.granularity, self.encoder_granularity or self.granularity}
        for value in used - set(GRANULARITIES):
            raise unknown("granularity", value, GRANULARITIES)
        if self.tasks < 1 or (self.embedding_dim is not None and self.embedding_dim < 1):
            raise ConfigError(f"tasks={self.tasks} and embedding_dim={self.embedding_dim} must be at least 1")
        if used != {"token"}:
            refuse_scope_of_sequences(self.balance, self.balance_scope)

    def granularity_at(self, site: Site) -> Granularity:
        """What decides together in the layer at ``site``."""
        in_encoder = "encoder" in site.path.split(".")
        return self.encoder_granularity if in_encoder and self.encoder_granularity else self.granularity

    def build_gate(self, site: Site) -> nn.Module:
        granularity = self.granularity_at(site)
        if granularity == "task":
            width = site.dim if self.embedding_dim is None else self.embedding_dim
            gate = LinearGate(width, self.num_experts, bias=self.gate_bias)
            return IdGate(gate, self.key, nn.Embedding(self.tasks, width))
        gate = super().build_gate(site)
        return gate if granularity == "token" else PooledGate(gate, self.pool)
