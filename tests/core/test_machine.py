"""What is said of the machine."""

from __future__ import annotations

import builtins
import json
import platform
from typing import Any

import pytest

from libmoe.core import machine


def test_hardware_can_be_written_as_json_and_names_processor_and_memory() -> None:
    found = machine.hardware()
    assert json.loads(json.dumps(found)) == found
    assert found["cpu"] == machine.processor() != ""
    assert found["memory_bytes"] == machine.memory_bytes()


def test_a_processor_without_a_name_there_is_told_by_its_architecture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise FileNotFoundError

    monkeypatch.setattr(builtins, "open", refuse)
    assert machine.processor() == (platform.processor() or platform.machine())


def test_a_package_that_is_not_installed_has_no_version() -> None:
    assert machine.installed_version("torch") and machine.installed_version("no-such-package") is None
