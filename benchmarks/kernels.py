"""The published figures: our experts beside every peer that is installed, on the grids of this device.

    python benchmarks/kernels.py [--out benchmarks/results/NAME] [--overwrite]

Measures layers on the grids below and whole models end to end, one folder each; it takes long.
`libmoe profile --grid NAME` measures a single grid; benchmarks/README.md explains the columns.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from libmoe.bench.kernels.implementations import implementations
from libmoe.cli.profile import run
from libmoe.ops import AUTO

GRIDS = {"cpu": ("cpu", "skew", "decode"), "cuda": ("gpu", "decode", "skew")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results"), help="one folder a grid in here"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace results that are there")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # Our other backends would only take time from these: half-precision products need long turns (see the README).
    only = [name for name, each in implementations().items() if each.kind == "peer" or name == AUTO]
    for grid in GRIDS[device]:
        run(grid, only=only, out=options.out / grid, device=device, overwrite=options.overwrite)
    run("quick", out=options.out / "end-to-end", device=device, overwrite=options.overwrite, end_to_end=True)


if __name__ == "__main__":
    main()
