"""In which domains a method differs from the baseline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from libmoe.report.compare import entry, seed_scatter
from libmoe.report.load import Grid
from libmoe.report.units import Evaluations
from libmoe.stats import crossed_t, holm


def compare_domains(
    grid: Grid, evaluations: Evaluations, methods: Sequence[dict[str, Any]], baseline: str | None
) -> int:
    """Add ``domain_differences`` to each method: ``{domain: difference}`` as of :mod:`libmoe.report.compare`.

    Scatter of seeds is pooled over methods within the domain, and p-values are corrected by Holm over all methods and
    domains together: returns how many claims that are.
    """
    domains = dict.fromkeys(domain for row in grid.ranked for domain in row.domains)
    pools = {domain: seed_scatter(grid.ranked, domain) for domain in domains}
    p_values: dict[tuple[str, str], float] = {}
    for method in methods:
        method["domain_differences"] = {}
        if method["difference"] is None or not method["causal"]:
            continue
        name, seeds = method["method"], list(method["difference"]["by_seed"])
        held = evaluations.shared([row for row in grid.finished if row.method in (name, baseline)])
        for domain in dict.fromkeys(held.domain_U) if held.kind != "runs" else ():
            part = held.within(domain)
            found = crossed_t(part.gain(name, str(baseline), seeds), part.units, pool=pools.get(domain))
            method["domain_differences"][domain] = entry(found, held.kind, seeds)
            if math.isfinite(found.p_value):
                p_values[name, domain] = found.p_value
    for (name, domain), corrected in holm(p_values).items():
        told = next(method for method in methods if method["method"] == name)
        told["domain_differences"][domain]["p_corrected"] = corrected
    return len(p_values)
