"""A proxy of energy: floating-point operations and moved bytes, weighted by what each costs.

The weights are those of a 45 nm process in M. Horowitz, "Computing's energy problem" (ISSCC 2014): 0.9 pJ for an
addition and 3.7 pJ for a multiplication in 32 bits, and 640 pJ to read 32 bits from DRAM.  Newer processes and narrower
numbers cost less, so the sum is no measurement of this machine.  It ranks methods that trade operations for bytes, of
which one costs as much as about seventy of the others.
"""

from __future__ import annotations

JOULES_PER_FLOP = (0.9e-12 + 3.7e-12) / 2
JOULES_PER_BYTE = 640e-12 / 4


def energy(flops: float, num_bytes: float) -> float:
    """Joules."""
    return flops * JOULES_PER_FLOP + num_bytes * JOULES_PER_BYTE
