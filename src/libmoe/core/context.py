"""The forward context: everything a router, a loss or a recorder may know besides the activations.

``install(model)`` hooks the *root* model, so any transformers model works unchanged: a pre-hook opens a
:class:`ForwardContext` from the model's own arguments and an always-called hook closes it.  Models inside the
model (encoder, decoder, vision tower) are hooked too, because their tokens are not the root's.  Each MoE layer
then takes a :class:`LayerContext`, its view of the context: token ids, padding mask, document and position of
the flattened tokens, the previous MoE layer's routing, interventions, randomness and a memo of discrete
decisions.

Three properties matter more than they look:

* **Recomputation.**  Under activation checkpointing the layer's forward runs twice.  Discrete decisions go
  through :meth:`LayerContext.memo`, so the recomputation reuses them: the same experts are chosen and the same
  number of tensors is saved.  Pass :func:`checkpoint_contexts` as ``context_fn`` to non-reentrant checkpointing.
* **The scale of losses.**  A loss that the model returns passes through an identity that notes the gradient it
  gets in backward; losses attached to the graph take the same factor.  Dividing by accumulation steps, gradient
  scalers and averaging over processes therefore treat both alike.
* **Ambient options.**  Training loops and users add what the model's signature has no room for with
  :func:`options`: side inputs, interventions, recorders, the step's statistics, loss denominators.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from libmoe.core.errors import ConfigError, TrainingError
from libmoe.core.graphs import between_graphs
from libmoe.core.main_loss import LossGradient, note_main_loss
from libmoe.core.options import Options, Recorder, current_options, options  # noqa: F401 - context.options() is public
from libmoe.core.seeding import derive_seed
from libmoe.core.tokens import Tokens, named_inputs, targets

if TYPE_CHECKING:
    from libmoe.core.interventions import Intervention
    from libmoe.core.routing import Routing

T_ = TypeVar("T_")


_CURRENT: ContextVar[ForwardContext | None] = ContextVar("libmoe_context", default=None)


class ForwardContext:
    """One forward pass of the root model: its token-level inputs, ambient options and per-layer results.

    Attributes:
        tokens: inputs about the tokens of the (sub)model that is running now.
        targets: what the model's own loss predicts, ``[B, <= L]`` with -100 for nothing, or ``None``.
        items_in_batch: number of targets of the whole optimiser step, if the loop passes it to the model.
        routings: by layer index, as far as the forward pass has come.
        shared: what a part of the model has decided for all layers of this forward pass, by name.
        loss_gradient: what backward multiplies attached losses by.
        recomputing: activation checkpointing runs a part of the forward pass again.
    """

    def __init__(self, inputs: Mapping[str, Any] | None = None, opts: Options | None = None) -> None:
        inputs = inputs or {}
        self.options = opts if opts is not None else current_options()
        self.tokens = Tokens.of(inputs)
        self.targets: Tensor | None = None
        self.items_in_batch = inputs.get("num_items_in_batch")
        self.routings: dict[int, Routing] = {}
        self.shared: dict[str, Any] = {}
        self.loss_gradient = LossGradient(self.options.loss_scale)
        self.recomputing = False
        self._running: list[tuple[nn.Module, Tokens | None]] = []  # models entered, with the tokens outside
        self._tokens_of_layer: dict[int, Tokens] = {}
        self._calls: dict[int, int] = {}  # by layer; models that share weights over depth call it repeatedly
        self._surroundings: dict[tuple[int, int], tuple[Tokens, Routing | None]] = {}
        self._memo: dict[tuple[int, int, str], Any] = {}
        self._seed: int | None = None

    def seed(self) -> int:
        """Seed of this forward's routing noise, drawn from torch's global generator on first use."""
        if self._seed is None:
            self._seed = int(torch.randint(2**31 - 1, (1,)).item())
        return self._seed

    def layer(self, index: int, batch_shape: tuple[int, ...], training: bool, parts: int = 1) -> LayerContext:
        """The view of MoE layer ``index``, whose hidden states are ``[*batch_shape, D]``.

        ``parts``: so many consecutive ones are parts of one token of the model.
        """
        call = self._calls.get(index, 0)
        self._calls[index] = call + 1
        if not self.recomputing:
            earlier = [i for i in self.routings if i < index and self._tokens_of_layer.get(i) is self.tokens]
            previous = self.routings[max(earlier)] if earlier else None
            self._tokens_of_layer[index] = self.tokens
            self._surroundings[index, call] = (self.tokens, previous)
        return LayerContext(self, index, batch_shape, training, call, parts)


class LayerContext:
    """What one MoE layer sees of the :class:`ForwardContext`.

    Attributes:
        index: place of the layer among the model's MoE layers, from 0.
        batch_shape: ``(B, L)`` of the hidden states that were flattened to T = B * L tokens.
        training: whether the layer is in training mode.
        call: how often this forward pass has called the layer before.
        parts: how many of the layer's tokens are parts of one token of the model, consecutive ones; all that is
            known about the token goes for each of its parts.
        tokens: inputs about the tokens, as the (sub)model around the layer was given them.
        previous: routing of the nearest earlier MoE layer over the same tokens, or ``None`` for the first.
    """

    def __init__(
        self,
        forward: ForwardContext,
        index: int,
        batch_shape: tuple[int, ...],
        training: bool,
        call: int = 0,
        parts: int = 1,
    ) -> None:
        self.forward = forward
        self.index, self.call, self.parts = index, call, parts
        self.batch_shape = batch_shape if len(batch_shape) == 2 else (1, int(torch.Size(batch_shape).numel()))
        self.training = training
        self.tokens, self.previous = forward._surroundings.get((index, call), (forward.tokens, None))

    # -- token-level inputs ------------------------------------------------------------------------------
    def _flat(self, matrix: Tensor | None) -> Tensor | None:
        """Last L columns of a ``[B, >= L]`` matrix, flattened; ``None`` when it is not about these tokens."""
        batch, length = self.batch_shape[0], self.batch_shape[1] // self.parts
        if matrix is None or matrix.shape[1] < length:
            return None
        if matrix.shape[0] == 1 and batch > 1:
            matrix = matrix.expand(batch, -1)
        if matrix.shape[0] != batch:
            return None
        flat = matrix[:, matrix.shape[1] - length :].reshape(-1)
        return flat if self.parts == 1 else flat.repeat_interleave(self.parts)

    @property
    def mask_T(self) -> Tensor | None:
        """bool ``[T]``, ``True`` for real tokens; ``None`` when every token is real."""
        flat = self._flat(self.tokens.mask)
        return None if flat is None else flat.bool()

    @property
    def token_ids_T(self) -> Tensor:
        """int64 ``[T]`` token ids.

        Raises:
            ConfigError: the model was not called with ``input_ids`` for these tokens.
        """
        flat = self._flat(self.tokens.ids)
        if flat is None:
            raise ConfigError(
                "this router needs token ids: call the model with input_ids (inputs_embeds has none)"
            )
        return flat

    @property
    def position_T(self) -> Tensor | None:
        """int64 ``[T]`` positions as given to the model, or ``None``."""
        return self._flat(self.tokens.positions)

    @property
    def sequence_T(self) -> Tensor:
        """int64 ``[T]``: a number for each sequence; documents packed in a row (positions restart) differ."""
        if self.parts > 1:
            whole = copy.copy(self)
            whole.parts, whole.batch_shape = 1, (self.batch_shape[0], self.batch_shape[1] // self.parts)
            return whole.sequence_T.repeat_interleave(self.parts)
        batch, length = self.batch_shape
        device = next((m.device for m in (self.tokens.mask, self.tokens.ids) if m is not None), None)
        row_T = torch.arange(batch, device=device).repeat_interleave(length)
        position_T = self.position_T
        if position_T is None or length == 1:
            return row_T
        position_BL = position_T.view(batch, length)
        start_BL = torch.ones_like(position_BL, dtype=torch.bool)
        start_BL[:, 1:] = position_BL[:, 1:] <= position_BL[:, :-1]
        if not bool(start_BL[:, 1:].any()):
            return row_T.to(position_T.device)
        if self.mask_T is not None:  # left padding restarts positions without starting a document
            start_BL = start_BL & self.mask_T.view(batch, length)
            start_BL[:, 0] = True
        return start_BL.reshape(-1).long().cumsum(0) - 1

    def side_T(self, name: str) -> Tensor:
        """Side input ``name`` for each token ``[T]`` (given ``[B, L]`` or one per sequence ``[B]``).

        Raises:
            ConfigError: nothing of that name was passed to :func:`options`.
        """
        side = self.forward.options.side
        if name not in side:
            have = ", ".join(sorted(side)) or "none"
            raise ConfigError(
                f"no side input {name!r} for this router (given: {have}); use libmoe.options(side=...)"
            )
        value, (batch, length) = side[name], self.batch_shape
        flat = self._flat(value.unsqueeze(1).expand(-1, length) if value.dim() == 1 else value)
        if flat is None:
            shape = tuple(value.shape)
            raise ConfigError(
                f"side input {name!r} has shape {shape}; expected ({batch}, {length}) or ({batch},)"
            )
        return flat

    # -- decisions and randomness ------------------------------------------------------------------------
    def memo(self, name: str, make: Callable[[], T_]) -> T_:
        """``make()`` under ``no_grad``, remembered: recomputation gets the first answer again."""
        key = (self.index, self.call, name)
        store = self.forward._memo
        if self.forward.recomputing and key in store:
            return store[key]
        with torch.no_grad():
            store[key] = make()
        return store[key]

    def recall(self, name: str) -> Any:
        """What :meth:`memo` remembers under ``name``, or ``None``."""
        return self.forward._memo.get((self.index, self.call, name))

    def generator(self, name: str, device: torch.device) -> torch.Generator:
        """A generator that depends only on this forward's seed, the layer, its call and ``name``.

        Recomputation draws the same numbers without storing them.
        """
        seed = derive_seed(self.forward.seed(), self.index, self.call, name)
        return torch.Generator(device).manual_seed(seed)

    # -- interventions -----------------------------------------------------------------------------------
    def _interventions(self) -> list[Intervention]:
        return [i for i in self.forward.options.interventions if i.applies(self)]

    @property
    def edits_decisions(self) -> bool:
        """Whether interventions apply to this layer, who may want to see the scores of all experts."""
        return bool(self._interventions())

    def top_k(self, k: int) -> int:
        for edit in self._interventions():
            k = edit.top_k(k, self)
        return k

    def edit_logits(self, logits_TN: Tensor) -> Tensor:
        edits = [edit for edit in self._interventions() if edit.edits_logits]
        if edits:
            self.memo("logits edited", lambda: True)
        for edit in edits:
            logits_TN = edit.edit_logits(logits_TN, self)
        return logits_TN

    def edit_scores(self, scores_TN: Tensor) -> Tensor:
        for edit in self._interventions():
            scores_TN = edit.edit_scores(scores_TN, self)
        return scores_TN

    def edit_routing(self, routing: Routing) -> Routing:
        for edit in self._interventions():
            if edit.edits_logits and self.recall("logits edited") is None:
                raise ConfigError(
                    f"{type(edit).__name__} cannot edit layer {self.index}: its router has no logits that can be edited"
                )
            routing = edit.edit_routing(routing, self)
        return routing

    # -- where training is -------------------------------------------------------------------------------
    @property
    def progress(self) -> float:
        """Fraction of training done, in [0, 1]; 0 outside training."""
        opts = self.forward.options
        return min(opts.step / opts.total_steps, 1.0) if opts.total_steps else 0.0


def current() -> ForwardContext | None:
    """The context of the forward pass now running, if any."""
    return _CURRENT.get()


def current_or_new() -> ForwardContext:
    """The running context, or a fresh one for a layer that is called by itself.

    Raises:
        TrainingError: the layer is recomputed in backward without the context of its forward pass.
    """
    context = _CURRENT.get()
    if context is None:
        if torch._C._current_graph_task_id() != -1:
            raise TrainingError(
                "activation checkpointing recomputes an MoE layer without its forward pass; use "
                "use_reentrant=False and context_fn=libmoe.core.context.checkpoint_contexts"
            )
        context = ForwardContext()
    return context


def install(model: nn.Module, apart: Sequence[nn.Module] = ()) -> list[torch.utils.hooks.RemovableHandle]:
    """Make ``model`` open a :class:`ForwardContext` for each of its forwards; returns the hook handles.

    Args:
        apart: modules inside that are no models and whose tokens are not the root's (connectors).
    """
    inner = [m for m in model.modules() if m is not model and hasattr(m, "main_input_name")]
    for module in apart:
        module.main_input_name = "hidden_states"  # as models say what they read
    reason = "the context of a forward pass is Python's and not the graph's"
    enter, leave = (between_graphs(hook, reason) for hook in (_enter, _leave))
    return [
        handle
        for module in (model, *inner, *apart)
        for handle in (
            module.register_forward_pre_hook(enter, with_kwargs=True),
            module.register_forward_hook(leave, with_kwargs=True, always_call=True),
        )
    ]


def _enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
    inputs = named_inputs(module, args, kwargs)
    context = _CURRENT.get()
    if context is None:
        context = ForwardContext(inputs)
        context.targets = targets(module, inputs)
        if torch.is_grad_enabled():
            # Drawn inside a checkpointed part, the seed would shift the random numbers that follow it there,
            # and the recomputation, which knows the seed, would see other dropout masks.
            context.seed()
        _CURRENT.set(context)
        context._running.append((module, None))
    else:
        # A model inside a model.  One that reads pixels or audio, or attends to the output of another one, has
        # tokens of its own; any other reads those of the model around it.
        reads_text = getattr(module, "main_input_name", "input_ids") == "input_ids"
        same = reads_text and inputs.get("encoder_hidden_states") is None
        context._running.append((module, context.tokens))
        context.tokens = Tokens.of(inputs, context.tokens) if same else replace(Tokens.of(inputs), apart=True)


def _leave(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
    context = _CURRENT.get()
    if context is None or all(module is not m for m, _ in context._running):
        return None  # the forward pass failed before it came to _enter
    running, outer = context._running.pop()
    while running is not module:
        running, outer = context._running.pop()
    if outer is not None:
        context.tokens = outer
        return None
    _CURRENT.set(None)
    return None if context.options.totals else note_main_loss(output, context.loss_gradient)


@contextlib.contextmanager
def use(context: ForwardContext) -> Iterator[ForwardContext]:
    """Run a block inside a given context (layers called by hand, tests)."""
    token = _CURRENT.set(context)
    try:
        yield context
    finally:
        _CURRENT.reset(token)


@contextlib.contextmanager
def _recompute(context: ForwardContext, calls: dict[int, int]) -> Iterator[None]:
    before = context.recomputing, context._calls
    context.recomputing, context._calls = True, dict(calls)
    token = _CURRENT.set(context)
    try:
        yield
    finally:
        _CURRENT.reset(token)
        context.recomputing, context._calls = before


def checkpoint_contexts() -> tuple[Any, Any]:
    """``context_fn`` for ``torch.utils.checkpoint``: the recomputation finds the forward's context again."""
    context = _CURRENT.get() or ForwardContext()
    return contextlib.nullcontext(), _recompute(context, dict(context._calls))
