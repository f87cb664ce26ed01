"""Adapt a model's routing, and nothing else, to the text that it is reading (arXiv 2510.14853).

    with Rerouting(model) as routing:
        text = generate(routing, prompt_ids, max_new_tokens=512)

One vector for each MoE layer is added to the logits of its router; a few gradient steps on the next-token loss of the
prompt, and of what has been generated, move it.  Weights stay as they are.
"""

from __future__ import annotations

import contextlib
import math
from types import TracebackType
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libmoe.core.context import options
from libmoe.core.errors import ConfigError, unknown
from libmoe.core.interventions import ShiftLogits
from libmoe.core.shares import row_confidence
from libmoe.layers import moe_layers

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
SELECT = ("decisive", "indecisive", "all")


class Rerouting:
    """A context manager: inside it, the model routes with :attr:`delta`, zero until :meth:`adapt` is called.

    Layers are chosen when a prompt is first adapted to, by how surely they route it: ``conf_l``, the mean over tokens
    and their chosen experts of ``log p``.  The paper speaks of confident layers and prints a formula that is large for
    others, so ``select`` offers both.  Each row of a batch has vectors and layers of its own.

    Args:
        model: with MoE layers of LibMoE; it is run in evaluation mode.
        steps: n, gradient steps at a time.
        lr: learning rate.
        optimizer: ``sgd``, or ``adam``, with which a step moves each logit by about ``lr``; the paper does not say.
        select: ``decisive``: the layers that are surest of their choice; ``indecisive``: the others; ``all``.
        fraction: of the layers, the share that is adapted, at least one.
        soft: adapt every layer, its gradient multiplied by ``exp(conf_l)`` over the largest of them; for
            ``indecisive`` layers, by the smallest over it.

    Attributes:
        delta: by layer, float32 ``[B, N]``, ``[1, N]`` before the first prompt.

    Raises:
        ConfigError: no such layer, a number out of range; in use, a router whose logits cannot be edited.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        steps: int = 5,
        lr: float = 0.05,
        optimizer: Literal["sgd", "adam"] = "sgd",
        select: Literal["decisive", "indecisive", "all"] = "decisive",
        fraction: float = 0.5,
        soft: bool = False,
    ) -> None:
        layers = {layer.index: layer.router.num_experts for _, layer in moe_layers(model)}
        if not layers:
            raise ConfigError(f"{type(model).__name__} has no MoE layer of LibMoE; libmoe.import_ the model first")
        for name, value, known in (("optimizer", optimizer, OPTIMIZERS), ("select", select, SELECT)):
            if value not in known:
                raise unknown(name, value, known)
        if steps < 0 or not lr > 0 or not 0 < fraction <= 1:
            raise ConfigError(f"steps={steps} must not be negative, lr={lr} positive, fraction={fraction} in (0, 1]")
        self.model, self.steps, self.lr, self.optimizer = model, steps, lr, optimizer
        self.select, self.fraction, self.soft = select, fraction, soft
        self.delta = {index: torch.zeros(1, experts) for index, experts in layers.items()}
        self._share_BL: Tensor | None = None  # of each layer's gradient that counts, once layers are chosen
        self._optimizer: torch.optim.Optimizer | None = None
        self._options = contextlib.ExitStack()
        self._entered = False

    def __enter__(self) -> Rerouting:
        self._options.enter_context(options(interventions=[ShiftLogits(self.delta)]))
        self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered = False
        self._options.close()

    def reset(self, rows: int = 1) -> None:
        """Begin anew with ``rows`` prompts: vectors of zeros, layers not chosen yet."""
        device = next(self.model.parameters()).device
        with torch.inference_mode(False):  # or they could not be moved
            for index, old in self.delta.items():
                self.delta[index] = torch.zeros(rows, old.shape[1], device=device, requires_grad=True)
        self._optimizer = OPTIMIZERS[self.optimizer](list(self.delta.values()), lr=self.lr)
        self._share_BL = None

    def losses(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Mean next-token loss in nats of each row, ``[B]``, with the vectors as they are; differentiable."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        position = (mask.cumsum(1) - 1).clamp_min(0)
        logits = self.model(input_ids=input_ids, attention_mask=mask, position_ids=position, use_cache=False).logits
        wanted = (mask[:, 1:] * mask[:, :-1]).bool()
        target = input_ids[:, 1:].masked_fill(~wanted, -100)
        loss_BL = F.cross_entropy(logits[:, :-1].float().mT, target, ignore_index=-100, reduction="none")
        return loss_BL.sum(1) / wanted.sum(1).clamp_min(1)

    def adapt(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Take ``steps`` gradient steps on the loss of the text so far.

        Another number of rows begins anew; for another text of as many, call :meth:`reset` first.

        Returns:
            The loss of each row before each step, ``[steps, B]``.

        Raises:
            ConfigError: outside the ``with`` block, where nothing would change.
        """
        if not self._entered:
            raise ConfigError("Rerouting works inside its with block; put the call there")
        rows = len(input_ids)
        history = []
        training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode(False), torch.enable_grad():
                if self._optimizer is None or len(next(iter(self.delta.values()))) != rows:
                    self.reset(rows)
                assert self._optimizer is not None
                ids = input_ids.clone()  # one made in inference mode cannot be saved for backward
                mask = None if attention_mask is None else attention_mask.clone()
                for _ in range(self.steps):
                    loss_B = self._measured(ids, mask)
                    gradients = torch.autograd.grad(loss_B.sum(), list(self.delta.values()))
                    assert self._share_BL is not None
                    for place, (delta, gradient) in enumerate(zip(self.delta.values(), gradients, strict=True)):
                        delta.grad = gradient * self._share_BL[:, place : place + 1]
                    self._optimizer.step()
                    history.append(loss_B.detach())
        finally:
            self.model.train(training)
        return torch.stack(history) if history else torch.zeros(0, rows)

    def _measured(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """The losses; for a new prompt, which layers count, too."""
        if self._share_BL is not None:
            return self.losses(ids, mask)
        confidence: dict[int, Tensor] = {}
        with options(recorders=[lambda ctx, routing: confidence.update({ctx.index: row_confidence(ctx, routing)})]):
            loss_B = self.losses(ids, mask)
        self._share_BL = self._shares(torch.stack([confidence[index] for index in self.delta], 1))
        return loss_B

    def _shares(self, confidence_BL: Tensor) -> Tensor:
        if self.select == "all":
            return torch.ones_like(confidence_BL)
        sure_BL = confidence_BL if self.select == "decisive" else -confidence_BL
        if self.soft:
            return (sure_BL - sure_BL.amax(1, keepdim=True)).exp()
        chosen_BK = sure_BL.topk(max(1, math.ceil(self.fraction * sure_BL.shape[1] - 1e-9)), dim=1).indices
        return torch.zeros_like(sure_BL).scatter(1, chosen_BK, 1.0)
