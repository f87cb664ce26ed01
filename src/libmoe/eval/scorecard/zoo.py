"""Architectures of open MoE models, built without weights: what cost models take as their inputs.

The sizes are those of the released configurations.  Surveys copy them with mistakes: arXiv 2412.14219 lists
NLLB-MoE-54B with 64 experts and width 1024, which would be a much smaller model; the release has 128 experts and width
2048.  So no entry is taken on trust: :func:`count` adds up the parameters of transformers' own class, and the published
totals are there to compare with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from libmoe.core.errors import unknown
from libmoe.models.receipt import count_parameters


@dataclass(frozen=True)
class Architecture:
    """A released model.

    Attributes:
        model_type: transformers' name of the architecture; ``fields`` are those of its configuration.
        experts, active: routed experts of an MoE layer, and how many of them a token uses.
        published: total parameters in billions, as its authors give them.
    """

    model_type: str
    experts: int
    active: int
    published: float
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Counted:
    """Parameters in all, and those that one token uses (embeddings counted whole)."""

    total: int
    active: int


ZOO: dict[str, Architecture] = {
    "mixtral-8x7b": Architecture("mixtral", 8, 2, 46.7, {
        "num_local_experts": 8, "num_experts_per_tok": 2, "num_hidden_layers": 32, "hidden_size": 4096,
        "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000,
    }),
    "mixtral-8x22b": Architecture("mixtral", 8, 2, 141, {
        "num_local_experts": 8, "num_experts_per_tok": 2, "num_hidden_layers": 56, "hidden_size": 6144,
        "intermediate_size": 16384, "num_attention_heads": 48, "num_key_value_heads": 8, "vocab_size": 32000,
    }),
    "deepseek-v2": Architecture("deepseek_v2", 160, 6, 236, {
        "n_routed_experts": 160, "num_experts_per_tok": 6, "n_shared_experts": 2, "first_k_dense_replace": 1,
        "num_hidden_layers": 60, "hidden_size": 5120, "intermediate_size": 12288, "moe_intermediate_size": 1536,
        "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512,
        "vocab_size": 102400,
    }),
    "deepseek-v3": Architecture("deepseek_v3", 256, 8, 671, {
        "n_routed_experts": 256, "num_experts_per_tok": 8, "n_shared_experts": 1, "first_k_dense_replace": 3,
        "num_hidden_layers": 61, "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
        "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512,
        "vocab_size": 129280,
    }),
    "kimi-k2": Architecture("deepseek_v3", 384, 8, 1040, {
        "n_routed_experts": 384, "num_experts_per_tok": 8, "n_shared_experts": 1, "first_k_dense_replace": 1,
        "num_hidden_layers": 61, "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
        "num_attention_heads": 64, "num_key_value_heads": 64, "q_lora_rank": 1536, "kv_lora_rank": 512,
        "n_group": 1, "topk_group": 1, "vocab_size": 163840,
    }),
    "qwen1.5-moe-a2.7b": Architecture("qwen2_moe", 60, 4, 14.3, {
        "num_experts": 60, "num_experts_per_tok": 4, "num_hidden_layers": 24, "hidden_size": 2048,
        "intermediate_size": 5632, "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632,
        "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 151936,
    }),
    "qwen2-57b-a14b": Architecture("qwen2_moe", 64, 8, 57.4, {
        "num_experts": 64, "num_experts_per_tok": 8, "num_hidden_layers": 28, "hidden_size": 3584,
        "intermediate_size": 18944, "moe_intermediate_size": 2560, "shared_expert_intermediate_size": 20480,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 151936,
    }),
    "qwen3-235b-a22b": Architecture("qwen3_moe", 128, 8, 235, {
        "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 94, "hidden_size": 4096,
        "intermediate_size": 12288, "moe_intermediate_size": 1536, "num_attention_heads": 64,
        "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936,
    }),
    "olmoe-1b-7b": Architecture("olmoe", 64, 8, 6.92, {
        "num_experts": 64, "num_experts_per_tok": 8, "num_hidden_layers": 16, "hidden_size": 2048,
        "intermediate_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 50304,
    }),
    "phi-3.5-moe": Architecture("phimoe", 16, 2, 41.9, {
        "num_local_experts": 16, "num_experts_per_tok": 2, "num_hidden_layers": 32, "hidden_size": 4096,
        "intermediate_size": 6400, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32064,
    }),
    "gpt-oss-120b": Architecture("gpt_oss", 128, 4, 116.8, {
        "num_local_experts": 128, "num_experts_per_tok": 4, "num_hidden_layers": 36, "hidden_size": 2880,
        "intermediate_size": 2880, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64,
        "vocab_size": 201088,
    }),
    "glm-4.5": Architecture("glm4_moe", 160, 8, 355, {
        "n_routed_experts": 160, "num_experts_per_tok": 8, "n_shared_experts": 1, "first_k_dense_replace": 3,
        "num_hidden_layers": 92, "hidden_size": 5120, "intermediate_size": 12288, "moe_intermediate_size": 1536,
        "num_attention_heads": 96, "num_key_value_heads": 8, "head_dim": 128, "use_qk_norm": True,
        "attention_bias": True, "vocab_size": 151552,
    }),
    "nllb-moe-54b": Architecture("nllb-moe", 128, 2, 54.5, {
        "num_experts": 128, "encoder_layers": 24, "decoder_layers": 24, "d_model": 2048, "encoder_ffn_dim": 8192,
        "decoder_ffn_dim": 8192, "encoder_attention_heads": 16, "decoder_attention_heads": 16,
        "encoder_sparse_step": 4, "decoder_sparse_step": 4, "vocab_size": 256206,
    }),
}  # fmt: skip


def count(name: str, **fields: Any) -> Counted:
    """Parameters of a model of the zoo; ``fields`` replace those of its configuration.

    Raises:
        ConfigError: there is no such model.
    """
    if name not in ZOO:
        raise unknown("model of the zoo", name, ZOO)
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
    from transformers.initialization import no_init_weights

    entry = ZOO[name]
    config = AutoConfig.for_model(entry.model_type, **{**entry.fields, **fields})
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"), no_init_weights():
        model = kind.from_config(config)
        model.tie_weights()  # which goes with the initialisation that is left out
    total = count_parameters(model)
    routed = sum(p.numel() for path, p in model.named_parameters() if "experts" in path.split("."))
    return Counted(total, round(total - routed * (1 - entry.active / entry.experts)))
