"""Work that two real processes do together, over gloo."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def in_two_ranks(work: Callable[..., None], folder: Path, *args: Any, seconds: float = 60) -> None:
    """``work(rank, folder, *args)`` in two forked processes of one group; what they find they leave in ``folder``."""
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_rank, args=(rank, work, folder, args)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(seconds)
        assert process.exitcode == 0, f"exit codes {[p.exitcode for p in ranks]}"


def _rank(rank: int, work: Callable[..., None], folder: Path, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    work(rank, folder, *args)
    dist.destroy_process_group()
