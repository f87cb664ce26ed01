"""An invented analysis, sound in all respects, to spoil."""

from __future__ import annotations

from typing import Any

import pytest

from planted_analysis import planted


@pytest.fixture
def analysis() -> dict[str, Any]:
    """Four layers of eight experts, two for a token; four domains."""
    return planted()
