"""One entry of the catalogue: its fields, its controlled vocabulary and the reading of raw data into it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from types import MappingProxyType
from typing import Any

from libmoe.core.errors import ConfigError, unknown

KINDS: Mapping[str, str] = MappingProxyType({
    "router": "how tokens are scored and assigned to experts",
    "experts": "what an expert is and what experts share",
    "attention": "experts or routing inside attention, or another sequence mixer",
    "backbone": "the layout of a whole model",
    "balance-loss": "losses and rules that spread the load",
    "regulariser": "losses, masks and noise against over-fitting or interference",
    "gradient-estimator": "how gradients reach a discrete choice",
    "training-schedule": "stages, freezing, growth and curricula",
    "peft": "experts or routing in parameter-efficient fine-tuning",
    "conversion": "from a dense model to an MoE: upcycling, splitting, mixing",
    "pruning": "removing experts, neurons or weights",
    "merging": "joining experts or models in parameter space",
    "quantisation": "low-precision weights and codes",
    "factorisation": "low-rank, shared-basis and tensor decompositions",
    "distillation": "training a model to imitate another",
    "kernels": "dispatch and expert computation on the device",
    "parallelism": "dividing training or inference over processes",
    "placement": "which device holds which expert",
    "serving": "offloading, caching, prefetch and scheduling at inference",
    "decoding": "routing edits and search while generating",
    "performance-model": "costs of time, memory and compute, and scaling laws",
    "theory": "proofs and statistical estimation",
    "analysis": "what routers and experts are found to do",
    "evaluation": "benchmarks and protocols of comparison",
    "data": "data sets and samplers",
    "security": "attacks and robustness",
    "operations": "the life cycle around a model: tracking, lineage, registry, monitoring",
    "survey": "a review of other work",
    "vision": "images",
    "speech": "speech and audio",
    "multimodal": "several modalities in one model",
    "translation": "machine translation",
    "multitask": "many tasks in one model",
    "diffusion": "diffusion models",
    "time-series": "forecasting",
    "games": "game playing",
})
"""The controlled vocabulary of ``Paper.kinds``, each with what it covers."""

STATUSES = ("built", "partial", "planned")
SUMMARY_WORDS = 40

_ARXIV_OR_DOI = re.compile(r"\d{4}\.\d{4,5}|10\.\d{4,9}/\S+")
_NAME = re.compile(r"[a-z0-9]+(?:[.-][a-z0-9]+)*")


@dataclass(frozen=True)
class Paper:
    """A published paper and what this library makes of it.

    Args:
        number: place in the catalogue, from 1.
        key: short unique name, lower case.
        title: the full title.
        arxiv: arXiv identifier, or a DOI where there is none.
        venue: where it appeared; ``arXiv`` when the preprint is all there is.
        year: year of that appearance.
        kinds: what it is about, names from :data:`KINDS`.
        summary: what it is, at most :data:`SUMMARY_WORDS` words.
        methods: registered methods that realise it today.
        parts: names of the parts the library gives, or will give, to it.
        checks: test files that prove its defining properties.
        status: ``built``, ``partial`` (some of its parts) or ``planned``.
    """

    number: int
    key: str
    title: str
    arxiv: str
    venue: str
    year: int
    kinds: tuple[str, ...]
    summary: str
    methods: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()
    status: str = "planned"

    def __post_init__(self) -> None:
        for name in ("title", "venue", "summary", "kinds"):
            if not getattr(self, name):
                raise ConfigError(f"paper {self.number}: {name} is empty")
        for kind in self.kinds:
            check_kind(kind)
        check_status(self.status)
        for name in (self.key, *self.parts, *self.methods):
            if not _NAME.fullmatch(name):
                raise ConfigError(f"paper {self.number}: {name!r} is not lower-case words joined by hyphens")
        if not _ARXIV_OR_DOI.fullmatch(self.arxiv):
            raise ConfigError(f"paper {self.number}: arxiv {self.arxiv!r} is neither an arXiv id nor a DOI")
        words = len(self.summary.split())
        if words > SUMMARY_WORDS:
            raise ConfigError(f"paper {self.number}: summary has {words} words; the limit is {SUMMARY_WORDS}")


def check_kind(kind: str) -> None:
    """Raise :class:`ConfigError` naming the nearest kind when ``kind`` is not in the vocabulary."""
    if kind not in KINDS:
        raise unknown("kind of paper", kind, KINDS)


def check_status(status: str) -> None:
    """Raise :class:`ConfigError` naming the nearest status when ``status`` is none."""
    if status not in STATUSES:
        raise unknown("status of a paper", status, STATUSES)


def read_entries(raw: object) -> tuple[Paper, ...]:
    """Turn parsed YAML into entries, in order of number.

    Raises:
        ConfigError: a field is unknown, missing or of the wrong type, a value is outside its vocabulary, or
            two entries share a number or a key.
    """
    if not isinstance(raw, list):
        raise ConfigError(f"the catalogue of papers must be a list of entries, not {type(raw).__name__}")
    entries = sorted((_read_entry(item) for item in raw), key=lambda entry: entry.number)
    _check_unique("number", (entry.number for entry in entries))
    _check_unique("key", (entry.key for entry in entries))
    return tuple(entries)


def _read_entry(raw: object) -> Paper:
    if not isinstance(raw, dict):
        raise ConfigError(f"an entry of the catalogue must be a mapping, not {raw!r}")
    label = f"paper {raw.get('number', '?')}"
    types = {field.name: str(field.type) for field in fields(Paper)}
    for name in raw:
        if name not in types:
            raise unknown(f"field of {label}", name, types)
    for field in fields(Paper):
        if field.default is MISSING and field.name not in raw:
            raise ConfigError(f"{label}: {field.name} is missing")
    values: dict[str, Any] = {}
    for name, value in raw.items():
        if types[name].startswith("tuple"):
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise ConfigError(f"{label}: {name} must be a list of names, not {value!r}")
            values[name] = tuple(value)
        else:
            wanted = int if types[name] == "int" else str
            if not isinstance(value, wanted) or isinstance(value, bool):
                raise ConfigError(f"{label}: {name} must be {wanted.__name__}, not {value!r}")
            values[name] = value
    return Paper(**values)


def _check_unique(name: str, values: Iterable[int | str]) -> None:
    seen: set[int | str] = set()
    for value in values:
        if value in seen:
            raise ConfigError(f"two papers of the catalogue have {name} {value!r}")
        seen.add(value)
