"""What stands out, in sentences: the head of the page and of the terminal's summary."""

from __future__ import annotations

import numpy as np

from libmoe.report.experts.figures import explained, grouping, preference, sharpest
from libmoe.report.experts.relations import strongest, together
from libmoe.report.experts.schema import Analysis
from libmoe.report.experts.specs import effective, load_ratio, mean
from libmoe.report.experts.symptoms import Finding
from libmoe.report.numbers import capitalised, count, fixed, percent, si

SLIGHT = 0.01
"""Share of the choice of expert that a domain must explain to be spoken of as a division of labour."""


def headline(found: list[Finding]) -> str:
    """One line: the gravest finding, or that nothing is wrong."""
    grave = _grave(found)
    return grave[0].title if grave else "Routing is sound: nothing stands out as wrong"


def stands_out(analysis: Analysis, found: list[Finding]) -> list[str]:
    """Sentences with numbers: findings first, then how experts are used and what they divide the work by."""
    grave = _grave(found)[:4]
    # The first one's title is the headline.
    told = [
        finding.evidence if i == 0 else f"{finding.title}. {finding.evidence}"
        for i, finding in enumerate(grave)
    ]
    return [*told, _usage(analysis), *_specialisation(analysis), *_pairs(analysis), *_training(analysis)]


def _grave(found: list[Finding]) -> list[Finding]:
    return [finding for finding in found if finding.weight != "note"]


def scope(analysis: Analysis) -> str:
    """Size of what was looked at."""
    layers = analysis["layers"]
    experts = {layer["num_experts"] for layer in layers}
    each = f"{min(experts)}" if len(experts) == 1 else f"{min(experts)} to {max(experts)}"
    taken = mean([layer["experts_per_token"] for layer in layers])
    return (
        f"{capitalised(count(len(layers), 'MoE layer'))} with {each} experts, of which a token takes "
        f"{fixed(taken, 0 if float(taken or 0).is_integer() else 1)}; {si(max(layer['tokens'] for layer in layers))} "
        "tokens traced."
    )


def _usage(analysis: Analysis) -> str:
    layers = analysis["layers"]
    worst = min(layers, key=lambda layer: effective(layer) / layer["num_experts"])
    busiest = max(range(worst["num_experts"]), key=lambda i: worst["load"][i])
    entropy = mean([layer["balance"]["normalised_entropy"] for layer in layers])
    text = f"Load entropy is {fixed(entropy, 2)} of its maximum on average."
    if len(layers) == 1:
        return text
    return (
        f"{text} The least even layer, {worst['layer']}, works like {fixed(effective(worst), 1)} of its "
        f"{worst['num_experts']} experts; its busiest, expert {busiest}, does "
        f"{fixed(load_ratio(worst['load'])[busiest], 1)} times its share."
    )


def _specialisation(analysis: Analysis) -> list[str]:
    layer = sharpest(analysis)
    if layer is None:
        return []
    column = grouping(analysis)
    share = explained(layer, column) or 0.0
    if share < SLIGHT:
        return [
            f"Experts hardly divide the text: nowhere does the {column} explain {percent(SLIGHT, 0)} of the choice."
        ]
    wanted = np.array(preference(layer, column), dtype=np.float64)
    group, expert = np.unravel_index(int(np.nanargmax(np.nan_to_num(wanted))), wanted.shape)
    name, ratio = layer["by"][column]["names"][int(group)], fixed(float(wanted[group, expert]), 1)
    return [
        f"Experts divide the text most in layer {layer['layer']}, where the {column} explains {percent(share)} of the "
        f"choice; there {name} is {ratio} times as likely as all text to choose expert {expert}."
    ]


def _pairs(analysis: Analysis) -> list[str]:
    found = strongest(analysis["layers"], together)
    if found is None:
        return []
    layer, (edge, *_) = found
    return [
        f"The closest partners are experts {edge.left} and {edge.right} of layer {layer['layer']}: they meet "
        f"{fixed(edge.strength, 1)} times as often as by chance."
    ]


def _training(analysis: Analysis) -> list[str]:
    checkpoints = analysis.get("checkpoints", [])
    if len(checkpoints) < 2:
        return []
    kept = mean([layer.get("saturation") for layer in checkpoints[0]["layers"]])
    if kept is None:
        return []
    return [
        f"At {checkpoints[0]['label']} the router already chose {percent(kept, 0)} of the experts of the end."
    ]
