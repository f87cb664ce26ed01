"""Work that two or more real processes do together, over gloo."""

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
    in_ranks(2, work, folder, *args, seconds=seconds)


def in_ranks(size: int, work: Callable[..., None], folder: Path, *args: Any, seconds: float = 60) -> None:
    """The same in ``size`` processes."""
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_rank, args=(rank, size, work, folder, args)) for rank in range(size)]
    for process in ranks:
        process.start()
    try:
        for process in ranks:
            process.join(seconds)
            assert process.exitcode == 0, f"exit codes {[p.exitcode for p in ranks]}"
    finally:
        for process in ranks:
            process.terminate()  # one that waits for a rank that failed would wait for ever


def _rank(rank: int, size: int, work: Callable[..., None], folder: Path, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
    dist.barrier()  # a rank that is done at once would hang up on one that still connects
    work(rank, folder, *args)
    dist.destroy_process_group()
