"""Does a shared expert steady a vision MoE?  Spread of accuracy over placements and seeds, with and without one.

    python benchmarks/vimoe_shared.py [--out benchmarks/results/vimoe-shared.json] [--seeds 8]

For each seed a small ViT learns to read 900 digits of scikit-learn; then it goes on, with experts for images (ViMoE,
arXiv 2410.15732) in its last L blocks that begin as copies of the FFN, and, for comparison, as it is.  The paper
reports that accuracy is erratic over L without a shared expert and steady with one: a ratio of standard deviations
below 1.  Its interval is a bootstrap over seeds.  A shared expert doubles the FFN that is active for a token, as
published.
Interrupted, the same command goes on with the runs that are missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

import libmoe
from libmoe.core.files import read_json, write_json
from libmoe.core.machine import hardware
from libmoe.models import BackboneConfig, build_backbone
from libmoe.stats.bootstrap import bootstrap

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from digit_images import CLASSES, digits

BLOCKS, WIDTH, BATCH = 4, 32, 64
Table = NDArray[np.float64]
"""Accuracies in per cent, [seeds, placements]."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/vimoe-shared.json"))
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument(
        "--layers", type=int, nargs="+", default=[1, 2, 4], help="L: so many last blocks have experts"
    )
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--pretrain", type=int, default=200, help="steps of the dense model")
    parser.add_argument("--steps", type=int, default=100, help="steps afterwards")
    parser.add_argument("--granularity", choices=("image", "token"), default="image")
    parser.add_argument("--overwrite", action="store_true", help="replace results that are there")
    asked = parser.parse_args()
    wrong = next((layers for layers in asked.layers if not 1 <= layers <= BLOCKS), None)
    if wrong is not None or asked.seeds < 2:
        parser.error(f"--layers are 1 to {BLOCKS}, the number of blocks; --seeds at least 2")
    setting = {
        name: value for name, value in vars(asked).items() if name not in ("out", "seeds", "overwrite")
    }
    kept = {} if asked.overwrite else read_json(asked.out) or {}
    if kept and kept["setting"] != setting:
        parser.error(f"{asked.out} is of another setting; choose another --out or --overwrite")
    rows: list[dict[str, Any]] = kept.get("rows", [])
    places = [(0, False), *((layers, shared) for layers in asked.layers for shared in (True, False))]
    with tqdm(total=asked.seeds * len(places), desc="runs") as bar:
        for seed in range(asked.seeds):
            for row in of_seed(asked, seed, places, rows):
                rows.append(row)
                write_json(asked.out, {"setting": setting, "rows": rows, "machine": hardware()})
            bar.update(len(places))
    found = compared(rows, asked.layers, asked.seeds)
    threads = torch.get_num_threads()
    write_json(
        asked.out,
        {"setting": setting, "rows": rows, "found": found, "machine": hardware(), "threads": threads},
    )
    print("\n".join(said(found, asked.layers)))


def of_seed(
    asked: argparse.Namespace, seed: int, places: Sequence[tuple[int, bool]], have: Sequence[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """A row for each place (L, shared expert or not) of a seed that there is none of yet; L = 0 is the dense model."""
    done = {(row["layers"], row["shared"]) for row in have if row["seed"] == seed}
    missing = [place for place in places if place not in done]
    if not missing:
        return
    dense = build(seed)
    train(dense, asked.pretrain, seed, lr=3e-3)
    before = accuracy(dense)
    for layers, shared in missing:
        model = build(seed)
        model.load_state_dict(dense.state_dict())
        if layers:
            options = {"num_experts": asked.experts, "shared": shared, "granularity": asked.granularity}
            libmoe.moeify(model, "vimoe", options=options, where=f"last:{layers}", init="copy", seed=seed)
        train(model, asked.steps, seed + 1000, lr=1e-3)
        found = {"accuracy": 100 * accuracy(model), "before": 100 * before}
        yield {"seed": seed, "layers": layers, "shared": shared, **found}


def build(seed: int) -> Any:
    """A vision transformer for digits, untrained."""
    shape = {
        "image_size": 8,
        "patch_size": 2,
        "num_channels": 1,
        "num_labels": CLASSES,
        "initializer_range": 0.1,
    }
    return build_backbone(BackboneConfig("vit", WIDTH, BLOCKS, num_attention_heads=4, extra=shape), seed=seed)


def train(model: nn.Module, steps: int, seed: int, lr: float) -> None:
    """Classify the training digits."""
    pixels, classes = digits("train")
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    model.train()
    for _ in tqdm(range(steps), desc="steps", leave=False):
        rows = torch.randint(len(pixels), (BATCH,), generator=draw)
        optimizer.zero_grad()
        F.cross_entropy(model(pixels[rows]).logits, classes[rows]).backward()
        optimizer.step()
        schedule.step()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """Of all digits that were not trained on."""
    splits = [digits(split) for split in ("held", "test")]
    hits = [(model(pixels).logits.argmax(1) == classes).double() for pixels, classes in splits]
    return float(torch.cat(hits).mean())


# Each takes accuracies [seeds, placements] and returns a standard deviation.
SPREADS: dict[str, Callable[[Table], float]] = {
    "all runs": lambda table: float(table.std(ddof=1)),
    "over placements, within seeds": lambda table: float(table.var(axis=1, ddof=1).mean() ** 0.5),
    "over seeds, within placements": lambda table: float(table.var(axis=0, ddof=1).mean() ** 0.5),
}


def compared(rows: Sequence[dict[str, Any]], layers: Sequence[int], seeds: int) -> dict[str, Any]:
    """Means, spreads and their ratios."""
    by_place = {(row["seed"], row["layers"], row["shared"]): row["accuracy"] for row in rows}
    table = {
        shared: np.array([[by_place[seed, count, shared] for count in layers] for seed in range(seeds)])
        for shared in (True, False)
    }
    found: dict[str, Any] = {
        "dense": [by_place[seed, 0, False] for seed in range(seeds)],
        "mean": {str(shared): table[shared].mean(0).tolist() for shared in table},
    }
    for name, spread in SPREADS.items() if len(layers) > 1 else [("all runs", SPREADS["all runs"])]:

        def ratio(chosen: NDArray[np.int64], spread: Callable[[Table], float] = spread) -> float:
            # A resample of one seed alone has no spread over seeds; it says nothing, and 1 is no claim.
            pair = [spread(table[shared][chosen]) for shared in (True, False)]
            return pair[0] / pair[1] if min(pair) > 0 else 1.0

        interval = bootstrap(ratio, seeds)
        found[name] = {
            "with": spread(table[True]),
            "without": spread(table[False]),
            "ratio": interval.value,
            "low": interval.low,
            "high": interval.high,
        }
    return found


def said(found: dict[str, Any], layers: Sequence[int]) -> Iterator[str]:
    dense = np.array(found["dense"])
    yield f"dense, going on: {dense.mean():.2f} % (std over seeds {dense.std(ddof=1):.2f})"
    for shared, what in (("True", "with a shared expert"), ("False", "without")):
        means = ", ".join(f"L={count} {mean:.2f}" for count, mean in zip(layers, found["mean"][shared]))
        yield f"{what}: {means} %"
    yield "| standard deviation, points | with | without | ratio | 95 % |"
    yield "|---|---|---|---|---|"
    for name in SPREADS:
        if name in found:
            row = found[name]
            yield (
                f"| {name} | {row['with']:.3f} | {row['without']:.3f} | {row['ratio']:.2f} | "
                f"{row['low']:.2f} to {row['high']:.2f} |"
            )


if __name__ == "__main__":
    main()
