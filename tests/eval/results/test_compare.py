"""Models compared on the documents they share: planted differences come out, what cannot be paired is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from libmoe.core.errors import ConfigError, DataError
from libmoe.data import TASKS
from libmoe.eval.results import compare
from libmoe.stats import holm, paired


def answers(share: float, seed: int, items: int = 200) -> list[float]:
    return (np.random.default_rng(seed).random(items) < share).astype(float).tolist()


def test_real_evaluations_are_compared_on_every_task(real: dict[str, Path]) -> None:
    found = compare([real["dense"], real["moe"]])
    assert [model["label"] for model in found.models] == ["dense", "moe"]
    assert sorted(row.name for row in found.tasks) == sorted(TASKS)
    for row in found.tasks:
        assert (row.documents, row.left_out) == (24, 0)
        assert row.low <= row.difference <= row.high
        assert row.difference == pytest.approx(row.b - row.a) == pytest.approx((row.wins - row.losses) / 24)
        assert row.exact and row.corrected >= row.p_value
    assert any(row.wins + row.losses for row in found.tasks)
    (overall,) = found.overall
    assert overall.difference == pytest.approx(np.mean([row.difference for row in found.tasks]))
    assert overall.tasks == len(TASKS) and overall.documents == 24 * len(TASKS)
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_metric_can_be_asked_for(real: dict[str, Path]) -> None:
    found = compare([real["dense"], real["moe"]], metric="acc_norm", tasks=["moe_domain"])
    assert [(row.name, row.metric) for row in found.tasks] == [("moe_domain", "acc_norm,none")]
    with pytest.raises(DataError, match="no metric acc_nrm"):
        compare([real["dense"], real["moe"]], metric="acc_nrm")


def test_differences_are_those_of_the_paired_statistics(plant: Callable[..., Path]) -> None:
    clusters = [str(i // 4) for i in range(200)]
    a, b = answers(0.5, 1), answers(0.7, 2)
    found = compare(
        [plant("a", {"x": a}, clusters=clusters, part=64), plant("b", {"x": b}, clusters=clusters)]
    )
    (row,) = found.tasks
    direct = paired(a, b, clusters)
    assert (row.difference, row.stderr, row.low, row.high) == direct[:4]
    assert row.p_value == direct.p_value and row.clusters == 50
    assert row.verdict == "better" and row.words == "better"


def test_verdicts_hold_after_correction_over_all_tasks(plant: Callable[..., Path]) -> None:
    base = {f"t{i}": answers(0.5, i) for i in range(12)}
    other = {name: answers(0.5, 100 + i) for i, name in enumerate(base)}
    other["t3"] = [1.0] * 150 + base["t3"][150:]
    other["t7"] = [0.0] * 150 + base["t7"][150:]
    found = compare([plant("a", base), plant("b", other)])
    verdicts = {row.name: row.verdict for row in found.tasks}
    assert verdicts.pop("t3") == "better" and verdicts.pop("t7") == "worse"
    assert set(verdicts.values()) == {"no difference seen"}
    expected = holm({row.name: row.p_value for row in found.tasks})
    assert {row.name: row.corrected for row in found.tasks} == expected
    unseen = next(row for row in found.tasks if row.name == "t0")
    assert 0.1 < unseen.detectable < 0.3 and f"{unseen.detectable:.3g}" in unseen.words


def test_lower_is_better_turns_the_verdict(plant: Callable[..., Path]) -> None:
    low, high = [0.1 * (i % 3) for i in range(60)], [0.5 + 0.1 * (i % 3) for i in range(60)]
    found = compare([plant("a", {"x": low}, better=False), plant("b", {"x": high}, better=False)])
    assert found.tasks[0].verdict == "worse" and not found.overall
    unknown = compare([plant("a", {"x": low}, better=None), plant("b", {"x": high}, better=None)])
    assert unknown.tasks[0].verdict == "higher"


def test_documents_broken_in_either_are_left_out_of_both(plant: Callable[..., Path]) -> None:
    a, b = answers(0.5, 1, 40), answers(0.5, 2, 40)
    sound = paired(a[4:], b[4:])
    spoilt_a, spoilt_b = [None, None, *a[2:]], [b[0], None, None, None, *b[4:]]
    found = compare([plant("a", {"x": spoilt_a}), plant("b", {"x": spoilt_b})])
    (row,) = found.tasks
    assert (row.documents, row.left_out) == (36, 4)
    assert (row.difference, row.stderr) == (sound.difference, sound.stderr)
    assert row.a == np.mean(a[4:]) and "left out" in " ".join(found.notes)


def test_averages_weigh_tasks_alike_and_members_of_a_group_as_one(plant: Callable[..., Path]) -> None:
    sizes = {"alone": 30, "part1": 50, "part2": 80, "part3": 20}
    a = {name: answers(0.4, i, size) for i, (name, size) in enumerate(sizes.items())}
    b = {name: answers(0.6, 10 + i, size) for i, (name, size) in enumerate(sizes.items())}
    entries = {name: "group" for name in sizes if name != "alone"}
    skills = {"alone": "reading"} | dict.fromkeys(entries, "knowledge")
    options = {"entries": entries, "skills": skills}
    found = compare([plant("a", a, **options), plant("b", b, **options)])
    difference = {row.name: row.difference for row in found.tasks}
    group = np.mean([difference[name] for name in entries])
    (overall,) = found.overall
    assert overall.difference == pytest.approx((difference["alone"] + group) / 2)
    assert {row.name: row.difference for row in found.skills} == pytest.approx(
        {"reading": difference["alone"], "knowledge": group}
    )
    assert overall.low < overall.difference < overall.high and overall.wins is None


def test_several_models_are_compared_with_the_first_and_corrected_together(
    plant: Callable[..., Path],
) -> None:
    folders = [plant(name, {"x": answers(0.5, i), "y": answers(0.5, i + 9)}) for i, name in enumerate("abc")]
    found = compare(folders)
    assert [(row.name, row.model) for row in found.tasks] == [("x", "b"), ("x", "c"), ("y", "b"), ("y", "c")]
    assert (
        min(row.corrected for row in found.tasks)
        >= min(1, 4 * min(row.p_value for row in found.tasks)) - 1e-12
    )
    assert [row.model for row in found.overall] == ["b", "c"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"limit": 100}, "limit=None and limit=100"),
        ({"shots": 5}, "shots=None and shots=5"),
        ({"chat_template": True}, "chat_template=None and chat_template=True"),
        ({"seed": 1}, "seed=1234 and seed=1"),
    ],
)
def test_other_settings_are_refused(plant: Callable[..., Path], change: dict, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        compare([plant("a", {"x": answers(0.5, 1)}), plant("b", {"x": answers(0.5, 2)}, **change)])


def test_another_batch_size_is_no_other_setting(plant: Callable[..., Path]) -> None:
    folders = [plant("a", {"x": answers(0.5, 1)}), plant("b", {"x": answers(0.5, 2)}, batch_size=1)]
    assert not compare(folders).warnings


def test_another_version_of_one_task_leaves_the_others(plant: Callable[..., Path]) -> None:
    a, b = (
        plant("a", {"x": answers(0.5, 1), "y": answers(0.5, 2)}),
        plant("b", {"x": answers(0.5, 3)}, version=2),
    )
    with pytest.raises(DataError, match="version 1 and version 2"):
        compare([a, b])
    file = b / "eval" / "evaluation.json"
    facts = json.loads(file.read_text())
    facts["tasks"]["y"] = json.loads((a / "eval" / "evaluation.json").read_text())["tasks"]["y"]
    file.write_text(json.dumps(facts))
    shutil.copytree(a / "eval" / "samples" / "y", b / "eval" / "samples" / "y")
    found = compare([a, b])
    assert [row.name for row in found.tasks] == ["y"]
    assert found.refused[0]["task"] == "x" and "version" in found.refused[0]["reason"]
    assert found.tasks[0].words == "no difference: equal on every document"


def test_other_documents_are_refused(plant: Callable[..., Path]) -> None:
    a = plant("a", {"x": answers(0.5, 1, 40)})
    with pytest.raises(DataError, match="40 and 39 documents"):
        compare([a, plant("b", {"x": answers(0.5, 2, 39)})])
    with pytest.raises(DataError, match="document 0 is not the same"):
        compare([a, plant("c", {"x": answers(0.5, 2, 40)}, data="other ")])


def test_missing_samples_are_named(plant: Callable[..., Path]) -> None:
    a, b = plant("a", {"x": answers(0.5, 1), "y": answers(0.5, 1)}), plant("b", {"x": answers(0.5, 2)})
    shutil.rmtree(b / "eval" / "samples" / "x")
    with pytest.raises(DataError, match="no samples of x"):
        compare([a, b])


def test_tasks_of_one_evaluation_only_are_noted(plant: Callable[..., Path]) -> None:
    a, b = plant("a", {"x": answers(0.5, 1), "y": answers(0.5, 1)}), plant("b", {"x": answers(0.5, 2)})
    found = compare([a, b])
    assert [row.name for row in found.tasks] == ["x"] and "not evaluated with b: y" in found.notes
    with pytest.raises(ConfigError, match="did you mean 'x'"):
        compare([a, b], tasks=["x1"])
    with pytest.raises(DataError, match="no task in common"):
        compare([a, plant("c", {"z": answers(0.5, 2)})])


def test_a_score_that_samples_do_not_give_again_has_no_interval(plant: Callable[..., Path]) -> None:
    found = compare([plant("a", {"x": answers(0.5, 1)}), plant("b", {"x": answers(0.5, 2)})], metric="rank")
    (row,) = found.tasks
    assert (row.verdict, row.low, row.p_value) == ("not tested", None, None)
    assert (row.a, row.b) == (17, 17) and any("no interval" in note for note in found.notes)


def test_one_folder_or_the_same_twice_is_no_comparison(plant: Callable[..., Path]) -> None:
    a = plant("a", {"x": answers(0.5, 1)})
    with pytest.raises(ConfigError, match="two or more"):
        compare([a])
    with pytest.raises(ConfigError, match="given 2 times"):
        compare([a, a / "eval"])


def test_flags_of_a_model_become_warnings(plant: Callable[..., Path]) -> None:
    flag = {"kind": "cross-batch", "method": "expert-choice", "layers": [], "text": "tokens compete"}
    a = plant("a", {"x": answers(0.5, 1)}, batch_size=1)
    b = plant("b", {"x": answers(0.5, 2)}, flags=[flag], batch_size=32)
    assert compare([a, b]).warnings == ["b: tokens compete", "batch sizes differ: a 1, b 32"]


def test_labels_are_the_shortest_that_differ(plant: Callable[..., Path]) -> None:
    folders = [plant(name, {"x": answers(0.5, 1)}) for name in ("one/model", "two/model")]
    assert [model["label"] for model in compare(folders).models] == ["one/model", "two/model"]


def test_too_few_documents_are_said_to_show_nothing(plant: Callable[..., Path]) -> None:
    found = compare([plant("a", {"x": [0, 0, 1, 0]}), plant("b", {"x": [1, 1, 1, 1]})])
    assert found.tasks[0].words == "no difference seen; too few documents to see any"
