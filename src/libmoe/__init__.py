"""LibMoE: every published Mixture-of-Experts idea as a small part that composes with the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from libmoe.core.on_demand import on_demand

__version__ = "0.1.0"

_HOMES = {
    "ForwardContext": "core.context",
    "Intervention": "core.interventions",
    "LibMoEError": "core.errors",
    "MergePlan": "core.plan",
    "Method": "methods",
    "MoELayer": "layers",
    "Plan": "core.plan",
    "Router": "core.routing",
    "Routing": "core.routing",
    "Site": "core.site",
    "SoftPlan": "core.plan",
    "SparsePlan": "core.plan",
    "accelerate": "models",
    "account": "models",
    "build_backbone": "models",
    "create": "methods",
    "export": "models",
    "import_": "models",
    "load": "models",
    "moe_layers": "layers",
    "moeify": "models",
    "options": "core.context",
    "register_experts": "models",
    "register_method": "methods",
    "save": "models",
    "set_backend": "experts",
}

__getattr__, __dir__ = on_demand(__name__, _HOMES)

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
