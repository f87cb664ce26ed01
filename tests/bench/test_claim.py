"""A folder holds one comparison; what is refused leaves it as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fake_executor import FakeExecutor
from libmoe.bench import Grid, results, run_grid
from libmoe.core.errors import ConfigError, LibMoEError
from libmoe.core.files import hold

Mini = Callable[..., Grid]


def run(grid: Grid, out: Path, **more: Any) -> FakeExecutor:
    executor = FakeExecutor(lambda key, seed: 2.0 + seed + len(key) / 10)
    run_grid(grid, out, executor=executor, say=lambda line: None, live=False, **more)
    return executor


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name != ".lock"
    }


@pytest.fixture
def grid(mini: Mini) -> Callable[..., Grid]:
    return lambda *methods, **more: mini(*(methods or ("dense", "smoe")), **({"match": "none"} | more))


# -- refused ----------------------------------------------------------------------------------------------------------
def too_many_experts(grid: Grid) -> None:
    grid.match = "active_params"
    grid.entry("smoe").options |= {"num_experts": 3000, "top_k": 3000}


def unknown_task(grid: Grid) -> None:
    grid.recipe.eval.tasks = ["moe_clozee"]


def odd_batch(grid: Grid) -> None:
    grid.entry("smoe").recipe = {"train": {"batch_size": 6, "micro_batch_size": 4}}


def no_text(grid: Grid) -> None:
    grid.recipe.data.source = "no/such/folder"


REFUSED = [
    (too_many_experts, "entry 'smoe': even expert_hidden=1 has"),
    (unknown_task, "entry 'dense': unknown suite or task 'moe_clozee'; did you mean"),
    (odd_batch, "entry 'smoe': train.batch_size=6 is not divisible"),
    (no_text, "no/such/folder"),
]


@pytest.mark.parametrize(("change", "says"), REFUSED)
def test_a_refused_command_leaves_nothing_behind_and_the_mended_one_runs(
    change: Callable[[Grid], None], says: str, grid: Callable[..., Grid], tmp_path: Path
) -> None:
    out, wrong = tmp_path / "new" / "out", grid()
    change(wrong)
    with pytest.raises(LibMoEError) as refused:
        run(wrong, out)
    assert says in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "new").exists()
    out.mkdir(parents=True)  # a folder that was there stays, and is not claimed
    with pytest.raises(LibMoEError):
        run(wrong, out)
    assert contents(out) == {}
    assert len(run(grid(), out).ran) == 2


def test_a_refused_command_changes_nothing_of_a_comparison(grid: Callable[..., Grid], tmp_path: Path) -> None:
    out, wrong = tmp_path / "out", grid("dense", "smoe", "hash")
    run(grid(), out)
    before = contents(out)
    wrong.entry("hash").recipe = {"train": {"batch_size": 6, "micro_batch_size": 4}}
    with pytest.raises(LibMoEError, match="entry 'hash'"):
        run(wrong, out)
    assert contents(out) == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda grid: setattr(grid.recipe.train, "steps", 7), "recipe.train.steps was 6, now 7"),
        (lambda grid: setattr(grid, "match", "flops"), "match was 'none', now 'flops'"),
        (lambda grid: grid.entry("smoe").options.update(top_k=1), "entry smoe.options.top_k was 2, now 1"),
    ],
)
def test_two_grids_in_one_folder_are_refused(
    change: Callable[[Grid], None], says: str, grid: Callable[..., Grid], tmp_path: Path
) -> None:
    run(grid(), tmp_path)
    other, before = grid(), contents(tmp_path)
    change(other)
    with pytest.raises(ConfigError) as refused:
        run(other, tmp_path)
    assert says in str(refused.value) and "another --out" in str(refused.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("status", ["ok", "failed", None])
def test_cells_of_another_recipe_are_neither_kept_nor_gone_on_with(
    status: str | None, grid: Callable[..., Grid], tmp_path: Path
) -> None:
    """The same grid may solve to other sizes, with another release for example."""
    run(grid("dense", "smoe"), tmp_path)
    cell = tmp_path / "smoe-s0"
    recipe = (cell / "recipe.yaml").read_text()
    (cell / "recipe.yaml").write_text(recipe.replace("num_experts: 4", "num_experts: 5"))
    if status is None:
        (cell / "row.json").unlink()
    else:
        row = json.loads((cell / "row.json").read_text())
        (cell / "row.json").write_text(json.dumps(row | {"status": status}))
    with pytest.raises(ConfigError) as refused:
        run(grid("dense", "smoe"), tmp_path)
    assert "smoe-s0 was trained with another recipe: method.options.num_experts was 5, now 4" in str(
        refused.value
    )
    assert "to train it anew, or choose another --out" in str(refused.value)


def test_a_damaged_recipe_of_a_cell_is_one_line(grid: Callable[..., Grid], tmp_path: Path) -> None:
    run(grid(), tmp_path)
    (tmp_path / "smoe-s0" / "recipe.yaml").write_text("{")
    with pytest.raises(ConfigError, match=r"smoe-s0/recipe\.yaml: not valid YAML"):
        run(grid(), tmp_path)


def test_a_damaged_mark_is_said_and_damaged_results_are_mended(
    grid: Callable[..., Grid], tmp_path: Path
) -> None:
    run(grid(), tmp_path)
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    for damage in ('{"rows": [', "[]", '{"protocol": {}, "rows": [{}]}', '{"protocol": 1, "rows": 2}'):
        (tmp_path / "results.json").write_text(damage)
        assert run(grid(), tmp_path).ran == []
        assert json.loads((tmp_path / "results.json").read_text())["rows"] == rows
    (tmp_path / "grid.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"grid\.json is damaged"):
        run(grid(), tmp_path)


def test_the_folder_of_a_run_is_refused(grid: Callable[..., Grid], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: x")
    with pytest.raises(ConfigError, match="holds a run, not a comparison"):
        run(grid(), tmp_path)


def test_a_folder_in_use_is_refused(grid: Callable[..., Grid], tmp_path: Path) -> None:
    with hold(tmp_path), pytest.raises(ConfigError, match="in use by another process"):
        run(grid(), tmp_path)


@pytest.mark.parametrize("change", [{"match": "wall_clock"}, {"match": "memory", "memory": "measured"}])
def test_what_is_measured_here_is_refused_for_cells_that_run_elsewhere(
    change: dict[str, Any], grid: Callable[..., Grid], tmp_path: Path
) -> None:
    executor = FakeExecutor(lambda key, seed: 2.0)
    executor.here = False
    with pytest.raises(ConfigError, match=r"would be measured on this machine, but cells run on others"):
        run_grid(grid(**change), tmp_path / "out", executor=executor, say=lambda line: None, live=False)
    assert not (tmp_path / "out").exists()


# -- joined -----------------------------------------------------------------------------------------------------------
def test_a_mark_from_before_a_key_was_known_is_joined(grid: Callable[..., Grid], tmp_path: Path) -> None:
    run(grid(), tmp_path)
    mark = json.loads((tmp_path / "grid.json").read_text())
    for key in ("families", "until", "tuning"):
        del mark[key]
    (tmp_path / "grid.json").write_text(json.dumps(mark))
    assert run(grid(), tmp_path).ran == []


def test_where_cells_run_is_no_part_of_the_comparison(grid: Callable[..., Grid], tmp_path: Path) -> None:
    run(grid(), tmp_path)
    assert run(grid(workers=1), tmp_path).ran == []


def test_methods_seeds_and_families_that_join_are_added(grid: Callable[..., Grid], tmp_path: Path) -> None:
    run(grid("dense", "smoe", "sigmoid", families={"routers": ["smoe", "sigmoid"]}), tmp_path)
    more = grid("dense", "smoe", "hash", seeds=[0, 1], families={"routers": ["smoe", "hash"]})
    assert run(more, tmp_path).ran == ["hash-s0", "dense-s1", "smoe-s1", "hash-s1"]
    told = json.loads((tmp_path / "results.json").read_text())
    assert told["protocol"]["families"] == {"routers": ["smoe", "sigmoid", "hash"]}
    assert told["protocol"]["seeds"] == [0, 1]
    cells = [(row["method"], row["seed"]) for row in told["rows"]]
    assert cells == [(key, 0) for key in ("dense", "smoe", "sigmoid", "hash")] + [
        (key, 1) for key in ("dense", "smoe", "hash")
    ]
    for name in ("mismatch", "steps_by_entry", "tokens_per_param"):
        assert set(told["protocol"][name]) == {"dense", "smoe", "sigmoid", "hash"}


def test_kept_rows_are_written_once_together(
    grid: Callable[..., Grid], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(grid(seeds=[0, 1, 2]), tmp_path)
    written: list[int] = []
    write = results.write_json
    monkeypatch.setattr(
        results, "write_json", lambda path, value: written.append(len(value["rows"])) or write(path, value)
    )
    run(grid(seeds=[0, 1, 2, 3]), tmp_path)
    assert written == [6, 7, 8]
