"""Kept memory: blocks come back, never serve two, and untouched gradients take none."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest
import torch
from torch import Tensor

from libmoe.ops import backends
from libmoe.ops.cpu.memory import SMALLEST, BlockPool
from libmoe.ops.cpu.memory import _round_up as block_size
from libmoe.testing.backend_cases import to_experts
from libmoe.train.memory import PeakMemory

FUSED = backends()["cpu_fused"]
DTYPES = (torch.float32, torch.bfloat16)


MEGA = (1 << 18,)  # float32: 1 MiB, the smallest that is kept


def test_a_block_comes_back_when_its_last_tensor_is_gone() -> None:
    pool = BlockPool()
    tensor = pool.empty((4, 1 << 18), torch.float32)
    assert tensor.is_contiguous() and tensor.dtype == torch.float32 and tensor.shape == (4, 1 << 18)
    where = tensor.data_ptr()
    view = tensor[1:3, 5:].view(torch.int32).detach()
    del tensor
    assert pool.kept_bytes == 0
    other = pool.empty((4, 1 << 18), torch.float32)
    assert other.data_ptr() != where
    del view
    assert pool.kept_bytes > 0
    again = pool.empty((2, 1 << 20), torch.bfloat16)  # the same bytes in another shape
    assert again.data_ptr() == where
    assert pool.kept_bytes == 0


def test_a_graph_keeps_its_blocks() -> None:
    pool = BlockPool()
    weight = torch.ones(MEGA, requires_grad=True)
    block = pool.empty(MEGA, torch.float32).fill_(3.0)
    loss = (weight * block).sum()
    del block
    other = pool.empty(MEGA, torch.float32).fill_(7.0)
    loss.backward()
    assert (weight.grad == 3.0).all() and (other == 7.0).all()


def test_release_gives_everything_back() -> None:
    pool = BlockPool()
    held = pool.empty(MEGA, torch.float32)
    del held
    assert pool.kept_bytes == block_size(SMALLEST)
    pool.release()
    assert pool.kept_bytes == 0
    used = pool.empty(MEGA, torch.float32).fill_(1.0)
    pool.release()
    assert (used == 1.0).all()


def test_kept_and_used_blocks_never_exceed_what_was_once_in_use() -> None:
    numbers = random.Random(0)
    for _ in range(5):
        pool, held, peak = BlockPool(), [], 0
        for _ in range(300):
            if held and numbers.random() < 0.5:
                held.pop(numbers.randrange(len(held)))
            else:
                make = numbers.choice([pool.empty, pool.empty, pool.zeros])
                held.append(make((numbers.randint(SMALLEST // 2, 9 * SMALLEST),), torch.uint8))
            used = sum(block_size(t.numel()) for t in held if t.numel() >= SMALLEST)
            peak = max(peak, used)
            assert pool.kept_bytes + used <= peak
            if numbers.random() < 0.01:
                pool.release()
                peak = used


def test_block_sizes_are_few_and_fit() -> None:
    sizes = {block_size(wanted) for wanted in range(SMALLEST, 2 * SMALLEST, 501)}
    assert len(sizes) <= 9
    for wanted in (SMALLEST, SMALLEST + 1, 3 * SMALLEST + 7, (1 << 30) + 1):
        assert wanted <= block_size(wanted) <= wanted * 9 / 8 + 1


def test_threads_never_get_the_same_block() -> None:
    pool, failures = BlockPool(), []

    def work(number: int) -> None:
        numbers, held = random.Random(number), []
        for step in range(60):
            tensor = pool.empty((numbers.choice([1, 1, 2]) << 18,), torch.float32)
            value = float(1000 * number + step)
            tensor[::4096] = value
            held.append((tensor, value))
            if len(held) > 3:
                tensor, value = held.pop(numbers.randrange(4))
                if not (tensor[::4096] == value).all():
                    failures.append((number, step))

    workers = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures
    assert 0 < pool.kept_bytes <= 20 * block_size(2 * SMALLEST)  # four threads, five tensors each


def test_small_and_empty_tensors_are_left_to_torch() -> None:
    pool = BlockPool()
    for shape in ((0,), (3, 0), (7, 9)):
        tensor = pool.empty(shape, torch.bfloat16)
        assert tensor.shape == shape and tensor.dtype == torch.bfloat16
    del tensor
    assert pool.kept_bytes == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 5), (64, 1 << 14)])
def test_zeros_are_zero_whatever_was_in_memory(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    pool = BlockPool()
    used = pool.empty(shape, dtype).fill_(7)
    del used
    zeros = pool.zeros(shape, dtype)
    assert zeros.dtype == dtype and zeros.shape == shape and zeros.is_contiguous() and not zeros.any()


def test_the_gradient_of_untouched_experts_takes_no_memory() -> None:
    """400 MB of gradient of which 2 of 64 experts have any."""

    def untouched(*shape: int) -> Tensor:
        """Zeros of numpy's, whose pages are allocated when they are written to."""
        return torch.from_numpy(np.zeros(shape, dtype=np.float32)).requires_grad_()

    case = to_experts([5, 40, 5], 64, dim=1024, hidden=800, bias=False)
    leaves = {"x": torch.randn(3, 1024), "weight_A": torch.ones(3)}
    parameters = {"w_in": untouched(64, 1600, 1024), "w_out": untouched(64, 1024, 800)}
    with torch.no_grad():
        for parameter in parameters.values():
            parameter[5].normal_()
    y = case.compute(FUSED, leaves | parameters)
    memory = PeakMemory(torch.device("cpu"))
    w_in_grad, _ = torch.autograd.grad(y.sum(), list(parameters.values()))
    grown = memory.bytes() / 1e6
    assert grown < 60, f"{grown:.0f} MB"
    assert w_in_grad[5].any() and not w_in_grad[7].any() and not w_in_grad[63].any()
