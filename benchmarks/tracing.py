"""What seeing costs: forward passes with and without a trace, training steps with and without live metrics, counting.

    python benchmarks/tracing.py [--out benchmarks/results/tracing.json] [--rounds 20] [--rows 10000000]

* **tracing**: a Mixtral of transformers (hidden 512, 8 layers, 16 experts, top 2), watched by hooks, every decision
  written to disk.  Each round runs one pass with and one without, in random order; the ratio is taken within rounds,
  so that drifts of the machine hit both alike; processor time, the writer's thread included, tells on a busy machine.
* **live**: optimiser steps of the same size with LibMoE's layers, with and without the numbers of ``metrics.jsonl``
  (logged every 10 steps, as recipes do).
* **counting**: a trace with so many rows is written and counted; peak memory is that of the process, and of counting a
  trace of a tenth of the rows, which tells whether it grows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm
from turns import in_turns

import libmoe
from libmoe.analysis import TraceRecorder
from libmoe.analysis.observe import observe
from libmoe.core.files import write_json
from libmoe.core.machine import hardware
from libmoe.core.statistics import StepStatistics
from libmoe.models import BackboneConfig, build_backbone
from libmoe.train.live import Confidence
from libmoe.train.metrics import auxiliary_losses, balance

HIDDEN, LAYERS, EXPERTS, TOP, INTERMEDIATE, VOCABULARY = 512, 8, 16, 2, 1024, 4096
BATCH, LENGTH = 4, 256
LOG_EVERY = 10
"""Steps between two logged ones, the default of recipes."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tracing.json"))
    parser.add_argument("--rounds", type=int, default=20, help="passes of each kind")
    parser.add_argument("--rows", type=int, default=10_000_000, help="routing rows to count; 0 leaves it out")
    parser.add_argument("--count", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, help="threads of torch; by default its own choice")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.count is not None:
        print(json.dumps(count_folder(options.count)))
        return
    found = {"tracing": tracing(options.rounds), "live": live(options.rounds)}
    found |= {"threads": torch.get_num_threads(), "machine": hardware()}
    for name in ("tracing", "live"):
        row = found[name]
        print(
            f"{name:>8}: {row['median_ms']:.1f} ms without, {row['more']:+.2%} (noise {row['noise']:+.2%}); "
            f"processor time {row['cpu_more']:+.2%} (noise {row['cpu_noise']:+.2%})"
        )
    if options.rows:
        found["counting"] = [counting(rows) for rows in (options.rows // 10, options.rows)]
        for row in found["counting"]:
            print(f"counting: {row['rows']:,} rows, {row['seconds']:.1f} s, peak {row['peak_mib']:.0f} MiB")
    write_json(options.out, found)


def tracing(rounds: int) -> dict[str, float]:
    """Slowdown of inference by a full trace that is written to disk."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    model = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=LAYERS, intermediate_size=INTERMEDIATE,
            num_attention_heads=8, num_key_value_heads=8, num_local_experts=EXPERTS, num_experts_per_tok=TOP,
        )
    ).eval()  # fmt: skip
    ids = torch.randint(0, VOCABULARY, (BATCH, LENGTH))

    def plain() -> None:
        model(input_ids=ids, use_cache=False)

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(), TraceRecorder(folder) as recorder:

        def traced() -> None:
            with observe(model), libmoe.options(recorders=[recorder]):
                model(input_ids=ids, use_cache=False)

        return compared(plain, traced, rounds)


def live(rounds: int) -> dict[str, float]:
    """Slowdown of training by the numbers of ``metrics.jsonl``."""
    config = BackboneConfig(
        "llama",
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        intermediate_size=INTERMEDIATE,
    )
    options = {"num_experts": EXPERTS, "top_k": TOP, "expert_hidden": INTERMEDIATE}
    model = libmoe.moeify(build_backbone(config, seed=0), "smoe", options=options, seed=0).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)
    ids = torch.randint(0, VOCABULARY, (2, LENGTH))
    confidence, count = Confidence(), 0

    def step(watched: bool) -> None:
        nonlocal count
        count += watched
        logged = watched and count % LOG_EVERY == 0
        loads = StepStatistics()
        with (
            libmoe.options(statistics=loads) if watched else contextlib.nullcontext(),
            confidence.watching(logged),
        ):
            model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if logged:
            balance(loads.reduced())
            auxiliary_losses(loads)
            confidence.by_layer()

    return compared(lambda: step(False), lambda: step(True), rounds)


def compared(plain: Callable[[], None], watched: Callable[[], None], rounds: int) -> dict[str, float]:
    """What ``watched`` costs more than ``plain``, and, as ``noise``, what plain costs more than itself."""
    found = in_turns({"without": plain, "again": plain, "with": watched}, rounds)
    return {
        "median_ms": found["without"]["median_ms"],
        "more": found["with"]["more"],
        "noise": found["again"]["more"],
        "cpu_more": found["with"]["cpu_more"],
        "cpu_noise": found["again"]["cpu_more"],
        "rounds": rounds,
    }


def counting(rows: int) -> dict[str, float]:
    """Counts a trace of ``rows`` rows in a process of its own and tells its peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        write_trace(Path(folder) / "trace", rows)
        done = subprocess.run(
            [sys.executable, __file__, "--count", f"{folder}/trace"],
            capture_output=True,
            text=True,
            check=True,
        )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def write_trace(folder: Path, rows: int) -> None:
    """A trace of random routing: 16 layers of 64 experts, top 2, in eight domains."""
    from libmoe.core.context import ForwardContext
    from libmoe.core.plan import SparsePlan
    from libmoe.core.routing import Routing

    layers, experts, tokens = 16, 64, 1 << 14
    generator = torch.Generator().manual_seed(0)
    with TraceRecorder(folder, side=("domain",), labels={"domain": [f"d{i}" for i in range(8)]}) as recorder:
        for _ in tqdm(range(max(1, rows // (tokens * layers))), desc="writing", leave=False):
            ids = torch.randint(0, 5000, (16, tokens // 16), generator=generator)
            with libmoe.options(side={"domain": ids % 8}):
                context = ForwardContext({"input_ids": ids})
            for layer in range(layers):
                scores_TN = torch.rand(tokens, experts, generator=generator).softmax(1)
                weight_TK, expert_TK = scores_TN.topk(2)
                plan = SparsePlan.from_topk(expert_TK, weight_TK, experts)
                recorder(context.layer(layer, tuple(ids.shape), False), Routing(plan, scores_TN=scores_TN))


def count_folder(folder: Path) -> dict[str, float]:
    from libmoe.analysis import Trace
    from libmoe.analysis.counts import count

    before, begun = peak_mib(), time.perf_counter()
    trace = Trace.open(folder)
    count(trace, by=["domain"])
    return {
        "rows": trace.facts["rows"],
        "seconds": time.perf_counter() - begun,
        "start_mib": before,
        "peak_mib": peak_mib(),
    }


def peak_mib() -> float:
    """Peak resident memory of this process (Linux); what ``getrusage`` tells includes the process that started it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return float("nan")


if __name__ == "__main__":
    main()
