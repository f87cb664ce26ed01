"""Every kind of task of the vision-language suite runs on rows of its real format, without network and judge."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmark_rows import BENCHMARKS, Row
from libmoe.eval.harness.samples import SampleFile
from libmoe.eval.harness.scores import Evaluation, TaskScore
from libmoe.eval.suites import SuiteTask, catalogue

pytestmark = pytest.mark.vision

DOCUMENTS = 8


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory, image: Callable[[int], str]) -> Path:
    folder = tmp_path_factory.mktemp("mirror")
    for files, _ in BENCHMARKS.values():
        for name, row in files.items():
            file = folder / f"{name}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(
                "\n".join(json.dumps(row(n, image(n))) for n in range(DOCUMENTS)), encoding="utf-8"
            )
    return folder


@pytest.fixture(scope="module")
def found(
    llava: Path, mirror: Path, vision_python: Path, suite_task: Callable[..., SuiteTask],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Evaluation, Path]:  # fmt: skip
    """All of them in one go, as a user would."""
    from libmoe.eval.harness.settings import Settings
    from libmoe.eval.opening import open_model
    from libmoe.eval.vlm import evaluate_vision

    out = tmp_path_factory.mktemp("results")
    tasks = [suite_task(name) for name in BENCHMARKS]
    return evaluate_vision(open_model(llava), tasks, out, Settings(bootstrap=20), data_dir=mirror), out


@pytest.mark.parametrize("name", BENCHMARKS)
def test_runs_end_to_end(name: str, found: tuple[Evaluation, Path]) -> None:
    evaluation, out = found
    assert name not in evaluation.failed, evaluation.failed
    score = evaluation.tasks[name]
    assert not score.broken
    assert score.documents == DOCUMENTS
    for key in BENCHMARKS[name][1]:
        metric = score.metric(*key.rsplit(",", 1))
        assert metric is not None, [m.name for m in score.metrics]
    kept = list(SampleFile(out / "samples" / name).read())
    main = BENCHMARKS[name][1][0]
    numbers = [row.get(f"score.{main}") for row in kept]
    assert all(n is None or 0 <= n <= 100 for n in numbers)
    assert any(n is not None for n in numbers)
    assert "bytes" not in json.dumps([row["document"] for row in kept])


def answers(out: Path, name: str) -> Iterator[tuple[Row, str, Row]]:
    for row in SampleFile(out / "samples" / name).read():
        yield row["document"], row["responses"][0][0].strip(), row


def test_yes_and_no_are_compared_with_the_answer(found: tuple[Evaluation, Path]) -> None:
    evaluation, out = found
    right = [answer.lower() == document["answer"] for document, answer, _ in answers(out, "pope")]
    assert evaluation.tasks["pope"].metric("pope_accuracy").value == sum(right) / len(right)
    assert [row["score.pope_accuracy,none"] for _, _, row in answers(out, "pope")] == right


def test_mme_has_its_categories_and_its_share_of_2800(found: tuple[Evaluation, Path]) -> None:
    evaluation, out = found
    score = evaluation.tasks["mme"]
    pairs: dict[str, dict[str, list[bool]]] = {}
    for document, answer, _ in answers(out, "mme"):
        right = answer.lower()[:3] == document["answer"].lower()
        pairs.setdefault(document["category"], {}).setdefault(document["question_id"], []).append(right)
    expected = {
        category: sum(50 * sum(pair) + 100 * all(pair) for pair in questions.values()) / len(questions)
        for category, questions in pairs.items()
    }
    perception = {c: v for c, v in expected.items() if c != "code_reasoning"}
    for category, value in perception.items():
        assert score.metric(f"mme_perception_score/{category}").value == value
    assert score.metric("mme_perception_score").value == sum(perception.values())
    assert score.metric("mme_percent").value == sum(expected.values()) / 2800 * 100
    assert {row["metrics"]["subtask"] for _, _, row in answers(out, "mme")} == set(expected)


def test_half_a_pair_of_mme_is_left_out_and_told(
    llava: Path,
    mirror: Path,
    tmp_path: Path,
    evaluate: Callable[..., Evaluation],
    suite_task: Callable[..., SuiteTask],
) -> None:
    score = evaluate(llava, [suite_task("mme")], tmp_path, data_dir=mirror, limit=7).tasks["mme"]
    assert score.metric("mme_perception_score").items == 4
    assert any("pair" in note for note in score.notes)


def test_parts_of_benchmarks_are_reported(found: tuple[Evaluation, Path]) -> None:
    tasks = found[0].tasks
    assert tasks["mmstar"].metric("average/geometry").items == 4
    assert tasks["mmmu_val"].metric("mmmu_acc/Art_Theory").items == 4
    assert tasks["mmbench_en_dev_static"].metric("gpt_eval_score/image_scene").items == 4
    assert tasks["scienceqa_img"].metric("exact_match/physics").items == 4


def test_numbers_on_charts_may_be_five_percent_off(found: tuple[Evaluation, Path]) -> None:
    _, out = found
    for document, answer, row in answers(out, "chartqa"):
        try:
            right = abs(float(answer) - float(document["answer"])) <= 0.05 * float(document["answer"])
        except ValueError:
            right = answer.lower() == document["answer"].lower()
        assert row["score.relaxed_overall,none"] == right


def test_likelihoods_are_of_the_choices(found: tuple[Evaluation, Path]) -> None:
    """Each choice has a loss of its own, taken over its own tokens only: the prompt's are the same for all."""
    evaluation, out = found
    right = []
    for row in SampleFile(out / "samples" / "seedbench_ppl").read():
        losses = [response[0][0] for response in row["responses"]]
        assert len(losses) == 4
        choices = [row["document"][f"choice_{letter}"] for letter in "abcd"]
        right.append(choices[losses.index(min(losses))] == row["target"])
    assert evaluation.tasks["seedbench_ppl"].metric("acc").value == sum(right) / len(right)


def test_hallusion_bench_is_scored_by_rules(found: tuple[Evaluation, Path]) -> None:
    evaluation, out = found
    score = evaluation.tasks["hallusion_bench_image"]
    right = [
        ("yes" in answer.lower()) == (d["gt_answer"] == "1")
        for d, answer, _ in answers(out, "hallusion_bench_image")
    ]
    assert score.metric("aAcc").value == sum(right) / len(right)
    assert any("by rules" in note for note in score.notes)


def test_mathvista_reads_choices_and_numbers(found: tuple[Evaluation, Path]) -> None:
    evaluation, out = found
    right = []
    for document, answer, row in answers(out, "mathvista_testmini_format"):
        if not document["choices"] and answer.isdigit():
            assert row["score.llm_as_judge_eval,none"] == (answer == document["answer"])
        if document["choices"] and answer in "ABCD":
            assert row["score.llm_as_judge_eval,none"] == (
                document["choices"]["ABCD".index(answer)] == document["answer"]
            )
        right.append(row["score.llm_as_judge_eval,none"])
    value = evaluation.tasks["mathvista_testmini_format"].metric("llm_as_judge_eval").value
    assert value == round(100 * sum(right) / len(right), 2)


def test_scores_that_are_means_have_intervals(found: tuple[Evaluation, Path]) -> None:
    tasks = found[0].tasks
    for task, metric in [
        ("pope", "pope_accuracy"),
        ("mmmu_val", "mmmu_acc"),
        ("scienceqa_img", "exact_match"),
    ]:
        found_metric = tasks[task].metric(metric)
        assert found_metric.stderr is not None
        assert found_metric.low <= found_metric.value <= found_metric.high
    assert tasks["pope"].metric("pope_recall").stderr is None
    assert tasks["mme"].metric("mme_perception_score").stderr is None


def test_scores_are_those_of_its_own_command(
    found: tuple[Evaluation, Path],
    llava: Path,
    mirror: Path,
    tmp_path: Path,
    in_environment: Callable[..., str],
) -> None:
    """Where chance and judges have no part: MMMU guesses, the others that are missing here ask a judge.

    GQA and ScienceQA's questions without an image are known to stop lmms-eval's command: it forks while threads run,
    and hands the processor an empty list.
    """
    names = ["mme", "pope", "mmstar", "mmbench_en_dev_static", "chartqa", "textvqa_val", "docvqa_val", "ai2d"]
    code = f"""
import sys
from libmoe.eval.mirror import serving
from lmms_eval.__main__ import cli_evaluate
sys.argv = ["lmms_eval", "--model", "llava_hf", "--model_args", "pretrained={llava},device_map=cpu",
            "--device", "cpu", "--batch_size", "1", "--tasks", {",".join(names)!r}, "--output_path", {str(tmp_path)!r}]
with serving({str(mirror)!r}):
    cli_evaluate()
"""
    in_environment("-c", code, cwd=tmp_path)
    theirs = json.loads(next(tmp_path.rglob("[0-9]*_results.json")).read_text())["results"]
    for name in names:
        ours = {f"{m.name},{m.filter}": m.value for m in found[0].tasks[name].metrics}
        values = {k: v for k, v in theirs[name].items() if k in ours}
        assert set(BENCHMARKS[name][1]) <= set(values)
        assert values == {k: ours[k] for k in values}, name


def test_a_judge_is_asked_where_one_is_wanted(
    llava: Path, mirror: Path, tmp_path: Path, evaluate: Callable[..., Evaluation],
    suite_task: Callable[..., SuiteTask], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    asked: list[str] = []

    class Judge(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body["messages"][0]["content"])
            answer = json.dumps({"choices": [{"message": {"content": "correct"}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OPENAI_API_URL", f"http://127.0.0.1:{server.server_port}/v1/chat/completions")
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    try:
        found = evaluate(
            llava, [suite_task("hallusion_bench_image")], tmp_path, data_dir=mirror, limit=4, judge=True
        )
    finally:
        server.shutdown()
    assert found.tasks["hallusion_bench_image"].metric("aAcc").value == 100
    assert len(asked) == 4
    assert all("It is." in text for text in asked)


def test_every_vision_task_of_the_catalogue_has_a_definition(in_environment: Callable[..., str]) -> None:
    """Its YAML is found, and every function that it names can be imported."""
    names = [task.task for task in catalogue() if task.harness == "lmms"]
    assert names
    code = """
import json, sys
from libmoe.eval.suites import task_folder
from lmms_eval.tasks import TaskManager
manager = TaskManager("ERROR", include_path=[str(task_folder("lmms"))], model_name="llava_hf")
wrong = {}
def look(name):
    if isinstance(name, dict):
        name = name["task"]
    if name not in manager.all_tasks:
        raise KeyError(f"no task {name}")
    kind = manager.task_index[name]["type"]
    if kind == "tag":
        members = manager.task_index[name]["task"]
    else:
        config = manager._get_config(name)
        members = config["task"] if kind == "group" else []
        if kind == "task":
            assert callable(config.get("process_results")) or config["metric_list"], name
    for member in members:
        look(member)
for name in sys.argv[1:]:
    try:
        look(name)
    except BaseException as error:
        wrong[name] = f"{type(error).__name__}: {error}"
print("\\n" + json.dumps(wrong))
"""
    wrong = json.loads(in_environment("-c", code, *names).splitlines()[-1])
    assert not wrong


def test_the_share_of_2800_is_what_the_catalogue_makes_of_it(found: tuple[Evaluation, Path]) -> None:
    entry = next(task for task in catalogue() if task.task == "mme")
    score: TaskScore = found[0].tasks["mme"]
    values = {f"{m.name},{m.filter}": m.value for m in score.metrics}
    assert entry.score(values) == pytest.approx(score.metric("mme_percent").value)
