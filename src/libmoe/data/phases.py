"""Domains that join training later: a mixture in phases, as a curriculum against over-fitting of small domains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from libmoe.core.errors import ConfigError, unknown
from libmoe.data.mixing import weights


def phases(
    sizes: Mapping[str, int], mixture: str | Mapping[str, float], joins: Mapping[str, int]
) -> list[tuple[int, dict[str, float]]]:
    """First step and weights by domain of each phase: in all of them, the domains that have joined by then.

    Phased curriculum (Elbayad et al., arXiv 2212.07571 §3; NLLB-200, arXiv 2207.04672).

    Args:
        sizes, mixture: as in :class:`~libmoe.data.mixing.Mixing`.
        joins: the first step of domains that come later; all others are there from the beginning.

    Raises:
        ConfigError: an unknown domain, a step below 0, a first phase without a domain, or an impossible mixture.
    """
    for domain, step in joins.items():
        if domain not in sizes:
            raise unknown("domain that joins later", domain, sizes)
        if step < 0:
            raise ConfigError(f"domain {domain!r} joins at step {step}; give the step that it is first in, from 0")
    share = dict(zip(sizes, weights(sizes, mixture), strict=True))
    starts = sorted({0, *joins.values()})
    found = [(start, {d: w for d, w in share.items() if joins.get(d, 0) <= start}) for start in starts]
    if not sum(found[0][1].values()) > 0:
        raise ConfigError("all domains of the mixture join later; leave at least one out of joins")
    return found


def joining_steps(best_step: Mapping[str, int], steps: int, starts: Sequence[int]) -> dict[str, int]:
    """When each domain should join a run of ``steps``, by a run in which all were there from the beginning.

    ``best_step`` is the step of that run after which a domain's validation loss was lowest; beyond it the domain is
    over-fitted.  It joins at the last of ``starts`` that leaves it so many steps, and at the first where none does.
    The released models have four phases, from steps 0, 170,000, 230,000 and 270,000 of 300,000; how domains are shared
    out to them is not certain in the sources at hand beyond this.

    Raises:
        ConfigError: no start, or one outside the run.
    """
    if not starts or min(starts) < 0 or max(starts) >= steps:
        raise ConfigError(f"starts={list(starts)} must be steps of the run, from 0 to {steps - 1}")
    return {
        domain: max((start for start in starts if steps - start >= best), default=min(starts))
        for domain, best in best_step.items()
    }
