"""Families: MoE architectures that transformers has itself, and how their blocks map onto our layers.

A family is mostly a table from the names of our tensors to those of a block.  Its methods read a configuration
(which of our methods is this?) and write one (can the standard class say what this layer does?).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from libmoe.core.errors import ConfigError
from libmoe.core.site import Site
from libmoe.experts import FFNExperts, SlicedExperts
from libmoe.layers import MoELayer
from libmoe.models.detect import vocab_size


class NotExpressibleError(ConfigError):
    """The standard architecture has no words for what a layer does; the text says what."""


@dataclass(frozen=True)
class Rows:
    """Several tensors of a block, one above the other, are one of ours."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class PerExpert:
    """One tensor for each expert (``{}`` is its number) where ours is stacked."""

    pattern: str


Source = str | Rows | PerExpert


class Family(ABC):
    """One standard architecture.

    Class attributes:
        model_type: transformers' name of the architecture; ``prefix`` begins its class names.
        block_class: class name of its MoE block.
        backbones: dense architectures with the same parameters outside the FFNs: model type and class prefix.
        tensors: our tensor names in a layer, and where a block keeps them.
        renames: parts of parameter names that differ between a dense backbone and this architecture.
        gated: form of the experts.
    """

    model_type: ClassVar[str]
    prefix: ClassVar[str]
    block_class: ClassVar[str]
    backbones: ClassVar[Mapping[str, str]] = {}
    tensors: ClassVar[Mapping[str, Source]]
    renames: ClassVar[Mapping[str, str]] = {}
    gated: ClassVar[bool] = True

    @property
    def prefixes(self) -> dict[str, str]:
        """Class prefix of every architecture whose parameters outside the FFNs are this one's."""
        return {**self.backbones, self.model_type: self.prefix}

    # -- from the standard architecture ------------------------------------------------------------------
    @abstractmethod
    def method(self, config: Any) -> tuple[str, dict[str, Any]]:
        """Our method and its options for a configuration of this architecture.

        Raises:
            ConfigError: the configuration asks for something our methods lack.
        """

    def activation(self, config: Any) -> str:
        return str(config.hidden_act)

    def read(self, block: nn.Module, layer: MoELayer) -> None:
        """Copy a block's weights into our layer."""
        theirs, ours = _all_tensors(block), _all_tensors(layer)
        with torch.no_grad():
            for name, source in self.tensors.items():
                if name in ours:
                    ours[name].copy_(_gather(theirs, source))

    # -- to the standard architecture --------------------------------------------------------------------
    @abstractmethod
    def check(self, layer: MoELayer) -> None:
        """Raises NotExpressibleError when a block cannot compute what ``layer`` computes in evaluation."""

    @abstractmethod
    def layer_fields(self, layer: MoELayer) -> dict[str, Any]:
        """Configuration fields that describe ``layer``; they must agree between layers."""

    def pattern_fields(self, sparse: Mapping[str, list[int]], model: Any) -> dict[str, Any]:
        """Configuration fields that say which blocks have experts (places by stack).

        Raises:
            NotExpressibleError: the architecture cannot have experts in just these.
        """
        dense = dense_places(sparse, model)
        if dense:
            raise NotExpressibleError(f"{self.model_type} has experts in every block, here {dense} are dense")
        return {}

    def write(self, layer: MoELayer, path: str) -> dict[str, Tensor]:
        """The block's tensors for our layer, with full names under ``path``."""
        ours = _all_tensors(layer)
        found: dict[str, Tensor] = {}
        for name, source in self.tensors.items():
            if name in ours:
                found |= {f"{path}.{n}": t for n, t in _scatter(ours[name], source)}
        return found

    def rename(self, name: str) -> str:
        for old, new in self.renames.items():
            name = name.replace(old, new)
        return name

    def blocks(self, model: nn.Module) -> dict[str, Block]:
        """All MoE blocks of a model of this architecture, by path."""
        return {
            path: Block(model, path, module, self)
            for path, module in model.named_modules()
            if type(module).__name__ == self.block_class
        }


@dataclass(frozen=True)
class Block:
    """An MoE block of a standard model: the counterpart of a found FFN."""

    model: Any
    path: str
    module: nn.Module
    family: Family

    @property
    def layer_path(self) -> str:
        return self.path

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return _gather(_all_tensors(self.module), self.family.tensors["experts.w_out"]).dtype

    def site(self, index: int, count: int, seed: int | None = None) -> Site:
        config = self.model.config
        hidden = self.family.method(config)[1]["expert_hidden"]
        return Site(
            dim=config.hidden_size,
            hidden=hidden,
            activation=self.family.activation(config),
            gated=self.family.gated,
            index=index,
            count=count,
            path=self.path,
            seed=seed,
            vocab_size=vocab_size(self.model),
        )

    def place(self, layer: nn.Module) -> None:
        parent, _, name = self.path.rpartition(".")
        setattr(self.model.get_submodule(parent), name, layer)


def check_experts(layer: MoELayer, model_type: str, *, gated: bool = True) -> None:
    """Plain experts of one width and form, without biases."""
    experts = layer.experts
    if type(experts) not in (FFNExperts, SlicedExperts) or experts.gated != gated:
        form = "gated" if gated else "ungated"
        raise NotExpressibleError(f"{model_type} has {form} feed-forward experts, here they are {experts}")
    if experts.b_in is not None:
        raise NotExpressibleError(f"experts of {model_type} have no biases, these do")
    if layer.mix is not None or getattr(layer.router, "scale_input", False):
        raise NotExpressibleError(f"{model_type} adds its experts' outputs, weighted; this layer does something else")
    if layer.estimator is not None:
        raise NotExpressibleError(
            f"{model_type} knows no gradient estimators ({type(layer.estimator).__name__})"
        )


def dense_places(sparse: Mapping[str, Sequence[int]], model: Any) -> list[int]:
    """Blocks without experts in a model with one stack."""
    (places,) = sparse.values()
    return [i for i in range(model.config.num_hidden_layers) if i not in places]


def _all_tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())


def _gather(theirs: Mapping[str, Tensor], source: Source) -> Tensor:
    if isinstance(source, str):
        return theirs[source]
    if isinstance(source, Rows):
        return torch.cat([theirs[name] for name in source.names])
    return torch.stack(list(_experts(theirs, source.pattern)))


def _experts(theirs: Mapping[str, Tensor], pattern: str) -> Iterator[Tensor]:
    expert = 0
    while pattern.format(expert) in theirs:
        yield theirs[pattern.format(expert)]
        expert += 1


def _scatter(ours: Tensor, source: Source) -> Iterator[tuple[str, Tensor]]:
    if isinstance(source, str):
        yield source, ours
    elif isinstance(source, Rows):
        yield from zip(source.names, ours.chunk(len(source.names)), strict=True)
    else:
        yield from ((source.pattern.format(e), tensor) for e, tensor in enumerate(ours))
