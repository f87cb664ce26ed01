"""What decides the scores of an evaluation, apart from the model and the tasks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from libmoe.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How tasks are run.

    Attributes:
        limit: documents per task; ``None`` for all.
        shots: examples in the prompt; ``None`` leaves it to each task.
        batch_size: requests per forward pass; halved when memory does not suffice.
        slice_size: documents whose requests are held in memory at a time.  Requests are sorted by length within a
            slice, so a task of at most this many documents is batched exactly as by the harness's own command.
        chat_template: put prompts into the tokenizer's chat template.
        system: system prompt of the chat template.
        seed: draws the examples in prompts, and samples where a task asks for sampling.
        bootstrap: resamples for the standard errors of metrics that have no formula.
        unsafe_code: let tasks run code that the model wrote.
    """

    limit: int | None = None
    shots: int | None = None
    batch_size: int = 32
    slice_size: int = 1024
    chat_template: bool = False
    system: str | None = None
    seed: int = 1234  # the harness's own default: tasks draw the same examples everywhere
    bootstrap: int = 100
    unsafe_code: bool = False

    def __post_init__(self) -> None:
        for name, least in (
            ("limit", 1),
            ("shots", 0),
            ("batch_size", 1),
            ("slice_size", 1),
            ("bootstrap", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name}={value} must be at least {least}")
        if self.system is not None and not self.chat_template:
            raise ConfigError("a system prompt needs chat_template=True")

    def facts(self) -> dict[str, Any]:
        """What samples depend on."""
        return {
            name: value for name, value in asdict(self).items() if name not in ("bootstrap", "unsafe_code")
        }
