"""What decides a run is in its digests, and the same recipe gives the same run, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from libmoe.core.config import to_dict
from libmoe.mlops import trace_back
from libmoe.mlops.lineage import metrics_of
from libmoe.train import load_recipe, train
from libmoe.train.provenance import digest_of


def test_the_same_recipe_gives_the_same_losses_and_weights(run: Path, tmp_path: Path) -> None:
    train(load_recipe(run / "recipe.yaml"), tmp_path / "again", quiet=True)
    assert (run / "metrics.jsonl").read_bytes() == (tmp_path / "again" / "metrics.jsonl").read_bytes()
    ours, theirs = trace_back(run), trace_back(tmp_path / "again")
    assert ours.weights == theirs.weights and ours.recipe == theirs.recipe and ours.data == theirs.data


def test_another_seed_gives_other_weights_and_another_digest(run: Path, tmp_path: Path) -> None:
    train(load_recipe(run / "recipe.yaml", ["seed=1"]), tmp_path / "again", quiet=True)
    ours, theirs = trace_back(run), trace_back(tmp_path / "again")
    assert ours.weights != theirs.weights and ours.recipe != theirs.recipe


def test_other_text_changes_the_fingerprint(run: Path, tmp_path: Path) -> None:
    source = Path(next(iter(trace_back(run).data)))
    for file in source.rglob("*.txt"):
        copy = tmp_path / "corpus" / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(file.read_text() + (" more" if file.name == "7.txt" else ""))
    train(
        load_recipe(run / "recipe.yaml", [f"data.source={tmp_path / 'corpus'}"]),
        tmp_path / "again",
        quiet=True,
    )
    (then,), (now,) = trace_back(run).data.values(), trace_back(tmp_path / "again").data.values()
    assert then != now


@pytest.mark.parametrize("change", ["seed=1", "train.lr=1e-2", "method.options.top_k=1", "data.seq_len=32"])
def test_every_setting_is_in_the_digest_of_the_recipe(change: str) -> None:
    before, after = (digest_of(to_dict(load_recipe("tiny", overrides))) for overrides in ([], [change]))
    assert before != after


def test_metrics_have_names_and_routing_is_told_by_its_worst_layer() -> None:
    layers = [
        {"max_violation": 0.1, "normalised_entropy": 0.9, "dead": 0},
        {"max_violation": 0.5, "normalised_entropy": 0.7, "dead": 2},
    ]
    found = metrics_of(
        {
            "bits_per_byte": 2.5,
            "domains": {"code": 3.0},
            "tasks": {"arc": {"acc": 0.5, "alias": "arc", "exact": True}},
            "cost": {"total_params": 10},
            "routing": {"layers": layers},
        }
    )
    assert found == {
        "bits_per_byte": 2.5,
        "domains.code": 3.0,
        "tasks.arc.acc": 0.5,
        "cost.total_params": 10.0,
        "routing.max_violation": 0.5,
        "routing.normalised_entropy": 0.7,
        "routing.dead": 2.0,
    }
