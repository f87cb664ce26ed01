"""The Triton backends: experts on one NVIDIA GPU, trained and run without copies of rows or host synchronisation."""

from libmoe.ops.triton.backend import BatchInvariantTriton, Triton

__all__ = ["BatchInvariantTriton", "Triton"]
