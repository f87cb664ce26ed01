"""Where the cells of a grid run: processes of this machine, a Ray cluster, or the job arrays of SLURM."""

from __future__ import annotations

from libmoe.bench.executors.base import Executor, Resources
from libmoe.bench.executors.local import LocalPool
from libmoe.bench.executors.ray_cluster import RayCluster
from libmoe.bench.executors.slurm import Slurm

__all__ = ["Executor", "LocalPool", "RayCluster", "Resources", "Slurm"]
