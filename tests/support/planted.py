"""Comparisons whose truth is known: scores are drawn from a model instead of trained, all else is the real thing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from fake_executor import FakeExecutor
from libmoe.bench.cell import ROW_KEYS, CellSpec, failed_row
from libmoe.core.files import write_json
from libmoe.train.recipe import save_recipe

Floats = NDArray[np.float64]
DOMAINS = ("code", "dictionary", "legal", "manual", "math", "novel", "scripture", "speech")
BASELINE = "dense"
EVERYBODY = "everybody"
"""The family of all methods but the baseline."""
_TEXT, _SEED, _TASTE, _RUN = range(4)


@dataclass(frozen=True)
class Truth:
    """What is true of methods, seeds and held-out text, in bits per byte.

    With seed s on window w of document d, method m scores
    ``base + effect_m + seed_s + scatter_m z_ms + document_d + taste_md + noise_msw``, all but ``base`` and ``effect``
    normal with standard deviations of these names.  Only ``effect`` would be there with other seeds and other text:
    it is the difference to the baseline that a comparison is to find.

    Attributes:
        draw: which of many imagined comparisons; it alone decides all that is random, whatever is drawn first.
        effect: by method; 0 for those that are missing, the baseline among them.
        scatter: of each run between seeds; ``scatter_of`` names the methods that have another.
        documents, windows: how many documents each domain has, and windows each document.
        named: whether the windows say of which document they are.
    """

    draw: int
    effect: Mapping[str, float] = field(default_factory=dict)
    scatter: float = 0.004
    scatter_of: Mapping[str, float] = field(default_factory=dict)
    seed: float = 0.03
    document: float = 0.2
    taste: float = 0.012
    noise: float = 0.01
    documents: int = 4
    windows: int = 2
    named: bool = True
    base: float = 2.0

    def evaluation(self, method: str, seed: int) -> dict[str, Any]:
        """What a run of ``method`` with ``seed`` leaves in ``eval.json``."""
        size_DW, document_DW = self._text
        name = crc32(method.encode())
        run = self._rng(_RUN, name, seed)
        level = self.base + self.effect.get(method, 0.0) + self._rng(_SEED, seed).normal(0, self.seed)
        level += run.normal(0, self.scatter_of.get(method, self.scatter))
        taste_DW = self._by_document(self._rng(_TASTE, name), self.taste)
        bits_DW = (level + document_DW + taste_DW + run.normal(0, self.noise, size_DW.shape)) * size_DW
        found: dict[str, Any] = {
            "bits_per_byte": float(bits_DW.sum() / size_DW.sum()),
            "domains": dict(zip(DOMAINS, (bits_DW.sum(1) / size_DW.sum(1)).tolist(), strict=True)),
            "windows": dict(zip(DOMAINS, np.stack([bits_DW, size_DW], axis=-1).tolist(), strict=True)),
        }
        if self.named:
            numbers = np.repeat(np.arange(self.documents), self.windows).tolist()
            found["window_documents"] = dict.fromkeys(DOMAINS, numbers)
        return found

    def leave(self, folder: Path, row: dict[str, Any]) -> dict[str, Any]:
        """Write the scores of the cell that ``row`` names into its folder; returns the row with them."""
        found = self.evaluation(row["method"], row["seed"])
        bits = found["bits_per_byte"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "eval.json").write_text(json.dumps(found), encoding="utf-8")
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "tokens": 1, "loss": bits}) + "\n")
        scores = {"bits_per_byte": bits, "best_bits_per_byte": bits, "domains": found["domains"]}
        return row | scores | {"status": "ok", "error": None, "tasks": {}, "tokens": 1, "train_seconds": 1.0}

    @cached_property
    def _text(self) -> tuple[Floats, Floats]:
        """Bytes of each window, and how hard it is for every method."""
        rng = self._rng(_TEXT)
        size_DW = rng.integers(380, 620, size=(len(DOMAINS), self.documents * self.windows)).astype(float)
        return size_DW, self._by_document(rng, self.document)

    def _by_document(self, rng: np.random.Generator, sigma: float) -> Floats:
        return np.repeat(rng.normal(0, sigma, (len(DOMAINS), self.documents)), self.windows, axis=1)

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.draw, *stream])


class PlantedExecutor(FakeExecutor):
    """Leaves for each cell what a real one leaves, with the scores that are true."""

    def __init__(self, truth: Truth) -> None:
        super().__init__(lambda key, seed: None)
        self.truth = truth

    def cell(self, spec: CellSpec) -> dict[str, Any]:
        folder = Path(spec.run_dir)
        self.ran.append(folder.name)
        save_recipe(spec.recipe, folder / "recipe.yaml")
        row = self.truth.leave(folder, failed_row(spec, ""))
        write_json(spec.row_file, row)
        return row


def write_planted(folder: Path, truth: Truth, methods: Sequence[str], seeds: int) -> Path:
    """A finished comparison of ``methods`` with the baseline, without the machinery that runs one."""
    rows = []
    for seed in range(seeds):
        for method in (BASELINE, *methods):
            kind = "dense" if method == BASELINE else "moe"
            row = dict.fromkeys(ROW_KEYS) | {"method": method, "label": method, "kind": kind, "seed": seed}
            rows.append(truth.leave(folder / f"{method}-s{seed}", row | {"causal": True, "notes": []}))
    protocol = {"name": "planted", "baseline": BASELINE, "families": {EVERYBODY: list(methods)}}
    write_json(folder / "results.json", {"protocol": protocol, "rows": rows})
    return folder
