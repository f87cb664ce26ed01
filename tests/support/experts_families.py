"""Every family of the installed transformers that uses the experts interface, as a tiny model."""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

# What every configuration gets where it has such a field, and what single families need besides.
TINY: dict[str, Any] = {
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(
        ("n_shared_experts", "num_shared_experts", "first_k_dense_replace", "n_group", "topk_group"), 1
    ),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 12),
    **dict.fromkeys(
        ("num_attention_heads", "num_key_value_heads", "qk_rope_head_dim", "qk_nope_head_dim"), 4
    ),
    **dict.fromkeys(("head_dim", "v_head_dim", "kv_lora_rank", "q_lora_rank", "index_head_dim"), 8),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size"), 97),
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
    "index_n_heads": 2,
    "index_topk": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FULL = {"layer_types": ["full_attention"] * 2}
MIXED = ["linear_attention", "full_attention"]
SPARSE = {"mlp_layer_types": ["sparse"] * 2}
NARROW = {"head_dim": 4}  # of what rotates


def mrope(*sections: int) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}
    return {"rope_parameters": {**rope, "mrope_section": list(sections)}}


EXTRA: dict[str, dict[str, Any]] = {
    "axk2": NARROW,
    "bailing_hybrid": FULL,
    "beam": SPARSE,
    "deepseek_ocr2": SPARSE,
    "deepseek_v32": NARROW,
    "dots3_note": {**NARROW, **SPARSE},
    "ernie4_5_vl_moe": {**mrope(1, 1, 2), "moe_intermediate_size": [12, 12]},
    "flint": {"mlp_only_layers": []},
    "gemma4": {"enable_moe_block": True, "hidden_size_per_layer_input": 4},
    "glm4_moe_lite": NARROW,
    "glm4v_moe": mrope(1, 1, 2),
    "glm5_next": {"head_dim": 0, "qk_rope_head_dim": 0, "layer_types": ["indexed_attention"] * 2, **SPARSE},
    "glm_moe_dsa": NARROW,
    "granitemoehybrid": {**FULL, "mamba_n_heads": 4},
    "hy_v4_vl": {**mrope(1, 1, 0), **SPARSE},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 0, "mamba_d_state": 4},
    "kimi_linear": {"layer_types": MIXED, "linear_head_dim": 8, "linear_num_heads": 4},
    "lfm2_moe": {**FULL, "num_dense_layers": 0},
    "mimo_v2_flash": {"num_key_value_heads": 2},
    "mistral_large4": NARROW,
    "nemotron_h": {"mamba_num_heads": 4, "mamba_head_dim": 8, "ssm_state_size": 4, "n_groups": 1},
    "qwen3_5_moe": FULL,
    "qwen3_next": FULL,
    "qwen4_exp": {
        "layer_types": ["linear_attention", "indexed_attention"],
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_value_heads": 4,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "zaya": {"num_experts_per_tok": 1},
}
# Families that compute in part in float32 whatever dtype they are given, and those that float64 makes fail.
FLOAT32 = {
    "beam": "gate",
    "inkling2": "gate",
    "inkling2_loop": "gate",
    "muse_spark": "norm",
    "nemotron_h": "state space",
    "openai_privacy_filter": "experts in eager",
}
NO_FLOAT64 = {"inkling2": "router", "inkling2_loop": "router"}


def discover() -> dict[str, dict[str, str]]:
    """Families of the installed transformers: their experts classes that use the interface, with their source."""
    experts = re.compile(
        r"^@use_experts_implementation\b.*?^class (\w+).*?(?=^\S|\Z)", re.MULTILINE | re.DOTALL
    )
    found = {}
    for path in sorted(Path(transformers.__file__).parent.glob("models/*/modeling_*.py")):
        if classes := {m[1]: m[0] for m in experts.finditer(path.read_text(encoding="utf-8"))}:
            found[path.parent.name] = classes
    return found


FAMILIES = discover()
CLASSES = [(family, name) for family, classes in FAMILIES.items() for name in classes]


def goes_the_general_way(source: str) -> bool:
    return "def _apply_gate" in source or "has_post_expert_norm=True" in source


def modeling(family: str) -> Any:
    return importlib.import_module(f"transformers.models.{family}.modeling_{family}")


@functools.cache
def model_of(family: str) -> nn.Module:
    """A seeded two-layer model in evaluation mode: the causal language model, or the text model where none is."""
    classes = vars(modeling(family))
    names = [n for n in classes if isinstance(classes[n], type) and issubclass(classes[n], nn.Module)]
    kinds = ("ForCausalLM", "TextModel", "Model")
    cls = next(classes[n] for kind in kinds for n in names if n.endswith(kind) and "Pre" not in n)
    config = cls.config_class
    fields = {*inspect.signature(config.__init__).parameters, *config.attribute_map}
    extra = EXTRA.get(family, {})
    torch.manual_seed(0)
    model = cls(config(**{k: v for k, v in TINY.items() if k in fields and k not in extra}, **extra)).eval()
    with torch.no_grad():  # large enough for experts to differ, and for all of them to matter
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def experts_in(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if hasattr(m, "is_transposed") and hasattr(m, "_apply_gate")]


def experts_of(family: str, name: str) -> nn.Module:
    """One experts module of this class with random parameters."""
    cls, model = getattr(modeling(family), name), model_of(family)
    module = next((m for m in experts_in(model) if type(m) is cls), None)
    module = copy.deepcopy(module) if module is not None else cls(model.config)
    for p in module.parameters():
        nn.init.normal_(p, std=0.3)
    return module
