"""What went wrong while training is told with the comparison."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from libmoe.report import summarise
from libmoe.report.html import page as page_of

Spoil = Callable[..., Path]


def raise_alarm(folder: Path, run: str, step: int, kind: str, layer: int | None) -> None:
    """Note an alarm in the run's record of ``step``, as training does."""
    path = folder / run / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    record = next(record for record in records if record["step"] >= step)
    record.setdefault("alarms", []).append({"kind": kind, "layer": layer, "message": "said in the log"})
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def steps_of(folder: Path, run: str) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / run / "metrics.jsonl").open(encoding="utf-8")]


def test_alarms_are_counted_by_run_with_their_layers_and_steps(spoiled: Spoil) -> None:
    folder = spoiled()
    early, late = steps_of(folder, "topk-s0")[0], steps_of(folder, "topk-s0")[-1]
    raise_alarm(folder, "topk-s0", early, "collapse", 1)
    raise_alarm(folder, "topk-s0", late, "collapse", 0)
    raise_alarm(folder, "topk-s1", late, "loss_spike", None)
    summary: dict[str, Any] = summarise(folder)
    (entry,) = summary["alarms"]
    assert entry["method"] == "topk" and entry["runs"] == len(list(folder.glob("topk-s*")))
    collapse, spike = entry["alarms"]
    assert collapse == {
        "kind": "collapse", "seeds": [0], "layers": [0, 1], "times": 2, "first": early, "last": late
    }  # fmt: skip
    assert spike["seeds"] == [1] and spike["layers"] == []
    page = page_of(summary)
    assert f"1 of {entry['runs']}, layers 0 and 1, steps {early} to {late}" in page
    assert f"1 of {entry['runs']}, step {late}" in page


def test_who_collapsed_is_a_sentence_of_the_findings(spoiled: Spoil) -> None:
    folder = spoiled()
    for run, kind in (("topk-s0", "collapse"), ("remoe-s0", "dead_experts"), ("remoe-s1", "dead_experts")):
        raise_alarm(folder, run, 1, kind, 0)
    (said,) = [s for s in summarise(folder)["headline"] if "Alarms" in s]
    assert "collapsed loads in Top-2 softmax (in 1 of" in said and "experts without tokens in ReMoE (in 2 of" in said


def test_where_none_was_raised_the_page_says_so(grid_dir: Path) -> None:
    summary = summarise(grid_dir)
    assert summary["alarms"] == [] and not any("Alarms" in s for s in summary["headline"])
    assert "No alarm was raised while training." in page_of(summary)


def test_damaged_alarms_are_no_error(spoiled: Spoil) -> None:
    folder = spoiled()
    path = folder / "topk-s0" / "metrics.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": 9, "alarms": "many"}\n{"alarms": [1, {"kind": "collapse", "layer": "x"}]}\n')
    (entry,) = summarise(folder)["alarms"]
    (alarm,) = entry["alarms"]
    assert alarm["layers"] == [] and alarm["first"] is None and alarm["last"] is None
