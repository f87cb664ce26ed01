"""``libmoe check`` tells a researcher which promise her router breaks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

Libmoe = Callable[..., Any]

FUTURE = """
def logits(self, x_TD, ctx):
    batch, length = ctx.batch_shape
    mean_B1D = x_TD.view(batch, length, -1).mean(1, keepdim=True)
    return super().logits(x_TD + mean_B1D.expand(batch, length, -1).reshape(x_TD.shape), ctx)
"""


def test_a_sound_router_passes_and_the_checks_are_listed(libmoe: Libmoe, plugin: Any) -> None:
    outcome = libmoe("check", "sound", "--plugin", plugin("sound", "pass"), "--json")
    assert outcome.code == 0
    found = json.loads(outcome.out)
    assert found["failed"] == [] and len(found["passed"]) > 20
    assert "router: is causal as declared" in found["passed"]


def test_a_router_that_sees_the_future_is_caught_and_told_how(libmoe: Libmoe, plugin: Any) -> None:
    file = plugin("seer", FUTURE)
    outcome = libmoe("check", "seer", "--plugin", file)
    assert outcome.code == 1
    line = next(
        " ".join(part.split()) for part in outcome.out.split("FAIL")[1:] if "router: is causal" in part
    )
    assert re.search(r"token \d+ of sequence \d+ changed its .* when tokens \d+\.\.\d+ were replaced", line)
    assert "does not declare causal=False" in line
    assert "promises are broken" in outcome.err and "Traceback" not in outcome.err


def test_declaring_it_satisfies_the_audit(libmoe: Libmoe, plugin: Any) -> None:
    file = plugin("open-seer", "causal = False" + FUTURE)
    outcome = libmoe("check", "open-seer", "--plugin", file, "--json")
    failed = json.loads(outcome.out)["failed"]
    assert not [line for line in failed if "causal" in line]


def test_options_are_checked_too(libmoe: Libmoe, plugin: Any) -> None:
    outcome = libmoe("check", "sound", "--plugin", plugin("sound", "pass"), "--set", "top_k=1", "--json")
    assert outcome.code == 0 and json.loads(outcome.out)["options"] == {"top_k": 1}
