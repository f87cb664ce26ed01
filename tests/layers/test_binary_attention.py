"""Linear attention by additions (ShiftAddViT, arXiv 2306.06446): queries and keys of 0 and 1."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libmoe.core.errors import ConfigError
from libmoe.layers.binary_attention import BinaryLinearAttention, Mean, binarise, masked_sums

B, H, L, WIDTH = 2, 3, 11, 4


def projected(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, B, H, L, WIDTH, generator=generator).double()
    return q, k, v


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(-1, keepdim=True).sqrt()


def by_hand(layer: BinaryLinearAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Image by image, head by head, token by token; the convolution as a sum over shifts."""
    q, k, y = unit(q), unit(k), torch.zeros_like(v)
    kernel_HS = layer.conv.weight[:, 0, :, 0]
    reach = kernel_HS.shape[1] // 2
    for b in range(B):
        of = slice(None) if layer.mean == "batch" else slice(b, b + 1)
        for h in range(H):
            key_LK = k[b, h] > k[of].mean()
            for t in range(L):
                asks_K = q[b, h, t] > q[of].mean()
                overlap_L = (key_LK & asks_K).sum(1).double()
                o = v[b, h, t] / 2 + (overlap_L[:, None] * v[b, h]).sum(0) / math.pi
                y[b, h, t] = unit(o)
                for s in range(max(0, t - reach), min(L, t + reach + 1)):
                    y[b, h, t] += kernel_HS[h, s - t + reach] * v[b, h, s]
    return y


@pytest.mark.parametrize("mean", ["batch", "image"])
def test_outputs_are_those_of_the_formula(mean: Mean) -> None:
    layer, given = BinaryLinearAttention(H, mean=mean).double(), projected()
    torch.testing.assert_close(layer(*given), by_hand(layer, *given))


def test_queries_and_keys_are_exactly_0_or_1_on_either_side_of_the_mean() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x = F.normalize(projected()[0], dim=-1).to(dtype).requires_grad_()
        for over in ("batch", "image"):
            b = binarise(x, over)
            wide = x.detach() if dtype == torch.float64 else x.detach().float()
            mean = wide.mean() if over == "batch" else wide.mean((1, 2, 3), keepdim=True)
            assert b.dtype == dtype and set(b.detach().flatten().tolist()) == {0.0, 1.0}
            assert torch.equal(b == 1, wide > mean)


def test_keys_sum_values_without_a_multiplication() -> None:
    """Bit for bit what adding up the values of the marked tokens gives, in float64.

    Values are multiples of 2^-20, so that no order of additions rounds; a factor other than 0 and 1 would.
    """
    _, k, v = projected()
    v = (v * 2**20).round() / 2**20
    b = binarise(F.normalize(k, dim=-1))
    found, expected = masked_sums(b, v), torch.zeros(B, H, WIDTH, WIDTH, dtype=torch.float64)
    image, head, token, feature = b.bool().nonzero(as_tuple=True)
    place = (image * H + head) * WIDTH + feature
    expected.view(-1, WIDTH).index_add_(0, place, v[image, head, token])
    assert torch.equal(found, expected) and 0 < b.mean() < 1


def test_the_length_of_queries_and_keys_does_not_matter() -> None:
    """Each row by a factor of its own; powers of 2 change no bit."""
    layer, (q, k, v) = BinaryLinearAttention(H).double(), projected()
    expected = layer(q, k, v)
    for factor in (torch.rand(B, H, L, 1).double() + 0.1, 2.0 ** torch.randint(-4, 5, (B, H, L, 1)).double()):
        torch.testing.assert_close(layer(factor * q, k, v), expected)
        torch.testing.assert_close(layer(q, factor * k, v), expected)
    assert torch.equal(layer(factor * q, factor * k, v), expected)
    assert not torch.allclose(layer(-q, k, v), expected)


def test_the_gradient_passes_where_the_clamp_to_0_and_1_lets_it() -> None:
    """Whatever side of the mean a number is on: 1 for 0 < x < 1, else 0, also at 0 and 1."""
    x = (
        torch.tensor([-0.3, 0.0, 0.05, 0.2, 0.9, 1.0, 1.4], dtype=torch.float64)
        .view(1, 1, 7, 1)
        .requires_grad_()
    )
    grad = torch.arange(1, 8).double().view(x.shape)
    (found,) = torch.autograd.grad((binarise(x) * grad).sum(), [x])
    assert found.flatten().tolist() == [0, 0, 3, 4, 5, 0, 0]
    assert binarise(x).flatten().tolist() == [0, 0, 0, 0, 1, 1, 1]  # the mean is 0.464


def test_all_gradients_are_those_of_the_formula_with_straight_through_marks() -> None:
    layer, given = BinaryLinearAttention(H).double(), [x.requires_grad_() for x in projected()]
    grad = torch.randn(B, H, L, WIDTH).double()
    leaves = [*given, layer.conv.weight]
    ours = torch.autograd.grad((layer(*given) * grad).sum(), leaves)
    q, k, v = given
    # The gradient with respect to the marks, then by hand through the clamp and the norm.
    marks = [(unit(x) > unit(x).mean()).double().detach().requires_grad_() for x in (q, k)]
    o = v / 2 + torch.einsum("bhlk,bhmk,bhmd->bhld", *marks, v) / math.pi
    shifts = F.pad(v, (0, 0, 4, 4)).unfold(2, 9, 1)
    y = unit(o) + torch.einsum("bhlds,hs->bhld", shifts, layer.conv.weight[:, 0, :, 0])
    of_q, of_k, of_v, of_conv = torch.autograd.grad((y * grad).sum(), [*marks, v, layer.conv.weight])
    for x, of_mark, found in ((q, of_q, ours[0]), (k, of_k, ours[1])):
        n = unit(x).detach()
        through = torch.where((n > 0) & (n < 1), of_mark, 0)
        expected = (through - n * (n * through).sum(-1, keepdim=True)) / x.detach().norm(dim=-1, keepdim=True)
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ours[2], of_v)
    torch.testing.assert_close(ours[3], of_conv)


def test_every_token_sees_all_and_only_the_convolution_knows_their_order() -> None:
    layer, (q, k, v) = BinaryLinearAttention(H).double(), projected()
    order_L = torch.randperm(L)
    shuffled = layer(*(x[:, :, order_L] for x in (q, k, v)))
    assert not torch.allclose(shuffled, layer(q, k, v)[:, :, order_L])
    nn.init.zeros_(layer.conv.weight)
    whole = layer(q, k, v)
    torch.testing.assert_close(layer(*(x[:, :, order_L] for x in (q, k, v))), whole[:, :, order_L])
    torch.testing.assert_close(whole.norm(dim=-1), torch.ones(B, H, L).double())
    changed = v.clone()
    changed[:, :, -1] += 1
    assert ((layer(q, k, changed) - whole).abs().amax((0, 1, 3)) > 1e-6).all()  # the first token as well


@pytest.mark.parametrize("mean", ["batch", "image"])
def test_an_image_depends_on_others_only_through_the_mean_of_the_batch(mean: Mean) -> None:
    layer, given = BinaryLinearAttention(H, mean=mean).double(), projected()
    alone = layer(*(x[:1] for x in given))
    change = (layer(*given)[:1] - alone).abs().max()
    assert change < 1e-12 if mean == "image" else change > 1e-3


def test_rows_of_zeros_have_finite_gradients() -> None:
    q, k, v = (x.requires_grad_() for x in projected())
    zero = torch.zeros_like(q)
    zero[:, :, 1:] = 1
    layer = BinaryLinearAttention(H).double()
    layer(q * zero, k * zero, v).sum().backward()
    assert all(x.grad.isfinite().all() and x.grad.abs().max() < 1e3 for x in (q, k, v))


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="kernel=8: the convolution needs an odd number of tokens"):
        BinaryLinearAttention(H, kernel=8)
    with pytest.raises(ConfigError, match="unknown value of mean 'images'; did you mean 'image'"):
        BinaryLinearAttention(H, mean="images")  # type: ignore[arg-type]
