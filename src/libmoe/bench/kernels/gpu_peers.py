"""Peers that run on NVIDIA GPUs only, used where their package is installed.

They are driven through the interfaces that their projects publish, and imported by name, since LibMoE requires none
of them.  LibMoE's own tests have no GPU, so these adapters are untested there; every run compares their outputs and
gradients with the float64 reference, and one that fails or differs is recorded as such.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from libmoe.bench.kernels.implementations import Implementation, Prepared, leaf
from libmoe.bench.kernels.shapes import Case


class GPUPeer(Implementation):
    """``module`` must import, and is asked to compute in bfloat16."""

    kind = "peer"
    note = "adapter untested by LibMoE's own suite"
    module: ClassVar[str]
    gradient: ClassVar[bool] = True

    def missing(self, device: str) -> str | None:
        if importlib.util.find_spec(self.module) is None:
            return "not installed"
        if device != "cuda":
            return f"runs on a CUDA device, not on {device}"
        try:
            importlib.import_module(self.module)
        except Exception as error:
            return f"does not import: {type(error).__name__}: {' '.join(str(error).split())[:120]}"
        return None

    def refuses(self, case: Case) -> str | None:
        if case.dtype != "bf16":
            return "is measured in bf16 only"
        return "has no gradient" if case.training and not self.gradient else None


class ScatterMoE(GPUPeer):
    """``scattermoe.mlp.GLUMLP`` (arXiv 2403.08245); its first product gives the up half before the gate half."""

    name, module = "scattermoe", "scattermoe"

    def prepare(self, case: Case, w_in: Tensor, w_out: Tensor) -> Prepared:
        GLUMLP = importlib.import_module("scattermoe.mlp").GLUMLP
        s = case.shape
        with torch.device("meta"):
            mlp = GLUMLP(s.dim, s.hidden, s.num_experts, s.top_k, activation=torch.nn.SiLU())
        first = torch.nn.Parameter(_swap_halves(w_in), requires_grad=case.training)
        second = torch.nn.Parameter(w_out, requires_grad=case.training)
        mlp.experts.weight, mlp.output_experts.weight = first, second

        def run(x_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor) -> Tensor:
            return mlp(x_TD, weight_TK, expert_TK)

        return Prepared(run, (first, second), lambda d_first, d_second: (_swap_halves(d_first), d_second))


class SonicMoE(GPUPeer):
    """``moe_general_routing_inputs`` of SonicMoE (arXiv 2512.14080), whose gate and up rows alternate."""

    name, module = "sonicmoe", "sonicmoe"

    def prepare(self, case: Case, w_in: Tensor, w_out: Tensor) -> Prepared:
        compute = importlib.import_module("sonicmoe.functional").moe_general_routing_inputs
        swiglu = importlib.import_module("sonicmoe.enums").ActivationType.SWIGLU
        s = case.shape
        shape = (s.num_experts, 2, s.hidden, s.dim)
        first = leaf(w_in.view(shape).transpose(1, 2).reshape(w_in.shape), case)
        second = leaf(w_out, case)
        token_A = torch.arange(s.tokens, device=w_in.device, dtype=torch.int32).repeat_interleave(s.top_k)

        def run(x_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor) -> Tensor:
            rows = weight_TK.numel()
            return compute(
                x_TD,
                weight_TK.reshape(-1),
                token_A[:rows],
                expert_TK.reshape(-1).int(),
                first.permute(1, 2, 0),
                None,
                second.permute(1, 2, 0),
                None,
                E=s.num_experts,
                stream_id=torch.cuda.current_stream().cuda_stream,
                activation_type=swiglu,
                is_inference_mode_enabled=not case.training,
            )[0]

        def gradients(d_first: Tensor, d_second: Tensor) -> tuple[Tensor, Tensor]:
            apart = d_first.view(s.num_experts, s.hidden, 2, s.dim).transpose(1, 2)
            return apart.reshape(w_in.shape), d_second

        return Prepared(run, (first, second), gradients)


class MegaBlocks(GPUPeer):
    """The dropless MoE of MegaBlocks (arXiv 2211.15841) in its grouped form: weights of all experts stacked as rows."""

    name, module = "megablocks", "megablocks"

    def prepare(self, case: Case, w_in: Tensor, w_out: Tensor) -> Prepared:
        Arguments = importlib.import_module("megablocks.layers.arguments").Arguments
        ParallelDroplessMLP = importlib.import_module("megablocks.layers.dmoe").ParallelDroplessMLP
        s = case.shape
        arguments = Arguments(
            hidden_size=s.dim,
            ffn_hidden_size=s.hidden,
            moe_num_experts=s.num_experts,
            moe_top_k=s.top_k,
            moe_loss_weight=0.0,
            activation_fn=F.silu,
            mlp_type="glu",
            mlp_impl="grouped",
            bias=False,
            return_bias=False,
            fp16=False,
            bf16=True,
        )
        layer = ParallelDroplessMLP(arguments)
        gate, up = w_in.chunk(2, dim=1)
        with torch.no_grad():
            layer.mlp.w1.copy_(gate.reshape(-1, s.dim))
            layer.mlp.v1.copy_(up.reshape(-1, s.dim))
            layer.mlp.w2.copy_(w_out.transpose(1, 2).reshape(-1, s.dim))

        def run(x_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor) -> Tensor:
            y, _ = layer.forward_once(x_TD.unsqueeze(1), weight_TK, expert_TK)
            return y.view(x_TD.shape)

        def gradients(d_gate: Tensor, d_up: Tensor, d_down: Tensor) -> tuple[Tensor, Tensor]:
            d_gate, d_up, d_down = (g.view(s.num_experts, s.hidden, s.dim) for g in (d_gate, d_up, d_down))
            return torch.cat([d_gate, d_up], dim=1), d_down.transpose(1, 2)

        return Prepared(run, (layer.mlp.w1, layer.mlp.v1, layer.mlp.w2), gradients)


class VLLM(GPUPeer):
    """``fused_experts`` of vLLM: Triton, forward only."""

    name, module = "vllm", "vllm"
    gradient = False

    def prepare(self, case: Case, w_in: Tensor, w_out: Tensor) -> Prepared:
        fused_experts = importlib.import_module("vllm.model_executor.layers.fused_moe").fused_experts

        def run(x_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor) -> Tensor:
            return fused_experts(x_TD, w_in, w_out, weight_TK.float(), expert_TK.int())

        return Prepared(run, ())


class SGLang(GPUPeer):
    """``fused_experts`` of SGLang: Triton, forward only; the module has moved between releases."""

    name, module = "sglang", "sglang"
    gradient = False
    places = ("moe_runner.triton_utils.fused_moe", "fused_moe_triton.fused_moe")

    def prepare(self, case: Case, w_in: Tensor, w_out: Tensor) -> Prepared:
        root = "sglang.srt.layers.moe"
        MoeRunnerConfig = importlib.import_module(f"{root}.moe_runner").MoeRunnerConfig
        StandardTopKOutput = importlib.import_module(f"{root}.topk").StandardTopKOutput
        places = [f"{root}.{place}" for place in self.places]
        fused_experts = importlib.import_module(next(filter(_exists, places), places[0])).fused_experts
        _sglang_without_server()
        s = case.shape
        config = MoeRunnerConfig(
            num_experts=s.num_experts,
            num_local_experts=s.num_experts,
            hidden_size=s.dim,
            intermediate_size_per_partition=s.hidden,
            top_k=s.top_k,
            params_dtype=w_in.dtype,
            activation="silu",
            inplace=False,
        )

        def run(x_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor) -> Tensor:
            weight_TK = weight_TK.float()
            routed = StandardTopKOutput(weight_TK, expert_TK.int(), router_logits=weight_TK)
            return fused_experts(x_TD, w_in, w_out, routed, config)

        return Prepared(run, ())


def _sglang_without_server() -> None:
    """SGLang's layers read global server arguments; outside a server they have to be set."""
    server_args = importlib.import_module("sglang.srt.server_args")
    if hasattr(server_args, "set_global_server_args_for_scheduler"):
        server_args.set_global_server_args_for_scheduler(server_args.ServerArgs(model_path="dummy"))


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _swap_halves(weight: Tensor) -> Tensor:
    return torch.cat(weight.chunk(2, dim=1)[::-1], dim=1)
