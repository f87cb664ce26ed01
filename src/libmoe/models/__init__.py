"""MoE layers inside transformers models: put in, saved, loaded, exchanged and counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from libmoe.core.on_demand import on_demand

_HOMES = {
    "Account": "accounting",
    "BackboneConfig": "backbones",
    "FoundFFN": "detect",
    "Moeified": "record",
    "Receipt": "receipt",
    "accelerate": "experts_interface",
    "adapt": "instance_lora",
    "account": "accounting",
    "add_attention_experts": "attention_experts",
    "add_binary_attention": "binary_attention",
    "add_head_experts": "head_experts",
    "assemble": "assembling",
    "average_experts": "averaging",
    "build_backbone": "backbones",
    "export": "standard.exporting",
    "extract_group": "extracting",
    "find_ffns": "detect",
    "image_features": "masked_autoencoder",
    "import_": "standard.importing",
    "load": "loading",
    "load_any": "loading",
    "moeify": "replacing",
    "param_roles": "roles",
    "register_experts": "experts_interface",
    "save": "saving",
    "to_plain": "plain",
}

__all__ = [
    "Account",
    "BackboneConfig",
    "FoundFFN",
    "Moeified",
    "Receipt",
    "accelerate",
    "account",
    "adapt",
    "add_attention_experts",
    "add_binary_attention",
    "add_head_experts",
    "assemble",
    "average_experts",
    "build_backbone",
    "export",
    "extract_group",
    "find_ffns",
    "image_features",
    "import_",
    "load",
    "load_any",
    "moeify",
    "param_roles",
    "register_experts",
    "save",
    "to_plain",
]

__getattr__, __dir__ = on_demand(__name__, _HOMES)

if TYPE_CHECKING:
    from libmoe.models.accounting import Account, account
    from libmoe.models.assembling import assemble
    from libmoe.models.attention_experts import add_attention_experts
    from libmoe.models.averaging import average_experts
    from libmoe.models.backbones import BackboneConfig, build_backbone
    from libmoe.models.binary_attention import add_binary_attention
    from libmoe.models.detect import FoundFFN, find_ffns
    from libmoe.models.experts_interface import accelerate, register_experts
    from libmoe.models.extracting import extract_group
    from libmoe.models.head_experts import add_head_experts
    from libmoe.models.instance_lora import adapt
    from libmoe.models.loading import load, load_any
    from libmoe.models.masked_autoencoder import image_features
    from libmoe.models.plain import to_plain
    from libmoe.models.receipt import Receipt
    from libmoe.models.record import Moeified
    from libmoe.models.replacing import moeify
    from libmoe.models.roles import param_roles
    from libmoe.models.saving import save
    from libmoe.models.standard.exporting import export
    from libmoe.models.standard.importing import import_
