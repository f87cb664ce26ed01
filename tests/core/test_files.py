"""Digests, locks and JSON objects in files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from libmoe.core.errors import ConfigError
from libmoe.core.files import digest, hold, read_json


def test_a_digest_is_that_of_the_whole_content(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000
    (tmp_path / "file").write_bytes(content)
    assert digest(tmp_path / "file") == hashlib.sha256(content).hexdigest()
    with pytest.raises(OSError, match="file2"):
        digest(tmp_path / "file2")


def test_a_folder_is_held_once_for_each_name_of_lock(tmp_path: Path) -> None:
    with hold(tmp_path / "a"), hold(tmp_path / "a", ".other"):
        with (
            pytest.raises(ConfigError, match="a is in use by another process"),
            hold(tmp_path / "a", ".other"),
        ):
            pass
    with hold(tmp_path / "a", ".other"):
        pass


@pytest.mark.parametrize("content", [None, "", "{", "[1]", "null", "\udcff"])
def test_what_is_no_json_object_is_nothing(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "x.json").write_text(content, encoding="utf-8", errors="surrogateescape")
    assert read_json(tmp_path / "x.json") is None


def test_an_object_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": [1]}')
    assert read_json(tmp_path / "x.json") == {"a": [1]}
