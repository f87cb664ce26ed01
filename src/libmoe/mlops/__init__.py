"""The life of a model around its training: registry, gate, pipelines and monitoring (arXiv 2205.02302).

Folders and files only: no server, no account.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from libmoe.core.on_demand import on_demand

_HOMES = {
    "DriftDetector": "drift",
    "Gate": "gate",
    "Lineage": "lineage",
    "Pipeline": "pipeline",
    "Registry": "registry",
    "UsageRecorder": "usage",
    "check_ops": "coverage",
    "load_pipeline": "pipeline",
    "promote": "promotion",
    "regression": "comparison",
    "rollback": "promotion",
    "run_pipeline": "running",
    "trace_back": "lineage",
}

__all__ = [
    "DriftDetector",
    "Gate",
    "Lineage",
    "Pipeline",
    "Registry",
    "UsageRecorder",
    "check_ops",
    "load_pipeline",
    "promote",
    "regression",
    "rollback",
    "run_pipeline",
    "trace_back",
]

__getattr__, __dir__ = on_demand(__name__, _HOMES)

if TYPE_CHECKING:
    from libmoe.mlops.comparison import regression
    from libmoe.mlops.coverage import check_ops
    from libmoe.mlops.drift import DriftDetector
    from libmoe.mlops.gate import Gate
    from libmoe.mlops.lineage import Lineage, trace_back
    from libmoe.mlops.pipeline import Pipeline, load_pipeline
    from libmoe.mlops.promotion import promote, rollback
    from libmoe.mlops.registry import Registry
    from libmoe.mlops.running import run_pipeline
    from libmoe.mlops.usage import UsageRecorder
