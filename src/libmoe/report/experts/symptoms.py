"""What a rule of the diagnosis finds, and rules that look at each layer by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from libmoe.report.experts.schema import Analysis, Layer
from libmoe.report.numbers import listing


@dataclass(frozen=True)
class Finding:
    """``weight`` is ``serious``, ``watch`` or ``note``; ``layers`` are the indices of the layers it is about."""

    weight: str
    title: str
    evidence: str
    fix: str
    layers: tuple[int, ...] = ()


Rule = Callable[[Analysis], Iterator[Finding]]


def of_layers(has: Callable[[Layer], bool]) -> Callable[[Callable[[list[Layer]], Finding]], Rule]:
    """Make a rule of what is to be said of the layers that have a symptom; where none has, it finds nothing."""

    def rule_of(say: Callable[[list[Layer]], Finding]) -> Rule:
        def rule(analysis: Analysis) -> Iterator[Finding]:
            layers = [layer for layer in analysis["layers"] if has(layer)]
            if layers:
                yield replace(say(layers), layers=tuple(layer["layer"] for layer in layers))

        return rule

    return rule_of


def places(layers: Sequence[Layer]) -> str:
    """Name layers: ``layer 3``, ``layers 0, 1 and 4``."""
    names = [str(layer["layer"]) for layer in layers]
    return f"layer {names[0]}" if len(names) == 1 else f"layers {listing(names, 8)}"
