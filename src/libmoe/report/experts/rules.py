"""The rules of the diagnosis: each looks at one symptom and is silent where its numbers are missing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from libmoe.report.experts.figures import router_value
from libmoe.report.experts.relations import Edge, alike
from libmoe.report.experts.schema import Analysis, Layer
from libmoe.report.experts.specs import drop_rate, effective, mean
from libmoe.report.experts.symptoms import Finding, Rule, of_layers, places
from libmoe.report.numbers import capitalised, count, fixed, listing, percent

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


def _collapsed(layer: Layer) -> bool:
    k, n = layer["experts_per_token"], layer["num_experts"]
    return n >= 2 * k and effective(layer) < 1.5 * k


@of_layers(_collapsed)
def _collapse(layers: list[Layer]) -> Finding:
    worst = min(layers, key=effective)
    return Finding(
        "serious",
        f"Routing has collapsed in {places(layers)}",
        f"Layer {worst['layer']} works like {fixed(effective(worst), 1)} equally busy experts of "
        f"{worst['num_experts']}, and a token takes {fixed(worst['experts_per_token'], 1)}.",
        "Raise the weight of the balance loss or update biases (as deepseek-v3 does), lower the router's learning "
        "rate early on, and check that padding is masked.",
    )


def _idle(analysis: Analysis) -> Iterator[Finding]:
    named = [
        (layer["layer"], expert)
        for layer in analysis["layers"]
        if sum(layer["load"]) >= ENOUGH * layer["num_experts"]
        for expert in layer["balance"]["dead"]
    ]
    if named:
        total = sum(layer["num_experts"] for layer in analysis["layers"])
        yield Finding(
            "serious" if len(named) > 0.05 * total else "watch",
            f"{capitalised(count(len(named), 'expert'))} of {total} {'is' if len(named) == 1 else 'are'} dead",
            f"They get less than 1 % of a fair share (layer.expert): {_experts(named)}.",
            "A balance loss or bias updates bring them back while training goes on; for inference they can be pruned.",
            tuple(dict.fromkeys(layer for layer, _ in named)),
        )


@of_layers(lambda layer: layer["balance"]["max_violation"] >= UNEVEN and not _collapsed(layer))
def _uneven(layers: list[Layer]) -> Finding:
    worst = max(layers, key=lambda layer: layer["balance"]["max_violation"])
    return Finding(
        "watch",
        f"Load is uneven in {places(layers)}",
        f"The busiest expert of layer {worst['layer']} (expert {int(np.argmax(worst['load']))}) does "
        f"{fixed(worst['balance']['max_violation'] + 1, 1)} times its share.",
        "Harmless for quality if it follows the text, costly for speed when experts sit on different devices: "
        "balance over the whole batch and not each sequence, or update biases.",
    )


def _busy(layer: Layer) -> list[tuple[int, int]]:
    """Experts that nearly every token takes, where it could take others."""
    if layer["num_experts"] <= 2 * layer["experts_per_token"] or _collapsed(layer):
        return []
    return [(layer["layer"], e) for e, load in enumerate(layer["load"]) if load >= ALWAYS * layer["tokens"]]


@of_layers(lambda layer: bool(_busy(layer)))
def _always_on(layers: list[Layer]) -> Finding:
    named = [expert for layer in layers for expert in _busy(layer)]
    return Finding(
        "watch",
        f"{capitalised(count(len(named), 'expert'))} {'takes' if len(named) == 1 else 'take'} nearly every token",
        f"At least {percent(ALWAYS, 0)} of the tokens (layer.expert): {_experts(named)}.",
        "Such an expert is a shared one: give it its own place (as deepseek-moe does) and let the router choose "
        "among the others.",
    )


@of_layers(lambda layer: (value := router_value(layer, "normalised")) is not None and value < SURE)
def _saturated(layers: list[Layer]) -> Finding:
    return Finding(
        "watch",
        f"The router is saturated in {places(layers)}",
        f"Its entropy is below {percent(SURE, 0)} of that of an undecided router: nearly all weight is on one "
        "expert, and the others learn next to nothing.",
        "Raise the z-loss, lower the router's learning rate, or add noise to its logits.",
    )


@of_layers(lambda layer: (value := router_value(layer, "normalised")) is not None and value > UNSURE)
def _undecided(layers: list[Layer]) -> Finding:
    return Finding(
        "note",
        f"The router hardly decides in {places(layers)}",
        f"Its entropy is above {percent(UNSURE, 0)} of that of an undecided router: small changes of the input "
        "change the choice.",
        "Usual early in training and after upcycling. If it stays, lower the balance loss or normalise the "
        "router's input.",
    )


def _redundant(kind: str, words: str) -> Rule:
    def twins(layer: Layer) -> list[Edge]:
        return [edge for edge in alike(layer, kind) if edge.strength >= SAME]

    @of_layers(lambda layer: bool(twins(layer)))
    def rule(layers: list[Layer]) -> Finding:
        pairs = [(layer["layer"], edge) for layer in layers for edge in twins(layer)]
        named = [f"{layer}.{edge.left} with {layer}.{edge.right}" for layer, edge in pairs]
        return Finding(
            "watch",
            f"Experts {words} nearly the same",
            f"Similarity of {kind} of at least {SAME:g} (layer.expert): {listing(named, 6)}.",
            "Merge or prune them; in training, start upcycled experts from different noise or dropped neurons.",
        )

    return rule


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


@of_layers(lambda layer: drop_rate(layer) > DROPPED)
def _dropping(layers: list[Layer]) -> Finding:
    worst = max(layers, key=drop_rate)
    return Finding(
        "watch",
        f"Capacity drops tokens in {places(layers)}",
        f"Layer {worst['layer']} drops {percent(drop_rate(worst))} of its assignments.",
        "Raise capacity_factor or balance better; evaluate without capacity.",
    )


def _dropping_late(analysis: Analysis) -> Iterator[Finding]:
    share = [value for value in analysis.get("drops", {}).get("share", []) if value is not None]
    quarter = len(share) // 4
    if not quarter:
        return
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


@of_layers(lambda layer: (value := layer.get("explained", {}).get("token")) is not None and value >= BY_TOKEN)
def _by_token(layers: list[Layer]) -> Finding:
    return Finding(
        "note",
        f"The token alone decides in {places(layers)}",
        f"Its id explains at least {percent(BY_TOKEN, 0)} of the choice of expert; context hardly matters.",
        "Usual in early layers and by design in hash routing. Elsewhere it is a sign that the router learned too "
        "fast: lower its learning rate at the start.",
    )


RULES: tuple[Rule, ...] = (
    _collapse, _idle, _uneven, _always_on, _saturated, _undecided, _redundant("outputs", "return"),
    _redundant("weights", "hold"), _over_training, _dropping, _dropping_late, _by_token,
)  # fmt: skip


def _experts(named: list[tuple[int, int]]) -> str:
    return listing([f"{layer}.{expert}" for layer, expert in named])
