"""Registering a method enrols it here."""

from __future__ import annotations

import pytest

from libmoe.methods import METHODS
from libmoe.testing import check_method


@pytest.mark.parametrize("name", METHODS.names())
def test_method_keeps_the_contract(name: str) -> None:
    check_method(name)
