"""MLP-Mixer (arXiv 2105.01601), with re-representation (arXiv 2109.02008), as a model like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from digit_images import digits
from libmoe.core.errors import ConfigError
from libmoe.models import BackboneConfig, account, build_backbone, load, load_any, save
from libmoe.models.accounting import flop_counter
from libmoe.models.mlp_mixer import MlpMixerForImageClassification, ReRepresentation
from mixers import C, N, S, mixer, pixels, sparse

# -- the dense Mixer --------------------------------------------------------------------------------------


def plain(model: Any, pixels_BCHW: Tensor) -> Tensor:
    """Tolstikhin et al., arXiv 2105.01601 §2, word by word, channel by channel and patch by patch."""
    weight = dict(model.named_parameters())

    def mlp(path: str, x: Tensor) -> Tensor:
        w1, b1, w2, b2 = (
            weight[f"{path}.{name}"] for name in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
        )
        return w2 @ F.gelu(w1 @ x + b1) + b2

    def norm(path: str, x_SC: Tensor) -> Tensor:
        return F.layer_norm(x_SC, (C,), weight[f"{path}.weight"], weight[f"{path}.bias"], 1e-6)

    rows = []
    for image_CHW in pixels_BCHW:
        patches = [
            image_CHW[:, i : i + 2, j : j + 2].flatten() for i in range(0, 8, 2) for j in range(0, 8, 2)
        ]
        filters = weight["mixer.patch_embeddings.weight"].flatten(1)
        x_SC = torch.stack([filters @ patch + weight["mixer.patch_embeddings.bias"] for patch in patches])
        for index in range(model.config.num_hidden_layers):
            at = f"mixer.layers.{index}"
            normed_SC = norm(f"{at}.token_norm", x_SC)
            mixed = [mlp(f"{at}.token_mixing.mlp", normed_SC[:, c]) for c in range(C)]
            x_SC = x_SC + torch.stack(mixed, dim=1)
            normed_SC = norm(f"{at}.channel_norm", x_SC)
            x_SC = x_SC + torch.stack([mlp(f"{at}.channel_mixing", normed_SC[s]) for s in range(S)])
        rows.append(norm("mixer.layernorm", x_SC).mean(0))
    return torch.stack(rows) @ weight["classifier.weight"].T + weight["classifier.bias"]


def test_the_dense_mixer_is_the_published_one_in_outputs_and_gradients() -> None:
    model, x, labels = mixer(), pixels(), digits("test")[1][:5]
    out = model(x, labels=labels)
    expected = plain(model, x)
    torch.testing.assert_close(out.logits, expected)
    torch.testing.assert_close(out.loss, F.cross_entropy(expected, labels))
    parameters = list(model.parameters())
    found = torch.autograd.grad(out.loss, parameters)
    for ours, theirs in zip(
        found, torch.autograd.grad(F.cross_entropy(expected, labels), parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    assert isinstance(model, MlpMixerForImageClassification)


def test_re_representation_is_a_linear_map_along_each_axis_and_back_again() -> None:
    model = mixer(re_represented_layers=1)
    mixing = model.mixer.layers[1].token_mixing
    assert model.mixer.layers[0].token_mixing.before is None
    assert (mixing.mlp.fc1.in_features, mixing.before.first.out_features) == (2 * S, C // 2), (
        "S1 = 2 S and C1 = C / 2"
    )
    x_BSC = torch.randn(3, S, C).double()
    a_C, a_S = (linear.weight for linear in (mixing.before.first, mixing.before.second))
    back_S, back_C = (linear.weight for linear in (mixing.after.first, mixing.after.second))
    longer_BTE = torch.einsum("ts,bsc,ec->bte", a_S, x_BSC, a_C)
    mixed_BET = mixing.mlp(longer_BTE.transpose(1, 2))
    torch.testing.assert_close(mixing(x_BSC), torch.einsum("st,bet,ce->bsc", back_S, mixed_BET, back_C))


def test_re_representation_neither_shrinks_nor_swells_what_it_changes() -> None:
    """A branch of next to nothing would leave its router without differences to see."""
    torch.manual_seed(0)
    config = BackboneConfig(
        "mlp_mixer", 64, 1, extra={"image_size": 16, "patch_size": 2, "re_represented_layers": 1}
    )
    mixing = build_backbone(config, seed=0).mixer.layers[0].token_mixing
    x_BSC = torch.randn(4, 64, 64)
    longer_BET = mixing.before(x_BSC)
    assert longer_BET.shape == (4, 32, 128) and 0.8 < float(longer_BET.detach().std()) < 1.25
    assert 0.8 < float(mixing.after(torch.randn_like(longer_BET)).detach().std()) < 1.25


def test_re_representing_by_identities_changes_nothing() -> None:
    same = {"re_represented_layers": 2, "re_represented_patches": S, "re_represented_channels": C}
    model, x = mixer(**same), pixels()
    missing = model.load_state_dict(mixer().state_dict(), strict=False)
    assert len(missing.missing_keys) == 8 and not missing.unexpected_keys
    assert not torch.allclose(model(x).logits, mixer()(x).logits)
    for module in model.modules():
        if isinstance(module, ReRepresentation):
            nn.init.eye_(module.first.weight)
            nn.init.eye_(module.second.weight)
    torch.testing.assert_close(model(x).logits, mixer()(x).logits)


# -- as any other model -----------------------------------------------------------------------------------


def test_saved_mixers_come_back_equal_with_and_without_experts(tmp_path: Path) -> None:
    x, extra = pixels(), {"re_represented_layers": 1}
    dense, model = mixer(**extra), sparse(where="all", extra=extra)
    dense.save_pretrained(tmp_path / "dense")
    plain_again = load_any(tmp_path / "dense")
    assert all(
        torch.equal(value, plain_again.state_dict()[name]) for name, value in dense.state_dict().items()
    )
    torch.testing.assert_close(plain_again(x).logits, dense(x).logits)
    save(model, tmp_path / "sparse")
    again = load(tmp_path / "sparse")
    torch.testing.assert_close(again(x).logits, model(x).logits)
    assert again.libmoe.sites == model.libmoe.sites


def test_weights_of_one_part_do_not_depend_on_another() -> None:
    one, other = mixer().state_dict(), mixer(token_intermediate_size=30).state_dict()
    same = [name for name in one if one[name].shape == other[name].shape]
    assert len(same) == len(one) - 2 * 3 and all(torch.equal(one[name], other[name]) for name in same)


def test_costs_are_counted_with_re_representation() -> None:
    dense, longer = account(mixer()), account(mixer(re_represented_layers=1))
    with flop_counter() as counter, torch.no_grad():
        mixer()(pixels(1))
    assert dense.tokens == S and dense.flops_per_token * S == pytest.approx(counter.get_total_flops())
    hidden, S1, C1 = C // 2, 2 * S, C // 2
    plain_mixing = 2 * C * 2 * S * hidden
    re_represented = 2 * C1 * 2 * S1 * hidden + 2 * (2 * S * C * C1 + 2 * C1 * S * S1)
    assert (longer.flops_per_token - dense.flops_per_token) * S == pytest.approx(
        re_represented - plain_mixing
    )
    assert longer.total_params - dense.total_params == 2 * (S * S1 + C * C1) + hidden * 2 * S + S
    routed_too = account(sparse())
    gates_and_weights = 2 * (N + 1) * (S * C + C * S)
    assert routed_too.flops_per_token * S == pytest.approx(dense.flops_per_token * S + gates_and_weights)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"image_size": 9}, "image_size=9 is no multiple of patch_size=2; the nearest below is 8"),
        ({"re_represented_layers": 3}, "re_represented_layers=3 must be 0 to 2"),
        ({"re_represented_layers": 1, "re_represented_channels": 0}, r"\(32, 0\) must be at least 1"),
        ({"token_intermediate_size": 0}, "token_intermediate_size=0 must be at least 1"),
        ({"re_represented_layer": 1}, "did you mean 're_represented_layers'"),
    ],
)
def test_what_is_no_mixer_is_refused(extra: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mixer(**extra)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"shape \(2, 1, 10, 10\): this Mixer reads images of \(1, 8, 8\) alone"
    ):
        mixer()(torch.zeros(2, 1, 10, 10).double())
