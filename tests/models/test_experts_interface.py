"""LibMoE's kernels inside transformers' own models: every family that uses the experts interface, against eager."""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
import transformers
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, MixtralForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, use_experts_implementation

import libmoe
from libmoe.core.errors import ConfigError
from libmoe.models import experts_interface
from libmoe.ops.activations import ACTIVATIONS

_spec = importlib.util.spec_from_file_location(
    "experts_families", Path(__file__).with_name("experts_families.py")
)
families = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(families)

DOUBLE, SINGLE = 1e-10, 2e-5


def tokens(rows: int = 2, length: int = 7) -> Tensor:
    return torch.randint(3, 97, (rows, length), generator=torch.Generator().manual_seed(1))


def outcome(model: nn.Module, implementation: str) -> tuple[Tensor, dict[str, Tensor | None], list[str]]:
    """Main output, gradients of all parameters for a fixed projection of it, and which experts classes ran."""
    model.set_experts_implementation(implementation)
    model.zero_grad(set_to_none=True)
    ran: list[str] = []
    hooks = [
        m.register_forward_hook(lambda m, *_: ran.append(type(m).__name__))
        for m in families.experts_in(model)
    ]
    output = model(tokens())[0]
    for hook in hooks:
        hook.remove()
    probe = torch.randn(output.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (output * probe.to(output)).sum().backward()
    return output.detach(), {name: p.grad for name, p in model.named_parameters()}, ran


def assert_close(
    found: Tensor | None, expected: Tensor | None, tolerance: float, least: float, what: str = ""
) -> None:
    """Largest difference against the largest number, or against ``least`` where that is larger."""
    assert (found is None) == (expected is None), what
    if found is not None and expected is not None and expected.numel():
        difference = float((found - expected).detach().abs().max())
        assert difference <= tolerance * max(float(expected.abs().max()), least), what


@pytest.fixture(autouse=True)
def _registered() -> None:
    libmoe.register_experts()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often each of our operations ran on behalf of the interface."""
    counts = {"ffn": 0, "grouped_linear": 0}

    def counted(name: str) -> Callable[..., Tensor]:
        operation = getattr(experts_interface, name)

        def run(*args: Any, **kwargs: Any) -> Tensor:
            counts[name] += 1
            return operation(*args, **kwargs)

        return run

    for name in counts:
        monkeypatch.setattr(experts_interface, name, counted(name))
    return counts


def test_the_search_for_families_finds_them() -> None:
    """Each of them is built small and tested whole: what it needs more than ``TINY``, ``EXTRA`` has to say."""
    known = {"deepseek_v3", "ernie4_5_moe", "glm4_moe", "gpt_oss", "granitemoe", "hunyuan_v1_moe", "minimax"}
    known |= {"mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe", "qwen3_next", "qwen3_omni_moe"}
    assert known <= set(families.FAMILIES)
    assert len(families.FAMILIES["qwen3_omni_moe"]) == 2


@pytest.mark.parametrize("family", families.FAMILIES)
def test_models_equal_eager_in_outputs_and_gradients(family: str, calls: dict[str, int]) -> None:
    model = families.model_of(family)
    general = {
        name for name, source in families.FAMILIES[family].items() if families.goes_the_general_way(source)
    }
    tolerances = {torch.float64: SINGLE if family in families.FLOAT32 else DOUBLE, torch.float32: SINGLE}
    if family in families.NO_FLOAT64:
        del tolerances[torch.float64]
    for dtype, tolerance in tolerances.items():
        model.to(dtype)
        expected_output, expected, ran = outcome(model, "eager")
        assert ran
        assert not any(calls.values())
        output, gradients, _ = outcome(model, "libmoe")
        own = sum(name in general for name in ran)
        assert calls == {"ffn": len(ran) - own, "grouped_linear": 2 * own}
        calls.update(ffn=0, grouped_linear=0)
        assert_close(output, expected_output, tolerance, 0.0, "output")
        # Gradients that nearly cancel, as those of a router do, carry the rounding of larger ones.
        largest = max(float(g.abs().max()) for g in expected.values() if g is not None)
        for name, gradient in gradients.items():
            assert_close(gradient, expected[name], tolerance, 0.01 * largest, name)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_greedy_generation_gives_equal_tokens(family: str, calls: dict[str, int]) -> None:
    model = families.model_of(family).float()
    if not isinstance(model, transformers.GenerationMixin):
        assert not type(model).__name__.endswith("ForCausalLM")
        return
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    model.set_experts_implementation("libmoe")
    ours = model.generate(tokens(length=5), **options)
    assert sum(calls.values()) >= 4
    model.set_experts_implementation("eager")
    assert ours.tolist() == model.generate(tokens(length=5), **options).tolist()


def run_experts(
    module: nn.Module, implementation: str, x_TD: Tensor, index_TK: Tensor, weight_TK: Tensor
) -> list[Tensor | None]:
    """Output, and gradients of the input, the routing weights and the parameters."""
    module.config._experts_implementation = implementation
    leaves = [x_TD.clone().requires_grad_(), weight_TK.clone().requires_grad_(), *module.parameters()]
    output = module(leaves[0], index_TK, leaves[1])
    assert output.dtype == x_TD.dtype
    probe = torch.randn(output.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    gradients = torch.autograd.grad(output, leaves, probe.to(output), allow_unused=True)
    return [output.detach(), *(torch.zeros_like(p) if g is None else g for p, g in zip(leaves, gradients))]


def routed(
    module: nn.Module, count: int, dtype: torch.dtype, elsewhere: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Random inputs; with ``elsewhere`` some choices carry the mark of experts that another process has."""
    width = (module.down_proj.transpose(1, 2) if module.is_transposed else module.down_proj).shape[1]
    x_TD, weight_TK = torch.randn(count, width, dtype=dtype), torch.rand(count, 2, dtype=dtype)
    index_TK = torch.rand(count, module.num_experts + elsewhere).topk(2).indices
    return x_TD, index_TK, weight_TK.masked_fill(index_TK == module.num_experts, 0)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["all here", "some on other processes"])
@pytest.mark.parametrize(("family", "name"), families.CLASSES)
def test_experts_alone_equal_those_of_transformers(family: str, name: str, elsewhere: bool) -> None:
    module = families.experts_of(family, name).double()
    module._is_expert_parallel = elsewhere
    for count in (9, 1, 0):
        batch = routed(module, count, torch.float64, elsewhere)
        expected = run_experts(module, "batched_mm", *batch)
        for ours, theirs in zip(run_experts(module, "libmoe", *batch), expected, strict=True):
            assert_close(ours, theirs, SINGLE if family in families.FLOAT32 else DOUBLE, 1e-3)


# ------------------------------------------------------------------------------- precisions and ways to train


@functools.cache
def mixtral() -> nn.Module:
    return families.model_of("mixtral")


@pytest.fixture
def model() -> nn.Module:
    return copy.deepcopy(mixtral()).float()


def fresh_experts() -> nn.Module:
    return families.experts_of("mixtral", "MixtralExperts")


def relative_error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize(("family", "name"), [("mixtral", "MixtralExperts"), ("gpt_oss", "GptOssExperts")])
@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32], ids=str)
def test_half_precision_is_as_exact_as_in_transformers(family: str, name: str, weights: torch.dtype) -> None:
    module = families.experts_of(family, name)
    module._is_expert_parallel = False
    x_TD, index_TK, weight_TK = routed(module, 64, torch.float32)
    batch = x_TD.bfloat16(), index_TK, weight_TK.to(weights)
    module.bfloat16()
    ours, theirs = (run_experts(module, name, *batch) for name in ("libmoe", "batched_mm"))
    exact = run_experts(module.double(), "batched_mm", batch[0].double(), index_TK, batch[2].double())
    for a, b, c in zip(ours, theirs, exact, strict=True):
        assert a.dtype == b.dtype
        assert relative_error(a, c) <= max(1.5 * relative_error(b, c), 5e-3)


def test_autocast_computes_in_its_dtype_and_returns_that_of_the_input() -> None:
    module = fresh_experts()
    batch = routed(module, 64, torch.float32)
    exact = run_experts(module, "eager", *batch)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (run_experts(module, name, *batch) for name in ("libmoe", "eager"))
    for a, b, c in zip(ours, theirs, exact, strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert 1e-4 < relative_error(a, c.double()) <= 2 * relative_error(b, c.double())


def test_inputs_of_another_dtype_than_the_experts_are_converted_as_in_transformers() -> None:
    module = fresh_experts().bfloat16()
    x_TD, index_TK, weight_TK = routed(module, 16, torch.float32)
    ours, theirs = (run_experts(module, name, x_TD, index_TK, weight_TK) for name in ("libmoe", "grouped_mm"))
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        assert_close(a, b, 2e-2, 0.0)


def test_recomputing_activations_changes_no_gradient(model: nn.Module) -> None:
    model.train()
    output, plain, _ = outcome(model, "libmoe")
    model.gradient_checkpointing_enable()
    again, recomputed, ran = outcome(model, "libmoe")
    assert torch.equal(output, again)
    assert all(torch.equal(g, recomputed[name]) for name, g in plain.items())
    assert len(ran) == 2


def test_inference_mode_gives_the_same_outputs(model: nn.Module) -> None:
    expected = outcome(model, "libmoe")[0]
    with torch.inference_mode():
        assert_close(model(tokens()).logits, expected, 1e-6, 0.0)


def test_compiled_models_step_out_of_the_graph_for_the_experts(calls: dict[str, int]) -> None:
    module = fresh_experts()
    batch = routed(module, 9, torch.float32)
    expected = run_experts(module, "libmoe", *batch)[0]
    torch._dynamo.reset()
    found = torch.compile(lambda *inputs: 2 * module(*inputs), backend="eager")(*batch)
    assert_close(found.detach(), 2 * expected, 1e-6, 0.0)
    assert calls["ffn"] == 2


def test_parametrised_weights_get_their_gradients() -> None:
    """Adapters on expert weights, as peft puts them, are parametrisations."""

    class LowRank(nn.Module):
        def __init__(self, weight: Tensor) -> None:
            super().__init__()
            self.a = nn.Parameter(0.1 * torch.randn(*weight.shape[:2], 2, dtype=weight.dtype))
            self.b = nn.Parameter(0.1 * torch.randn(weight.shape[0], 2, weight.shape[2], dtype=weight.dtype))

        def forward(self, weight: Tensor) -> Tensor:
            return weight + self.a @ self.b

    module = fresh_experts().double().requires_grad_(False)
    for name in ("gate_up_proj", "down_proj"):
        nn.utils.parametrize.register_parametrization(module, name, LowRank(getattr(module, name)))
    batch = routed(module, 9, torch.float64)
    adapters = [p for p in module.parameters() if p.requires_grad]
    gradients = {}
    for implementation in ("libmoe", "batched_mm"):
        module.config._experts_implementation = implementation
        gradients[implementation] = torch.autograd.grad(module(*batch).square().sum(), adapters)
    for ours, theirs in zip(*gradients.values(), strict=True):
        assert_close(ours, theirs, DOUBLE, 0.0)


def train_in_two(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = libmoe.accelerate(DistributedDataParallel(copy.deepcopy(mixtral()).double()))
    model(tokens()[rank : rank + 1]).logits.square().sum().backward()
    gradients = {name: p.grad for name, p in model.module.named_parameters()}
    safetensors.torch.save_file(gradients, folder / f"{rank}.safetensors")
    dist.destroy_process_group()


@pytest.mark.distributed
def test_two_processes_get_the_gradients_of_one(tmp_path: Path) -> None:
    model = copy.deepcopy(mixtral()).double()
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=train_in_two, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    model.set_experts_implementation("eager")
    (0.5 * model(tokens()).logits.square().sum()).backward()
    for rank in range(2):
        found = safetensors.torch.load_file(tmp_path / f"{rank}.safetensors")
        for name, p in model.named_parameters():
            assert_close(found[name], p.grad, DOUBLE, 1e-3, name)


# ------------------------------------------------------------------------------------------ modules of users


@use_experts_implementation(has_bias=True, has_gate=False)
class PlainExperts(nn.Module):
    """Experts without a gate and with biases, whose activation is whatever the test puts there."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.num_experts, self.act_fn = 4, config.act_fn
        self.up_proj, self.up_proj_bias = nn.Parameter(torch.randn(4, 6, 5)), nn.Parameter(torch.randn(4, 6))
        self.down_proj, self.down_proj_bias = (
            nn.Parameter(torch.randn(4, 5, 6)),
            nn.Parameter(torch.randn(4, 5)),
        )

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        raise AssertionError("the registered function computes, never this")


KNOWN = {name: transformers.activations.ACT2FN[name] for name in ACTIVATIONS}
FUNCTIONS = {"F.silu": nn.functional.silu, "torch.tanh": torch.tanh}
UNKNOWN = {"mish": nn.Mish(), "softplus": nn.functional.softplus, "half": lambda x: x / 2}


@pytest.mark.parametrize("activation", [*KNOWN, *FUNCTIONS, *UNKNOWN])
def test_known_activations_are_fused_and_others_called(activation: str, calls: dict[str, int]) -> None:
    config = SimpleNamespace(act_fn={**KNOWN, **FUNCTIONS, **UNKNOWN}[activation])
    module = PlainExperts(config).double()
    batch = routed(module, 9, torch.float64)
    ours = run_experts(module, "libmoe", *batch)
    assert calls == (
        {"ffn": 0, "grouped_linear": 2} if activation in UNKNOWN else {"ffn": 1, "grouped_linear": 0}
    )
    for a, b in zip(ours, run_experts(module, "batched_mm", *batch), strict=True):
        assert_close(a, b, DOUBLE, 1e-3)


def test_hooks_on_the_activation_see_it() -> None:
    module = fresh_experts()
    batch = routed(module, 9, torch.float32)
    unseen = run_experts(module, "libmoe", *batch)[0]
    shapes = []
    module.act_fn.register_forward_hook(lambda m, inputs, output: shapes.append(tuple(output.shape)))
    assert_close(run_experts(module, "libmoe", *batch)[0], unseen, 1e-6, 0.0)
    assert shapes == [(18, module.down_proj.shape[2])]


# ------------------------------------------------------------------------------------ switching it on and off


def test_accelerate_names_the_backend_and_transformers_takes_it_back(
    model: nn.Module, calls: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    ffn = experts_interface.ffn
    monkeypatch.setattr(experts_interface, "ffn", lambda *a: asked.append(a[-1]) or ffn(*a))
    expected = outcome(model, "eager")[0]
    assert libmoe.accelerate(model, "loop") is model
    assert_close(model(tokens()).logits, expected, SINGLE, 0.0)
    libmoe.accelerate(model)
    model(tokens())
    assert asked == ["loop", "loop", "auto", "auto"]
    model.set_experts_implementation("eager")
    assert torch.equal(model(tokens()).logits, expected)
    assert len(asked) == 4


def test_accelerate_reaches_experts_wherever_they_are(calls: dict[str, int]) -> None:
    class Mine(MixtralForCausalLM):
        """In another module than its experts: transformers' own setter may not find these."""

    config = copy.deepcopy(mixtral().config)
    config._experts_implementation = "eager"
    model = Mine(config)
    libmoe.accelerate(nn.ModuleDict({"inner": model}))
    model(tokens())
    assert calls["ffn"] == 2


def test_composite_models_can_name_it_for_one_part(calls: dict[str, int]) -> None:
    text = {
        **{k: families.TINY[k] for k in ("num_experts", "hidden_size", "vocab_size", "head_dim")},
        **families.mrope(2, 1, 1),
    }
    text |= {
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 12,
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    vision |= {"patch_size": 4, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    config = transformers.Qwen3VLMoeConfig(
        text_config={**text, "num_experts_per_tok": 2}, vision_config=vision
    )
    model = transformers.Qwen3VLMoeForConditionalGeneration(config).eval()
    for switch in (
        lambda: libmoe.accelerate(model),
        lambda: model.set_experts_implementation({"text_config": "libmoe"}),
    ):
        switch()
        assert model.get_experts_implementation()["text_config"] == "libmoe"
        calls["ffn"] = 0
        model(tokens())
        assert calls["ffn"] == 1
        model.set_experts_implementation("eager")
        assert set(model.get_experts_implementation().values()) == {"eager"}


def test_the_name_is_taken_when_building_and_loading_and_never_saved(
    tmp_path: Path, calls: dict[str, int]
) -> None:
    config = copy.deepcopy(mixtral().config)
    model = AutoModelForCausalLM.from_config(config, experts_implementation="libmoe").eval()
    expected = model(tokens()).logits
    assert calls["ffn"] == 2
    model.save_pretrained(tmp_path)
    assert "libmoe" not in (tmp_path / "config.json").read_text()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "mixtral"
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert plain.config._experts_implementation != "libmoe"
    again = AutoModelForCausalLM.from_pretrained(tmp_path, experts_implementation="libmoe")
    assert torch.equal(again(tokens()).logits, expected)
    assert calls["ffn"] == 4


def test_registering_twice_changes_nothing() -> None:
    before = ALL_EXPERTS_FUNCTIONS["libmoe"]
    libmoe.register_experts()
    assert ALL_EXPERTS_FUNCTIONS["libmoe"] is before


def test_bad_requests_are_refused_with_the_reason(model: nn.Module) -> None:
    before = model.config._experts_implementation
    with pytest.raises(ConfigError, match=r"unknown backend 'grouped_m'; did you mean 'grouped_mm'\?"):
        libmoe.accelerate(model, "grouped_m")
    with pytest.raises(
        ConfigError, match="LlamaForCausalLM has no experts that transformers' experts interface"
    ):
        config = transformers.LlamaConfig(
            vocab_size=97, hidden_size=32, intermediate_size=24, num_hidden_layers=1
        )
        libmoe.accelerate(transformers.LlamaForCausalLM(config))
    families.experts_in(model)[0].down_proj = nn.Parameter(
        torch.zeros(4, 32, 24, dtype=torch.int8), requires_grad=False
    )
    with pytest.raises(ConfigError, match="MixtralExperts holds int8 weights"):
        libmoe.accelerate(model)
    assert model.config._experts_implementation == before


def test_a_backend_set_by_hand_that_does_not_exist_is_refused_in_the_forward_pass(model: nn.Module) -> None:
    libmoe.accelerate(model)
    families.experts_in(model)[0].libmoe_backend = "lop"
    with pytest.raises(ConfigError, match="did you mean 'loop'"):
        model(tokens())
