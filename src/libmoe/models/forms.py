"""Forms of feed-forward networks: how the linears of an FFN are called and what they do.

Models are recognised by form, not by class: any module with a ``gate_proj``, an ``up_proj`` and a ``down_proj``
of matching sizes is the gated FFN that these names stand for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from libmoe.ops.activations import ACTIVATIONS

# Where an FFN keeps its activation, as a module or a function.
ACTIVATION_NAMES = (
    "act_fn",
    "activation_fn",
    "activation",
    "act",
    "gelu_impl",
    "intermediate_act_fn",
    "intermediate.intermediate_act_fn",
)


@dataclass(frozen=True)
class Form:
    """An FFN by the names of its linears, relative to the module that owns them.

    Attributes:
        inputs: linears that read the FFN's input; of two, the first is the gate.
        output: the linear that returns to the model's width.
        fused: the one input linear holds the gate's rows and then the up rows.
        same_width: the output is as wide as the input.
        hidden_dropouts: dropout between activation and output, as a submodule or a probability.  It sits inside
            what an MoE layer replaces; every other dropout stays.
    """

    inputs: tuple[str, ...]
    output: str
    fused: bool = False
    same_width: bool = True
    hidden_dropouts: tuple[str, ...] = ()

    @property
    def gated(self) -> bool:
        return self.fused or len(self.inputs) == 2

    def linears(self, host: nn.Module) -> list[nn.Module] | None:
        """The linears of this form in ``host``, output last; ``None`` when one is missing or sizes disagree."""
        found = [child(host, name) for name in (*self.inputs, self.output)]
        if not all(is_linear(module) for module in found):
            return None
        (*ins, (hidden, out)) = [sizes(module) for module in found]
        rows, width = hidden * (2 if self.fused else 1), out if self.same_width else ins[0][0]
        return found if all(size == (width, rows) for size in ins) else None


FORMS = (
    Form(("gate_proj", "up_proj"), "down_proj"),  # Llama, Mistral, Qwen, Gemma
    Form(("gate_up_proj",), "down_proj", fused=True),  # Phi-3, GLM
    Form(("w1", "w3"), "w2"),  # LFM2, Llama as first published
    Form(("wi_0", "wi_1"), "wo", hidden_dropouts=("dropout",)),  # T5 v1.1
    Form(("Wi",), "Wo", fused=True, hidden_dropouts=("drop",)),  # ModernBERT
    Form(("wi",), "wo", hidden_dropouts=("dropout",)),  # T5
    Form(("fc1",), "fc2", hidden_dropouts=("activation_dropout",)),  # ViT, CLIP, Whisper, OPT, BART
    Form(("intermediate.dense",), "output.dense"),  # BERT
    Form(("intermediate_dense",), "output_dense", hidden_dropouts=("intermediate_dropout",)),  # wav2vec 2.0
    Form(("c_fc",), "c_proj"),  # GPT-2, StarCoder2
    Form(("fc_in",), "fc_out"),  # GPT-J
    Form(("dense_h_to_4h",), "dense_4h_to_h"),  # GPT-NeoX, BLOOM, Falcon
    Form(("lin1",), "lin2"),  # DistilBERT
    Form(("up_proj",), "down_proj"),  # Nemotron, MPT
)

CONNECTOR = Form(("linear_1",), "linear_2", same_width=False)
"""Between an encoder and a language model (LLaVA and its kin), where it is known by its name."""


def child(module: Any, name: str) -> Any:
    """The attribute at a dotted name, or ``None``."""
    for part in name.split("."):
        module = getattr(module, part, None)
    return module


def is_linear(module: Any) -> bool:
    return isinstance(module, nn.Linear) or _is_transposed(module)


def _is_transposed(module: Any) -> bool:
    return type(module).__name__ == "Conv1D"  # transformers' linear of GPT-2, which stores W^T


def sizes(linear: nn.Module) -> tuple[int, int]:
    """Input and output width."""
    first, second = linear.weight.shape
    return (first, second) if _is_transposed(linear) else (second, first)


def weight_OI(linear: nn.Module) -> Tensor:
    """The weight as ``[out, in]``."""
    return linear.weight.t() if _is_transposed(linear) else linear.weight


def activation_name(function: Callable[[Tensor], Tensor]) -> str | None:
    """Our name of an activation, found by its values on a grid; ``None`` when it is not one of ours."""
    x = torch.linspace(-6, 6, 121, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        y = function(x)
        names = (name for name, ours in ACTIVATIONS.items() if torch.allclose(ours(x), y, rtol=0, atol=1e-6))
        return next(names, None)
