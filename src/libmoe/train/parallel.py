"""Processes, devices and replicas: one process, DDP or FSDP2 behind the same few calls."""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from libmoe.core.context import checkpoint_contexts
from libmoe.core.errors import ConfigError
from libmoe.layers import MoELayer
from libmoe.train.recipe import TrainConfig


@dataclass(frozen=True)
class World:
    """This process among all: ``rank`` of ``size``, its ``device``, and how parameters are kept (``mode``)."""

    rank: int
    size: int
    device: torch.device
    mode: str

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


@contextlib.contextmanager
def join(config: TrainConfig) -> Iterator[World]:
    """Join the processes that ``torchrun`` started (gloo on CPU, nccl on CUDA); leave again at the end.

    One process needs no process group: ``ddp`` and ``fsdp`` then mean ``none``, which computes the same.

    Raises:
        ConfigError: several processes were started for ``parallel: none``.
    """
    ours = not dist.is_initialized()
    rank = int(os.environ.get("RANK", 0)) if ours else dist.get_rank()
    size = int(os.environ.get("WORLD_SIZE", 1)) if ours else dist.get_world_size()
    if size > 1 and config.parallel == "none":
        raise ConfigError(f"train.parallel='none' but {size} processes were started; use 'auto', 'ddp' or 'fsdp'")
    mode = "none" if size == 1 else "ddp" if config.parallel == "auto" else config.parallel
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    store: dist.Store | None = None
    if ours and size > 1:
        on_gpu = device.type == "cuda"
        store, _, _ = next(dist.rendezvous("env://"))
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            device_id=device if on_gpu else None,
        )
    try:
        yield World(rank, size, device, mode)
    except BaseException:
        if store is not None:
            dist.destroy_process_group()
        raise
    if store is not None:
        dist.destroy_process_group()
        _leave_in_order(store, rank, size)


def _leave_in_order(store: dist.Store, rank: int, size: int, patience: float = 30.0) -> None:
    """Let the main process leave last: the others may still be closing their connections to it."""
    store.add("libmoe/left", 1)
    deadline = time.monotonic() + patience
    while rank == 0 and store.add("libmoe/left", 0) < size and time.monotonic() < deadline:
        time.sleep(0.01)


def blocks(model: nn.Module) -> list[nn.Module]:
    """The model's transformer blocks: the unit of sharding, recomputation and compilation."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]


def shard(model: nn.Module, world: World, dtype: str) -> None:
    """FSDP2: each process keeps a part of every parameter; blocks are gathered when they run (in place).

    Raises:
        ConfigError: a parameter cannot be sharded.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    for name, parameter in model.named_parameters():
        if parameter.ndim == 0:
            raise ConfigError(f"train.parallel='fsdp' cannot shard the scalar parameter {name!r}; use 'ddp'")
    mesh = init_device_mesh(world.device.type, (world.size,))
    low = torch.bfloat16 if dtype == "bf16" else None
    policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32 if low else None)
    for block in blocks(model):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


class Replica:
    """The module to call in training: the model itself, or its DDP wrapper, made anew when a controller has
    added, removed, frozen or thawed parameters (DDP reduces those it was made with)."""

    def __init__(self, model: nn.Module, world: World) -> None:
        self.model, self.world = model, world
        self._wrapped: nn.Module | None = None
        self._signature: tuple = ()

    def release(self) -> None:
        """Let go of the wrapper, which holds the process group, while all processes are still there."""
        self._wrapped = None
        gc.collect()
        self.world.barrier()

    def module(self) -> nn.Module:
        if self.world.mode != "ddp":
            return self.model
        signature = tuple((id(p), p.requires_grad) for p in self.model.parameters())
        if self._wrapped is None or signature != self._signature:
            self._signature = signature
            self._wrapped = nn.parallel.DistributedDataParallel(
                self.model,
                device_ids=[self.world.device] if self.world.device.type == "cuda" else None,
                find_unused_parameters=True,  # an expert without tokens may get no gradient on some rank
                gradient_as_bucket_view=True,
            )
        return self._wrapped


def precision(world: World, dtype: str) -> AbstractContextManager:
    """Context of a forward pass; FSDP casts parameters itself."""
    if dtype == "bf16" and world.mode != "fsdp":
        return torch.autocast(world.device.type, torch.bfloat16)
    return contextlib.nullcontext()


@contextlib.contextmanager
def gradient_sync(module: nn.Module, enabled: bool) -> Iterator[None]:
    """Reduce gradients over processes in backward passes inside the block, or only add them up here."""
    if isinstance(module, nn.parallel.DistributedDataParallel):
        with contextlib.nullcontext() if enabled else module.no_sync():
            yield
        return
    if hasattr(module, "set_requires_gradient_sync"):
        module.set_requires_gradient_sync(enabled)
    yield


def clip_gradients(model: nn.Module, limit: float | None) -> Tensor:
    """Scale gradients to a norm of at most ``limit``; returns the norm before, over all shards."""
    norm = nn.utils.clip_grad_norm_(model.parameters(), float("inf") if limit is None else limit)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def recompute_blocks(model: nn.Module) -> None:
    """Keep only the input of each block and run it again in the backward pass, with the routing it had.

    Raises:
        ConfigError: the backbone cannot do that.
    """
    # transformers renamed the method in 5.24.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False, "context_fn": checkpoint_contexts})
    except ValueError as error:
        raise ConfigError(f"train.activation_checkpointing: {error}") from None


def compile_parts(model: nn.Module) -> int:
    """Compile in place the parts of every block that hold no MoE layer (attention, norms); returns how many.

    MoE layers stay as they are: their shapes depend on data and the context they read is a Python object, so they
    would break the graph in many places and be compiled anew for every load.  The parts are compiled rather than
    the block around them because transformers recomputes blocks inside their ``forward``, where dynamo gives up.
    """
    parts = [
        part
        for block in blocks(model)
        for part in block.children()
        if not any(isinstance(m, MoELayer) for m in part.modules())
    ]
    for part in parts:
        part.compile()
    return len(parts)
