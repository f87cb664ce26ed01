"""Learning-rate schedules: pure functions of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from typing import Literal, get_args

from libmoe.core.errors import unknown

Schedule = Literal["cosine", "wsd", "linear", "constant"]


def learning_rate(
    step: int,
    *,
    steps: int,
    lr: float,
    schedule: Schedule = "cosine",
    warmup_steps: int = 0,
    min_lr_ratio: float = 0.1,
    decay_fraction: float = 0.2,
) -> float:
    """Learning rate of optimiser step ``step``, counted from 0, of ``steps``.

    All schedules warm up linearly: step s of the warm-up has ``lr * (s + 1) / warmup_steps``, so that the first
    step already learns and the first step after the warm-up has the full rate.  Afterwards:

    * ``cosine``: half a cosine from ``lr`` to ``min_lr_ratio * lr``, reached at the last step
      (Loshchilov and Hutter, arXiv 1608.03983);
    * ``linear``: a straight line between the same two points;
    * ``wsd``: ``lr`` until the last ``decay_fraction`` of all steps, then a straight line to
      ``min_lr_ratio * lr`` (warm-up, stable, decay: arXiv 2404.06395);
    * ``constant``: ``lr``.

    Raises:
        ConfigError: unknown schedule.
    """
    if schedule not in get_args(Schedule):
        raise unknown("schedule", schedule, get_args(Schedule))
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    if schedule == "constant":
        return lr
    start = warmup_steps
    if schedule == "wsd":
        start = max(start, steps - round(decay_fraction * steps))
    # 0 at the last step before the decay, 1 at the last step of training.
    progress = min(max((step - start + 1) / max(steps - start, 1), 0.0), 1.0)
    if schedule == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    return lr * (1 - (1 - min_lr_ratio) * progress)
