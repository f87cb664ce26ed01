"""transformers' Trainer optimises attached losses without knowing of them, however it accumulates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from libmoe.core.context import checkpoint_contexts

STEPS, BATCH, LENGTH, RATE = 2, 8, 10, 0.05


class Corpus(torch.utils.data.Dataset):
    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.rows = torch.randint(1, 61, (STEPS * BATCH, LENGTH), generator=generator)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


class InOrder(Trainer):
    def _get_train_sampler(self, *_: Any) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def train(model: nn.Module, folder: Path, micro: int, **more: Any) -> dict[str, Tensor]:
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=BATCH // micro,
        max_steps=STEPS,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        use_cpu=True,
        dataloader_pin_memory=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        **more,
    )
    InOrder(model, arguments, train_dataset=Corpus()).train()
    return {name: param.detach() for name, param in model.named_parameters()}


def by_hand(model: nn.Module) -> dict[str, Tensor]:
    """Two SGD steps on the whole batch."""
    rows = Corpus().rows
    for step in range(STEPS):
        batch = rows[BATCH * step : BATCH * (step + 1)]
        model.zero_grad()
        model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
        with torch.no_grad():
            for param in model.parameters():
                param -= RATE * param.grad
    return {name: param.detach() for name, param in model.named_parameters()}


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    return max(float((found[name] - expected[name]).abs().max()) for name in expected)


@pytest.fixture(scope="module")
def expected(lab: Any) -> dict[str, Tensor]:
    return by_hand(lab.model("sequence"))


@pytest.mark.parametrize("micro", [8, 4, 2])
def test_accumulation_gives_the_same_parameters(lab: Any, expected: dict, tmp_path: Path, micro: int) -> None:
    assert difference(train(lab.model("sequence"), tmp_path, micro), expected) < 1e-6


def test_the_losses_matter_there(lab: Any, expected: dict) -> None:
    assert difference(by_hand(lab.model(balance=0.0, z_loss=0.0)), expected) > 1e-4


def test_a_model_that_ignores_the_number_of_items_is_divided_instead(
    lab: Any, expected: dict, tmp_path: Path
) -> None:
    model = lab.model("sequence")
    model.accepts_loss_kwargs = False  # then the Trainer divides each loss by the number of micro-batches
    assert difference(train(model, tmp_path, 4), expected) < 1e-6


def test_gradient_checkpointing_in_the_trainer(lab: Any, expected: dict, tmp_path: Path) -> None:
    settings = {"use_reentrant": False, "context_fn": checkpoint_contexts}
    more = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": settings}
    assert difference(train(lab.model("sequence"), tmp_path, 4, **more), expected) < 1e-6
