"""Training speed of a whole model: transformers' own OLMoE class with its experts computed by different forms.

Every form trains the same initial model on the same batches with AdamW, one step each in turns, so that what is
compared is what a user of transformers gets by naming another ``experts_implementation``.  The losses of the first
step, which come before any update, have to agree.  Peak memory is that of one step beyond parameters and optimiser
state: activations, gradients, scratch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from libmoe.bench.kernels.clock import stopwatch
from libmoe.bench.kernels.implementations import Ours
from libmoe.bench.kernels.machine import describe
from libmoe.bench.kernels.measure import one_line, summary, time_in_turns
from libmoe.bench.kernels.peers import FORMS, TransformersExperts
from libmoe.bench.kernels.run import claim
from libmoe.bench.kernels.shapes import DTYPES, Case, Shape
from libmoe.core.files import write_json
from libmoe.ops import AUTO
from libmoe.ops.cpu.memory import POOL
from libmoe.train.memory import PeakMemory

RESULTS = "end_to_end.json"
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
"""Relative difference of the first losses."""
BATCHES = 32


@dataclass(frozen=True)
class Model:
    """An OLMoE-like language model and its batch."""

    hidden_size: int = 256
    layers: int = 4
    heads: int = 4
    num_experts: int = 64
    expert_hidden: int = 128
    top_k: int = 8
    vocabulary: int = 4096
    seq_len: int = 256
    batch_size: int = 8

    @property
    def tokens(self) -> int:
        """Of one step."""
        return self.batch_size * self.seq_len

    def build(self, dtype: torch.dtype, device: str, seed: int = 0) -> Any:
        """A randomly initialised ``OlmoeForCausalLM``, the same for the same seed."""
        from transformers import OlmoeConfig, OlmoeForCausalLM

        torch.manual_seed(seed)
        config = OlmoeConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden_size,
            intermediate_size=self.expert_hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_experts=self.num_experts,
            num_experts_per_tok=self.top_k,
            max_position_embeddings=self.seq_len,
            pad_token_id=0,
            eos_token_id=1,
            use_cache=False,
        )
        return OlmoeForCausalLM(config).to(device=device, dtype=dtype).train()


class EndToEnd:
    """Measures tokens per second of training ``model`` by each form, for each dtype.

    Args:
        folder: for ``end_to_end.json``.
        dtypes: names of :data:`DTYPES`; parameters are kept in the dtype, without autocast.
        budget: seconds of timing for each dtype.
        overwrite: replace what ``folder`` holds.

    Raises:
        ConfigError: ``folder`` holds results already.
    """

    def __init__(
        self,
        folder: Path,
        dtypes: Sequence[str],
        *,
        device: str = "cpu",
        budget: float = 30.0,
        model: Model = Model(),
        seed: int = 0,
        overwrite: bool = False,
    ) -> None:
        claim(folder, (RESULTS,), overwrite)
        self.folder, self.dtypes, self.device = folder, list(dtypes), device
        self.budget, self.model, self.seed = budget, model, seed
        self.results: dict[str, Any] = {
            "format": 1,
            "complete": False,
            "machine": describe(device),
            "settings": {
                "model": asdict(model),
                "optimizer": "AdamW",
                "budget_seconds": budget,
                "seed": seed,
            },
            "rows": [],
        }

    def run(self) -> Iterator[list[dict[str, Any]]]:
        """Measure one dtype after another; each is saved before its rows are handed out."""
        for dtype in self.dtypes:
            rows = self._measure(dtype)
            self.results["rows"] += rows
            self.results["complete"] = dtype == self.dtypes[-1]
            write_json(self.folder / RESULTS, self.results)
            yield rows

    def _measure(self, dtype: str) -> list[dict[str, Any]]:
        m = self.model
        shape = Shape(m.tokens, m.hidden_size, m.expert_hidden, m.num_experts, m.top_k)
        case = Case(shape, "training", dtype, "random", self.device)
        generator = torch.Generator().manual_seed(self.seed)
        size = (BATCHES, m.batch_size, m.seq_len)
        batches = torch.randint(2, m.vocabulary, size, generator=generator).to(self.device)
        rows: dict[str, dict[str, Any]] = {}
        works: dict[str, Callable[[int], object]] = {}
        for name in ("libmoe", *(f"hf-{form}" for form in FORMS)):
            row = rows[name] = {
                "implementation": name,
                "dtype": dtype,
                "kind": "peer" if name != "libmoe" else "backend",
            }
            reason = _refusal(name, case, m.layers)
            if reason is not None:
                row |= {"status": "skipped", "reason": reason}
                continue
            try:
                step = self._trainer(name, DTYPES[dtype], batches)
                row["first_loss"] = float(step(0))
                POOL.release()
                peak = PeakMemory(torch.device(self.device))
                step(1)
                row["peak_bytes"] = peak.bytes()
                works[name] = step
            except Exception as error:
                row |= {"status": "failed", "reason": one_line(error)}
        times, failures = time_in_turns(works, stopwatch(self.device), self.budget, self.seed)
        for name, failure in failures.items():
            rows[name] |= {"status": "failed", "reason": one_line(failure)}
        for name, seconds in times.items():
            rows[name] |= {"status": "ok", **summary(seconds)}
        _compare(list(rows.values()), m.tokens, TOLERANCE[dtype])
        return list(rows.values())

    def _trainer(self, name: str, dtype: torch.dtype, batches: Tensor) -> Callable[[int], Tensor]:
        """``step(number)`` trains on one batch and returns its loss."""
        model = self.model.build(dtype, self.device, self.seed)
        if name == "libmoe":
            from libmoe.models.experts_interface import register_experts

            register_experts()
        model.set_experts_implementation(name.removeprefix("hf-"))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

        def step(number: int) -> Tensor:
            batch = batches[number % BATCHES]
            loss = model(input_ids=batch, labels=batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.detach()

        return step


def _refusal(name: str, case: Case, layers: int) -> str | None:
    if name == "libmoe":
        return Ours(AUTO).refuses(case)
    form = name.removeprefix("hf-")
    if form == "batched_mm":  # the copies of all layers are kept for the backward
        case = replace(case, shape=replace(case.shape, hidden=case.shape.hidden * layers))
    peer = TransformersExperts(form)
    return peer.missing(case.device) or peer.refuses(case)


def _compare(rows: Sequence[dict[str, Any]], tokens: int, tolerance: float) -> None:
    """Tokens per second and their ratio to the best peer; a loss unlike the peers' voids a row."""
    wanted = next((r["first_loss"] for r in rows if r["kind"] == "peer" and r["status"] == "ok"), None)
    for row in rows:
        if row["status"] != "ok" or wanted is None:
            continue
        row["loss_difference"] = abs(row["first_loss"] - wanted) / abs(wanted)
        if not row["loss_difference"] <= tolerance:
            reason = f"the first loss is {row['first_loss']:.6g}, that of the peers {wanted:.6g}"
            row |= {"status": "failed", "reason": reason}
    timed = [row for row in rows if row["status"] == "ok"]
    best = min((row["ms"] for row in timed if row["kind"] == "peer"), default=None)
    for row in timed:
        row["tokens_per_second"] = 1e3 * tokens / row["ms"]
        row["speedup"] = best / row["ms"] if best else None
