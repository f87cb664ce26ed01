"""Real digits of 8 x 8 pixels, a small network of patches that reads them, and a short training."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from libmoe.core import context
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.experts import FFN
from libmoe.methods import create
from libmoe.models.backbones import BackboneConfig, build_backbone

CLASSES, PATCHES = 10, 16
_SPLITS = {"train": slice(0, 900), "held": slice(900, 1300), "test": slice(1300, None)}


@functools.cache
def digits(split: str) -> tuple[Tensor, Tensor]:
    """Pixels ``[I, 1, 8, 8]`` in -1 .. 1 and classes ``[I]`` of ``train`` (900), ``held`` (400) or ``test`` (497)."""
    data = load_digits()
    order_I = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    rows_I = order_I[_SPLITS[split]]
    pixels_IHW = torch.tensor(data.images, dtype=torch.float32)[rows_I] / 8 - 1
    return pixels_IHW.unsqueeze(1), torch.tensor(data.target)[rows_I]


class DigitNet(nn.Module):
    """Embedded patches, [CLS] and their mean, layers of a method with residuals, and a classifier on the mean token."""

    def __init__(self, name: str, layers: int = 1, dim: int = 16, hidden: int = 8, seed: int = 0, **given: Any) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Linear(4, dim)
        self.place = nn.Parameter(0.5 * torch.randn(1 + PATCHES, dim))
        if name == "dense":
            made = [FFN(dim, hidden, "gelu", gated=False, init_std=0.2) for _ in range(layers)]
        else:
            method = create(name, {"expert_hidden": hidden, **given})
            facts = {"activation": "gelu", "gated": False, "count": layers, "init_std": 0.2, "seed": seed}
            made = [method.build_layer(Site(dim, hidden, index=i, **facts)) for i in range(layers)]
        self.layers = nn.ModuleList(made)
        self.head = nn.Linear(dim, CLASSES)
        context.install(self)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """``[B, 1, 8, 8]`` to logits ``[B, 10]``."""
        patches_BPF = F.unfold(pixel_values, 2, stride=2).transpose(1, 2)
        x_BLD = F.pad(self.embedding(patches_BPF), (0, 0, 1, 0)) + self.place
        for layer in self.layers:
            mixed_BLD = F.gelu(x_BLD) + F.gelu(x_BLD).mean(1, keepdim=True) * PATCHES**0.5
            x_BLD = x_BLD + layer(F.layer_norm(mixed_BLD, mixed_BLD.shape[-1:]))
        return self.head(x_BLD.mean(1))


def vit(layers: int = 2, width: int = 16, hidden: int = 32, seed: int = 0) -> Any:
    """A vision transformer for the same images, untrained, with matrices so large that what it sees matters."""
    shape = {"image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": CLASSES}
    config = BackboneConfig("vit", width, layers, intermediate_size=hidden, num_attention_heads=4, extra=shape)
    model = build_backbone(config, seed=seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return model.eval()


def fit(
    model: nn.Module, steps: int, *, side: Callable[[Tensor], dict[str, Tensor]] | None = None, seed: int = 0
) -> None:
    """Classify the training digits; ``side`` gives side inputs from the rows of a batch of 64."""
    pixels, classes = digits("train")
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    model.train()
    for _ in range(steps):
        rows = torch.randint(len(pixels), (64,), generator=draw)
        with context.options(side=side(rows) if side else {}):
            optimizer.zero_grad()
            F.cross_entropy(model(pixels[rows]), classes[rows]).backward()
        optimizer.step()
        schedule.step()
    model.eval()


@torch.no_grad()
def predict(model: nn.Module, split: str = "test", **side: Tensor) -> tuple[Tensor, dict[int, Routing]]:
    """Logits ``[I, 10]``, and the routing of each MoE layer."""
    found: dict[int, Routing] = {}
    with context.options(side=side, recorders=[lambda ctx, routing: found.update({ctx.index: routing})]):
        return model.eval()(digits(split)[0]), found


def accuracy(model: nn.Module, split: str = "test") -> float:
    return float((predict(model, split)[0].argmax(1) == digits(split)[1]).double().mean())
