"""Held-out text, token by token, with the experts that each layer chose: for pictures one can read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

import libmoe.core.context as context
from libmoe.analysis.trace import assignments
from libmoe.eval.heldout import evaluating, token_nll

if TYPE_CHECKING:
    from libmoe.eval.conversing import Held

MAX_EXPERTS = 8
"""Experts kept per token and layer: plans that use all experts would swamp the page."""


def sample_routing(
    model: nn.Module, tokenizer: Any, heldout: Held, count: int, tokens: int = 96
) -> list[dict[str, Any]]:
    """``count`` windows from different domains: text, loss in nats and experts of each token.

    Each item is ``{"domain", "tokens": [{"text", "nll", "experts": {layer: [[expert, weight], ...]}}, ...]}``.
    The texts of the tokens, put together, are the text of the window.
    """
    samples = []
    for domain in _spread(heldout.domains, count):
        whole = heldout.windows[domain][0]
        batch = {k: v[:1, :tokens] if v.dim() == 2 else v[:1] for k, v in whole.items()}
        chosen: dict[int, dict[int, list]] = {}

        def record(ctx: Any, routing: Any, chosen: dict = chosen) -> None:
            if ctx.tokens.apart:  # patches of an image, which have no text
                return
            token_A, expert_A, weight_A, kept_A = assignments(routing.plan)
            by_token: dict[int, list] = {}
            for token, expert, weight, kept in zip(
                *(t.tolist() for t in (token_A, expert_A, weight_A, kept_A))
            ):
                if kept:
                    by_token.setdefault(token, []).append([expert, round(weight, 4)])
            chosen[ctx.index] = {t: sorted(e, key=lambda x: -x[1])[:MAX_EXPERTS] for t, e in by_token.items()}

        with evaluating(model), context.options(recorders=[record]):
            nll = token_nll(model, batch)[0].tolist()
        ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
        samples.append(
            {
                "domain": domain,
                "tokens": [
                    {
                        "text": text,
                        "nll": round(nll[i], 4) if labels[i] != -100 else None,
                        "experts": {str(layer): by_token.get(i, []) for layer, by_token in chosen.items()},
                    }
                    for i, text in enumerate(pieces(tokenizer, ids))
                ],
            }
        )
    return samples


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token.  The bytes of one character may be shared by tokens: the last of them shows it.

    Special tokens, which end documents, become line breaks.
    """
    special = set(tokenizer.all_special_ids)
    texts, begin, shown = [], 0, ""
    for i, token in enumerate(ids):
        if token in special:
            texts.append("\n")
            begin, shown = i + 1, ""
            continue
        text = tokenizer.decode(ids[begin : i + 1])
        # A character whose bytes are not all there yet shows as this mark; at the end of a run it stays.
        unfinished = text.endswith("\ufffd") and i + 1 < len(ids) and ids[i + 1] not in special
        texts.append("" if unfinished else text[len(shown) :])
        shown = shown if unfinished else text
    return texts


def _spread(domains: list[str], count: int) -> list[str]:
    """``count`` domains, evenly spaced over the list."""
    count = min(count, len(domains))
    return [domains[i * len(domains) // count] for i in range(count)]
