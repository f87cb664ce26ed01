"""The CPU backend: experts spread over threads, one pass forward and one backward."""

from libmoe.ops.cpu.fused import FusedCPU

__all__ = ["FusedCPU"]
