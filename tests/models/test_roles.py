"""What each parameter is for."""

from __future__ import annotations

from libmoe.models import moeify, param_roles


def test_every_parameter_has_one_role(tiny) -> None:
    model = moeify(tiny("llama"), "smoe", options={"shared_hidden": 8}, where="last:1")
    roles = param_roles(model)
    assert roles.keys() == dict(model.named_parameters()).keys()
    assert roles["model.layers.1.mlp.router.gate.weight"] == "router"
    assert roles["model.layers.1.mlp.experts.w_in"] == "expert"
    assert roles["model.layers.1.mlp.shared.ffn.w_out"] == "shared"
    assert roles["model.layers.0.mlp.gate_proj.weight"] == "backbone"
    assert roles["model.embed_tokens.weight"] == "backbone"


def test_places_inside_other_modules_count_too(tiny) -> None:
    roles = param_roles(moeify(tiny("bert"), "smoe"))
    assert roles["bert.encoder.layer.0.intermediate.dense.experts.b_in"] == "expert"
