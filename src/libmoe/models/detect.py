"""Finding the feed-forward networks of a model, and putting another module in their place."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from inspect import Parameter, signature

import torch
from torch import Tensor, nn

from libmoe.core.errors import ConfigError
from libmoe.core.site import Site
from libmoe.experts import FFN
from libmoe.layers import moe_layers
from libmoe.models.forms import (
    ACTIVATION_NAMES,
    CONNECTOR,
    FORMS,
    Form,
    activation_name,
    child,
    sizes,
    weight_OI,
)
from libmoe.models.parts import part_of


@dataclass(frozen=True)
class FoundFFN:
    """One FFN of a model: its shape, its weights, and how to replace it.

    Attributes:
        model: the model it was found in.
        path: module that owns the FFN's linears; it may own more than them (Whisper's layers, BERT's).
        form: names of the linears.
        activation: name of the activation.
    """

    model: nn.Module
    path: str
    form: Form
    activation: str

    @cached_property
    def host(self) -> nn.Module:
        return self.model.get_submodule(self.path)

    @cached_property
    def linears(self) -> list[nn.Module]:
        found = self.form.linears(self.host)
        assert found is not None
        return found

    @property
    def other_parts(self) -> list[str]:
        """What the host has besides the FFN: submodules, and dropout that is a function of its forward."""
        own = {*self.form.inputs, self.form.output, *self.form.hidden_dropouts, *ACTIVATION_NAMES}
        children = [name for name, _ in self.host.named_children()]
        functional = [
            n for n, value in vars(self.host).items() if "dropout" in n and isinstance(value, float)
        ]
        return [name for name in (*children, *functional) if name not in own]

    @property
    def is_whole(self) -> bool:
        """Whether the FFN is all that its host module computes, so that the host itself can be replaced."""
        needed = [
            p
            for p in signature(self.host.forward).parameters.values()
            if p.default is Parameter.empty
            and p.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
        ]
        return not self.other_parts and len(needed) == 1

    @property
    def layer_path(self) -> str:
        """Where the replacement sits: at the host, or at its first linear."""
        return self.path if self.is_whole else f"{self.path}.{self.form.inputs[0]}"

    @property
    def stack(self) -> str:
        """Path of the list of blocks the FFN belongs to, such as ``model.layers``; a connector is one by itself."""
        parts = self.path.split(".")
        return ".".join(parts[: next((i for i, part in enumerate(parts) if part.isdigit()), len(parts))])

    @property
    def hidden_dropout(self) -> float:
        """Probability of dropping hidden units in the dense FFN; a replacement does not inherit it."""
        found = (child(self.host, name) for name in self.form.hidden_dropouts)
        return max((float(getattr(d, "p", d)) for d in found if d is not None), default=0.0)

    @property
    def dim(self) -> int:
        return sizes(self.linears[0])[0]

    @property
    def out_dim(self) -> int | None:
        """Width of the output where it is another one than the input's."""
        out = sizes(self.linears[-1])[1]
        return None if out == self.dim else out

    @property
    def hidden(self) -> int:
        return sizes(self.linears[-1])[0]

    @property
    def bias(self) -> bool:
        return any(linear.bias is not None for linear in self.linears)

    @property
    def dtype(self) -> torch.dtype:
        return self.linears[-1].weight.dtype

    @property
    def device(self) -> torch.device:
        return self.linears[-1].weight.device

    def site(self, index: int = 0, count: int = 1, seed: int | None = None) -> Site:
        """The facts a method builds from."""
        return Site(
            dim=self.dim,
            hidden=self.hidden,
            activation=self.activation,
            gated=self.form.gated,
            bias=self.bias,
            index=index,
            count=count,
            path=self.path,
            init_std=init_std(self.model),
            seed=seed,
            out_dim=self.out_dim,
            vocab_size=vocab_size(self.model),
        )

    def read(self) -> FFN:
        """Our FFN with this one's weights (a copy, on the same device and in the same dtype)."""
        with torch.device("meta"):
            ffn = FFN(self.dim, self.hidden, self.activation, self.form.gated, self.bias, out_dim=self.out_dim)
        *ins, out = self.linears
        ffn.w_in = nn.Parameter(torch.cat([weight_OI(linear) for linear in ins]).detach().clone())
        ffn.w_out = nn.Parameter(weight_OI(out).detach().clone(memory_format=torch.contiguous_format))
        if self.bias:
            ffn.b_in = nn.Parameter(torch.cat([_bias(linear) for linear in ins]).detach().clone())
            ffn.b_out = nn.Parameter(_bias(out).detach().clone())
        return ffn

    @torch.no_grad()
    def write(self, ffn: nn.Module) -> None:
        """Copy the weights of ``ffn`` into the model's own linears; the inverse of :meth:`read`.

        Raises:
            ConfigError: it has another form, width or activation, or biases that the linears lack.
        """
        *ins, out = self.linears
        rows = [weight_OI(linear).shape[0] for linear in ins]
        wanted = (sum(rows), self.dim), tuple(weight_OI(out).shape)
        if (
            not isinstance(ffn, FFN)
            or (tuple(ffn.w_in.shape), tuple(ffn.w_out.shape)) != wanted
            or (ffn.gated, ffn.activation) != (self.form.gated, self.activation)
        ):
            given = f"{ffn.w_out.shape[1]} {ffn.activation} units" if isinstance(ffn, FFN) else type(ffn).__name__
            raise ConfigError(
                f"{self.path}: {given} cannot take the place of the dense FFN's {self.hidden} {self.activation} units; "
                "only an expert of its form and width can"
            )
        weights, biases = [*ffn.w_in.split(rows), ffn.w_out], [None] * len(self.linears)
        if ffn.b_in is not None:
            biases = [*ffn.b_in.split(rows), ffn.b_out]
        for linear, weight, bias in zip(self.linears, weights, biases, strict=True):
            weight_OI(linear).copy_(weight)
            if linear.bias is not None:
                linear.bias.copy_(torch.zeros_like(linear.bias) if bias is None else bias)
            elif bias is not None and bias.any():
                raise ConfigError(f"{self.path}: a linear of the model has no bias, and what takes its place has one")

    @torch.no_grad()
    def dense(self, x_TD: Tensor) -> Tensor:
        """What the model's own FFN computes for ``x_TD [T, D]`` without dropout."""
        if self.is_whole:
            training = self.host.training
            try:
                return self.host.eval()(x_TD)
            finally:
                self.host.train(training)
        first, out = self.linears
        return out(child(self.host, self._activation_path)(first(x_TD)))

    @property
    def _activation_path(self) -> str:
        return next(name for name in ACTIVATION_NAMES if child(self.host, name) is not None)

    def place(self, layer: nn.Module) -> None:
        """Put ``layer`` in the FFN's place; residuals, norms and dropout around the FFN stay as they are."""
        _set(self.model, self.layer_path, layer)
        if self.is_whole:
            return
        _set(self.host, self._activation_path, nn.Identity())
        _set(self.host, self.form.output, nn.Identity())
        for name in self.form.hidden_dropouts:
            dropout = child(self.host, name)
            if dropout is not None:
                _set(self.host, name, nn.Identity() if isinstance(dropout, nn.Module) else 0.0)


def find_ffns(model: nn.Module) -> list[FoundFFN]:
    """All FFNs in the blocks of ``model``, in order of execution (an encoder before its decoder).

    A block is a member of a numbered list of modules, so heads are left alone; connectors of vision-language models
    are known by name.

    Raises:
        ConfigError: the model has experts already, holds no FFN of a known form, or one with an activation that
            is not among ours.
    """
    _refuse_experts(model)
    found = []
    for path, module in model.named_modules():
        form = _form(path, module)
        if form is not None:
            found.append(FoundFFN(model, path, form, _activation(path, module, form)))
            _refuse_inner_parts(found[-1])
    if not found:
        known = ", ".join("/".join((*form.inputs, form.output)) for form in FORMS)
        raise ConfigError(f"no feed-forward network found in {type(model).__name__}; known forms: {known}")
    return sorted(found, key=lambda ffn: "decoder" in ffn.stack.split("."))


def _form(path: str, module: nn.Module) -> Form | None:
    if part_of(path) == "connector":
        return CONNECTOR if CONNECTOR.linears(module) is not None else None
    if not any(name.isdigit() for name in path.split(".")):
        return None
    return next((form for form in FORMS if form.linears(module) is not None), None)


def _refuse_inner_parts(ffn: FoundFFN) -> None:
    """A norm between activation and output belongs to the FFN, and none of our experts has one."""
    inner = []
    for name in ffn.other_parts:
        weight = getattr(child(ffn.host, name), "weight", None)
        of_hidden = isinstance(weight, Tensor) and weight.shape == (ffn.hidden,) and ffn.hidden != ffn.dim
        inner += [name] if of_hidden or ffn.form.gated else []
    if inner:
        raise ConfigError(
            f"{ffn.path}.{inner[0]} is part of a feed-forward network, and experts have no such part"
        )
    if ffn.form.gated and not ffn.is_whole:
        raise ConfigError(
            f"{ffn.path} ({type(ffn.host).__name__}) takes more than hidden states and cannot be replaced"
        )


def _activation(path: str, host: nn.Module, form: Form) -> str:
    functions = (child(host, name) for name in ACTIVATION_NAMES)
    function = next((f for f in functions if f is not None), None)
    if function is None and form.gated:
        return "silu"  # written into forward, as LFM2 does; checked against the module before it is replaced
    name = activation_name(function) if function is not None else None
    if name is None:
        raise ConfigError(
            f"the activation of {path} ({function}) is none of ours; add it to libmoe.ops.activations"
        )
    return name


def _refuse_experts(model: nn.Module) -> None:
    ours = next(iter(moe_layers(model)), None)
    if ours is not None:
        raise ConfigError(f"{ours[0]} is an MoE layer already; moeify needs a dense model")
    for path, module in model.named_modules():
        if path.rpartition(".")[2] == "experts":
            raise ConfigError(
                f"{path} ({type(module).__name__}) has experts already; bring a standard MoE model in with import_()"
            )


def init_std(model: nn.Module) -> float:
    """Standard deviation that ``model`` draws its weights with."""
    config = getattr(model, "config", None)
    return float(getattr(config, "initializer_range", None) or getattr(config, "init_std", None) or 0.02)


def vocab_size(model: nn.Module) -> int | None:
    """Token ids that ``model`` has embeddings for; ``None`` for a model that reads none."""
    try:
        embeddings = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return embeddings.num_embeddings if isinstance(embeddings, nn.Embedding) else None


def _bias(linear: nn.Module) -> Tensor:
    return linear.bias if linear.bias is not None else linear.weight.new_zeros(sizes(linear)[1])


def _set(root: nn.Module, path: str, value: object) -> None:
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, value)
