"""What experts are: their weights, their outputs, how alike they are and which are redundant (arXiv 2406.18219)."""

from libmoe.analysis.experts.examine import examine
from libmoe.analysis.experts.layers import (
    ExpertLayer,
    expert_matrices,
    gate_rows,
    layers_of,
    shared_matrices,
)
from libmoe.analysis.experts.maps import Maps
from libmoe.analysis.experts.matrices import ExpertMatrices, dense_matrices
from libmoe.analysis.experts.norms import NormRanks
from libmoe.analysis.experts.outputs import OutputSimilarity
from libmoe.analysis.experts.probing import Probed, probing
from libmoe.analysis.experts.pruning import Importance

__all__ = [
    "ExpertLayer",
    "ExpertMatrices",
    "Importance",
    "Maps",
    "NormRanks",
    "OutputSimilarity",
    "Probed",
    "dense_matrices",
    "examine",
    "expert_matrices",
    "gate_rows",
    "layers_of",
    "probing",
    "shared_matrices",
]
