"""Memory that runs out, documents that are broken, tasks that fail: said in a line, and the rest goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from libmoe.core.errors import ConfigError
from libmoe.eval.harness.lm import Scorer
from libmoe.eval.harness.samples import SampleFile


class Small(Scorer):
    """A device on which batches above ``fits`` run out of memory."""

    fits = 3

    def _model_call(self, inps: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(inps) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super()._model_call(inps, *args, **kwargs)


def test_out_of_memory_halves_the_batch_and_says_so(
    moe: nn.Module, tokenizer: Any, task_files: Callable, evaluate: Callable
) -> None:
    folder = task_files()
    small = evaluate(moe, folder, ["choose"], out="small", scorer=Small(moe, tokenizer, 16), batch_size=16)
    whole = evaluate(moe, folder, ["choose"], out="whole", batch_size=16)
    assert small.tasks["choose"].notes == [
        "out of memory with batches of 16; went on with 8",
        "out of memory with batches of 8; went on with 4",
        "out of memory with batches of 4; went on with 2",
    ]
    assert small.tasks["choose"].metrics == whole.tasks["choose"].metrics


def test_a_task_that_never_fits_fails_alone(
    moe: nn.Module, tokenizer: Any, task_files: Callable, evaluate: Callable
) -> None:
    scorer = Small(moe, tokenizer, 4)
    scorer.fits = 0
    found = evaluate(moe, task_files(), ["choose", "write"], scorer=scorer)
    assert "memory does not suffice for a single request" in found.failed["choose"]
    assert list(found.tasks) == ["write"]


def spoil(rows: list[dict[str, Any]]) -> None:
    rows[4]["choices"] = []
    rows[7]["gold"] = 9
    rows[9]["choices"] = None


def test_broken_documents_are_left_out_by_name(
    moe: nn.Module, task_files: Callable, evaluate: Callable, tmp_path: Path
) -> None:
    found = evaluate(moe, task_files(change=spoil), ["choose"], slice_size=6)
    score = found.tasks["choose"]
    assert score.documents == 20 and sorted(score.broken) == [4, 7, 9]
    assert score.broken[7] == "the right answer is choice 9 of 4"
    rows = list(SampleFile(tmp_path / "out" / "samples" / "choose").read())
    assert [row["doc_id"] for row in rows] == list(range(23))
    good = evaluate(moe, task_files(), ["choose"], out="good")
    kept = [r["metrics"] for r in SampleFile(tmp_path / "good" / "samples" / "choose").read()]
    assert [r["metrics"] for r in rows if r["error"] is None] == [
        m for i, m in enumerate(kept) if i not in score.broken
    ]
    assert good.tasks["choose"].documents == 23


def test_a_failing_task_does_not_stop_the_others(
    moe: nn.Module, tokenizer: Any, task_files: Callable, evaluate: Callable
) -> None:
    class Odd(Scorer):
        def generate_until(self, *args: Any, **kwargs: Any) -> Any:
            raise ValueError("no generation today")

    found = evaluate(moe, task_files(), ["write", "choose"], scorer=Odd(moe, tokenizer, 4))
    assert found.failed == {"write": "ValueError: no generation today"}
    assert list(found.tasks) == ["choose"]


def test_slices_do_not_change_scores(moe: nn.Module, task_files: Callable, evaluate: Callable) -> None:
    folder = task_files()
    whole, sliced = (evaluate(moe, folder, ["choose", "write"], out=str(n), slice_size=n) for n in (1000, 5))
    assert whole.tasks == sliced.tasks


def test_items_of_one_passage_are_one_cluster(
    moe: nn.Module, task_files: Callable, evaluate: Callable
) -> None:
    folder = task_files()
    alone = evaluate(moe, folder, ["choose"], out="alone").tasks["choose"].metric("acc")
    together = (
        evaluate(moe, folder, ["choose"], out="together", clusters={"choose": "source"})
        .tasks["choose"]
        .metric("acc")
    )
    assert (alone.clusters, together.clusters) == (23, 8)
    assert alone.value == together.value and alone.stderr == pytest.approx(alone.harness_stderr)
    assert together.low < together.value < together.high and together.stderr != alone.stderr


@pytest.mark.parametrize("name", ["limit", "batch_size", "slice_size"])
def test_impossible_settings_are_named(name: str) -> None:
    from libmoe.eval.harness import Settings

    with pytest.raises(ConfigError, match=f"{name}=0 must be at least 1"):
        Settings(**{name: 0})


MEASURE = """
import json, resource, sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[3])
torch.set_num_threads(1)
from libmoe.data import load_tokenizer
from libmoe.eval.harness import Settings, evaluate_tasks
from libmoe.eval.harness.lm import Scorer
from libmoe.eval.harness.loading import load_tasks
from libmoe.models import BackboneConfig, build_backbone, moeify
config = BackboneConfig(architecture="llama", hidden_size=16, num_hidden_layers=1, intermediate_size=16,
    num_attention_heads=1, num_key_value_heads=1, vocab_size=2048, max_position_embeddings=128)
model = moeify(build_backbone(config, seed=0), "smoe", options={"num_experts": 2, "top_k": 1}, seed=0).eval()
folder, peaks = Path(sys.argv[1]), []
loaded, _, _ = load_tasks(["last_word"], include=folder)
scorer = Scorer(model, load_tokenizer(), 64)
for limit in (1000, 10000):
    settings = Settings(limit=limit, batch_size=64, slice_size=500)
    found = evaluate_tasks(scorer, loaded, Path(sys.argv[2]) / str(limit), settings)
    assert found.tasks["last_word"].documents == limit, found.failed
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(json.dumps(peaks))
"""


@pytest.mark.slow
def test_ten_thousand_samples_stream_in_bounded_memory(task_files: Callable, tmp_path: Path) -> None:
    folder = task_files(count=10_000)
    source = str(Path(__file__).parents[3] / "src")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), str(tmp_path / "out"), source],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    few, many = json.loads(done.stdout.splitlines()[-1])
    assert many - few < 60, (
        few,
        many,
    )  # MB; nine thousand documents more, held at once, take several times that


def spoil_first(rows: list[dict[str, Any]]) -> None:
    rows[0]["choices"] = []
    rows[1]["gold"] = None


def test_a_broken_first_document_does_not_spoil_the_task(
    moe: nn.Module, task_files: Callable, evaluate: Callable
) -> None:
    """The harness itself tries it while it builds the task."""
    score = evaluate(moe, task_files(change=spoil_first), ["choose"]).tasks["choose"]
    assert score.documents == 21 and sorted(score.broken) == [0, 1]


def test_rows_that_a_task_cannot_prepare_are_named(
    moe: nn.Module, task_files: Callable, evaluate: Callable
) -> None:
    folder = task_files(change=lambda rows: rows[5].update(passage=""))
    (folder / "prepare.py").write_text(
        "def split(rows):\n    return rows.map(lambda row: {'first': row['passage'].split()[0]})\n"
    )
    text = (folder / "choose.yaml").read_text().replace("task: choose", "task: prepared")
    (folder / "prepared.yaml").write_text(text + "process_docs: !function prepare.split\n")
    score = evaluate(moe, folder, ["prepared"]).tasks["prepared"]
    assert score.documents == 22
    assert score.notes == [
        "the task could not prepare row 5 of its file: IndexError: list index out of range"
    ]


def test_a_part_of_a_group_that_cannot_be_loaded_is_named_and_the_others_are_scored(
    moe: nn.Module, tokenizer: Any, task_files: Callable, tmp_path: Path
) -> None:
    from libmoe.eval.harness import Settings, evaluate_tasks
    from libmoe.eval.harness.loading import load_tasks

    folder = task_files()
    broken = (folder / "choose.yaml").read_text().replace("task: choose", "task: absent")
    (folder / "absent.yaml").write_text(broken.replace("rows.jsonl", "nowhere.jsonl"))
    for name, members in (("half", "choose, absent"), ("both", "choose, write")):
        metrics = "aggregate_metric_list: [{metric: acc}]" if name == "half" else ""
        (folder / f"{name}.yaml").write_text(f"group: {name}\ntask: [{members}]\n{metrics}\n")
    tasks, groups, failed = load_tasks(["half"], include=folder)
    assert list(tasks) == ["choose"] and not groups
    assert "nowhere.jsonl" in failed["absent"]
    assert failed["half"] == "1 of its parts could not be loaded, so it has no score of its own"
    found = evaluate_tasks(Scorer(moe, tokenizer, 4), tasks, tmp_path / "out", Settings(batch_size=4))
    assert list(found.tasks) == ["choose"]
    tasks, groups, failed = load_tasks(["both"], include=folder)
    assert sorted(tasks) == ["choose", "write"] and list(groups) == ["both"] and not failed


def test_a_task_that_can_evaluate_no_document_fails_by_name(
    moe: nn.Module, task_files: Callable, evaluate: Callable
) -> None:
    folder = task_files()
    (folder / "score.py").write_text("def score(doc, results):\n    raise ValueError('cannot count')\n")
    text = (folder / "choose.yaml").read_text().replace("task: choose", "task: odd")
    (folder / "odd.yaml").write_text(text + "process_results: !function score.score\n")
    found = evaluate(moe, folder, ["odd"])
    reason = "no document can be evaluated; document 0: scoring failed: ValueError: cannot count"
    assert found.failed == {"odd": reason}
