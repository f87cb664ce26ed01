"""A tiny float64 Llama with MoE layers, and its total loss computed in the plainest possible way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import libmoe
from libmoe.core.context import install, options
from libmoe.core.site import Site
from libmoe.core.statistics import StepStatistics

N, K, BALANCE, Z = 4, 2, 0.5, 0.1
LENGTHS = (4, 6, 7, 3, 5, 5, 8, 2)  # neighbours fill rows of 10 when packed

Groups = Sequence[tuple[Sequence[int], Sequence[int]]]
Gradients = dict[str, Tensor]


class Lab:
    """Documents, a model, its gradient as trained, and the gradient it should have."""

    lengths = LENGTHS
    num_experts = N

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.documents = [torch.randint(1, 61, (length,), generator=generator) for length in LENGTHS]
        self.tokens, self.targets = sum(LENGTHS), sum(length - 1 for length in LENGTHS)

    def model(self, scope: str = "sequence", **more: Any) -> nn.Module:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=61,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            initializer_range=0.3,
            pad_token_id=0,
        )
        model = LlamaForCausalLM(config)
        chosen = {
            "num_experts": N,
            "top_k": K,
            "balance": BALANCE,
            "balance_scope": scope,
            "z_loss": Z,
        } | more
        method = libmoe.create("smoe", chosen)
        for index, layer in enumerate(model.model.layers):
            layer.mlp = method.build_layer(Site(16, 32, index=index, count=2, init_std=0.3, seed=0))
        install(model)
        return model.double().train()

    # -- as trained --------------------------------------------------------------------------------------
    def padded(self, documents: Sequence[int], width: int = 8, side: str = "right") -> dict[str, Tensor]:
        """One document in each row, with a mask, and positions as transformers' generate counts them."""
        ids, mask = (torch.zeros(len(documents), width, dtype=torch.long) for _ in range(2))
        for row, d in enumerate(documents):
            here = slice(0, LENGTHS[d]) if side == "right" else slice(width - LENGTHS[d], width)
            ids[row, here], mask[row, here] = self.documents[d], 1
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        labels = ids.masked_fill(mask == 0, -100)
        return {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "labels": labels}

    def packed(self, documents: Sequence[int]) -> dict[str, Tensor]:
        """Two documents in each row; restarting positions keep them apart."""
        rows = [documents[i : i + 2] for i in range(0, len(documents), 2)]
        ids = torch.stack([torch.cat([self.documents[d] for d in row]) for row in rows])
        positions = torch.stack([torch.cat([torch.arange(LENGTHS[d]) for d in row]) for row in rows])
        return {"input_ids": ids, "position_ids": positions, "labels": ids.masked_fill(positions == 0, -100)}

    def main_loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Summed cross-entropy of one forward pass over the targets of the whole step."""
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        logits = model(**inputs, use_cache=False).logits[:, :-1]
        labels = batch["labels"][:, 1:].clone()
        if "attention_mask" in batch:
            labels[batch["attention_mask"][:, :-1] == 0] = -100  # the first token has nothing before it
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / self.targets

    def step(
        self, model: nn.Module, batches: Sequence[dict[str, Tensor]], *, count: bool = False
    ) -> tuple[Gradients, dict[str, Tensor]]:
        """Gradients of an optimiser step cut into ``batches``, and its mean auxiliary losses."""
        statistics = StepStatistics()
        with options(statistics=statistics, totals={"token": self.tokens}):
            if count:
                statistics.begin_counting()
                with torch.no_grad():
                    for batch in batches:
                        self.main_loss(model, batch)
                statistics.end_counting()
            for batch in batches:
                self.main_loss(model, batch).backward()
        gradients = {name: param.grad.clone() for name, param in model.named_parameters()}
        return gradients, self.values(statistics)

    @staticmethod
    def values(statistics: StepStatistics) -> dict[str, Tensor]:
        return {f"{name}/{i}": num / den for (i, name), (num, den) in sorted(statistics.losses.items())}

    # -- as it should be ---------------------------------------------------------------------------------
    def reference(self, groups: Groups) -> tuple[Gradients, dict[str, Tensor]]:
        """The same from formulas alone: each document by itself, loops, and no loss of the library.

        ``groups`` has ``(f, P)``: documents whose expert frequencies apply to the probabilities of documents P.
        """
        model = self.model()
        inputs: dict[int, list[Tensor]] = {0: [], 1: []}
        for index, layer in enumerate(model.model.layers):
            layer.mlp.losses = []
            layer.mlp.register_forward_pre_hook(lambda _, args, i=index: inputs[i].append(args[0][0]))
        main = 0.0
        for ids in self.documents:
            logits = model(ids.unsqueeze(0), use_cache=False).logits[0]
            for t in range(len(ids) - 1):
                main = main - logits[t].log_softmax(0)[ids[t + 1]] / self.targets
        values, total = {}, main
        for index, layer in enumerate(model.model.layers):
            weight_ND = layer.mlp.router.gate.weight
            count_N: list[Tensor] = []
            mass_N: list[Tensor] = []
            z = 0.0
            for x_LD in inputs[index]:
                counts, mass = torch.zeros(N), torch.zeros(N)
                for x_D in x_LD:
                    logits_N = weight_ND @ x_D
                    counts[logits_N.topk(K).indices] += 1
                    mass = mass + logits_N.softmax(0)
                    z = z + logits_N.exp().sum().log() ** 2 / self.tokens
                count_N.append(counts)
                mass_N.append(mass)
            balance = 0.0
            for chosen, probable in groups:
                share_N = sum(count_N[d] for d in chosen) / sum(K * LENGTHS[d] for d in chosen)
                for e in range(N):
                    balance = balance + N * share_N[e] * sum(mass_N[d][e] for d in probable) / self.tokens
            total = total + BALANCE * balance + Z * z
            values |= {f"balance/{index}": balance.detach(), f"z/{index}": z.detach()}
        names, params = zip(*model.named_parameters(), strict=True)
        return dict(zip(names, torch.autograd.grad(total, params), strict=True)), values

    def groups(self, *sets: Sequence[int]) -> Groups:
        """Frequencies and probabilities over the same documents."""
        return [(documents, documents) for documents in sets]

    @staticmethod
    def difference(found: Gradients, expected: Gradients) -> float:
        """Largest error of a parameter's gradient, relative to its largest entry."""
        assert found.keys() == expected.keys()
        errors = [(found[n] - expected[n]).abs().max() / expected[n].abs().max() for n in expected]
        return max(math.inf if math.isnan(e) else float(e) for e in errors)


@pytest.fixture(scope="session")
def lab() -> Lab:
    return Lab()
