"""What ``datasets.load_dataset`` gives while a mirror is served."""

from __future__ import annotations

import gzip
import json
import shutil
import socket
from pathlib import Path
from typing import Any

import datasets
import pytest

from libmoe.core.errors import ConfigError, DataError
from libmoe.eval.mirror import serving

ROWS = [{"text": "one", "n": 1}, {"text": "two", "n": 2}]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a mirror never asks the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def put(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(str(path))
    elif path.suffix == ".csv":
        datasets.Dataset.from_list(rows).to_csv(str(path))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("org/set/test.jsonl", None),
        ("org/set/test.json", None),
        ("org/set/test.jsonl.gz", None),
        ("org/set/test.csv", None),
        ("org/set/test.parquet", None),
        ("org/set/part/test.jsonl", "part"),
        ("org/set/test-00000-of-00001.parquet", None),
        ("org/set/data/test-00000-of-00001.parquet", None),
        ("org/set/part/test-00000-of-00001.parquet", "part"),
        ("org/set/data/part/test-00000-of-00001.parquet", "part"),
        ("org/set/part/test/0000.parquet", "part"),
        ("org/set/plain_text/test-00000-of-00001.parquet", None),
        ("org/set/test.jsonl", "default"),
        ("datasets--org--set/snapshots/0123abcd/part/test-00000-of-00001.parquet", "part"),
    ],
)
def test_layouts(file: str, name: str | None, tmp_path: Path) -> None:
    put(tmp_path / file, ROWS)
    with serving(tmp_path):
        assert datasets.load_dataset("org/set", name)["test"].to_list() == ROWS
        assert datasets.load_dataset(path="org/set", name=name, split="test").to_list() == ROWS
        assert datasets.load_dataset("org/set", name, split="test[:1]").to_list() == ROWS[:1]


def test_a_snapshot_is_read_as_its_card_says(tmp_path: Path) -> None:
    put(tmp_path / "org/set/files/a-of-b.jsonl", ROWS)
    put(tmp_path / "org/set/files/other.jsonl", ROWS[:1])
    (tmp_path / "org/set/README.md").write_text(
        "---\nlicense: mit\nconfigs:\n- config_name: hard\n  data_files:\n  - split: test\n    path: files/a-*\n"
        "- config_name: easy\n  default: true\n  data_files:\n  - split: test\n    path: files/other.jsonl\n---\n",
        encoding="utf-8",
    )
    with serving(tmp_path):
        assert len(datasets.load_dataset("org/set", "hard")["test"]) == 2
        assert len(datasets.load_dataset("org/set")["test"]) == 1


def test_shards_are_joined_in_order(tmp_path: Path) -> None:
    for i, row in enumerate(ROWS):
        put(tmp_path / f"org/set/test-0000{i}-of-00002.parquet", [row])
    with serving(tmp_path):
        assert datasets.load_dataset("org/set")["test"].to_list() == ROWS


def test_configurations_are_not_mixed_up(tmp_path: Path) -> None:
    put(tmp_path / "org/set/test.jsonl", ROWS)
    put(tmp_path / "org/set/easy/test.jsonl", ROWS)
    with (
        serving(tmp_path),
        pytest.raises(DataError, match=r"org/set, easi.*easi/SPLIT.jsonl; did you mean 'easy'"),
    ):
        datasets.load_dataset("org/set", "easi")


def test_a_data_set_without_files_is_named_with_the_file_expected(tmp_path: Path) -> None:
    with (
        serving(tmp_path),
        pytest.raises(DataError, match=r"no files of data set org/set; expected .*org/set/SPLIT.jsonl"),
    ):
        datasets.load_dataset("org/set")


def test_absent_splits_matter_only_when_used(tmp_path: Path) -> None:
    put(tmp_path / "org/set/test.jsonl", ROWS)
    with serving(tmp_path):
        found = datasets.load_dataset("org/set")
        train = found["train"].map(lambda row: {"n": row["n"] + 1}).filter(lambda row: row["n"] > 0)
        assert list(train) == []
        assert list(found["train"].features) == ["text", "n"]
        assert list(found) == ["test"]
        with pytest.raises(DataError, match=r"no file of split 'train'; expected .*org/set/train.jsonl"):
            train[0]


def test_a_broken_split_matters_only_when_used(tmp_path: Path) -> None:
    put(tmp_path / "org/set/test.jsonl", ROWS)
    (tmp_path / "org/set/train.jsonl").write_text('{"text": "one"}\n{"text": \n', encoding="utf-8")
    with serving(tmp_path):
        found = datasets.load_dataset("org/set")
        assert found["test"].to_list() == ROWS
        assert list(found) == ["test"]
        with pytest.raises(DataError, match=r"train.jsonl cannot be read: line 2 is not JSON"):
            found["train"]


def test_local_files_pass_and_files_of_the_hub_are_those_of_the_mirror(tmp_path: Path) -> None:
    local = put(tmp_path / "mine.jsonl", ROWS)
    put(tmp_path / "mirror/org/set/raw/a.jsonl", ROWS[:1])
    with serving(tmp_path / "mirror"):
        assert datasets.load_dataset("json", data_files=str(local))["train"].to_list() == ROWS
        for address in (
            "hf://datasets/org/set/raw/a.jsonl",
            "hf://datasets/org/set@main/raw/a.jsonl",
            "https://huggingface.co/datasets/org/set/resolve/main/raw/a.jsonl",
        ):
            found = datasets.load_dataset("json", data_files={"test": address}, split="test")
            assert found.to_list() == ROWS[:1]
        assert datasets.load_dataset("org/set", data_files="raw/a.jsonl")["train"].to_list() == ROWS[:1]
        with pytest.raises(DataError, match=r"there is no .*org/set/raw/b.jsonl"):
            datasets.load_dataset("json", data_files=["hf://datasets/org/set/raw/b.jsonl"])


def test_it_ends_with_the_block(tmp_path: Path) -> None:
    before = datasets.load_dataset
    put(tmp_path / "org/set/test.jsonl", ROWS)
    with serving(tmp_path):
        kept = datasets.load_dataset
        kept("org/set")
    assert datasets.load_dataset is before
    shutil.rmtree(tmp_path / "org")
    with pytest.raises((ConnectionError, AssertionError, OSError)):
        kept("org/set")  # whoever kept the function has the real one again


def test_no_folder_no_mirror(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder"), serving(tmp_path / "nowhere"):
        pass
