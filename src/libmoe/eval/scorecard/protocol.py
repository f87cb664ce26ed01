"""How a scorecard is measured; only cards of one protocol and one machine belong in one table."""

from __future__ import annotations

from dataclasses import dataclass

from libmoe.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What every model of a table goes through.

    Attributes:
        data: corpus whose test split is scored; ``windows`` of ``seq_len`` tokens for each of its domains.
        tasks: of lm-evaluation-harness; ``task_limit`` documents of each.
        prompt: tokens of the prompts whose latency is measured, cut to what the model's window leaves.
        new_tokens: tokens decoded after the prompt, each of them timed.
        batches: prompts decoded at once.
        repeats: how often a prompt is timed; times are medians.
    """

    data: str = "embedded"
    windows: int = 4
    seq_len: int = 128
    tasks: tuple[str, ...] = ("moe_cloze",)
    task_limit: int | None = 50
    prompt: int = 128
    new_tokens: int = 16
    batches: tuple[int, ...] = (1, 8, 64)
    repeats: int = 5

    def __post_init__(self) -> None:
        for name in ("windows", "prompt", "new_tokens", "repeats"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.tasks:
            raise ConfigError("a scorecard needs at least one task, for example moe_cloze")
        if not self.batches or min(self.batches) < 1:
            raise ConfigError(f"batches={self.batches} must be numbers of at least 1")
