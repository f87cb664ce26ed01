"""The store answers conditions in SQL, and nothing that is asked can change it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet
import pytest

from libmoe.core.errors import ConfigError
from libmoe.eval.results import RESULTS, Results, export


@pytest.fixture
def store(plant: Callable[..., Path], tmp_path: Path) -> Results:
    made = Results(tmp_path / "results.db")
    made.add(plant("a", {"x": [0, 0, 1, 0], "y": [1, 1, 0, 1]}))
    made.add(plant("b", {"x": [1, 0, 1, 1], "y": [1, 0, 0, 1]}))
    return made


def test_rows_are_chosen_ordered_and_limited(store: Results) -> None:
    found = store.query("main and value > 0.3", ["model", "task", "value"], ["value desc", "model"], 2)
    assert found == [
        {"model": "runs/a", "task": "y", "value": 0.75},
        {"model": "runs/b", "task": "x", "value": 0.75},
    ]


def test_conditions_may_use_json_and_subqueries(store: Results) -> None:
    where = (
        "json_extract(settings, '$.batch_size') = 8 and value >= (select max(value) from results where main)"
    )
    assert {row["model"] for row in store.query(f"main and {where}")} == {"runs/a", "runs/b"}


@pytest.mark.parametrize(
    "where",
    [
        "1 = 1; DROP TABLE scores",
        "1 = 1); DELETE FROM scores; --",
        "1 = 1); DELETE FROM scores; SELECT (1",
        "1); ATTACH 'other.db' AS o; --",
        "DELETE FROM scores",
        "value > 0) UNION DELETE FROM scores --",
        "1) --",
        "load_extension('x')",
        "exists (select * from pragma_journal_mode('delete'))",
        "value = \x00 1",
        "",
        "(",
    ],
)
def test_a_second_statement_or_a_write_fails_and_changes_nothing(store: Results, where: str) -> None:
    before = store.path.read_bytes()
    with pytest.raises(ConfigError) as caught:
        store.query(where)
    assert "\n" not in str(caught.value)
    assert store.path.read_bytes() == before
    own = {store.path.name + end for end in ("", "-wal", "-shm")}
    assert {path.name for path in store.path.parent.iterdir() if path.is_file()} <= own
    assert len(store.query("main")) == 4


def test_columns_and_order_take_names_only(store: Results) -> None:
    for columns in (["value, 1"], ["max(value)"], ["* from scores; drop table scores --"], ["valu"]):
        with pytest.raises(ConfigError, match="unknown column"):
            store.query(columns=columns)
    for order in (["value; drop table scores"], ["value desc; --"], ["random()"]):
        with pytest.raises(ConfigError):
            store.query(order=order)


def test_a_misspelt_column_is_answered_with_the_nearest(store: Results) -> None:
    for ask in (
        lambda: store.query("taks = 'x'"),
        lambda: store.query(columns=["taks"]),
        lambda: store.query(order=["taks desc"]),
    ):
        with pytest.raises(ConfigError, match="did you mean 'task'"):
            ask()


def test_a_limit_is_no_sql(store: Results) -> None:
    with pytest.raises(ConfigError, match="limit=-1"):
        store.query(limit=-1)


def test_exports_hold_the_same_rows(store: Results, tmp_path: Path) -> None:
    names = ["model", "task", "value", "items", "low", "harness_stderr", "settings"]
    rows = store.query("main", names, ["model", "task"])
    for name in ("rows.csv", "rows.parquet", "rows.json"):
        export(rows, tmp_path / name, names)
    assert pyarrow.parquet.read_table(tmp_path / "rows.parquet").to_pylist() == rows
    assert json.loads((tmp_path / "rows.json").read_text()) == rows
    with open(tmp_path / "rows.csv", newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert read == [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows]


def test_an_export_without_rows_keeps_its_columns(tmp_path: Path) -> None:
    export([], tmp_path / "none.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "none.parquet")
    assert table.column_names == list(RESULTS) and table.num_rows == 0
    assert str(table.schema.field("value").type) == "double"


def test_an_unknown_file_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'csv'"):
        export([], tmp_path / "rows.cvs")
