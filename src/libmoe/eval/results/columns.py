"""What the results store keeps, column by column."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Column(NamedTuple):
    name: str
    type: Literal["TEXT", "REAL", "INTEGER"]
    about: str


EVALUATION = (
    Column("folder", "TEXT", "where evaluation.json and the samples are"),
    Column("model", "TEXT", "as it was given: a path, or a name on the hub"),
    Column("identity", "TEXT", "what tells these weights from others"),
    Column("time", "TEXT", "when it was evaluated, UTC"),
    Column("run", "TEXT", "name of the recipe that trained it"),
    Column("method", "TEXT", "its method, e.g. smoe or dense"),
    Column("seed", "INTEGER", "the seed it was trained with"),
    Column("total_params", "INTEGER", "parameters"),
    Column("active_params", "INTEGER", "parameters that a token uses"),
    Column("max_documents", "INTEGER", "the limit of documents per task, null for all"),
    Column("batch_size", "INTEGER", "requests per forward pass"),
    Column("settings", "TEXT", "all settings, JSON"),
    Column("versions", "TEXT", "versions of libraries, JSON"),
    Column("flags", "TEXT", "what makes scores doubtful, JSON"),
    Column("failed", "TEXT", "tasks that failed and why, JSON"),
)

SCORE = (
    Column("task", "TEXT", "a task of the harness, or a group of tasks"),
    Column("metric", "TEXT", "e.g. acc"),
    Column("filter", "TEXT", "of the answers; none where the task has only one"),
    Column("value", "REAL", "the score"),
    Column("stderr", "REAL", "clustered standard error"),
    Column("low", "REAL", "lower end of the 95 % interval"),
    Column("high", "REAL", "upper end of the 95 % interval"),
    Column("harness_stderr", "REAL", "standard error that the harness gives"),
    Column("items", "INTEGER", "documents that were scored"),
    Column("clusters", "INTEGER", "clusters that they form"),
    Column("broken", "INTEGER", "documents that were left out"),
    Column("main", "INTEGER", "1 for the one metric by which the task is judged"),
    Column("higher_is_better", "INTEGER", "1 or 0"),
    Column("is_group", "INTEGER", "1 for a group's average over its tasks"),
    Column("entry", "TEXT", "what the task was asked for as, e.g. mmlu"),
    Column("skill", "TEXT", "what the task tests"),
    Column("chance", "REAL", "what guessing scores, as papers print it"),
    Column("scale", "REAL", "what the value is multiplied by to be what papers print"),
    Column("shots", "INTEGER", "examples in the prompt"),
    Column("task_version", "TEXT", "of the task's definition"),
)

RESULTS = {column.name: column for column in (*SCORE, *EVALUATION)}
"""Columns of the view ``results``, which joins the two tables."""

FORMAT = 1
"""Of the tables; stored as ``user_version``."""

KEY = "PRIMARY KEY (evaluation, task, metric, filter)"


def schema() -> list[str]:
    """The statements that make tables and view."""
    own = ", ".join(f"{c.name} {c.type}" for c in EVALUATION)
    scores = ", ".join(f"{c.name} {c.type}" for c in SCORE)
    shown = (
        ", ".join(f"scores.{c.name}" for c in SCORE)
        + ", "
        + ", ".join(f"evaluations.{c.name}" for c in EVALUATION)
    )
    return [
        f"CREATE TABLE evaluations (id INTEGER PRIMARY KEY, {own}, UNIQUE (folder))",
        f"CREATE TABLE scores (evaluation INTEGER NOT NULL REFERENCES evaluations (id) ON DELETE CASCADE, {scores}, "
        f"{KEY})",
        f"CREATE VIEW results AS SELECT {shown} FROM scores JOIN evaluations ON scores.evaluation = evaluations.id",
        f"PRAGMA user_version = {FORMAT}",
    ]
