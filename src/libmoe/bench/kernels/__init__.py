"""Speed, memory and accuracy of the experts beside their peers and beside what the machine allows."""

from libmoe.bench.kernels.end_to_end import EndToEnd, Model
from libmoe.bench.kernels.floors import Ceiling, Floor, floor, measure_ceiling
from libmoe.bench.kernels.implementations import Implementation, Prepared, implementations, select
from libmoe.bench.kernels.measure import measure
from libmoe.bench.kernels.run import Profile
from libmoe.bench.kernels.shapes import DTYPES, GRIDS, PASSES, Case, Grid, Shape, choose_cases

__all__ = [
    "DTYPES",
    "GRIDS",
    "PASSES",
    "Case",
    "Ceiling",
    "EndToEnd",
    "Floor",
    "Grid",
    "Implementation",
    "Model",
    "Prepared",
    "Profile",
    "Shape",
    "choose_cases",
    "floor",
    "implementations",
    "measure",
    "measure_ceiling",
    "select",
]
