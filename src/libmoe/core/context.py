"""The forward context: everything a router, a loss or a recorder may know besides the activations.

``install(model)`` hooks the *root* model, so any transformers model works unchanged: a pre-hook opens a
:class:`ForwardContext` from the model's own arguments and an always-called hook closes it.  Each MoE layer
then takes a :class:`LayerContext`, its view of the context: token ids, padding mask, document and position of
the flattened tokens, the previous MoE layer's routing, interventions, randomness and a memo of discrete
decisions.

Two properties matter more than they look:

* **Recomputation.**  Under activation checkpointing the layer's forward runs twice.  Discrete decisions go
  through :meth:`LayerContext.memo`, so the recomputation reuses them: the same experts are chosen and the same
  number of tensors is saved.  Pass :func:`checkpoint_contexts` as ``context_fn`` to non-reentrant checkpointing.
* **Ambient options.**  Training loops and users add what the model's signature has no room for with
  :func:`options`: side inputs, interventions, recorders, the step's statistics, loss denominators.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar, Token
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from libmoe.core.errors import ConfigError

if TYPE_CHECKING:
    from libmoe.core.interventions import Intervention
    from libmoe.core.routing import Routing
    from libmoe.core.statistics import StepStatistics

T_ = TypeVar("T_")
Recorder = Callable[["LayerContext", "Routing"], None]


@dataclass(frozen=True)
class Options:
    """Ambient options of a forward pass; see :func:`options` for their meaning."""

    side: dict[str, Tensor] = field(default_factory=dict)
    interventions: tuple[Intervention, ...] = ()
    recorders: tuple[Recorder, ...] = ()
    statistics: StepStatistics | None = None
    totals: dict[str, float] = field(default_factory=dict)
    loss_scale: float = 1.0
    step: int = 0
    total_steps: int = 0
    stage: str = ""


_OPTIONS: ContextVar[Options] = ContextVar("libmoe_options", default=Options())
_CURRENT: ContextVar[ForwardContext | None] = ContextVar("libmoe_context", default=None)


@contextlib.contextmanager
def options(
    *, side: dict[str, Tensor] | None = None, interventions: Any = (), recorders: Any = (), **values: Any
) -> Iterator[Options]:
    """Add ambient options to every forward pass inside the ``with`` block; blocks nest and add up.

    Args:
        side: named tensors ``[B, L]`` or ``[B]`` for routers that need them (``domain``, ``task``,
            ``language``, ``modality``, ``timestep``, ...).
        interventions: edits of scores, selections or plans (:mod:`libmoe.core.interventions`).
        recorders: callables ``(LayerContext, Routing) -> None``, called once per layer and forward.
        statistics: a :class:`~libmoe.core.statistics.StepStatistics` that gathers the load of each layer.
        totals: denominators of the optimiser step by unit (``token``, ``sequence``), already divided by the
            number of ranks that average gradients; without them each forward is its own batch.
        loss_scale: factor for losses attached to the graph, when the main loss is scaled before backward.
        step, total_steps, stage: where training is.
    """
    old = _OPTIONS.get()
    new = replace(
        old,
        side=old.side | (side or {}),
        interventions=old.interventions + tuple(interventions),
        recorders=old.recorders + tuple(recorders),
        **values,
    )
    token = _OPTIONS.set(new)
    try:
        yield new
    finally:
        _OPTIONS.reset(token)


class ForwardContext:
    """One forward pass of the root model: its token-level inputs, ambient options and per-layer results."""

    def __init__(self, inputs: dict[str, Any] | None = None, opts: Options | None = None) -> None:
        inputs = inputs or {}
        self.options = opts if opts is not None else _OPTIONS.get()
        self.token_ids = _as_matrix(inputs.get("input_ids"))
        self.decoder_token_ids = _as_matrix(inputs.get("decoder_input_ids"))
        self.masks = [_as_matrix(inputs.get(k)) for k in ("attention_mask", "decoder_attention_mask")]
        self.positions = _as_matrix(inputs.get("position_ids"))
        self.labels = _as_matrix(inputs.get("labels"))
        self.items_in_batch = inputs.get("num_items_in_batch")
        self.routings: dict[int, Routing] = {}
        self.recomputing = False
        self._memo: dict[tuple[int, str], Any] = {}
        self._seed: int | None = None

    def seed(self) -> int:
        """Seed of this forward's routing noise, drawn from torch's global generator on first use."""
        if self._seed is None:
            self._seed = int(torch.randint(2**31 - 1, (1,)).item())
        return self._seed

    def layer(self, index: int, batch_shape: tuple[int, ...], training: bool) -> LayerContext:
        return LayerContext(self, index, batch_shape, training)


def _as_matrix(value: Any) -> Tensor | None:
    return value if isinstance(value, Tensor) and value.dim() == 2 else None


class LayerContext:
    """What one MoE layer sees of the :class:`ForwardContext`.

    Attributes:
        index: place of the layer among the model's MoE layers, from 0.
        batch_shape: ``(B, L)`` of the hidden states that were flattened to T = B * L tokens.
        training: whether the layer is in training mode.
    """

    def __init__(self, forward: ForwardContext, index: int, batch_shape: tuple[int, ...], training: bool) -> None:
        self.forward = forward
        self.index = index
        self.batch_shape = batch_shape if len(batch_shape) == 2 else (1, int(torch.Size(batch_shape).numel()))
        self.training = training

    # -- token-level inputs ------------------------------------------------------------------------------
    def _flat(self, matrix: Tensor | None) -> Tensor | None:
        """Last L columns of a ``[B, >= L]`` matrix, flattened; ``None`` when it is not about these tokens."""
        batch, length = self.batch_shape
        if matrix is None or matrix.shape[1] < length:
            return None
        if matrix.shape[0] == 1 and batch > 1:
            matrix = matrix.expand(batch, -1)
        return matrix[:, -length:].reshape(-1) if matrix.shape[0] == batch else None

    @property
    def mask_T(self) -> Tensor | None:
        """bool ``[T]``, ``True`` for real tokens; ``None`` when every token is real."""
        for matrix in self.forward.masks:
            flat = self._flat(matrix)
            if flat is not None:
                return flat.bool()
        return None

    @property
    def token_ids_T(self) -> Tensor:
        """int64 ``[T]`` token ids.

        Raises:
            ConfigError: the model was not called with ``input_ids`` for these tokens.
        """
        for matrix in (self.forward.token_ids, self.forward.decoder_token_ids):
            flat = self._flat(matrix)
            if flat is not None:
                return flat
        raise ConfigError("this router needs token ids: call the model with input_ids (inputs_embeds has none)")

    @property
    def position_T(self) -> Tensor | None:
        """int64 ``[T]`` positions as given to the model, or ``None``."""
        return self._flat(self.forward.positions)

    @property
    def sequence_T(self) -> Tensor:
        """int64 ``[T]``: a number for each sequence; documents packed in a row (positions restart) differ."""
        batch, length = self.batch_shape
        device = next((m.device for m in (*self.forward.masks, self.forward.token_ids) if m is not None), None)
        row_T = torch.arange(batch, device=device).repeat_interleave(length)
        position_T = self.position_T
        if position_T is None or length == 1:
            return row_T
        start_BL = position_T.view(batch, length) == 0
        start_BL = torch.cat([torch.ones_like(start_BL[:, :1]), start_BL[:, 1:]], dim=1)
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
            raise ConfigError(f"this router needs the side input {name!r} (given: {have}); use libmoe.options(side=...)")
        value, (batch, length) = side[name], self.batch_shape
        if value.dim() == 1:
            return value.repeat_interleave(length)
        flat = self._flat(value)
        if flat is None:
            raise ConfigError(f"side input {name!r} has shape {tuple(value.shape)}; expected ({batch}, {length})")
        return flat

    # -- other layers ------------------------------------------------------------------------------------
    @property
    def previous(self) -> Routing | None:
        """Routing of the nearest earlier MoE layer in this forward, or ``None`` for the first."""
        earlier = [i for i in self.forward.routings if i < self.index]
        return self.forward.routings[max(earlier)] if earlier else None

    # -- decisions and randomness ------------------------------------------------------------------------
    def memo(self, name: str, make: Callable[[], T_]) -> T_:
        """``make()`` under ``no_grad``, remembered: recomputation gets the first answer again."""
        key = (self.index, name)
        store = self.forward._memo
        if self.forward.recomputing and key in store:
            return store[key]
        with torch.no_grad():
            store[key] = make()
        return store[key]

    def generator(self, name: str, device: torch.device) -> torch.Generator:
        """A generator that depends only on this forward's seed, the layer and ``name``.

        Recomputation draws the same numbers without storing them.
        """
        mixed = hash((self.forward.seed(), self.index, *name.encode())) % (2**63)
        return torch.Generator(device).manual_seed(mixed)

    # -- interventions -----------------------------------------------------------------------------------
    def _interventions(self) -> list[Intervention]:
        return [i for i in self.forward.options.interventions if i.applies(self)]

    def top_k(self, k: int) -> int:
        for edit in self._interventions():
            k = edit.top_k(k, self)
        return k

    def edit_scores(self, scores_TN: Tensor) -> Tensor:
        for edit in self._interventions():
            scores_TN = edit.edit_scores(scores_TN, self)
        return scores_TN

    def edit_routing(self, routing: Routing) -> Routing:
        for edit in self._interventions():
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


def install(model: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
    """Make ``model`` open a :class:`ForwardContext` for each of its forwards; returns the hook handles."""
    opened: list[Token | None] = []

    def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
        if _CURRENT.get() is None:
            opened.append(_CURRENT.set(ForwardContext(_named_inputs(module, args, kwargs))))
        else:
            opened.append(None)  # a model inside a model: the outer context serves both

    def leave(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        token = opened.pop()
        if token is not None:
            _CURRENT.reset(token)

    return [
        model.register_forward_pre_hook(enter, with_kwargs=True),
        model.register_forward_hook(leave, with_kwargs=True, always_call=True),
    ]


def _named_inputs(module: nn.Module, args: tuple, kwargs: dict) -> dict[str, Any]:
    if not args:
        return kwargs
    import inspect

    names = [p for p in inspect.signature(module.forward).parameters if p != "self"]
    return dict(zip(names, args, strict=False)) | kwargs


@contextlib.contextmanager
def use(context: ForwardContext) -> Iterator[ForwardContext]:
    """Run a block inside a given context (layers called by hand, tests)."""
    token = _CURRENT.set(context)
    try:
        yield context
    finally:
        _CURRENT.reset(token)


@contextlib.contextmanager
def _recompute(context: ForwardContext | None) -> Iterator[None]:
    if context is None:
        yield
        return
    before, context.recomputing = context.recomputing, True
    token = _CURRENT.set(context)
    try:
        yield
    finally:
        _CURRENT.reset(token)
        context.recomputing = before


def checkpoint_contexts() -> tuple[Any, Any]:
    """``context_fn`` for ``torch.utils.checkpoint``: the recomputation finds the forward's context again."""
    return contextlib.nullcontext(), _recompute(_CURRENT.get())
