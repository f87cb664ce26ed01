"""Training speed of LibMoE's MoE layer beside transformers' own Mixtral block, in the same run.

    python benchmarks/layer_vs_transformers.py [--threads 2] [--repeats 7] [--json out.json]

For each shape: milliseconds of forward plus backward (median), the ratio to the fastest form of transformers'
block on this machine, eta (time of one dense FFN with equal FLOPs over the time of the layer), and the largest
relative difference of outputs and weight gradients between ours and theirs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from libmoe.core.site import Site
from libmoe.experts import FFN
from libmoe.methods import create

# tokens, width, expert width, experts, experts per token
SHAPES = [(2048, 256, 512, 8, 2), (2048, 256, 128, 64, 8), (1024, 96, 128, 8, 2), (512, 1024, 512, 64, 8)]


def median_ms(run, repeats: int) -> float:
    run()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        run()
        times.append((time.perf_counter() - begun) * 1e3)
    return statistics.median(times)


def measure(shape: tuple[int, ...], repeats: int) -> dict:
    tokens, dim, hidden, num_experts, top_k = shape
    torch.manual_seed(0)
    config = MixtralConfig(
        hidden_size=dim, intermediate_size=hidden, num_local_experts=num_experts, num_experts_per_tok=top_k
    )
    theirs = MixtralSparseMoeBlock(config)
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.02)
    ours = create("smoe", num_experts=num_experts, top_k=top_k, expert_hidden=hidden, balance=0.0, z_loss=0.0)
    ours = ours.build_layer(Site(dim, hidden))
    with torch.no_grad():
        ours.router.gate.weight.copy_(theirs.gate.weight)
        ours.experts.w_in.copy_(theirs.experts.gate_up_proj)
        ours.experts.w_out.copy_(theirs.experts.down_proj)
    dense = FFN(dim, hidden * top_k)
    x = torch.randn(1, tokens, dim)

    def step(module):
        def run():
            module.zero_grad(set_to_none=True)
            inputs = x.clone().requires_grad_()
            out = module(inputs)
            (out[0] if isinstance(out, tuple) else out).square().sum().backward()

        return run

    row = {"shape": shape, "libmoe": median_ms(step(ours), repeats), "dense": median_ms(step(dense), repeats)}
    for name in ("eager", "grouped_mm"):
        if name == "eager" and num_experts * dim * hidden > 2e7:
            continue  # seconds per step: autograd allocates a full-size zero gradient for each expert
        theirs.experts.config._experts_implementation = name
        row[name] = median_ms(step(theirs), repeats)
    best = min(v for k, v in row.items() if k in ("eager", "grouped_mm"))
    row["ratio_to_best"] = row["libmoe"] / best
    row["eta"] = row["dense"] / row["libmoe"]
    pairs = [
        (ours.experts.w_in.grad, theirs.experts.gate_up_proj.grad),
        (ours.experts.w_out.grad, theirs.experts.down_proj.grad),
        (ours.router.gate.weight.grad, theirs.gate.weight.grad),
    ]
    row["max_relative_error"] = max(float((a - b).norm() / b.norm()) for a, b in pairs)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} threads, fp32, forward + backward, median of {args.repeats}")
    print(f"{'T, D, H, N, K':>26} {'libmoe':>9} {'eager':>9} {'grouped':>9} {'ratio':>7} {'eta':>6} {'rel. err':>9}")
    rows = []
    for shape in SHAPES:
        row = measure(shape, args.repeats)
        rows.append(row)
        cells = [f"{row[k]:8.1f}m" if k in row else "        -" for k in ("libmoe", "eager", "grouped_mm")]
        print(
            f"{', '.join(map(str, shape)):>26} {' '.join(cells)} {row['ratio_to_best']:7.2f} {row['eta']:6.2f} "
            f"{row['max_relative_error']:9.1e}",
            flush=True,
        )
    if args.json:
        with open(args.json, "w", encoding="utf-8") as out:
            json.dump(rows, out, indent=1)


if __name__ == "__main__":
    main()
