"""The environment is whole, made once, and takes nothing from the main one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from libmoe.core.errors import DataError
from libmoe.eval.vlm import check, environment
from libmoe.eval.vlm.environment import ensure, environment_dir, main_packages, python_of
from libmoe.eval.vlm.packages import FOREIGN, VERSION


@pytest.mark.vision
def test_torch_and_transformers_are_those_of_the_main_environment(in_environment: Callable[..., str]) -> None:
    code = (
        "import json, torch, transformers, libmoe, lmms_eval, sys;"
        "print(json.dumps([torch.__file__, transformers.__file__, libmoe.__file__, lmms_eval.__file__]))"
    )
    files = json.loads(in_environment("-c", code))
    import libmoe

    assert files[:3] == [torch.__file__, transformers.__file__, libmoe.__file__]
    assert files[3].startswith(str(environment_dir()))


@pytest.mark.vision
def test_it_holds_no_second_torch_and_no_torchvision(vision_python: Path) -> None:
    site = next(vision_python.parents[1].glob("lib/python*/site-packages"))
    names = {path.name.partition("-")[0].lower() for path in site.glob("*.dist-info")}
    assert "lmms_eval" in names
    assert not names & set(FOREIGN)


@pytest.mark.vision
def test_everything_installed_fits_in_a_few_megabytes(vision_python: Path) -> None:
    site = next(vision_python.parents[1].glob("lib/python*/site-packages"))
    size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file() and "pip" not in path.parts)
    assert size < 250e6


@pytest.mark.vision
def test_the_main_environment_is_as_it_was(vision_python: Path) -> None:
    freeze = [sys.executable, "-m", "pip", "freeze", "--all"]
    before = subprocess.run(freeze, capture_output=True, text=True, check=True).stdout
    checks = check()
    assert all(c["ok"] for c in checks), checks
    assert {c["what"] for c in checks} >= {"main environment whole", "no second torch", "lmms-eval"}
    record = json.loads((environment_dir() / "libmoe.json").read_text())
    assert record["before"] == record["after"] == main_packages()
    assert subprocess.run(freeze, capture_output=True, text=True, check=True).stdout == before


@pytest.mark.vision
def test_a_second_call_makes_nothing(vision_python: Path) -> None:
    before = environment_dir().stat().st_mtime_ns
    said: list[str] = []
    assert ensure(said.append) == vision_python
    assert not said
    assert environment_dir().stat().st_mtime_ns == before


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIBMOE_CACHE", str(tmp_path))
    return tmp_path


def made(folder: Path, progress: Callable[[str], None]) -> None:
    python_of(folder).parent.mkdir(parents=True)
    python_of(folder).write_text("")


def test_a_half_made_one_is_never_used(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(folder: Path, progress: Any) -> None:
        made(folder, progress)
        raise KeyboardInterrupt

    monkeypatch.setattr(environment, "_make", half)
    with pytest.raises(KeyboardInterrupt):
        ensure()
    assert not environment_dir().exists()
    assert not list(environment_dir().parent.glob(".lmms-eval-*"))
    monkeypatch.setattr(environment, "_make", made)
    assert ensure().is_file()


def test_one_whose_python_is_gone_is_made_anew(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_make", made)
    shutil.rmtree(ensure().parent)
    assert ensure().is_file()


def test_of_two_at_once_one_makes_it(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = []
    started, go = threading.Event(), threading.Event()

    def slow(folder: Path, progress: Any) -> None:
        count.append(1)
        started.set()
        go.wait(10)
        made(folder, progress)

    monkeypatch.setattr(environment, "_make", slow)
    said: list[str] = []
    threads = [threading.Thread(target=ensure), threading.Thread(target=ensure, args=(said.append,))]
    threads[0].start()
    assert started.wait(10)
    threads[1].start()
    until = time.monotonic() + 10
    while not said and time.monotonic() < until:
        time.sleep(0.01)
    go.set()
    for thread in threads:
        thread.join(10)
    assert count == [1]
    assert "waiting" in said[0]


def test_without_a_network_one_line_says_what_helps(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(
        DataError, match=r"cannot be installed: No matching distribution.*PIP_FIND_LINKS"
    ) as caught:
        ensure()
    assert "\n" not in str(caught.value)
    assert not environment_dir().exists()


def test_check_says_when_it_is_not_made(elsewhere: Path) -> None:
    (entry,) = check()
    assert entry["ok"] is None
    assert "--setup-vision" in entry["found"]


def test_another_main_environment_gets_another_one(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = environment_dir()
    assert VERSION in first.name
    monkeypatch.setattr(sys, "path", [*sys.path, "/other/site-packages"])
    assert environment_dir() != first
