"""What monitoring costs: training steps with and without the recorder of expert usage, in turns.

    python benchmarks/monitoring.py [--out benchmarks/results/monitoring.json] [--steps 200]

The recorder looks at one forward pass in EVERY, as docs/mlops.md recommends, and at each; rounds of all three kinds
alternate, so drifts of the machine hit all alike. Paper 135 asks for less than 5 % of the step time.
"""

from __future__ import annotations

import argparse
import contextlib
from functools import partial
from pathlib import Path

import torch
from turns import in_turns

import libmoe
from libmoe.core.files import write_json
from libmoe.core.machine import hardware
from libmoe.mlops import UsageRecorder
from libmoe.mlops.usage import EVERY
from libmoe.models import BackboneConfig, build_backbone

ROUNDS = 10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/monitoring.json"))
    parser.add_argument("--steps", type=int, default=200, help="steps of each kind")
    options = parser.parse_args()
    found = measure(options.steps)
    write_json(options.out, found)
    for name, row in found["kinds"].items():
        print(f"{name:>18}: {row['median_ms']:8.2f} ms a step, {row['more']:+.2%}")
    print(f"{'the same again':>18}: {found['noise']:+.2%} is what two unmonitored halves differ by")


def measure(steps: int) -> dict:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = BackboneConfig(
        "llama", vocab_size=2048, hidden_size=128, num_hidden_layers=4, intermediate_size=256
    )
    model = libmoe.moeify(
        build_backbone(config, seed=0), "smoe", options={"num_experts": 8, "top_k": 2}, seed=0
    )
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.randint(0, 2048, (8, 128), device=device)
    each = max(EVERY, steps // ROUNDS)

    def steps_with(recorder: UsageRecorder | None) -> None:
        with contextlib.nullcontext() if recorder is None else libmoe.options(recorders=[recorder]):
            for _ in range(each):
                step(model, optimizer, ids)

    recorders = {
        "without": None,
        "without again": None,
        f"one pass in {EVERY}": UsageRecorder(),
        "every pass": UsageRecorder(every=1),
    }
    found = in_turns({name: partial(steps_with, recorder) for name, recorder in recorders.items()}, ROUNDS)
    rows = {name: {"median_ms": row["median_ms"] / each, "more": row["more"]} for name, row in found.items()}
    again = rows.pop("without again")
    return {
        "kinds": rows,
        "noise": again["more"],
        "steps": each * ROUNDS,
        "device": device,
        "machine": hardware(),
    }


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, ids: torch.Tensor) -> None:
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


if __name__ == "__main__":
    main()
