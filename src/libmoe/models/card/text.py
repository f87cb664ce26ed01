"""The words of a card: the sections of Mitchell et al. 2019 (arXiv 1810.03993) in Markdown.

What is not known is said to be unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from libmoe.methods import METHODS
from libmoe.models.card.facts import ModelFacts, RunFacts
from libmoe.models.card.front import BITS, UNKNOWN, is_number
from libmoe.models.card.using import how_to_load
from libmoe.papers import paper


def body_text(name: str, config: Mapping[str, Any], model: ModelFacts | None, run: RunFacts) -> str:
    """Markdown between the marks."""
    sections = {
        "Model": _model(config, model),
        "Training data": _training_data(run),
        "Recipe": _recipe(run),
        "Evaluation": _evaluation(run),
        "Routing": _routing(model, run),
        "Provenance": _provenance(run),
        "Limits": _limits(model, run),
        "How to load": how_to_load(config, model),
    }
    parts = [f"# {name}", *(f"## {title}\n\n" + "\n".join(lines) for title, lines in sections.items())]
    return "\n\n".join(parts) + "\n"


def _model(config: Mapping[str, Any], model: ModelFacts | None) -> list[str]:
    architecture = ", ".join(config.get("architectures") or [UNKNOWN])
    if model is None:
        return _table({"architecture": architecture, "method": UNKNOWN, "parameters": UNKNOWN})
    experts = f"{model.moe_layers}, of {' or '.join(map(str, model.num_experts))} experts each"
    return _table({
        "architecture": architecture,
        "method": f"`{model.method}`{_summary(model.method)}",
        "paper": _paper(model.method),
        "options": ", ".join(f"{key}={value}" for key, value in model.options.items()) or "none",
        "MoE layers": experts if model.moe_layers else "none: the model is dense",
        "parameters, total": f"{model.total_params:,}",
        "parameters, active for a token": UNKNOWN if model.active_params is None else f"{model.active_params:,}",
        "dtype": config.get("dtype") or UNKNOWN,
        "experts began as": "copies of the dense network" if model.init == "copy" else "random weights",
    })  # fmt: skip


def _summary(method: str) -> str:
    return f": {METHODS.info(method).summary}" if method in METHODS else " (not part of LibMoE)"


def _paper(method: str) -> str:
    number = METHODS.info(method).paper if method in METHODS else None
    if number is None:
        return "none is named"
    found = paper(number)
    return f"{found.title} ({found.arxiv}; {found.venue} {found.year})"


def _training_data(run: RunFacts) -> list[str]:
    data = run.data
    if not data:
        return ["Unknown: no recipe lies beside the model."]
    fingerprints = (run.provenance or {}).get("data") or {}
    domains = data.get("domains")
    return _table({
        "source": data.get("source"),
        "domains": "all" if domains is None else ", ".join(domains),
        "mixture": data.get("mixture"),
        "fingerprint of text and tokenizer": fingerprints.get(data.get("source")) or UNKNOWN,
        "tokenizer": data.get("tokenizer"),
        "tokens trained on": f"{run.result['tokens']:,}" if run.result else f"{_planned(run):,} (as the recipe plans)",
        "licence of the text": f"{UNKNOWN}: see the source",
    })  # fmt: skip


def _planned(run: RunFacts) -> int:
    recipe = run.recipe or {}
    return int(recipe["train"]["steps"] * recipe["train"]["batch_size"] * recipe["data"]["seq_len"])


def _recipe(run: RunFacts) -> list[str]:
    if run.recipe is None:
        return ["Unknown: no recipe lies beside the model."]
    train, backbone = run.recipe["train"], run.recipe["backbone"]
    lines = _table({
        "seed (order of data, initial weights, router noise)": run.recipe["seed"],
        "began from": backbone.get("checkpoint") or "random weights",
        "steps": train["steps"],
        "batch": f"{train['batch_size']} rows of {run.recipe['data']['seq_len']} tokens",
        "learning rate": f"{train['lr']:g}, {train['schedule']}, {train['warmup_steps']} steps of warm-up",
        "AdamW": f"betas {train['betas']}, weight decay {train['weight_decay']:g}, clip {train['clip']}",
        "precision": train["dtype"],
    })  # fmt: skip
    return [*lines, "", "`recipe.yaml` in the run folder has every setting."]


def _evaluation(run: RunFacts) -> list[str]:
    found = run.evaluation
    if found is None:
        return [
            "Not evaluated when this card was written. `libmoe eval` measures, `libmoe card` renews this page."
        ]
    lines = []
    if BITS in found:
        windows = sum(map(len, (found.get("windows") or {}).values()))
        lines += [
            f"Held-out bits per byte: **{found[BITS]:.4f}** over {windows} windows of the training corpus' own test "
            "split (other documents, same sources); lower is better.",
            "",
            *_rows(
                ["domain", "bits per byte"], [[k, f"{v:.4f}"] for k, v in found.get("domains", {}).items()]
            ),
        ]
    tasks = [
        [name, key, f"{value:.4f}"]
        for name, metrics in (found.get("tasks") or {}).items()
        for key, value in metrics.items()
        if is_number(value)
    ]
    if tasks:
        lines += ["", *_rows(["task", "metric", "value"], tasks)]
    else:
        lines += ["", "No benchmark task was run."]
    return [*lines, "", "Nothing else was measured: no safety, bias or instruction-following evaluation."]


def _routing(model: ModelFacts | None, run: RunFacts) -> list[str]:
    lines = [f"- {line}" for line in _declared(model)]
    layers = ((run.evaluation or {}).get("routing") or {}).get("layers") or []
    if not layers:
        return [*lines, "- load of the experts: not measured when this card was written"]
    head = ["layer", "experts", "MaxVio", "entropy / ln N", "dead", "experts per token"]
    rows = [
        [
            str(layer["layer"]),
            str(layer["num_experts"]),
            f"{layer['max_violation']:.3f}",
            f"{layer['normalised_entropy']:.3f}",
            str(layer["dead"]),
            f"{layer['experts_per_token']:.2f}",
        ]
        for layer in layers
    ]
    title = "Load on held-out text (MaxVio: busiest expert over the fair share, minus 1):"
    return [*lines, "", title, "", *_rows(head, rows)]


def _declared(model: ModelFacts | None) -> Iterator[str]:
    if model is None:
        yield f"causal: {UNKNOWN}"
        yield f"independent of the batch: {UNKNOWN}"
        return
    yield (
        "causal: yes, the experts of a token never depend on later tokens"
        if model.causal
        else "causal: **no**, a token's experts depend on later tokens: likelihoods have seen the text they predict"
    )
    yield (
        "independent of the batch: yes"
        if model.batch_independent
        else "independent of the batch: **no**, results depend on what is computed beside a sequence"
    )


def _provenance(run: RunFacts) -> list[str]:
    facts = run.provenance
    if facts is None:
        return ["Unknown: no provenance.json lies beside the model."]
    git = facts.get("git")
    state = UNKNOWN if git is None else git["commit"] + (" with uncommitted changes" if git["dirty"] else "")
    machine, packages = facts.get("hardware") or {}, facts.get("packages") or {}
    gpus = ", ".join(gpu["name"] for gpu in machine.get("gpus", []))
    library = facts.get("libmoe") or {}
    return _table({
        "command": f"`{facts.get('command') or UNKNOWN}`",
        "trained": facts.get("when"),
        "commit of the working folder": state,
        "LibMoE": f"{library.get('version', UNKNOWN)}, source {str(library.get('source', UNKNOWN))[:16]}",
        "versions": ", ".join(f"{name} {packages[name]}" for name in ("torch", "transformers") if name in packages),
        "hardware": ", ".join(filter(None, [machine.get("cpu"), f"{machine.get('cores')} cores", gpus or "no GPU"])),
        "digest of the recipe": facts.get("recipe"),
        "plugins": ", ".join(f"{p['name']} ({p['sha256']})" for p in facts.get("plugins", [])) or "none",
    })  # fmt: skip


def _limits(model: ModelFacts | None, run: RunFacts) -> list[str]:
    tokens = (run.result or {}).get("tokens") or (_planned(run) if run.recipe else None)
    lines = ["A research model: it is not aligned, and nothing about its output is guaranteed."]
    if model is not None and tokens is not None and model.active_params:
        ratio = tokens / model.active_params
        lines.append(
            f"It saw {ratio:.3g} tokens for each active parameter (compute-optimal training: about 20)."
        )
    if run.recipe is not None:
        lines.append(f"Contexts longer than {run.recipe['data']['seq_len']} tokens were never trained on.")
    if run.evaluation is None:
        lines.append("How well it does is not known.")
    lines.append("One seed: how far another seed would lie from these numbers is not told here.")
    return [f"- {line}" for line in lines]


def _table(facts: Mapping[str, Any]) -> list[str]:
    return _rows(["", ""], [[key, str(value)] for key, value in facts.items()])


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
