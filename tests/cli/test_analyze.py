"""`libmoe analyze` opens runs, checkpoints, LibMoE models and models of transformers, and does nothing twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers as tf

from libmoe.analysis import Trace
from libmoe.data import load_tokenizer
from libmoe.report.experts.schema import checked

Libmoe = Callable[..., Any]


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `save_pretrained` wrote."""
    folder = tmp_path_factory.mktemp("hub") / "mixtral"
    config = tf.MixtralConfig(
        vocab_size=2048, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
    )  # fmt: skip
    tf.MixtralForCausalLM(config).save_pretrained(folder)
    load_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def _no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes seconds, and one test looks at what is drawn."""
    import libmoe.report.experts as report

    def nothing(folder: Path) -> report.ExpertPaths:
        return report.ExpertPaths(folder / "report.html", ())

    monkeypatch.setattr(report, "write_expert_report", nothing)


def refusal(outcome: Any) -> str:
    """The last line; above it may be a bar of transformers, which a process of its own does not show."""
    assert outcome.code == 2
    line = outcome.err.splitlines()[-1]
    assert line.startswith("error: ")
    return str(line)


def written(folder: Path) -> dict[str, Any]:
    return dict(checked(json.loads((folder / "analysis.json").read_text())))


def test_a_run_with_its_checkpoints(libmoe: Libmoe, run_dir: Path) -> None:
    outcome = libmoe("analyze", run_dir, "--windows", 1, "--checkpoints", "all")
    assert outcome.code == 0, outcome.err
    folder = run_dir / "analysis"
    found = written(folder)
    assert [state["step"] for state in found["checkpoints"]] == [2, 3]
    assert {layer["saturation"] for layer in found["checkpoints"][-1]["layers"]} == {1.0}
    assert found["layers"][0]["similarity"]["weights"][1][1] == 1
    assert found["layers"][1]["similarity"]["outputs"][0][0] == 1 and (folder / "experts.json").is_file()
    assert len(found["samples"]) == 3
    assert (folder / "report.html").is_file() and (folder / "figures" / "experts.csv").is_file()
    assert "strongest preference" in outcome.out and "Report:" in outcome.err


def test_a_finished_trace_is_kept_and_another_text_is_traced_anew(libmoe: Libmoe, run_dir: Path) -> None:
    def when(*options: object) -> int:
        assert libmoe("analyze", run_dir, "--trace-only", "--windows", 1, *options).code == 0
        return (run_dir / "trace" / "trace.json").stat().st_mtime_ns

    first = when()
    assert when() == first
    facts = json.loads((run_dir / "trace" / "trace.json").read_text())
    (run_dir / "trace" / "trace.json").write_text(json.dumps(facts | {"complete": False}))  # as after a kill
    again = when()
    assert again > first and json.loads((run_dir / "trace" / "trace.json").read_text()) == facts
    assert when("--sample", 0.5) > again
    assert not (run_dir / "analysis").exists()


@pytest.mark.usefixtures("_no_page")
def test_a_model_of_transformers_on_text_of_ones_own(libmoe: Libmoe, mixtral: Path, tmp_path: Path) -> None:
    for domain in ("one", "two"):
        lines = [json.dumps({"text": f"{domain} text number {i}, and a few words more."}) for i in range(60)]
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{domain}.jsonl").write_text("\n".join(lines))
    outcome = libmoe(
        "analyze",
        mixtral,
        "--data",
        tmp_path / "data",
        "--windows",
        1,
        "--layer",
        1,
        "--scores",
        1,
        "--out",
        tmp_path,
    )
    assert outcome.code == 0, outcome.err
    found = written(tmp_path)
    assert [layer["layer"] for layer in found["layers"]] == [1]
    assert found["layers"][0]["by"]["domain"]["names"] == ["one", "two"]
    assert found["layers"][0]["experts_per_token"] == 2 and found["layers"][0]["uncertainty"]["margin"] > 0
    piece = next(Trace.open(tmp_path / "trace").pieces(scores=True))
    assert piece.scores_SN.shape[1] == 4
    assert not (mixtral / "trace").exists()


@pytest.mark.usefixtures("_no_page")
def test_tasks_are_groups_like_domains(
    libmoe: Libmoe, mixtral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = ("--task", "moe_cloze", "--task", "moe_order")
    assert libmoe("analyze", mixtral, *tasks, "--windows", 2, "--out", tmp_path, "--no-experts").code == 0
    found = written(tmp_path)
    assert found["layers"][0]["by"]["task"]["names"] == ["moe_cloze", "moe_order"]
    assert "similarity" not in found["layers"][0]
    trace = Trace.open(tmp_path / "trace")
    assert len(set(trace.tokens(["sequence"])["sequence"].tolist())) == 4

    def never(*arguments: object) -> None:
        raise AssertionError("documents are scored although the trace is there")

    monkeypatch.setattr("libmoe.eval.tracing.task_batches", never)
    again = libmoe("analyze", mixtral, *tasks, "--windows", 2, "--out", tmp_path, "--no-experts")
    assert again.code == 0 and written(tmp_path) == found


@pytest.mark.usefixtures("_no_page")
def test_several_targets_are_compared(libmoe: Libmoe, run_dir: Path, mixtral: Path, tmp_path: Path) -> None:
    outcome = libmoe("analyze", run_dir, mixtral, "--windows", 1, "--out", tmp_path / "both")
    assert outcome.code == 0, outcome.err
    assert "Means over layers" in outcome.out
    beside = f"libmoe study {run_dir} {mixtral} --out {tmp_path / 'both'}"
    assert outcome.err.splitlines()[-1] == f"Side by side with pictures: {beside}"
    assert {path.name for path in (tmp_path / "both").iterdir()} == {"run", "mixtral"}
    found = json.loads(
        libmoe("analyze", run_dir, mixtral, "--windows", 1, "--out", tmp_path / "both", "--json").out
    )
    assert [target["name"] for target in found["targets"]] == ["run", "mixtral"]


def test_the_error_about_doubled_names_names_the_doubled_one(
    libmoe: Libmoe, run_dir: Path, mixtral: Path, tmp_path: Path
) -> None:
    twin = shutil.copytree(mixtral, tmp_path / "elsewhere" / "mixtral")
    said = refusal(libmoe("analyze", run_dir, mixtral, twin, "--out", tmp_path / "all"))
    assert "two targets are called mixtral, so their folders would be one" in said


@pytest.mark.usefixtures("_no_page")
def test_a_run_that_has_not_finished_is_opened_at_its_last_checkpoint(libmoe: Libmoe, run_dir: Path) -> None:
    shutil.rmtree(run_dir / "model")
    shutil.rmtree(run_dir / "checkpoints" / "step-00000003")
    assert libmoe("analyze", run_dir, "--windows", 1).code == 0
    assert written(run_dir / "analysis")["facts"]["step"] == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--layer", "7"], "--layer 7: MoE layers are numbered 0 to 1"),
        (["--checkpoints", "2"], "mixtral is no run folder, and only runs have checkpoints"),
        (["--windows", "0"], "--windows 0: at least 1"),
        (["--sample", "2"], "sample=2.0: a share of the tokens lies between 0 and 1"),
        (["--data", "x", "--task", "moe_cloze"], "exclude each other"),
        (["--task", "moe_closse"], "moe_closse"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    options: list[str], words: str, libmoe: Libmoe, mixtral: Path, tmp_path: Path
) -> None:
    assert words in refusal(libmoe("analyze", mixtral, "--out", tmp_path / "out", *options))


def test_a_dense_model_and_no_model(libmoe: Libmoe, tmp_path: Path) -> None:
    config = tf.LlamaConfig(
        vocab_size=2048, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
    )
    tf.LlamaForCausalLM(config).save_pretrained(tmp_path / "dense")
    load_tokenizer().save_pretrained(tmp_path / "dense")
    assert "dense is a dense model; there are no experts" in refusal(libmoe("analyze", tmp_path / "dense"))
    assert "does not exist" in refusal(libmoe("analyze", tmp_path / "nothing"))


@pytest.mark.usefixtures("_no_page")
def test_a_number_of_checkpoints(libmoe: Libmoe, run_dir: Path) -> None:
    assert "did you mean 'all'" in refusal(libmoe("analyze", run_dir, "--checkpoints", "al"))
    assert libmoe("analyze", run_dir, "--checkpoints", "2", "--windows", 1).code == 0
    assert [state["step"] for state in written(run_dir / "analysis")["checkpoints"]] == [2, 3]
