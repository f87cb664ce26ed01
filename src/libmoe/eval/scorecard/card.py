"""The scorecard of one model, and a table of several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What it took to make a model, which no measurement of the model can tell.

    Attributes:
        calibration_tokens, calibration_seconds: data and time that the method looked at.
        retraining: weights were trained.
    """

    calibration_tokens: int = 0
    calibration_seconds: float = 0.0
    retraining: bool = False


@dataclass(frozen=True, kw_only=True)
class Scorecard:
    """What a model costs and is worth in inference, beside the base model it was made from.

    Attributes:
        model, base: names; ``base`` is ``None`` without a base model, and so is everything that compares with it.
        bits_per_byte, perplexity, tasks: held-out text and tasks.
        bits_per_byte_delta, tasks_delta: differences to the base; ``perplexity_change`` relative to the base.
        total_bytes: weights, buffers and metadata of compressed weights, wherever they lie; ``bytes_ratio`` is that
            over the base's; ``resident_bytes`` lie on the device that computes.
        active_experts_mean, active_experts_worst: experts with parameters per token, over all layers and held-out
            tokens; 0 for a dense model.
        bytes_per_token: weights and cache read to decode one token at batch 1.
        flops_per_token: of the forward pass, at the load that routing aims at.
        energy_per_token: in joules; a proxy, see :mod:`libmoe.eval.scorecard.energy`.
        prompt_tokens: length of the prompts that were timed.
        prefill_seconds: median time to read one prompt.
        token_seconds: by batch, median time of one decoding step; ``tokens_per_second`` is batch over that.
        preparation: see :class:`Preparation`.
        batch_dependent: a score depends on what is computed with it; ``causal``: likelihoods see the past only.
        protocol, machine: how and where this was measured.
    """

    model: str
    base: str | None
    bits_per_byte: float
    perplexity: float
    tasks: dict[str, float]
    bits_per_byte_delta: float | None
    perplexity_change: float | None
    tasks_delta: dict[str, float] | None
    resident_bytes: int
    total_bytes: int
    bytes_ratio: float | None
    active_experts_mean: float
    active_experts_worst: int
    bytes_per_token: float
    flops_per_token: float
    energy_per_token: float
    prompt_tokens: int
    prefill_seconds: float
    token_seconds: dict[int, float]
    tokens_per_second: dict[int, float]
    preparation: Preparation
    batch_dependent: bool
    causal: bool
    protocol: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


_Show = Callable[[Any], str]


def markdown(cards: Sequence[Scorecard]) -> str:
    """A table with one column for each card; "-" where there was no base to compare with."""
    columns = [dict(rows(card)) for card in cards]
    names = list(dict.fromkeys(name for column in columns for name in column))
    lines = [["", *(card.model for card in cards)], ["---", *["---:"] * len(cards)]]
    lines += [[name, *(column.get(name, "-") for column in columns)] for name in names]
    return (
        "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        + "\n"
    )


def rows(card: Scorecard) -> list[tuple[str, str]]:
    """Name with unit, and value, of every field of a card."""
    mega: _Show = lambda value: f"{value / 1e6:,.3f}"  # noqa: E731
    milli: _Show = lambda value: f"{value * 1e3:.3f}"  # noqa: E731
    made = card.preparation
    return [
        ("compared with", card.base or "-"),
        ("bits per byte", f"{card.bits_per_byte:.4f}"),
        ("- against the base", _signed(card.bits_per_byte_delta, ".4f")),
        ("perplexity per token", f"{card.perplexity:.3f}"),
        ("- against the base, %", _signed(_percent(card.perplexity_change), ".2f")),
        *((name, f"{value:.4f}") for name, value in card.tasks.items()),
        *(
            (f"- {name} against the base", _signed((card.tasks_delta or {}).get(name), ".4f"))
            for name in card.tasks
        ),
        ("weights, MB", mega(card.total_bytes)),
        ("- over the base's", "-" if card.bytes_ratio is None else f"{card.bytes_ratio:.3f}"),
        ("- on the computing device, MB", mega(card.resident_bytes)),
        ("experts per token, mean", f"{card.active_experts_mean:.2f}"),
        ("experts per token, worst", str(card.active_experts_worst)),
        ("read per token at batch 1, MB", mega(card.bytes_per_token)),
        ("MFLOP per token", mega(card.flops_per_token)),
        ("energy proxy per token, mJ", milli(card.energy_per_token)),
        (f"prefill of {card.prompt_tokens} tokens, ms", milli(card.prefill_seconds)),
        *((f"time per output token at batch {b}, ms", milli(s)) for b, s in card.token_seconds.items()),
        *((f"tokens per second at batch {b}", f"{v:,.1f}") for b, v in card.tokens_per_second.items()),
        ("calibration, tokens", f"{made.calibration_tokens:,}"),
        ("calibration, s", f"{made.calibration_seconds:.1f}"),
        ("needs retraining", _yes(made.retraining)),
        ("depends on the batch", _yes(card.batch_dependent)),
        ("causal", _yes(card.causal)),
    ]


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _signed(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:+{form}}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
