"""What a backend says about itself, tried out; and what no backend may accept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from libmoe.core.dispatch import Segments
from libmoe.core.errors import LibMoEError
from libmoe.ops import Rows, StackedFFN, ffn, grouped_linear
from libmoe.ops.base import FLOATS, Backend
from libmoe.testing.backend_cases import linear_cases, top_k
from libmoe.testing.checks import Checks


def check_declarations(checks: Checks, backend: Backend, device: str, dtypes: Sequence[torch.dtype]) -> None:
    can = backend.capabilities
    plain = {"ffn": top_k(16, 4, 2), "linear": linear_cases()["some rows for each expert"]}
    tasks = {op: [case.task(d, device, can.gradient) for d in dtypes] for op, case in plain.items()}
    with checks("says in one line whether it runs here"):
        _assert_answer(backend.verify())
    for op in sorted(can.ops & plain.keys()):
        with checks(f"supports {op}, as declared"):
            answers = [_assert_answer(backend.supports(task)) for task in tasks[op]]
            assert any(ok for ok, _ in answers), f"supports() refuses it in every dtype: {answers[0][1]}"
    fit = next(
        (t for op in sorted(can.ops & plain.keys()) for t in tasks[op] if backend.supports(t)[0]), None
    )
    with checks("refuses what it does not declare"):
        assert fit is not None, "there is no task that it supports"
        unfit = [fit._replace(device=d) for d in {"cpu", "cuda", "mps", "xpu", "meta"} - can.devices]
        unfit += [fit._replace(dtype=d) for d in {*FLOATS, torch.int64} - can.dtypes]
        unfit += [fit._replace(op=op) for op in {"ffn", "linear", "nothing"} - can.ops]
        unfit += [] if can.gradient else [fit._replace(gradient=True)]
        for task in unfit:
            assert not _assert_answer(backend.supports(task))[0], f"supports() accepts {task}"
    with checks("estimates a time that grows with the task"):
        assert fit is not None, "there is no task that it supports"
        seconds = [backend.seconds(fit._replace(rows=rows)) for rows in (0, 1, 64, 1 << 20)]
        assert all(math.isfinite(s) and s >= 0 for s in seconds), f"seconds() gives {seconds}"
        assert seconds == sorted(seconds) and seconds[-1] > seconds[1], f"seconds() gives {seconds}"


def check_refusals(checks: Checks, name: str, device: str, dtype: torch.dtype) -> None:
    """That the public operations refuse what a registered backend cannot make sense of, in one line."""
    for what, call in _bad_inputs(name, device, dtype):
        with checks(f"refuses {what}"):
            _assert_refused(call)


def _bad_inputs(name: str, device: str, dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Calls of the public operations that no backend can make sense of."""
    case = top_k(6, 4, 2)
    leaves = case.leaves(dtype, device)
    x, weight_A, dispatch = leaves["x"], leaves["weight_A"], case.dispatch(device)
    other = torch.float32 if dtype == torch.float64 else torch.float64
    experts = StackedFFN(leaves["w_in"], leaves["w_out"], leaves["b_in"], leaves["b_out"])
    fewer = StackedFFN(leaves["w_in"][:3], leaves["w_out"][:3])
    more = StackedFFN(leaves["w_in"][[0, 1, 2, 3, 3]], leaves["w_out"][[0, 1, 2, 3, 3]])
    wide, narrow, rows = leaves["w_out"].to(other), leaves["b_in"][:, :5], Rows.of(dispatch)

    def call(
        x: Tensor = x, experts: StackedFFN = experts, rows: Rows = rows, w: Tensor = weight_A
    ) -> Callable[[], Tensor]:
        return lambda: ffn(x, experts, rows, w, name)

    yield "rows of another width", call(x[:, :-1])
    yield "rows of another dtype", call(x.to(other))
    yield "rows that are whole numbers", call(x.long())
    yield "too few rows", call(x[:-1])
    yield "too many rows", call(torch.cat([x, x]))
    yield "rows in three dimensions", call(x[None])
    yield "own inputs that are too few", call(rows=Rows.of(dispatch, own_inputs=True))
    yield "fewer experts than the plan has", call(experts=fewer)
    yield "more experts than the plan has", call(experts=more)
    yield "parameters of different dtypes", lambda: ffn(x, replace(experts, w_out=wide), rows, weight_A, name)
    yield "routing weights that are too few", call(w=weight_A[:-1])
    yield "routing weights that are too many", call(w=torch.cat([weight_A, weight_A]))
    yield "segments of other rows", call(rows=Rows(Segments((0, 1, 2, 3, 5))))
    yield "biases of another width", lambda: ffn(x, replace(experts, b_in=narrow), rows, weight_A, name)
    w, bounds = leaves["w_in"], (0, 1, 2, 3, 6)
    yield "a map of another width", lambda: grouped_linear(x[:, :-1], w, bounds, backend=name)
    yield "a map of another dtype", lambda: grouped_linear(x, w.to(other), bounds, backend=name)
    yield "a map for other segments", lambda: grouped_linear(x, w, bounds[1:], backend=name)


def _assert_refused(call: Callable[[], Tensor]) -> None:
    try:
        result = call()
    except LibMoEError as error:
        message = str(error)
    except Exception as error:
        raise AssertionError(f"raises {type(error).__name__} instead of a LibMoEError") from error
    else:
        raise AssertionError(f"returns {tuple(result.shape)} instead of raising")
    assert message and "\n" not in message, f"the message is not one line: {message!r}"


def _assert_answer(answer: object) -> tuple[bool, str]:
    assert isinstance(answer, tuple) and len(answer) == 2, f"the answer is {answer!r}, not (whether, why)"
    ok, reason = answer
    assert isinstance(ok, bool), f"the answer starts with {ok!r}, not with a bool"
    assert isinstance(reason, str) and reason.strip() and "\n" not in reason, f"the reason is {reason!r}"
    return ok, reason
