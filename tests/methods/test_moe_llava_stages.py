"""MoE-LLaVA's three stages on a toy: about ten seconds for a seed."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import libmoe

KINDS, CELLS, WIDTH = 4, 2, 32
BEGIN, WORDS, CELL, ASK = 0, torch.tensor([1, 5]), 9, 11  # words of 4 colours and 4 shapes; then places; then questions
Rows = tuple[Tensor, Tensor, Tensor]


def rows(kind: str, count: int, generator: torch.Generator) -> Rows:
    """Things (colour and shape in each of two places), text about them, and labels.

    ``caption`` names all things in order; ``tune`` asks for one's colour or shape, and ``expert`` the same in words
    that were never heard before.
    """
    thing = torch.randint(KINDS, (count, CELLS, 2), generator=generator)
    words = thing + WORDS
    if kind == "caption":
        text = F.pad(words.flatten(1), (1, 0), value=BEGIN)
        return thing, text, text.masked_fill(text == BEGIN, -100)
    what, place = (torch.randint(2, (count,), generator=generator) for _ in range(2))
    answer = words[torch.arange(count), place, what]
    question = ASK + what + (2 if kind == "expert" else 0)
    text = torch.stack([torch.full((count,), BEGIN), question, CELL + place, answer], 1)
    return thing, text, F.pad(answer.unsqueeze(1), (3, 0), value=-100)


class Toy(nn.Module):
    """A frozen encoder of things, a connector, and a language model that reads them before the text."""

    def __init__(self, seed: int) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        super().__init__()
        torch.manual_seed(seed)
        self.register_buffer("look", torch.randn(2, KINDS, 24))
        self.register_buffer("mix", torch.randn(24, 24) / 5)
        self.connector = nn.Sequential(nn.Linear(24, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        shape = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 16}
        self.language = LlamaForCausalLM(LlamaConfig(vocab_size=16, **shape, **heads))

    def forward(self, thing: Tensor, text: Tensor, labels: Tensor, sees: bool = True) -> Tensor:
        x = self.language.get_input_embeddings()(text)
        if sees:
            seen = torch.tanh((self.look[0][thing[..., 0]] + self.look[1][thing[..., 1]]) @ self.mix)
            x = torch.cat([self.connector(seen), x], 1)
        logits = self.language(inputs_embeds=x, use_cache=False).logits[:, -text.shape[1] : -1]
        return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def stage(
    model: Toy, kinds: Sequence[str], steps: int, trained: Iterable[nn.Parameter], seed: int, sees: bool = True
) -> Toy:
    """Train some parameters; the kinds of rows take turns."""
    trained, generator = list(trained), torch.Generator().manual_seed(seed)
    model.requires_grad_(False).train()
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-2 * min(1.0, (step + 1) / 10) * (1 - step / steps)
        model(*rows(kinds[step % len(kinds)], 32, generator), sees=sees).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def ffns(model: Toy) -> list[nn.Parameter]:
    return [parameter for name, parameter in model.named_parameters() if ".mlp." in name]


def upcycled(model: Toy, seed: int) -> Toy:
    new = copy.deepcopy(model)
    libmoe.moeify(new.language, "moe-llava", where="every:2:0", init="copy", seed=seed)
    return new


@torch.no_grad()
def loss(model: Toy) -> float:
    return float(model(*rows("expert", 2000, torch.Generator().manual_seed(1))))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_three_stages_beat_upcycling_at_once_at_equal_tokens(seed: int) -> None:
    """Upcycled before it was tuned, a model trains its FFNs alone on the rows of both stages, as many in all.

    That four experts beat the dense FFNs in the third stage does not show at this size (nats 1.11, 1.15, 1.13 against
    1.23, 1.15, 1.15 in three seeds) and is not asserted.
    """
    toy = Toy(seed)
    stage(toy, ["caption"], 40, toy.language.parameters(), 10 * seed, sees=False)
    stage(toy, ["caption"], 60, toy.connector.parameters(), 10 * seed + 1)
    dense = copy.deepcopy(toy)
    stage(dense, ["tune"], 250, [*dense.connector.parameters(), *dense.language.parameters()], 10 * seed + 2)
    three, once = upcycled(dense, seed), upcycled(toy, seed)
    stage(three, ["expert"], 120, ffns(three), 10 * seed + 3)
    stage(once, ["tune", "expert"], 250 + 120, ffns(once), 10 * seed + 2)
    assert loss(three) < loss(once) - 0.05
    assert loss(three) < loss(dense)
