"""What routers cost of their layers' time, for every registered method with a router of its own.

    python benchmarks/routers.py [--out benchmarks/results/routers.json] [--tokens 4096] [--experts 64]

Each method gets the same place: T tokens of width 512, N experts of the hidden width 1024, top 2 where it has a top k.
A round times a forward and a backward pass of the whole layer, losses included, and of the router alone (its decision,
and the gradient of the weights back to tokens and gate).  The share is the median over rounds of one over the other.
Methods whose number of experts is not an option keep their own; those that cannot be built there are listed with why.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from turns import in_turns

import libmoe
from libmoe.core.context import ForwardContext, LayerContext, use
from libmoe.core.errors import ConfigError
from libmoe.core.files import write_json
from libmoe.core.machine import hardware
from libmoe.core.plan import MergePlan, SoftPlan, SparsePlan
from libmoe.core.site import Site
from libmoe.layers import moe_layers
from libmoe.methods import METHODS, create
from libmoe.testing.probes import default_side

DIM, HIDDEN, VOCABULARY, LENGTH = 512, 1024, 4096, 256
BAR = 0.15


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/routers.json"))
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--method", action="append", help="only this one; may be repeated")
    options = parser.parse_args()
    names = options.method or list(METHODS)
    rows: dict[str, dict[str, Any]] = {}
    for name in tqdm(names, desc="methods"):
        rows[name] = cost(name, options.tokens, options.experts, options.rounds)
        tqdm.write(said(name, rows[name]))
        found = {"tokens": options.tokens, "experts": options.experts, "dim": DIM, "hidden": HIDDEN, "rows": rows}
        write_json(options.out, found | {"threads": torch.get_num_threads(), "machine": hardware()})


def cost(name: str, tokens: int, experts: int, rounds: int) -> dict[str, Any]:
    """Times of a method's layer and router, or why there are none."""
    try:
        place = built(name, experts)
    except ConfigError as error:
        return {"left_out": str(error)}
    layer = None if place is None else next((found for _, found in moe_layers(place)), None)
    if place is None or layer is None:
        return {"left_out": "no MoE layer"}
    place.train()
    router = layer.router
    seen: dict[str, Any] = {}
    x_BLD = torch.randn(tokens // LENGTH, LENGTH, DIM, requires_grad=True)
    ids_BL = torch.randint(0, VOCABULARY, x_BLD.shape[:2])

    def whole() -> None:
        with context(ids_BL):
            place(x_BLD).square().mean().backward()
        place.zero_grad(set_to_none=True)
        x_BLD.grad = None

    def alone() -> None:
        x_TD = seen["x_TD"].detach().requires_grad_()
        with context(ids_BL) as forward:
            weight = weights(router(x_TD, forward.layer(0, seen["shape"], True, layer.parts)).plan)
            if weight.requires_grad:
                weight.square().sum().backward()
        place.zero_grad(set_to_none=True)

    def see(_: nn.Module, args: tuple[Tensor, LayerContext]) -> None:
        seen.update(x_TD=args[0], shape=args[1].batch_shape)

    handle = router.register_forward_pre_hook(see)
    whole()
    handle.remove()
    found = in_turns({"layer": whole, "router": alone}, rounds)
    return {
        "layer_ms": found["layer"]["median_ms"],
        "router_ms": found["router"]["median_ms"],
        "share": 1 + found["router"]["more"],
        "num_experts": router.num_experts,
    }


@contextlib.contextmanager
def context(ids_BL: Tensor) -> Iterator[ForwardContext]:
    """A forward pass of sequences with these ids, and every side input that a router may ask for."""
    with libmoe.options(side=dict(default_side(len(ids_BL)))), use(ForwardContext({"input_ids": ids_BL})) as forward:
        yield forward


def built(name: str, experts: int) -> nn.Module | None:
    """The method's layer with ``experts`` experts and top 2, as far as it has these options."""
    fields = METHODS.get(name).__dataclass_fields__
    wanted: dict[str, Any] = {}
    if "num_experts" in fields:
        wanted["num_experts"] = experts
    if "expert_hidden" in fields:
        wanted["expert_hidden"] = HIDDEN
    if fields.get("top_k") is not None and fields["top_k"].default != 1:
        wanted["top_k"] = 2
    for options in (wanted, {key: wanted[key] for key in wanted if key == "expert_hidden"}, {}):
        with contextlib.suppress(ConfigError):
            method = create(name, options)
            break
    torch.manual_seed(0)
    return method.build_layer(Site(DIM, HIDDEN, seed=0, vocab_size=VOCABULARY, path="layer"))


def weights(plan: object) -> Tensor:
    """What a plan's gradient goes through."""
    if isinstance(plan, SparsePlan):
        return plan.weight_A
    if isinstance(plan, SoftPlan):
        return plan.combine_GLS
    if isinstance(plan, MergePlan):
        return plan.gate_GN
    raise ConfigError(f"a {type(plan).__name__} is of no known kind")


def said(name: str, row: dict[str, Any]) -> str:
    if "left_out" in row:
        return f"{name:>28}: left out, {row['left_out']}"
    mark = "  above" if row["share"] > BAR else ""
    return f"{name:>28}: router {row['router_ms']:8.1f} ms of {row['layer_ms']:8.1f} ms, {row['share']:6.1%}{mark}"


if __name__ == "__main__":
    main()
