"""Sparse upcycling: experts that start as copies of the dense FFN (Komatsuzaki et al., arXiv 2212.05055)."""

from __future__ import annotations

from torch import nn

from libmoe.core.errors import ConfigError
from libmoe.experts import FFN, FFNExperts, SlicedExperts
from libmoe.experts.shift import ShiftFFN
from libmoe.layers import MoELayer


def copy_into_experts(layer: nn.Module, ffn: FFN, path: str) -> int:
    """Make every feed-forward expert in ``layer`` a copy of ``ffn``, or a slice of it; returns how many there are.

    Experts of other kinds (zero, copy, constant) keep their initial weights, and so do shared experts unless they have
    ``copies_dense`` set, and feed-forward experts where it is ``False``.

    Raises:
        ConfigError: an expert has another shape than the dense FFN, or none is a feed-forward network.
    """
    layers = [module for module in layer.modules() if isinstance(module, MoELayer)]
    banks = [module.experts for module in layers] or [layer]
    shared = [module.shared for module in layers if getattr(module.shared, "copies_dense", False)]
    copies = 0
    for part in (part for bank in banks for part in bank.modules()):
        if isinstance(part, SlicedExperts):
            part.load_slices(ffn, path)
            copies += part.num_experts
        elif isinstance(part, FFNExperts) and part.copies_dense:
            _check_shape(part, ffn, path)
            for expert in range(part.num_experts):
                part.load_ffn(expert, ffn)
            copies += part.num_experts
        elif isinstance(part, ShiftFFN):
            part.load_ffn(ffn, path)
            copies += 1
        elif isinstance(part, FFN):
            _check_shape(part, ffn, path)
            part.load_state_dict(ffn.state_dict())
            copies += 1
    if not copies:
        kinds = ", ".join(type(bank).__name__ for bank in banks)
        raise ConfigError(
            f"init='copy' has no feed-forward experts to copy {path} into ({kinds}); use init='scratch'"
        )
    return copies + sum(copy_into_experts(part, ffn, path) for part in shared)


def _check_shape(part: FFNExperts | FFN, ffn: FFN, path: str) -> None:
    ours, theirs = dict(part.named_parameters()), dict(ffn.named_parameters())
    fits = ours.keys() == theirs.keys() and part.activation == ffn.activation
    if not fits or any(ours[n].shape[-p.dim() :] != p.shape for n, p in theirs.items()):
        raise ConfigError(
            f"init='copy' needs experts like the dense FFN {path}, of width {ffn.w_out.shape[-1]}, but they have "
            f"{part.w_out.shape[-1]}; leave expert_hidden unset or use init='scratch'"
        )
