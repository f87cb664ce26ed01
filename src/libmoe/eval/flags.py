"""What makes scores of a model depend on more than the sample that is scored.

Two things do.  Routing that is not causal lets a token's experts depend on later tokens, so that the likelihood of a
text has seen the text.  Routing that crosses the batch (capacity, experts that choose among all tokens) makes the score
of a sample depend on the samples that happen to be computed with it, and so on the batch size and on their order.

Our routers declare both, and contract tests hold the declarations against audits.  Of transformers' own models those
with an expert capacity are found by the attributes of their routers.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any

from torch import nn

from libmoe.layers import moe_layers

CROSS_BATCH, NON_CAUSAL = "cross-batch", "non-causal"
ENDLESS = 1 << 20
"""A capacity of so many tokens for each expert drops nothing, whatever the prompt."""

_Found = tuple[str, str, str, str]  # kind, method, sentence, place


def flags_of(model: nn.Module) -> list[dict[str, Any]]:
    """One flag for each thing that scores depend on: ``{"kind", "method", "layers", "text"}``, JSON types.

    ``kind`` is :data:`CROSS_BATCH` or :data:`NON_CAUSAL`; ``layers`` are module paths; ``text`` is a sentence for
    people.  A model whose scores depend on the sample alone has none.
    """
    found = sorted([*_our_layers(model), *_their_routers(model)], key=itemgetter(0, 1, 2))
    return [
        {"kind": kind, "method": method, "layers": [place for *_, place in places], "text": text}
        for (kind, method, text), places in groupby(found, key=itemgetter(0, 1, 2))
    ]


def _our_layers(model: nn.Module) -> Iterator[_Found]:
    record = getattr(model, "libmoe", None)
    for path, layer in moe_layers(model):
        router = layer.router
        method = record.method_name if record is not None else type(router).__name__
        if not router.batch_independent:
            yield (
                CROSS_BATCH,
                method,
                f"{method} lets tokens of different sequences of a batch compete, so a score depends on what is "
                "computed with it: compare results of one batch size only",
                path,
            )
        if router.causal or not _reads_in_order(model, path):
            continue
        yield (
            NON_CAUSAL,
            method,
            f"{method} lets the experts of a token depend on later tokens: likelihoods have seen the text they "
            "predict and cannot be compared with those of causal models",
            path,
        )
        if router.batch_independent:
            # The harness scores causal models on batches filled up on the right, without an attention mask.
            yield (
                CROSS_BATCH,
                method,
                f"{method} routes over whole sequences, in likelihoods with the padding of their batch, so a score "
                "depends on what is computed with it: compare results of one batch size only",
                path,
            )


def _reads_in_order(model: nn.Module, path: str) -> bool:
    """Whether a layer's tokens are text that is predicted from left to right, and not a prompt or an image read whole.

    Encoders of text are called so; models that read images or sound are known by the name of their input.
    """
    parts = path.split(".")
    if "encoder" in parts:
        return False
    around = (model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts), -1, -1))
    inputs = (getattr(module, "main_input_name", None) for module in around)
    return next((name for name in inputs if name is not None), "input_ids") == "input_ids"


def _their_routers(model: nn.Module) -> Iterator[_Found]:
    """Routers of transformers that drop tokens in evaluation."""
    for path, module in model.named_modules():
        if getattr(module, "expert_capacity", None) is None:
            continue
        fraction = getattr(module, "moe_eval_capacity_token_fraction", None)
        text = _switch(module) if fraction is None else _nllb(fraction)
        if text is not None:
            yield CROSS_BATCH, type(model).__name__, text, path


def _switch(router: Any) -> str | None:
    """Switch Transformers: a fixed number of places for each expert, which padding takes too."""
    if router.expert_capacity >= ENDLESS:
        return None
    return (
        f"an expert takes {router.expert_capacity} tokens and drops what comes after, and padding before a prompt "
        "takes places: long prompts lose tokens, and what is generated depends on the batch"
    )


def _nllb(fraction: float) -> str | None:
    """NLLB-MoE: places by the tokens of the whole batch; with a fraction of 1 nothing is ever dropped."""
    if fraction >= 1:
        return None
    places = (
        f"{fraction:g} of the tokens of a batch" if fraction > 0 else "a fixed number of tokens of a batch"
    )
    return (
        f"an expert takes at most {places} and drops the rest, so a score depends on what is computed with it: "
        "compare results of one batch size only"
    )
