"""LibMoE: every published Mixture-of-Experts idea as a small part that composes with the others."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public names and the module that defines each; imported on first use so that ``import libmoe`` stays light.
_PUBLIC = {
    "ForwardContext": "libmoe.core.context",
    "Intervention": "libmoe.core.interventions",
    "LibMoEError": "libmoe.core.errors",
    "MergePlan": "libmoe.core.plan",
    "Method": "libmoe.methods",
    "MoELayer": "libmoe.layers",
    "Plan": "libmoe.core.plan",
    "Router": "libmoe.core.routing",
    "Routing": "libmoe.core.routing",
    "Site": "libmoe.core.site",
    "SoftPlan": "libmoe.core.plan",
    "SparsePlan": "libmoe.core.plan",
    "accelerate": "libmoe.models",
    "account": "libmoe.models",
    "build_backbone": "libmoe.models",
    "create": "libmoe.methods",
    "export": "libmoe.models",
    "import_": "libmoe.models",
    "load": "libmoe.models",
    "moe_layers": "libmoe.layers",
    "moeify": "libmoe.models",
    "options": "libmoe.core.context",
    "register_experts": "libmoe.models",
    "register_method": "libmoe.methods",
    "save": "libmoe.models",
    "set_backend": "libmoe.experts",
}


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'libmoe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])


if TYPE_CHECKING:
    from libmoe.core.context import ForwardContext, options
    from libmoe.core.errors import LibMoEError
    from libmoe.core.interventions import Intervention
    from libmoe.core.plan import MergePlan, Plan, SoftPlan, SparsePlan
    from libmoe.core.routing import Router, Routing
    from libmoe.core.site import Site
    from libmoe.experts import set_backend
    from libmoe.layers import MoELayer, moe_layers
    from libmoe.methods import Method, create, register_method
    from libmoe.models import (
        accelerate,
        account,
        build_backbone,
        export,
        import_,
        load,
        moeify,
        register_experts,
        save,
    )
