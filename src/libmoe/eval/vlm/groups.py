"""Scores of lmms-eval's groups, by its own rules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from libmoe.eval.harness.scores import TaskScore
from libmoe.eval.vlm.loading import Loaded


def score_groups(loaded: Loaded, scores: Mapping[str, TaskScore]) -> dict[str, dict[str, float]]:
    """What the groups in ``loaded`` score; nothing where a member failed or lmms-eval aggregates nothing."""
    from lmms_eval.api.group import ConfigurableGroup
    from lmms_eval.evaluator_utils import consolidate_group_results

    groups = [group for group in loaded.tree if isinstance(group, ConfigurableGroup)]
    if not groups or loaded.failed or set(loaded.tasks) - set(scores):
        return {}
    known: defaultdict[str, dict[str, object]] = defaultdict(dict)
    for name, score in scores.items():
        known[name] = {"alias": name, "samples": score.documents}
        for m in score.metrics:
            if "/" in m.name:
                continue  # a part of a benchmark
            known[name][f"{m.name},{m.filter}"] = m.value
            known[name][f"{m.name}_stderr,{m.filter}"] = (
                "N/A" if m.harness_stderr is None else m.harness_stderr
            )
    versions = {name: score.version for name, score in scores.items()}
    results, *_ = consolidate_group_results(known, versions, loaded.tree)
    found = {}
    for group in groups:
        values = {
            key.removesuffix(",none"): float(value)
            for key, value in results.get(group.group_name, {}).items()
            if "," in key and "_stderr," not in key and isinstance(value, (int, float))
        }
        if values:
            found[group.group_name] = values
    return found
