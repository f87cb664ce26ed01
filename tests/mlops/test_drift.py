"""Drift of routing: a divergence with its bounds, alarms on a planted shift and rarely on noise."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import libmoe
from libmoe.analysis.metrics.information import jensen_shannon
from libmoe.core.errors import ConfigError, DataError
from libmoe.mlops import DriftDetector, UsageRecorder
from libmoe.mlops.monitor import events, health, note_events
from libmoe.mlops.usage import usage_of
from libmoe.models import BackboneConfig, build_backbone, moeify

EXPERTS, TOKENS = 8, 256


def sample(
    generator: np.random.Generator, sequences: int, layers: int = 4, weight: list[float] | None = None
) -> dict[int, np.ndarray]:
    """Sequences whose tokens choose alike: each has its own taste, and a common mean."""
    found = {}
    for layer in range(layers):
        base = np.linspace(0.5, 1.5, EXPERTS)
        if weight is not None and layer == 0:
            base = base * np.array(weight)
        taste = generator.dirichlet(20 * base / base.sum(), sequences)
        found[layer] = np.array([generator.multinomial(TOKENS, each) for each in taste], dtype=float)
    return found


def test_the_divergence_is_zero_for_equal_shares_and_at_most_log_2() -> None:
    generator = np.random.default_rng(0)
    p, q = generator.dirichlet(np.ones(6), (2, 200))
    assert np.allclose(jensen_shannon(p, p), 0, atol=1e-12)
    assert np.allclose(jensen_shannon(p, 7 * p), 0, atol=1e-12)
    mixture = (p + q) / 2
    by_hand = ((p * np.log(p / mixture)).sum(1) + (q * np.log(q / mixture)).sum(1)) / 2
    assert np.allclose(jensen_shannon(p, q), by_hand) and np.allclose(
        jensen_shannon(p, q), jensen_shannon(q, p)
    )
    assert (jensen_shannon(p, q) <= math.log(2)).all()
    assert jensen_shannon([1, 0], [0, 1]) == pytest.approx(math.log(2))


def test_it_fires_when_one_expert_gets_three_times_its_load_and_names_it() -> None:
    generator = np.random.default_rng(0)
    detector = DriftDetector(sample(generator, 96))
    drift = detector.check(sample(generator, 48, weight=[1, 1, 3, 1, 1, 1, 1, 1]))
    assert [(each.layer, each.expert) for each in drift.drifted] == [(0, 2)]
    assert drift.drifted[0].share_now > 2 * drift.drifted[0].share_then
    assert "in layer 0 expert 2 went from" in drift.words


def test_resampling_noise_rarely_fires() -> None:
    """100 live samples of the same text, for each of three references; the tokens of a sequence choose alike."""
    generator = np.random.default_rng(0)
    alarms = 0
    for _ in range(3):
        detector = DriftDetector(sample(generator, 96))
        alarms += sum(bool(detector.check(sample(generator, 48)).drifted) for _ in range(100))
    assert alarms < 0.05 * 300


def test_the_unit_of_noise_is_the_sequence() -> None:
    """Counted token by token the threshold would be far too low, and nearly every check an alarm."""
    generator = np.random.default_rng(0)
    reference = sample(generator, 96)
    threshold = DriftDetector(reference).thresholds(48)[0]
    load = reference[0].sum(0)
    by_token = jensen_shannon(load, generator.multinomial(48 * TOKENS, load / load.sum(), 1000))
    assert threshold > 3 * np.quantile(by_token, 0.99)


def test_more_live_text_lowers_the_threshold() -> None:
    detector = DriftDetector(sample(np.random.default_rng(0), 96))
    small, large = (detector.thresholds(size)[0] for size in (8, 400))
    assert large < small / 2


def test_an_expert_that_is_never_used_is_no_obstacle() -> None:
    generator = np.random.default_rng(0)
    reference, live = sample(generator, 64), sample(generator, 64)
    for usage in (reference, live):
        usage[0][:, 3] = 0
        usage[1][:] = [TOKENS, *[0] * (EXPERTS - 1)]  # one expert takes everything: no noise at all
    assert not DriftDetector(reference).check(live).drifted
    live[1][:] = [*[0] * (EXPERTS - 1), TOKENS]
    assert [each.layer for each in DriftDetector(reference).check(live).drifted] == [1]


def test_health_is_what_it_is_by_hand() -> None:
    (found,) = health({0: np.array([[3.0, 0.0], [3.0, 2.0]])}).values()
    assert found == {
        "cv": pytest.approx(0.5),
        "max_violation": pytest.approx(0.5),
        "normalised_entropy": pytest.approx(0.8112781),
        "dead": [],
    }


def test_events_say_what_happened_and_what_to_do_and_are_appended(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    reference, live = sample(generator, 64), sample(generator, 64, weight=[1, 1, 0, 1, 1, 1, 1, 3])
    found = events(DriftDetector(reference).check(live), reference, live)
    assert [each["kind"] for each in found] == ["routing-drift", "dead-experts"]
    assert found[1]["layers"] == [{"layer": 0, "experts": [2]}]
    assert all(each["action"] and each["message"] for each in found)
    for _ in range(2):
        note_events(tmp_path / "events.jsonl", found)
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert lines == found * 2
    assert events(DriftDetector(reference).check(reference), reference, reference) == []


def test_what_cannot_be_compared_is_refused() -> None:
    generator = np.random.default_rng(0)
    reference = sample(generator, 32)
    with pytest.raises(DataError, match="not the same model"):
        DriftDetector(reference).check(sample(generator, 32, layers=3))
    with pytest.raises(DataError, match="fewer than 2 sequences"):
        DriftDetector(reference).check(sample(generator, 1))
    with pytest.raises(ConfigError, match="false_alarms must be from"):
        DriftDetector(reference, false_alarms=0.0)


@pytest.fixture
def model() -> torch.nn.Module:
    config = BackboneConfig("llama", vocab_size=50, hidden_size=16, num_hidden_layers=2, intermediate_size=32)
    return moeify(
        build_backbone(config, seed=0), "smoe", options={"num_experts": 4, "top_k": 2}, seed=0
    ).eval()


def ids(seed: int, batch: int = 3, length: int = 10) -> torch.Tensor:
    return torch.randint(0, 50, (batch, length), generator=torch.Generator().manual_seed(seed))


def test_the_recorder_counts_by_sequence_without_padding(model: torch.nn.Module) -> None:
    recorder, mask = UsageRecorder(every=1), torch.ones(3, 10, dtype=torch.long)
    mask[1, 6:] = 0
    with torch.no_grad(), libmoe.options(recorders=[recorder]):
        model(input_ids=ids(0), attention_mask=mask)
        model(input_ids=ids(1))
    usage = recorder.usage()
    assert {layer: count.shape for layer, count in usage.items()} == {0: (6, 4), 1: (6, 4)}
    assert usage[0].sum(1).tolist() == [20, 12, 20, 20, 20, 20]


def test_a_trace_gives_what_the_recorder_gives(model: torch.nn.Module, tmp_path: Path) -> None:
    from libmoe.analysis import TraceRecorder

    recorder = UsageRecorder(every=1)
    with (
        torch.no_grad(),
        TraceRecorder(tmp_path / "trace") as trace,
        libmoe.options(recorders=[recorder, trace]),
    ):
        for seed in range(3):
            model(input_ids=ids(seed))
    ours, theirs = recorder.usage(), usage_of(tmp_path / "trace")
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[layer], theirs[layer]) for layer in ours)


def test_it_looks_at_one_forward_pass_in_so_many_and_keeps_the_newest(model: torch.nn.Module) -> None:
    everything, recorder = UsageRecorder(every=1), UsageRecorder(every=2, keep=4)
    with torch.no_grad(), libmoe.options(recorders=[everything, recorder]):
        for seed in range(6):
            model(input_ids=ids(seed))
    looked_at = everything.usage()[0].reshape(6, 3, 4)[::2].reshape(-1, 4)
    assert np.array_equal(recorder.usage()[0], looked_at[-4:])
    recorder.clear()
    assert recorder.usage() == {}


@pytest.mark.parametrize("method", ["soft-moe", "expert-choice", "hash"])
def test_every_kind_of_plan_is_counted(method: str) -> None:
    config = BackboneConfig("llama", vocab_size=50, hidden_size=16, num_hidden_layers=1, intermediate_size=32)
    model, recorder = moeify(build_backbone(config, seed=0), method, seed=0).eval(), UsageRecorder(every=1)
    with torch.no_grad(), libmoe.options(recorders=[recorder]):
        model(input_ids=ids(0))
    (count,) = recorder.usage().values()
    assert len(count) == 3 and (count.sum(1) > 0).all()
