"""What one layer sees of a forward pass, without a model around it."""

from __future__ import annotations

import pytest
import torch

from libmoe.core.context import ForwardContext, LayerContext, Options, current, options, use
from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing


def view(shape: tuple[int, ...], **inputs: torch.Tensor) -> LayerContext:
    return ForwardContext(inputs).layer(0, shape, training=True)


def test_matrices_are_flattened_like_the_hidden_states() -> None:
    ids = torch.arange(6).view(2, 3)
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    ctx = view((2, 3), input_ids=ids, attention_mask=mask, position_ids=ids % 3)
    assert ctx.token_ids_T.tolist() == [0, 1, 2, 3, 4, 5]
    assert ctx.mask_T.tolist() == [True, True, False, False, True, True]
    assert ctx.position_T.tolist() == [0, 1, 2, 0, 1, 2]


def test_a_longer_mask_is_about_its_last_columns() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])
    assert view((2, 2), attention_mask=mask).mask_T.tolist() == [True, True, True, False]
    assert view((2, 0), attention_mask=mask).mask_T.tolist() == []


def test_a_matrix_about_other_tokens_is_not_used() -> None:
    ctx = view((2, 4), input_ids=torch.zeros(3, 4, dtype=torch.long), attention_mask=torch.ones(2, 3))
    assert ctx.mask_T is None
    with pytest.raises(ConfigError, match="input_ids"):
        _ = ctx.token_ids_T


def test_one_row_serves_the_whole_batch() -> None:
    assert view((3, 2), position_ids=torch.tensor([[0, 1]])).position_T.tolist() == [0, 1] * 3


def test_hidden_states_without_a_batch_dimension_are_one_sequence() -> None:
    ctx = view((5,))
    assert ctx.batch_shape == (1, 5)
    assert ctx.sequence_T.tolist() == [0] * 5
    assert view((2, 3, 4)).batch_shape == (1, 24)


@pytest.mark.parametrize(
    ("positions", "mask", "expected"),
    [
        (None, None, [[0, 0, 0, 0], [1, 1, 1, 1]]),
        ([[0, 1, 2, 3], [0, 1, 2, 3]], None, [[0, 0, 0, 0], [1, 1, 1, 1]]),
        ([[0, 1, 0, 1], [0, 0, 1, 0]], None, [[0, 0, 1, 1], [2, 3, 3, 4]]),
        ([[7, 8, 0, 1], [2, 3, 2, 3]], None, [[0, 0, 1, 1], [2, 2, 3, 3]]),
        # Right padding: what generate and collators write at padded places does not matter.
        ([[0, 1, 0, 0], [0, 1, 2, 2]], [[1, 1, 0, 0], [1, 1, 1, 0]], [[0, 0, 0, 0], [1, 1, 1, 1]]),
        # Left padding: the real tokens of a row stay together.
        ([[1, 1, 0, 1], [0, 1, 2, 3]], [[0, 0, 1, 1], [1, 1, 1, 1]], [[0, 0, 1, 1], [2, 2, 2, 2]]),
    ],
)
def test_sequences_are_rows_and_documents_packed_in_rows(positions: list, mask: list, expected: list) -> None:
    inputs = {"position_ids": positions, "attention_mask": mask}
    ctx = view((2, 4), **{name: torch.tensor(v) for name, v in inputs.items() if v is not None})
    assert ctx.sequence_T.view(2, 4).tolist() == expected


def test_side_inputs_per_sequence_or_per_token() -> None:
    side = {"task": torch.tensor([5, 6]), "language": torch.tensor([[1, 2, 3], [4, 5, 6]])}
    with options(side=side):
        ctx = view((2, 3))
        wrong = view((4, 3))
    assert ctx.side_T("task").tolist() == [5, 5, 5, 6, 6, 6]
    assert ctx.side_T("language").tolist() == [1, 2, 3, 4, 5, 6]
    with pytest.raises(ConfigError, match=r"'domain'.*language, task"):
        ctx.side_T("domain")
    for name in side:
        with pytest.raises(ConfigError, match=rf"'{name}' has shape"):
            wrong.side_T(name)


def test_options_nest_add_up_and_end() -> None:
    first, second = (lambda *_: None for _ in range(2))
    with options(side={"a": torch.tensor(1)}, recorders=[first], step=3, total_steps=12):
        with options(side={"b": torch.tensor(2)}, recorders=[second], stage="warmup"):
            inner = ForwardContext().options
        outer = ForwardContext().options
    assert sorted(inner.side) == ["a", "b"]
    assert inner.recorders == (first, second)
    assert (inner.step, inner.stage) == (3, "warmup")
    assert (outer.recorders, outer.stage, sorted(outer.side)) == ((first,), "", ["a"])
    assert ForwardContext().options == Options()


def test_options_end_after_an_exception() -> None:
    with pytest.raises(RuntimeError), options(step=3):
        raise RuntimeError
    assert ForwardContext().options.step == 0


@pytest.mark.parametrize(("step", "total", "expected"), [(0, 0, 0), (5, 20, 0.25), (30, 20, 1)])
def test_progress_of_training(step: int, total: int, expected: float) -> None:
    with options(step=step, total_steps=total):
        assert view((1, 1)).progress == expected


def routing() -> Routing:
    return Routing(SparsePlan.from_topk(torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1), 2))


def test_previous_is_the_nearest_earlier_layer() -> None:
    forward = ForwardContext()
    assert forward.layer(0, (1, 1), True).previous is None
    for index in (0, 3, 7):
        forward.layer(index, (1, 1), True)
        forward.routings[index] = routing()
    assert forward.layer(5, (1, 1), True).previous is forward.routings[3]
    assert forward.layer(8, (1, 1), True).previous is forward.routings[7]


def test_memo_decides_again_in_each_forward_but_not_in_recomputation() -> None:
    forward = ForwardContext()
    ctx, calls = forward.layer(0, (1, 1), True), []

    def decide() -> int:
        calls.append(torch.is_grad_enabled())
        return len(calls)

    assert [ctx.memo("x", decide), ctx.memo("x", decide)] == [1, 2]
    forward.recomputing = True
    assert ctx.memo("x", decide) == 2
    assert ctx.recall("x") == 2
    assert ctx.recall("y") is None
    assert calls == [False, False]  # decided without gradients


def test_memo_remembers_nothing_to_decide() -> None:
    forward = ForwardContext()
    ctx = forward.layer(0, (1, 1), True)
    assert ctx.memo("keep", lambda: None) is None
    forward.recomputing = True
    assert ctx.memo("keep", lambda: 1) is None


def test_random_numbers_depend_on_forward_layer_and_name_only() -> None:
    def draw(ctx: LayerContext, name: str) -> float:
        return torch.rand((), generator=ctx.generator(name, torch.device("cpu"))).item()

    torch.manual_seed(5)
    forward = ForwardContext()
    layer, other = (forward.layer(index, (1, 1), True) for index in (0, 1))
    again, elsewhere = forward.layer(0, (1, 1), True), view((1, 1))
    first = draw(layer, "noise")
    torch.rand(3)
    assert draw(layer, "noise") == first
    others = [draw(other, "noise"), draw(layer, "jitter"), draw(again, "noise"), draw(elsewhere, "noise")]
    assert len({first, *others}) == 5
    torch.manual_seed(5)
    assert draw(view((1, 1)), "noise") == first


def test_a_context_given_by_hand_ends_with_its_block() -> None:
    context = ForwardContext()
    with use(context):
        assert current() is context
        with use(ForwardContext()):
            assert current() is not context
        assert current() is context
    assert current() is None
