"""Matrices, router rows and outputs of experts are the same thing in every family, and probing changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from experts_families import FAMILIES, model_of
from experts_of_their_own import own_way
from libmoe.analysis.experts import Probed, expert_matrices, gate_rows, layers_of, probing, shared_matrices
from libmoe.analysis.observe import observe
from libmoe.core.errors import ConfigError

OWN_NORM = {"muse_spark"}  # normalises what comes out of the down matrix


def probed_and_called(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[list[Probed], list[tuple]]:
    """What was probed, and input and output of the experts meanwhile; the model's outputs are the same without it."""
    seen: list[Probed] = []
    calls: list[tuple[Tensor, Tensor]] = []

    def note(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
        calls.append((next(iter([*args, *kwargs.values()])), output))

    with torch.no_grad():
        plain = model(**inputs)[0]
        with observe(model) as layers:
            handles = [layer.experts.register_forward_hook(note, with_kwargs=True) for layer in layers]
        with probing(model, [seen.append]):
            after = model(**inputs)[0]
        for handle in handles:
            handle.remove()
    assert torch.equal(plain, after)
    return seen, calls


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_times_weights_are_what_the_experts_return(family: str) -> None:
    torch.manual_seed(1)
    seen, calls = probed_and_called(model_of(family), {"input_ids": torch.randint(3, 90, (2, 7))})
    assert len(seen) == len(calls) >= 1
    for probed, (x, output) in zip(seen, calls, strict=True):
        assert torch.equal(probed.x_TD, x.reshape(probed.x_TD.shape))
        mixed_TD = (probed.weight_TN.T.unsqueeze(-1) * probed.output_NTD).sum(0)
        torch.testing.assert_close(mixed_TD, output.reshape(mixed_TD.shape).float(), rtol=1e-4, atol=1e-5)


def from_matrices(probed: Probed, number: int) -> Tensor:
    """The output of an expert from its matrices and the gate function of its family."""
    expert, x_TD, experts = expert_matrices(probed.layer)[number], probed.x_TD, probed.layer.experts
    try:
        return expert.output(x_TD, probed.layer.activation).float()
    except ConfigError:
        gate_TH = nn.functional.linear(x_TD, expert.gate_HD, expert.gate_bias_H)
        up_TH = nn.functional.linear(x_TD, expert.up_HD, expert.up_bias_H)
        both = torch.cat([gate_TH, up_TH], -1)
        if not experts.is_concatenated:
            both = torch.stack([gate_TH, up_TH], -1).flatten(-2)
        hidden_TH = experts._apply_gate(both)
        return nn.functional.linear(hidden_TH, expert.down_HD.T, expert.down_bias_D).float()


@pytest.mark.parametrize("family", FAMILIES)
def test_matrices_compute_what_the_experts_return(family: str) -> None:
    torch.manual_seed(1)
    seen: list[Probed] = []
    with torch.no_grad(), probing(model_of(family), [seen.append]):
        model_of(family)(input_ids=torch.randint(3, 90, (1, 5)))
    for probed in seen:
        matrices = expert_matrices(probed.layer)
        assert sorted(matrices) == list(range(probed.layer.num_experts)) and len(matrices) == 4
        assert len(gate_rows(probed.layer)) == 4
        for number, expert in matrices.items():
            assert {expert[name].shape for name in expert.names} == {expert.up_HD.shape}
            if family not in OWN_NORM:
                with torch.no_grad():
                    output_TD = from_matrices(probed, number)
                torch.testing.assert_close(output_TD, probed.output_NTD[number], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "qwen3_moe", "gemma4"])
def test_logits_come_from_the_rows_of_the_router(family: str) -> None:
    model, seen = model_of(family), []
    with torch.no_grad(), probing(model, [seen.append]):
        model(input_ids=torch.randint(3, 90, (1, 5)))
    for probed in seen:
        layer = probed.layer
        names = {parameter.data_ptr(): name for name, parameter in layer.block.named_parameters()}
        assert names[gate_rows(layer).data_ptr()].startswith(("gate.", "router."))
        if family != "gemma4":  # its router has an input of its own
            torch.testing.assert_close(nn.functional.linear(probed.x_TD, gate_rows(layer)), probed.logits_TN)


def test_a_shared_expert_is_found_where_there_is_one() -> None:
    (sparse,) = layers_of(model_of("deepseek_v3"))
    shared = shared_matrices(sparse)
    assert shared is not None
    assert shared.gate_HD.data_ptr() == sparse.block.shared_experts.gate_proj.weight.data_ptr()
    assert shared_matrices(layers_of(model_of("mixtral"))[0]) is None


def test_llama4_whose_weights_scale_the_input() -> None:
    model = own_way("llama4")
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    blocks: list[Tensor] = []
    handles = [
        layer.block.register_forward_hook(lambda m, args, output: blocks.append(output[0]))
        for layer in layers_of(model)
    ]
    seen: list[Probed] = []
    with torch.no_grad(), probing(model, [seen.append]):
        model(input_ids=torch.randint(3, 90, (1, 5)))
        for probed, output in zip(seen, blocks, strict=True):
            layer = probed.layer
            expected_TD = layer.block.shared_expert(probed.x_TD)
            for number, expert in expert_matrices(layer).items():
                scaled_TD = probed.x_TD * probed.weight_TN[:, number, None]
                expected_TD = expected_TD + expert.output(scaled_TD, layer.activation)
                plain_TD = expert.output(probed.x_TD, layer.activation)
                torch.testing.assert_close(plain_TD, probed.output_NTD[number])
            torch.testing.assert_close(output.reshape(expected_TD.shape), expected_TD)
    for handle in handles:
        handle.remove()


def test_jetmoe_has_feed_forward_experts_beside_its_attention_heads() -> None:
    model = own_way("jetmoe")
    blocks: list[Tensor] = []
    layers = layers_of(model)
    assert [type(layer.block).__name__ for layer in layers] == ["JetMoeMoE"] * 2
    handles = [
        layer.block.register_forward_hook(lambda m, args, output: blocks.append(output)) for layer in layers
    ]
    seen: list[Probed] = []
    with torch.no_grad(), probing(model, [seen.append]):
        model(input_ids=torch.randint(3, 90, (1, 5)))
    for probed, output in zip(seen, blocks, strict=True):
        mixed_TD = (probed.weight_TN.T.unsqueeze(-1) * probed.output_NTD).sum(0) + probed.layer.block.bias
        torch.testing.assert_close(output.reshape(mixed_TD.shape), mixed_TD)
    for handle in handles:
        handle.remove()


def test_experts_in_a_list_of_modules() -> None:
    model = own_way("switch", expert_capacity=9)
    ids = torch.randint(3, 90, (1, 5))
    seen, _ = probed_and_called(model, {"input_ids": ids, "decoder_input_ids": ids})
    assert len(seen) == 4
    for probed in seen:
        for number, expert in expert_matrices(probed.layer).items():
            assert expert.names == ("up", "down")
            with torch.no_grad():
                output_TD = expert.output(probed.x_TD, probed.layer.activation)
            torch.testing.assert_close(output_TD, probed.output_NTD[number])
