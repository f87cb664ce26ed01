"""A model is asked and scored as by lmms-eval's own command, and nothing is lost or stopped by what goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from libmoe.core.errors import CheckpointError, ConfigError
from libmoe.eval.harness.samples import SampleFile
from libmoe.eval.harness.scores import Evaluation
from libmoe.eval.opening import open_model
from libmoe.eval.suites import SuiteTask

pytestmark = pytest.mark.vision


def rows(out: Path, task: str) -> list[dict]:
    return list(SampleFile(out / "samples" / task).read())


def test_scores_are_those_of_its_own_command_to_the_last_digit(
    llava: Path,
    local_tasks: Path,
    tmp_path: Path,
    evaluate: Callable[..., Evaluation],
    suite_task: Callable[..., SuiteTask],
    in_environment: Callable[..., str],
) -> None:
    in_environment(
        "-m", "lmms_eval", "--model", "llava_hf", "--model_args", f"pretrained={llava},device_map=cpu", "--device",
        "cpu", "--tasks", "shapes", "--include_path", str(local_tasks), "--batch_size", "1", "--output_path",
        str(tmp_path / "theirs"), "--log_samples",
    )  # fmt: skip
    theirs = json.loads(next((tmp_path / "theirs").rglob("*_results.json")).read_text())["results"]["shapes"]
    answers = [
        json.loads(line)["filtered_resps"]
        for line in next((tmp_path / "theirs").rglob("*_samples_shapes.jsonl")).read_text().splitlines()
    ]
    ours = evaluate(llava, [suite_task("shapes")], tmp_path / "ours", include=local_tasks, slice_size=7)
    score = ours.tasks["shapes"]
    assert not ours.failed
    assert score.metric("acc").value == theirs["acc,none"]
    assert score.metric("length").value == theirs["length,none"]
    assert [row["filtered"]["none"] for row in rows(tmp_path / "ours", "shapes")] == [[a] for a in answers]
    # The model answers by what it sees, so the numbers above are no accident.
    assert len(set(answers)) >= 5
    assert 0 < score.metric("acc").value < 1
    assert score.metric("length").harness_stderr is None  # bootstrap=0


def test_samples_hold_everything_but_the_images(
    llava: Path,
    local_tasks: Path,
    tmp_path: Path,
    evaluate: Callable[..., Evaluation],
    suite_task: Callable[..., SuiteTask],
) -> None:
    found = evaluate(llava, [suite_task("shapes", cluster="picture")], tmp_path, include=local_tasks, limit=6)
    kept = rows(tmp_path, "shapes")
    assert [row["doc_id"] for row in kept] == list(range(6))
    assert [row["cluster"] for row in kept] == ["0", "0", "1", "1", "2", "2"]
    assert found.tasks["shapes"].metric("acc").clusters == 3
    assert kept[0]["document"]["image_b64"].keys() == {"length", "blake2b"}
    assert kept[0]["document"]["question"].startswith("What is shown")
    assert kept[0]["target"] == "A"
    assert kept[0]["responses"][0][0] == kept[0]["filtered"]["none"][0]
    assert kept[0]["score.acc,none"] in (0.0, 1.0)
    assert not list((tmp_path / "answers").glob("*"))


def test_a_killed_run_goes_on_where_it_stopped(
    llava: Path, local_tasks: Path, tmp_path: Path, evaluate: Callable[..., Evaluation],
    suite_task: Callable[..., SuiteTask], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    tasks = [suite_task("shapes"), suite_task("torn")]
    whole = evaluate(llava, tasks, tmp_path / "whole", include=local_tasks, slice_size=10)
    monkeypatch.setenv("DIE_AT", "13")
    cut = evaluate(llava, tasks, tmp_path / "cut", include=local_tasks, slice_size=10)
    assert "ended with code 9" in cut.failed["shapes"]
    assert cut.tasks["torn"].metrics == whole.tasks["torn"].metrics  # the other task does not suffer for it
    (answers,) = (tmp_path / "cut" / "answers").glob("shapes-*.jsonl")
    assert len(answers.read_text().splitlines()) == 3  # 10, 11, 12
    monkeypatch.delenv("DIE_AT")
    before = (tmp_path / "cut" / "samples" / "shapes" / "part-00000000-00000010.parquet").stat().st_mtime_ns
    seen: list[tuple[str, int, int]] = []
    again = evaluate(
        llava, tasks, tmp_path / "cut", include=local_tasks, slice_size=10, progress=lambda *p: seen.append(p)
    )
    assert ("shapes", 13, 24) in seen
    assert ("shapes", 11, 24) not in seen
    assert again == whole
    assert rows(tmp_path / "cut", "shapes") == rows(tmp_path / "whole", "shapes")
    assert (
        tmp_path / "cut" / "samples" / "shapes" / "part-00000000-00000010.parquet"
    ).stat().st_mtime_ns == before


def test_ctrl_c_ends_the_worker_too(
    llava: Path, local_tasks: Path, tmp_path: Path, vision_python: Path
) -> None:
    code = textwrap.dedent(f"""
        from pathlib import Path
        from libmoe.eval.harness.settings import Settings
        from libmoe.eval.opening import open_model
        from libmoe.eval.suites import Source, SuiteTask
        from libmoe.eval.vlm import evaluate_vision
        task = SuiteTask(name="shapes", harness="lmms", task="shapes", skill="other", type="generate",
                         metric="acc,none", data=(Source("json", "test"),))
        evaluate_vision(open_model({str(llava)!r}), [task], Path({str(tmp_path)!r}), Settings(bootstrap=0),
                        include={str(local_tasks)!r}, progress=lambda *p: print(*p, flush=True))
    """)
    source = str(Path(sys.modules["libmoe"].__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=os.environ | {"PYTHONPATH": source}, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("shapes 2 "):
            break
    workers = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert workers
    process.send_signal(signal.SIGINT)
    process.stdout.close()
    assert process.wait(30) != 0
    until = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < until, "the worker outlives its parent"
        time.sleep(0.1)


def test_broken_documents_and_tasks_are_named_and_the_rest_goes_on(
    llava: Path,
    local_tasks: Path,
    tmp_path: Path,
    evaluate: Callable[..., Evaluation],
    suite_task: Callable[..., SuiteTask],
) -> None:
    found = evaluate(
        llava, [suite_task("unscored"), suite_task("torn")], tmp_path, include=local_tasks, limit=8
    )
    score = found.tasks["torn"]
    assert set(score.broken) == {3, 5}
    assert "image" in score.broken[3].lower()
    assert score.documents == 6
    assert "no scoring today" in found.failed["unscored"]
    whole = evaluate(llava, [suite_task("shapes")], tmp_path / "whole", include=local_tasks, limit=8)
    sound = {row["doc_id"]: row["responses"] for row in rows(tmp_path, "torn") if row["error"] is None}
    assert sound == {
        r["doc_id"]: r["responses"] for r in rows(tmp_path / "whole", "shapes") if r["doc_id"] in sound
    }
    assert whole.tasks["shapes"].documents == 8


def test_groups_are_scored_by_their_own_rule_and_lack_no_member_silently(
    llava: Path,
    local_tasks: Path,
    tmp_path: Path,
    evaluate: Callable[..., Evaluation],
    suite_task: Callable[..., SuiteTask],
) -> None:
    found = evaluate(llava, [suite_task("pair"), suite_task("gap")], tmp_path, include=local_tasks, limit=8)
    values = [found.tasks[name].metric("acc").value for name in ("shapes", "torn")]
    assert found.groups.keys() == {"pair"}
    assert found.groups["pair"]["acc"] == sum(values) / 2
    assert found.failed.keys() == {"absent"}


def test_what_only_a_judge_can_score_is_refused(
    llava: Path, local_tasks: Path, tmp_path: Path, evaluate: Callable[..., Evaluation],
    suite_task: Callable[..., SuiteTask], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("OPENAI_API_KEY", "never sent")
    found = evaluate(llava, [suite_task("judged")], tmp_path, include=local_tasks, limit=2)
    assert "needs a judge" in found.failed["judged"]
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ConfigError, match="a judge needs a key"):
        evaluate(llava, [suite_task("judged")], tmp_path, include=local_tasks, judge=True)


def test_experts_in_the_language_model_and_in_the_vision_tower(
    llava: Path,
    local_tasks: Path,
    tmp_path: Path,
    evaluate: Callable[..., Evaluation],
    suite_task: Callable[..., SuiteTask],
) -> None:
    """Upcycled models answer as the model they come from: their experts are copies of its FFNs."""
    from transformers import LlavaForConditionalGeneration

    from libmoe.models import moeify, save

    dense = evaluate(llava, [suite_task("shapes")], tmp_path / "dense", include=local_tasks, limit=6)
    for name, where in [("language", "*language_model*"), ("vision", "*vision_tower*")]:
        model = LlavaForConditionalGeneration.from_pretrained(llava)
        moeify(model, "smoe", options={"num_experts": 2, "top_k": 2}, where=where, init="copy", seed=0)
        save(model, tmp_path / name)
        for file in llava.iterdir():
            if file.name not in ("config.json", "generation_config.json") and file.suffix != ".safetensors":
                shutil.copy(file, tmp_path / name)
        sparse = evaluate(
            tmp_path / name, [suite_task("shapes")], tmp_path / name / "eval", include=local_tasks, limit=6
        )
        assert not sparse.failed
        answers = [row["responses"] for row in rows(tmp_path / name / "eval", "shapes")]
        assert answers == [row["responses"] for row in rows(tmp_path / "dense", "shapes")]
        assert sparse.tasks["shapes"].metrics == dense.tasks["shapes"].metrics


def test_other_models_are_asked_in_batches(
    vipllava: Path,
    local_tasks: Path,
    tmp_path: Path,
    evaluate: Callable[..., Evaluation],
    suite_task: Callable[..., SuiteTask],
) -> None:
    for size in (1, 4):
        found = evaluate(
            vipllava, [suite_task("shapes"), suite_task("torn")], tmp_path / str(size), include=local_tasks,
            limit=8, batch_size=size,
        )  # fmt: skip
        assert not found.failed
        # A broken image does not take the rest of its batch with it.
        assert set(found.tasks["torn"].broken) == {3, 5}
    one, four = (
        [r["responses"] for task in ("shapes", "torn") for r in rows(tmp_path / str(size), task)]
        for size in (1, 4)
    )
    assert one == four
    assert len({json.dumps(answer) for answer in one}) > 2


def test_a_model_without_a_processor_says_what_to_do(
    llava: Path, tmp_path: Path, evaluate: Callable[..., Evaluation], suite_task: Callable[..., SuiteTask]
) -> None:
    shutil.copytree(llava, tmp_path / "bare")
    for name in ("processor_config.json", "preprocessor_config.json"):
        (tmp_path / "bare" / name).unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=r"processor\.save_pretrained"):
        evaluate(tmp_path / "bare", [suite_task("mme")], tmp_path / "out")


def test_unknown_tasks_and_other_settings_are_one_line(
    llava: Path,
    local_tasks: Path,
    tmp_path: Path,
    evaluate: Callable[..., Evaluation],
    suite_task: Callable[..., SuiteTask],
) -> None:
    with pytest.raises(ConfigError, match="did you mean 'shapes'"):
        evaluate(llava, [suite_task("shape")], tmp_path, include=local_tasks)
    evaluate(llava, [suite_task("shapes")], tmp_path, include=local_tasks, limit=1)
    with pytest.raises(ConfigError, match="limit=1"):
        evaluate(llava, [suite_task("shapes")], tmp_path, include=local_tasks, limit=2)


def test_a_missing_mirror_file_fails_its_task_alone(
    llava: Path,
    local_tasks: Path,
    tmp_path: Path,
    evaluate: Callable[..., Evaluation],
    suite_task: Callable[..., SuiteTask],
) -> None:
    (tmp_path / "mirror").mkdir()
    found = evaluate(
        llava, [suite_task("mme"), suite_task("shapes")], tmp_path / "out",
        include=local_tasks, data_dir=tmp_path / "mirror", limit=2,
    )  # fmt: skip
    assert "lmms-lab-encoder/MME" in found.failed["mme"]
    assert found.tasks["shapes"].documents == 2


def test_the_model_is_left_as_it_was(
    llava: Path, local_tasks: Path, tmp_path: Path, vision_python: Path, suite_task: Callable[..., SuiteTask]
) -> None:
    from libmoe.eval.harness.settings import Settings
    from libmoe.eval.vlm import evaluate_vision

    opened = open_model(llava)
    before = {name: value.clone() for name, value in opened.model.state_dict().items()}
    evaluate_vision(
        opened, [suite_task("shapes")], tmp_path, Settings(limit=1, bootstrap=0), include=local_tasks
    )
    assert all(torch.equal(before[name], value) for name, value in opened.model.state_dict().items())
