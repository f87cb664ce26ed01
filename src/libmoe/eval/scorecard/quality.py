"""What a model is worth: held-out text and tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from libmoe.core.errors import ConfigError
from libmoe.data import TokenizedCorpus, load_corpus
from libmoe.eval.heldout import HeldOut
from libmoe.eval.scorecard.protocol import Protocol
from libmoe.eval.tasks import run_tasks


@dataclass(frozen=True)
class Quality:
    """Scores of one model.

    Attributes:
        bits_per_byte: of the held-out text, whatever the tokenizer.
        perplexity: ``exp`` of the mean loss per predicted token.
        tasks: accuracy of each task, or its first metric where it has none.
    """

    bits_per_byte: float
    perplexity: float
    tasks: dict[str, float]


class Examination:
    """The text and tasks of a protocol, in the tokens of one tokenizer, ready for any model that reads them.

    Raises:
        ConfigError: a model has fewer embeddings than the tokenizer has tokens.
    """

    def __init__(self, tokenizer: Any, protocol: Protocol, longest: int) -> None:
        self.tokenizer, self.protocol = tokenizer, protocol
        tokenized = TokenizedCorpus.build(load_corpus(protocol.data), tokenizer, progress=False)
        self.heldout = HeldOut(tokenized["test"], min(protocol.seq_len, longest), protocol.windows)

    def __call__(self, model: nn.Module, recorders: Sequence[Callable[..., None]] = ()) -> Quality:
        """Scores of ``model``; ``recorders`` see its routing of the held-out text."""
        rows = model.get_input_embeddings().weight.shape[0]
        if rows < len(self.tokenizer):
            raise ConfigError(
                f"the model has {rows} embeddings but the tokenizer has {len(self.tokenizer)} tokens"
            )
        scored = self.heldout.score(model, recorders)
        bits = sum(bits for windows in scored["windows"].values() for bits, _ in windows)
        batches = [batch for windows in self.heldout.windows.values() for batch in windows]
        predicted = sum(int(batch["num_tokens"].sum()) for batch in batches)
        tasks = run_tasks(model, self.tokenizer, self.protocol.tasks, limit=self.protocol.task_limit)
        return Quality(
            bits_per_byte=scored["bits_per_byte"],
            perplexity=2.0 ** (bits / predicted),
            tasks={name: _main(row) for name, row in tasks.items()},
        )


def _main(row: dict[str, float]) -> float:
    if "acc" in row:
        return row["acc"]
    return next(value for name, value in row.items() if name != "n" and not name.endswith("_stderr"))
