"""Scene graphs of operating rooms: labels, text form, files, metrics, and made-up scenes (MM-OR, arXiv 2503.02579)."""

from __future__ import annotations

from libmoe.eval.scene_graph.frames import Frame, load_frames
from libmoe.eval.scene_graph.labels import ENTITIES, PREDICATES, canonical
from libmoe.eval.scene_graph.memory import Change, changes, memory_text
from libmoe.eval.scene_graph.metrics import (
    ClassScore,
    MacroScore,
    SceneGraphScore,
    score_by_group,
    score_graphs,
)
from libmoe.eval.scene_graph.synthetic import MODALITIES, MultimodalSample, synthetic_scenes, visible_graph
from libmoe.eval.scene_graph.triplets import Triplet, from_text, permuted_texts, to_text

__all__ = [
    "ENTITIES",
    "MODALITIES",
    "PREDICATES",
    "Change",
    "ClassScore",
    "Frame",
    "MacroScore",
    "MultimodalSample",
    "SceneGraphScore",
    "Triplet",
    "canonical",
    "changes",
    "from_text",
    "load_frames",
    "memory_text",
    "permuted_texts",
    "score_by_group",
    "score_graphs",
    "synthetic_scenes",
    "to_text",
    "visible_graph",
]
