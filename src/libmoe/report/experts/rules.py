"""The rules of the diagnosis: each looks at one symptom and is silent where its numbers are missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from libmoe.report.experts.figures import router_value
from libmoe.report.experts.relations import alike
from libmoe.report.experts.schema import Analysis, Layer
from libmoe.report.experts.specs import mean
from libmoe.report.numbers import count, fixed, listing, percent

ENOUGH = 20
"""Assignments that a fair share must hold before an idle expert says something: chance leaves e^-20 idle."""
UNEVEN = 3.0
"""MaxVio: the busiest expert does four times its share."""
ALWAYS = 0.9
"""Share of the tokens from which on an expert is as good as shared."""
SURE, UNSURE = 0.05, 0.98
"""Router entropy in units of ln N below which a router has stopped choosing, and above which it hardly starts."""
SAME = 0.95
"""Similarity from which on two experts do the same."""
SETTLED = 0.95
"""Saturation from which on routing is that of the end."""
RESTLESS = 0.25
"""Share of tokens whose first expert still changes between the last two checkpoints."""
DROPPED = 0.01
LATE = 2.0
"""The end of sequences drops this many times as much as the beginning."""
BY_TOKEN = 0.8
"""Share of the expert's entropy that the token's id explains, from which on context hardly matters."""


@dataclass(frozen=True)
class Finding:
    """``weight`` is ``serious``, ``watch`` or ``note``; ``layers`` are the indices of the layers it is about."""

    weight: str
    title: str
    evidence: str
    fix: str
    layers: tuple[int, ...] = ()


def effective(layer: Layer) -> float:
    """How many equally busy experts would have this entropy of load."""
    return float(layer["num_experts"] ** layer["balance"]["normalised_entropy"])


def _collapsed(layer: Layer) -> bool:
    k, n = layer["experts_per_token"], layer["num_experts"]
    return n >= 2 * k and effective(layer) < 1.5 * k


def _collapse(analysis: Analysis) -> Iterator[Finding]:
    layers = [layer for layer in analysis["layers"] if _collapsed(layer)]
    if layers:
        worst = min(layers, key=effective)
        yield Finding(
            "serious",
            f"Routing has collapsed in {_places(layers)}",
            f"Layer {worst['layer']} works like {fixed(effective(worst), 1)} equally busy experts of "
            f"{worst['num_experts']}, and a token takes {fixed(worst['experts_per_token'], 1)}.",
            "Raise the weight of the balance loss or update biases (as deepseek-v3 does), lower the router's learning "
            "rate early on, and check that padding is masked.",
            _indices(layers),
        )


def _idle(analysis: Analysis) -> Iterator[Finding]:
    layers = [
        layer
        for layer in analysis["layers"]
        if layer["balance"]["dead"] and sum(layer["load"]) >= ENOUGH * layer["num_experts"]
    ]
    if layers:
        dead = sum(len(layer["balance"]["dead"]) for layer in layers)
        total = sum(layer["num_experts"] for layer in analysis["layers"])
        named = [f"{layer['layer']}.{expert}" for layer in layers for expert in layer["balance"]["dead"]]
        yield Finding(
            "serious" if dead > 0.05 * total else "watch",
            f"{begun(count(dead, 'expert'))} of {total} {'is' if dead == 1 else 'are'} dead",
            f"They get less than 1 % of a fair share (layer.expert): {listing(named)}.",
            "A balance loss or bias updates bring them back while training goes on; for inference they can be pruned.",
            _indices(layers),
        )


def _uneven(analysis: Analysis) -> Iterator[Finding]:
    layers = [
        layer
        for layer in analysis["layers"]
        if layer["balance"]["max_violation"] >= UNEVEN and not _collapsed(layer)
    ]
    if layers:
        worst = max(layers, key=lambda layer: layer["balance"]["max_violation"])
        yield Finding(
            "watch",
            f"Load is uneven in {_places(layers)}",
            f"The busiest expert of layer {worst['layer']} (expert {int(np.argmax(worst['load']))}) does "
            f"{fixed(worst['balance']['max_violation'] + 1, 1)} times its share.",
            "Harmless for quality if it follows the text, costly for speed when experts sit on different devices: "
            "balance over the whole batch and not each sequence, or update biases.",
            _indices(layers),
        )


def _always_on(analysis: Analysis) -> Iterator[Finding]:
    busy = [
        (layer, expert)
        for layer in analysis["layers"]
        if layer["num_experts"] > 2 * layer["experts_per_token"] and not _collapsed(layer)
        for expert, load in enumerate(layer["load"])
        if load >= ALWAYS * layer["tokens"]
    ]
    if busy:
        named = [f"{layer['layer']}.{expert}" for layer, expert in busy]
        yield Finding(
            "watch",
            f"{begun(count(len(busy), 'expert'))} {'takes' if len(busy) == 1 else 'take'} nearly every token",
            f"At least {percent(ALWAYS, 0)} of the tokens (layer.expert): {listing(named)}.",
            "Such an expert is a shared one: give it its own place (as deepseek-moe does) and let the router choose "
            "among the others.",
            tuple(dict.fromkeys(layer["layer"] for layer, _ in busy)),
        )


def _certainty(analysis: Analysis) -> Iterator[Finding]:
    known = [(layer, router_value(layer, "normalised")) for layer in analysis["layers"]]
    sure = [layer for layer, value in known if value is not None and value < SURE]
    unsure = [layer for layer, value in known if value is not None and value > UNSURE]
    if sure:
        yield Finding(
            "watch",
            f"The router is saturated in {_places(sure)}",
            f"Its entropy is below {percent(SURE, 0)} of that of an undecided router: nearly all weight is on one "
            "expert, and the others learn next to nothing.",
            "Raise the z-loss, lower the router's learning rate, or add noise to its logits.",
            _indices(sure),
        )
    if unsure:
        yield Finding(
            "note",
            f"The router hardly decides in {_places(unsure)}",
            f"Its entropy is above {percent(UNSURE, 0)} of that of an undecided router: small changes of the input "
            "change the choice.",
            "Usual early in training and after upcycling. If it stays, lower the balance loss or normalise the "
            "router's input.",
            _indices(unsure),
        )


def _redundant(analysis: Analysis) -> Iterator[Finding]:
    for kind, words in (("outputs", "return"), ("weights", "hold")):
        pairs = [
            (layer["layer"], edge)
            for layer in analysis["layers"]
            for edge in alike(layer, kind)
            if edge.strength >= SAME
        ]
        if pairs:
            named = [f"{layer}.{edge.left} with {layer}.{edge.right}" for layer, edge in pairs]
            yield Finding(
                "watch",
                f"Experts {words} nearly the same",
                f"Similarity of {kind} of at least {SAME:g} (layer.expert): {listing(named, 6)}.",
                "Merge or prune them; in training, start upcycled experts from different noise or dropped neurons.",
                tuple(dict.fromkeys(layer for layer, _ in pairs)),
            )


def _over_training(analysis: Analysis) -> Iterator[Finding]:
    checkpoints = analysis.get("checkpoints", [])
    if len(checkpoints) < 3:
        return
    last = checkpoints[-1]["step"]
    for checkpoint in checkpoints[:-1]:
        kept = mean([layer.get("saturation") for layer in checkpoint["layers"]])
        if kept is not None and kept >= SETTLED and checkpoint["step"] <= last / 2:
            yield Finding(
                "note",
                f"Routing was settled by {checkpoint['label']}",
                f"{percent(kept, 0)} of the experts chosen there are those of the end (saturation); the run went on "
                f"to step {last}.",
                "The router can be frozen from there on. To let it keep learning, lower its balance loss later or "
                "raise its learning rate.",
            )
            break
    moved = mean([layer.get("change") for layer in checkpoints[-2]["layers"]])
    if moved is not None and moved > RESTLESS:
        yield Finding(
            "watch",
            "Routing has not settled",
            f"Between {checkpoints[-2]['label']} and the end {percent(moved, 0)} of the tokens change their first "
            "expert.",
            "Train longer, let the learning rate decay, or add a z-loss; compare experts across checkpoints with care.",
        )


def _dropping(analysis: Analysis) -> Iterator[Finding]:
    dropping = [
        layer
        for layer in analysis["layers"]
        if sum(layer.get("dropped", [])) > DROPPED * max(1, sum(layer["load"]))
    ]
    if dropping:
        worst = max(dropping, key=_drop_rate)
        yield Finding(
            "watch",
            f"Capacity drops tokens in {_places(dropping)}",
            f"Layer {worst['layer']} drops {percent(_drop_rate(worst))} of its assignments.",
            "Raise capacity_factor or balance better; evaluate without capacity.",
            _indices(dropping),
        )
    share = [value for value in analysis.get("drops", {}).get("share", []) if value is not None]
    quarter = len(share) // 4
    if quarter:
        early, late = float(np.mean(share[:quarter])), float(np.mean(share[-quarter:]))
        if late > DROPPED and late > LATE * early:
            yield Finding(
                "serious",
                "Tokens at the end of sequences are dropped",
                f"The last quarter loses {percent(late)} of its assignments, the first {percent(early)}: experts fill "
                "up in the order of the sequence.",
                "Fill experts in random order or by weight, raise capacity_factor, or route without capacity. "
                "Decoding token by token never drops and hides this.",
            )


def _by_token(analysis: Analysis) -> Iterator[Finding]:
    layers = [
        layer
        for layer in analysis["layers"]
        if (value := layer.get("explained", {}).get("token")) is not None and value >= BY_TOKEN
    ]
    if layers:
        yield Finding(
            "note",
            f"The token alone decides in {_places(layers)}",
            f"Its id explains at least {percent(BY_TOKEN, 0)} of the choice of expert; context hardly matters.",
            "Usual in early layers and by design in hash routing. Elsewhere it is a sign that the router learned too "
            "fast: lower its learning rate at the start.",
            _indices(layers),
        )


RULES: tuple[Callable[[Analysis], Iterator[Finding]], ...] = (
    _collapse, _idle, _uneven, _always_on, _certainty, _redundant, _over_training, _dropping, _by_token,
)  # fmt: skip


def _drop_rate(layer: Layer) -> float:
    return sum(layer.get("dropped", [])) / max(1, sum(layer["load"]))


def _indices(layers: list[Layer]) -> tuple[int, ...]:
    return tuple(layer["layer"] for layer in layers)


def _places(layers: list[Layer]) -> str:
    names = [str(layer["layer"]) for layer in layers]
    return f"layer {names[0]}" if len(names) == 1 else f"layers {listing(names, 8)}"


def begun(sentence: str) -> str:
    """With a capital, all else as it was."""
    return sentence[:1].upper() + sentence[1:]
