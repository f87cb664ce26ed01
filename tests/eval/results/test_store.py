"""What evaluations say is in the store: once, whole, and again when the store is made anew."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from libmoe.core.errors import ConfigError, DataError
from libmoe.data import TASKS
from libmoe.eval.results import RESULTS, Results


def add(job: tuple[Path, list[Path]]) -> int:
    store, folders = job
    return sum(Results(store).add(folder) for folder in folders)


def test_a_real_evaluation_is_recorded_as_its_file_says(real: dict[str, Path], tmp_path: Path) -> None:
    store = Results(tmp_path / "results.db")
    assert store.add(real["moe"]) == len(store.query())
    facts = json.loads((real["moe"] / "eval" / "evaluation.json").read_text())
    rows = store.query("main", order=["task"])
    assert [row["task"] for row in rows if not row["is_group"]] == sorted(TASKS)
    for row in rows:
        if row["is_group"]:
            continue
        metrics = {f"{m['name']},{m['filter']}": m for m in facts["tasks"][row["task"]]["metrics"]}
        metric = metrics[f"{row['metric']},{row['filter']}"]
        for name in ("value", "stderr", "low", "high", "harness_stderr", "items", "clusters"):
            assert row[name] == metric[name]
        assert row["low"] < row["value"] < row["high"]
        assert row["model"] == str(real["moe"]) and row["identity"] == facts["identity"]
        assert (row["method"], row["seed"], row["max_documents"]) == ("smoe", 7, 24)
        assert row["total_params"] > row["active_params"] > 0
        assert json.loads(row["settings"])["batch_size"] == 32


def test_evaluated_again_the_folder_has_its_new_scores_only(
    plant: Callable[..., Path], tmp_path: Path
) -> None:
    store = Results(tmp_path / "results.db")
    store.add(plant("a", {"x": [0, 0, 1], "y": [1, 1, 0]}))
    store.add(plant("a", {"x": [1, 1, 0]}))
    rows = store.query("main", ["task", "value"])
    assert rows == [{"task": "x", "value": pytest.approx(2 / 3)}]


def test_the_store_is_made_again_from_the_folders(plant: Callable[..., Path], tmp_path: Path) -> None:
    store = Results(tmp_path / "results.db")
    folders = [plant(name, {"x": [0, 1, 1]}) for name in ("a", "b", "c")]
    for folder in folders:
        store.add(folder)
    before = store.query(order=["model", "task", "metric"])
    store.path.unlink()
    recorded, failed = store.index([tmp_path])
    assert len(recorded) == 3 and not failed
    assert store.query(order=["model", "task", "metric"]) == before


def test_indexing_forgets_what_is_gone_and_goes_on_after_a_damaged_file(
    plant: Callable[..., Path], tmp_path: Path
) -> None:
    store = Results(tmp_path / "results.db")
    a, b, c = (plant(name, {"x": [0, 1, 1]}) for name in ("a", "b", "c"))
    store.index([tmp_path])
    (a / "eval" / "evaluation.json").unlink()
    (b / "eval" / "evaluation.json").write_text("{")
    recorded, failed = store.index([tmp_path])
    assert recorded == [c / "eval"]
    assert list(failed) == [b / "eval"] and "cannot be read" in failed[b / "eval"]
    assert {row["model"] for row in store.query()} == {"runs/b", "runs/c"}


def test_processes_that_write_at_once_lose_nothing(plant: Callable[..., Path], tmp_path: Path) -> None:
    folders = [plant(f"m{i}", {"x": [0, 1, 1], "y": [1, 0, 0]}) for i in range(12)]
    store = tmp_path / "new" / "results.db"
    jobs = [(store, folders[i::4] + folders[:2]) for i in range(4)]
    with ProcessPoolExecutor(4, mp_context=get_context("fork")) as pool:
        assert sum(pool.map(add, jobs)) == 4 * (12 + 8)
    rows = Results(store).query("main", ["model", "task"])
    assert len(rows) == len({tuple(row.values()) for row in rows}) == 24


def test_a_reader_does_not_wait_for_a_writer(plant: Callable[..., Path], tmp_path: Path) -> None:
    store = Results(tmp_path / "results.db")
    store.add(plant("a", {"x": [0, 1, 1]}))
    writer = sqlite3.connect(store.path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("DELETE FROM evaluations")
    assert len(store.query("main")) == 1
    writer.execute("ROLLBACK")
    writer.close()


def test_the_recipe_of_a_run_tells_how_it_was_trained(plant: Callable[..., Path], tmp_path: Path) -> None:
    folder, store = plant("a", {"x": [0, 1, 1]}), Results(tmp_path / "results.db")
    (folder / "recipe.yaml").write_text("name: tiny\nmethod: {name: remoe}\nseed: 3\n")
    store.add(folder)
    assert store.query("main", ["run", "method", "seed"]) == [{"run": "tiny", "method": "remoe", "seed": 3}]
    (folder / "recipe.yaml").write_text("name: [")
    with pytest.raises(DataError, match=r"recipe\.yaml cannot be read"):
        store.add(folder)


def test_several_metrics_may_make_the_main_one(plant: Callable[..., Path], tmp_path: Path) -> None:
    folder, store = plant("a", {"x": [0, 1, 1]}), Results(tmp_path / "results.db")
    file = folder / "eval" / "evaluation.json"
    facts = json.loads(file.read_text())
    facts["about"]["x"] |= {"metric": "rank,none + acc,none", "scale": 2.0}
    file.write_text(json.dumps(facts))
    store.add(folder)
    assert store.query("main", ["metric", "scale"], ["metric"]) == [
        {"metric": "acc", "scale": 2.0},
        {"metric": "rank", "scale": 2.0},
    ]


def test_a_failed_record_leaves_the_store_as_it_was(plant: Callable[..., Path], tmp_path: Path) -> None:
    store = Results(tmp_path / "results.db")
    folder = plant("a", {"x": [0, 1, 1]})
    store.add(folder)
    file = folder / "eval" / "evaluation.json"
    facts = json.loads(file.read_text())
    facts["tasks"]["x"]["metrics"][1]["value"] = {"not": "a number"}
    file.write_text(json.dumps(facts))
    before = store.query()
    with pytest.raises(DataError):
        store.add(folder)
    assert store.query() == before


@pytest.mark.parametrize("text", ["[]", "{}", '{"tasks": {"x": {}}}', '{"tasks": {"x": {"metrics": [{}]}}}'])
def test_what_is_no_evaluation_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(DataError, match="evaluation") as caught:
        Results(tmp_path / "results.db").add(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_evaluation_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="libmoe eval"):
        Results(tmp_path / "results.db").add(tmp_path)


def test_no_store_foreign_files_and_other_formats_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--add"):
        Results(tmp_path / "none.db").query()
    (tmp_path / "text.db").write_text("hello, I am a text and no data base" * 100)
    with pytest.raises(DataError, match="not a database"):
        Results(tmp_path / "text.db").query()
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE mine (x)")
    other.close()
    with pytest.raises(ConfigError, match="format 0"):
        Results(tmp_path / "other.db").query()


def test_the_environment_names_the_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LIBMOE_RESULTS", str(tmp_path / "mine.db"))
    assert Results().path == tmp_path / "mine.db"
    monkeypatch.delenv("LIBMOE_RESULTS")
    assert Results().path == Path("runs/results.db")


def test_groups_are_recorded_beside_their_tasks(plant: Callable[..., Path], tmp_path: Path) -> None:
    folder = plant("a", {"x": [0, 1, 1], "y": [1, 0, 0]}, entries={"x": "both", "y": "both"})
    file = folder / "eval" / "evaluation.json"
    facts = json.loads(file.read_text())
    facts["groups"] = {"both": {"acc": 0.5, "acc_stderr": 0.1, "acc_norm,strict": 0.25}}
    file.write_text(json.dumps(facts))
    store = Results(tmp_path / "results.db")
    store.add(folder)
    columns = ["task", "metric", "filter", "value", "harness_stderr", "main"]
    assert [tuple(row.values()) for row in store.query("is_group", columns, ["metric"])] == [
        ("both", "acc", "none", 0.5, 0.1, 1),
        ("both", "acc_norm", "strict", 0.25, None, 0),
    ]


def test_every_column_is_filled_from_something(real: dict[str, Path], tmp_path: Path) -> None:
    store = Results(tmp_path / "results.db")
    store.add(real["moe"])
    store.add(real["dense"])
    empty = {name for name in RESULTS if all(row[name] is None for row in store.query())}
    assert empty <= {"run", "entry", "scale"}
