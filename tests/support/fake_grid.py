"""Write an invented grid folder for the tests of the report: planted numbers, no training.

``python tests/support/fake_grid.py FOLDER`` writes one to look at.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

# Bits per byte of the baseline, and a sample.
DOMAINS: dict[str, tuple[float, str]] = {
    "speech": (
        1.72,
        "Fellow citizens, the state of our Union rests on the work of many hands. We have paid the debt of the war, "
        "opened the harbours, and asked the Congress to provide for the schools of every county.",
    ),
    "novel": (
        2.05,
        "She had not expected him before Thursday; yet there he stood in the rain, hat in hand, and could not say "
        "whether the letter in his pocket was meant for her sister or for nobody at all.",
    ),
    "scripture": (
        1.61,
        "And the old man rose early, and took bread and a skin of water, and went out by the gate; and the people "
        "that were in the valley saw him afar off, and were silent.",
    ),
    "math": (
        1.18,
        "Lemma 4. If A is a finite set and f : A -> A is one-to-one, then f is onto. Proof. Suppose not; then the "
        "range of f is a proper subset B of A with |B| = |A|, a contradiction. Hence f(A) = A.",
    ),
    "dictionary": (
        2.31,
        'harrow: a heavy frame with iron teeth dragged over ploughed land to break up clods; "the field was harrowed '
        'twice". harry: to annoy continually; to make a raid upon.',
    ),
    "legal": (
        1.42,
        "The Licensee may reproduce and distribute copies of the Work, with or without modification, provided that "
        "the above notice and this list of conditions are retained in all copies.",
    ),
    "manual": (
        1.66,
        "The option max_wal_size sets the size at which a checkpoint is forced. Larger values reduce the number of "
        "checkpoints but increase the time needed for crash recovery (see Section 30.5).",
    ),
    "code": (
        1.29,
        "def merge(left: list[int], right: list[int]) -> list[int]:\n    out = []\n    while left and right:\n"
        "        out.append((left if left[0] <= right[0] else right).pop(0))\n    return out + left + right\n",
    ),
}

# name, label, kind, paper, true gain over the equal-active baseline, specialisation, balance, relative speed
METHODS: list[tuple[str, str, str, int | None, float, float, float, float]] = [
    ("dense-active", "Dense, equal active", "dense", None, 0.000, 0.0, 0.0, 1.00),
    ("dense-total", "Dense, equal total", "dense", None, -0.118, 0.0, 0.0, 0.41),
    ("topk", "Top-2 softmax", "moe", 23, -0.062, 0.5, 0.25, 0.74),
    ("deepseek-moe", "DeepSeekMoE (shared + fine-grained)", "moe", 118, -0.081, 0.9, 0.35, 0.66),
    ("remoe", "ReMoE", "moe", 42, -0.055, 1.0, 0.5, 0.63),
    ("hash", "Hash layer", "moe", None, -0.006, 0.1, 0.15, 0.88),
    ("expert-choice", "Expert choice", "moe", 30, -0.094, 0.7, 0.0, 0.79),
]
LAYERS, EXPERTS, STEPS, TOKENS_PER_STEP, WINDOWS = 3, 8, 240, 8192, 24


def write_fake_grid(
    folder: Path, *, seeds: tuple[int, ...] = (0, 1), windows: bool = True, more: int = 0
) -> Path:
    """Write seven methods, and as many ``more`` invented routers, times ``seeds``; returns ``folder``."""
    rng = np.random.default_rng(7)
    size_DW = rng.integers(380, 620, size=(len(DOMAINS), WINDOWS))
    text_DW = np.array([level for level, _ in DOMAINS.values()])[:, None] + rng.normal(0, 0.22, size_DW.shape)
    rows = []
    routers = [
        (
            f"router-{i}",
            f"Invented router number {i} with a long name",
            "moe",
            None,
            -0.003 * i,
            0.5,
            0.3,
            0.6,
        )
        for i in range(more)
    ]
    for method in [*METHODS, *routers]:
        taste_DW = rng.normal(0, 0.02, (len(DOMAINS), 1)) + rng.normal(0, 0.03, size_DW.shape)
        for seed in seeds:
            rows.append(
                _write_run(folder, method, seed, rng, text_DW + method[4] + taste_DW, size_DW, windows)
            )
    protocol = {
        "name": "Quickstart: eight domains, equal active parameters",
        "budget": "equal active parameters",
        "tokens": STEPS * TOKENS_PER_STEP,
        "seq_len": 128,
        "data": {
            "pack": "eight-domains",
            "fingerprint": "sha256:3f7c19d2a0b4e65188c0",
            "held_out_bytes": int(size_DW.sum()),
        },
        "domains": list(DOMAINS),
        "backbone": {"family": "llama", "layers": LAYERS, "width": 128, "heads": 4, "vocabulary": 4096},
        "hardware": {"cpu": "2 cores", "gpu": None, "memory_gib": 15.6},
        "versions": {"libmoe": "0.1.0", "torch": "2.13.0+cpu", "transformers": "5.23.0", "python": "3.11.7"},
        "created": "2026-11-24T18:02:11Z",
        "unigram_bits_per_byte": 2.94,
        "unigram_by_domain": {name: round(level + 1.2, 3) for name, (level, _) in DOMAINS.items()},
        "task_chance": {"next-sentence": 0.25, "which-domain": 0.125},
    }
    save(folder / "results.json", {"protocol": protocol, "rows": rows})
    return folder


def save(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def _write_run(
    folder: Path,
    method: tuple,
    seed: int,
    rng: np.random.Generator,
    bpb_DW: np.ndarray,
    size_DW: np.ndarray,
    windows: bool,
) -> dict[str, Any]:
    name, label, kind, paper, gain, taste, skew, speed = method
    bpb_DW = bpb_DW + (0.012 if seed else -0.012) + rng.normal(0, 0.004) + rng.normal(0, 0.012, bpb_DW.shape)
    bits_DW = bpb_DW * size_DW
    final = float(bits_DW.sum() / size_DW.sum())
    routing = _routing(rng, taste, skew) if kind == "moe" else []
    run = folder / f"{name}-s{seed}"
    run.mkdir(parents=True, exist_ok=True)

    tokens = np.arange(1, STEPS + 1) * TOKENS_PER_STEP
    decay = (tokens / tokens[-1]) ** -0.31 - 1.0
    loss = final * 2.35 + 1.55 * np.minimum(decay, 2.7) + rng.normal(0, 0.05, STEPS)
    with (run / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for step in range(STEPS):
            line = {
                "step": step + 1,
                "tokens": int(tokens[step]),
                "loss": float(loss[step]),
                "lr": 3e-3,
                "grad_norm": 0.8,
            }
            if routing:
                line["balance"] = {
                    str(layer["layer"]): {
                        "load": layer["load"],
                        "entropy": layer["entropy"],
                        "max_violation": 0.3,
                        "dead": 0,
                    }
                    for layer in routing
                }
                line["losses"] = {"load_balance": 1.0 + skew / (1 + step / 20)}
            file.write(json.dumps(line) + "\n")

    curve = [
        {"step": s, "tokens": int(tokens[s - 1]), "bits_per_byte": float(final + 0.62 * decay[s - 1])}
        for s in range(20, STEPS + 1, 20)
    ]
    evaluation: dict[str, Any] = {
        "curve": curve,
        "routing": {"layers": routing},
        "sample": _sample(rng, routing, gain),
    }
    if windows:
        evaluation["windows"] = {
            domain: [[float(b), int(n)] for b, n in zip(bits_DW[i], size_DW[i], strict=True)]
            for i, domain in enumerate(DOMAINS)
        }
        evaluation["window_documents"] = {domain: [w // 2 for w in range(WINDOWS)] for domain in DOMAINS}
    save(run / "eval.json", evaluation)

    active = 1_420_000 if name != "dense-total" else 4_390_000
    flops = 6 * active * (1.0 if kind == "dense" else 1.0 + 0.03 * len(name) / 10)
    return {
        "method": name, "label": label, "kind": kind, "paper": paper, "seed": seed, "status": "ok", "error": None,
        "active_params": active + (0 if kind == "dense" else 8 * len(name) * 100),
        "total_params": active if kind == "dense" else 4_390_000,
        "flops_per_token": flops, "train_flops": flops * int(tokens[-1]), "tokens": int(tokens[-1]),
        "bits_per_byte": final, "best_bits_per_byte": final - (0.002 if seed else 0.0),
        "domains": {domain: float(bits_DW[i].sum() / size_DW[i].sum()) for i, domain in enumerate(DOMAINS)},
        "tasks": {
            "next-sentence": {"acc": 0.31 - gain + rng.normal(0, 0.01), "acc_stderr": 0.021, "n": 480},
            "which-domain": {"acc": 0.14 - gain / 4 + rng.normal(0, 0.01), "acc_stderr": 0.015, "n": 520},
        },
        "tokens_per_second": 9800 * speed * rng.uniform(0.97, 1.03), "peak_memory_bytes": 412e6 + active * 60,
        "train_seconds": int(tokens[-1]) / (9800 * speed), "steps": STEPS,
        "causal": name != "expert-choice", "notes": [],
    }  # fmt: skip


def _routing(rng: np.random.Generator, taste: float, skew: float) -> list[dict[str, Any]]:
    layers = []
    for layer in range(LAYERS):
        logits_DN = rng.normal(0, skew, EXPERTS) + rng.normal(
            0, taste * (0.4 + 0.5 * layer), (len(DOMAINS), EXPERTS)
        )
        share_DN = np.exp(logits_DN) / np.exp(logits_DN).sum(axis=1, keepdims=True)
        load_N = share_DN.mean(axis=0)
        information = float((share_DN * np.log2(share_DN / load_N)).sum(axis=1).mean())
        entropy = float(-(load_N * np.log(load_N)).sum())
        layers.append({
            "layer": layer, "num_experts": EXPERTS, "load": load_N.tolist(), "entropy": entropy,
            "normalised_entropy": entropy / float(np.log(EXPERTS)), "experts_per_token": 2.0,
            "domain_load": {d: share_DN[i].tolist() for i, d in enumerate(DOMAINS)},
            "mutual_information_bits": information,
        })  # fmt: skip
    return layers


def _sample(rng: np.random.Generator, routing: list[dict[str, Any]], gain: float) -> list[dict[str, Any]]:
    samples = []
    for domain, (level, text) in DOMAINS.items():
        tokens = []
        for piece in re.findall(r"\s?\w{1,6}|\s?[^\w\s]|\s+", text):
            experts = {}
            for layer in routing:
                share = np.array(layer["domain_load"][domain]) * np.exp(0.7 * rng.normal(size=EXPERTS))
                first, second = np.argsort(-share)[:2]
                weight = float(share[first] / (share[first] + share[second]))
                experts[str(layer["layer"])] = [[int(first), weight], [int(second), 1 - weight]]
            tokens.append(
                {
                    "text": piece,
                    "nll": float(max(0.02, rng.gamma(1.4, 1.2 * level) + gain)),
                    "experts": experts,
                }
            )
        samples.append({"domain": domain, "tokens": tokens})
    return samples


def tuned(results: dict[str, Any]) -> None:
    """Let two methods of a ``results.json`` have been tuned."""
    for row in results["rows"]:
        if row["method"] in ("topk", "hash"):
            note = "tuning: train.lr=0.004 is the largest value that was tried; widen the list"
            cost = {"train_flops": 1e12, "train_seconds": 60.0}
            row["tuning"] = {"chosen": {"train.lr": 0.004}, "trials": 3, **cost, "notes": [note]}
    results["protocol"]["tuning"] = {
        "strategy": "sweep",
        "knobs": {"train.lr": [0.001, 0.002, 0.004]},
        "trials": 3,
        "steps": "25 % of the entry's own",
        "seed": 1000,
    }


if __name__ == "__main__":
    print(write_fake_grid(Path(sys.argv[1])))
