"""``libmoe audit``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from libmoe.cli.output import emit_json, say, table
from libmoe.core.config import override
from libmoe.core.errors import ConfigError, LibMoEError, nearest
from libmoe.core.files import finite

if TYPE_CHECKING:
    from torch import Tensor, nn

    from libmoe.stats import Mean

QUESTIONS = {
    "batch_independent": "independent of the other requests of the batch",
    "causal": "independent of later tokens",
    "padding_invariant": "independent of padding",
}
LEGEND = """
flipped: victims whose most probable next token became another one; harm: rise of its -ln p; lost: experts per token
that its tokens no longer got. Each is compared with the same victim among strangers, without a defence's randomness;
strangers: other company without an attacker, the control. In brackets 95 % intervals; --json has all of them.
""".strip().replace("\n", " ")


@dataclass(frozen=True)
class Request:
    """How much is tried out: victims, requests of a batch, forward passes for each attack, tokens of a request."""

    victims: int
    rows: int
    queries: int
    length: int

    def __post_init__(self) -> None:
        for name in ("victims", "length"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")

    @property
    def needed(self) -> int:
        """Requests in all: strangers are drawn from more than one batch of them."""
        return max(2 * self.rows, self.victims)


def run(
    target: str,
    overrides: Sequence[str],
    request: Request,
    *,
    data: str | None,
    dtype: str,
    attack: bool,
    as_json: bool,
) -> None:
    """Exits with code 1 when an answer depends on what it must not."""
    from libmoe.analysis.observe import find_layers, observe
    from libmoe.methods import METHODS
    from libmoe.models.loading import cast
    from libmoe.testing.security import Setting, audit_model, defences, expose

    if target in METHODS:
        if data is not None:
            raise ConfigError(f"--data {data}: method {target!r} is audited with random tokens; leave it out")
        model, requests_RL, origin = _method(target, overrides, request)
    elif overrides:
        raise ConfigError(f"--set {overrides[0]}: only methods have options here, and {target!r} is none of them")
    else:
        try:
            model, requests_RL, origin = _saved(target, request, data)
        except LibMoEError as error:
            if method := nearest(target, METHODS):
                raise ConfigError(f"did you mean the method {method!r}? {error}") from None
            raise
    cast(model, dtype)
    vocabulary = model.get_input_embeddings().num_embeddings
    setting = Setting(rows=request.rows, queries=request.queries, vocabulary=vocabulary)
    with observe(model) if find_layers(model) else nullcontext():
        report = audit_model(model)
        conditions = defences(model, report.batch_independent) if attack else {}
        rows = expose(model, requests_RL, setting, conditions, victims=request.victims)
    found = {question: getattr(report, question) for question in QUESTIONS}
    evidence = report.evidence.splitlines()
    if as_json:
        attacks = [{k: v._asdict() if hasattr(v, "_asdict") else v for k, v in vars(row).items()} for row in rows]
        told = {"target": target, "requests": origin, **found, "evidence": evidence, "attacks": attacks}
        emit_json(finite(told))
    else:
        _show(target, origin, found, evidence, rows, attack)
    if not all(found.values()):
        raise typer.Exit(1)


def _show(
    target: str, origin: str, found: Mapping[str, bool], evidence: list[str], rows: Sequence[Any], attack: bool
) -> None:
    told = iter(evidence)  # one line for each leak, in the order of the audit
    why = {q: "" if found[q] else next(told) for q in ("causal", "batch_independent", "padding_invariant")}
    table(
        ["", "an answer is", "seen"],
        [["ok" if found[q] else "NO", text, why[q]] for q, text in QUESTIONS.items()],
        title=f"{target}, as it is served",
    )
    if rows:
        say(f"\nBuffer overflow (arXiv 2402.05526), requests: {origin}")
        columns = ["served with", "company", "flipped", "harm", "lost"]
        table(columns, [[r.serving, r.company, _with(r.flipped), _value(r.harm), _value(r.lost)] for r in rows])
        say(LEGEND)
    elif attack:
        say("No router of it limits an expert's places, so there is no buffer to overflow.")
    say(_verdict(target, found))


def _verdict(target: str, found: Mapping[str, bool]) -> str:
    if not found["batch_independent"]:
        return (
            f"{target}: one request can change the answer to another; serve it without a limit of places, with places "
            "per request, or in batches of one user"
        )
    if not all(found.values()):
        return f"{target}: requests do not reach each other, but answers depend on what they must not"
    return f"{target}: answers depend on nothing but the request up to that token"


def _with(mean: Mean) -> str:
    return f"{mean.value:.2f} [{mean.low:.2f}, {mean.high:.2f}]"


def _value(mean: Mean) -> str:
    return f"{mean.value:.2f}"


def _method(name: str, overrides: Sequence[str], request: Request) -> tuple[nn.Module, Tensor, str]:
    """A small model of the method with initial weights so large that experts matter, and random requests."""
    import torch

    from libmoe.models import moeify
    from libmoe.models.backbones import BackboneConfig, build_backbone

    options: dict[str, Any] = {}
    for assignment in overrides:
        override(options, assignment)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "num_attention_heads": 4}
    config = BackboneConfig("llama", vocab_size=64, extra={"initializer_range": 0.2}, **shape)  # type: ignore[arg-type]
    draws = torch.Generator().manual_seed(0)
    requests_RL = torch.randint(64, (request.needed, request.length), generator=draws)
    model = moeify(build_backbone(config), name, options=options, seed=0)
    return model, requests_RL, "random tokens to an untrained model"


def _saved(spec: str, request: Request, data: str | None) -> tuple[nn.Module, Tensor, str]:
    """The model, and the beginnings of held-out windows, taken from the domains in turn."""
    from itertools import chain, zip_longest

    import torch

    from libmoe.eval import find_target
    from libmoe.eval.subjects import heldout_text, measured_with

    target = find_target(spec)
    settings, evaluation = measured_with(target, data, request.needed)
    if settings.conversations is not None:
        raise ConfigError(f"{spec} reads images; this audit sends requests of text alone, so give a language model")
    model = target.subjects[-1].open()
    heldout = heldout_text(model, target.name, settings, evaluation, target.model_folder)[0]
    by_domain = [torch.cat([batch["input_ids"] for batch in heldout.windows[d]]) for d in heldout.domains]
    mixed = [row for row in chain.from_iterable(zip_longest(*by_domain)) if row is not None]
    length = min(request.length, *(len(row) for row in mixed))
    return model, torch.stack([row[:length] for row in mixed[: request.needed]]), f"held-out text of {settings.source}"
