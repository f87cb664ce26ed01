"""The gathered analysis says what was planted, and holds the keys that the report reads."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from libmoe.analysis import Trace, gather
from libmoe.analysis.series import Series
from libmoe.core.files import finite
from libmoe.report.experts.schema import checked
from routed import trace_of

IDS = torch.arange(4).repeat_interleave(40).view(4, 40) + 10 * (torch.arange(40) % 2)
"""Each row has two token ids of its own."""
DOMAIN = torch.tensor([0, 1, 0, 1])[:, None].expand(4, 40)


def planted(shift: int = 0, kept: torch.Tensor | None = None) -> Trace:
    """Layer 0 sends a domain to experts of its own, layer 1 whatever to experts 0 and 1; expert 3 of it is dead."""
    first = torch.stack([2 * DOMAIN, 2 * DOMAIN + 1], -1)
    second = torch.stack([IDS % 2, 1 - IDS % 2], -1)
    layers = {0: (first + shift) % 4, 1: second}
    return trace_of(
        layers, 4, ids=IDS, side={"domain": DOMAIN}, labels={"domain": ["prose", "code"]}, kept=kept
    )


def texts(ids: list[int]) -> list[str]:
    return [f"<{i}>" for i in ids]


def analysed(**more: object) -> dict:
    found = gather.gather(planted(), name="made up", facts={"model": "none"}, texts=texts, **more)
    return json.loads(json.dumps(finite(found)))


def test_what_was_planted_is_found() -> None:
    found = checked(analysed())
    first, second = found["layers"]
    assert first["by"]["domain"]["names"] == ["prose", "code"]
    assert first["by"]["domain"]["counts"] == [[80, 80, 0, 0], [0, 0, 80, 80]]
    assert first["balance"]["normalised_entropy"] == pytest.approx(1) and first["balance"]["dead"] == []
    assert second["balance"]["dead"] == [2, 3] and second["by"]["domain"]["explained"] == pytest.approx(
        0, abs=0.01
    )
    assert first["by"]["domain"]["explained"] == pytest.approx(
        0.5, abs=0.01
    )  # which of the two experts is left
    assert first["next"] == [[80, 80, 0, 0]] * 4 and "next" not in second
    tops = [{token["text"] for token in tokens} for tokens in first["top_tokens"]]
    assert tops == [{"<0>", "<10>", "<2>", "<12>"}] * 2 + [{"<1>", "<11>", "<3>", "<13>"}] * 2
    assert all(
        token["share"] == 1 and token["count"] == 20 for tokens in first["top_tokens"] for token in tokens
    )
    assert first["uncertainty"]["margin"] is None  # no scores in this trace


def test_sample_texts_have_the_experts_of_their_tokens() -> None:
    prose, code = analysed()["samples"]
    assert (prose["domain"], code["domain"]) == ("prose", "code")
    assert prose["tokens"][:3] == ["<0>", "<10>", "<0>"]
    assert prose["experts"]["0"] == [[0, 1]] * 40 and code["experts"]["0"] == [[2, 3]] * 40
    assert prose["weights"]["1"] == [[0.5, 0.5]] * 40


def test_few_layers_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = analysed()
    monkeypatch.setattr(gather, "CELLS", 1)
    assert analysed() == whole


def test_checkpoints_are_compared_with_the_last() -> None:
    found = checked(analysed(series=Series([10, 20, 30], [planted(2), planted(1), planted()])))
    rows = [[layer["saturation"] for layer in state["layers"]] for state in found["checkpoints"]]
    assert np.allclose(rows, [[0, 1], [0.5, 1], [1, 1]])
    assert [state["layers"][0]["change"] for state in found["checkpoints"]] == [1, 1, 0]


def test_drops_are_drawn_only_where_there_are_any() -> None:
    assert "drops" not in analysed()
    kept = torch.ones(4, 40, 2, dtype=torch.bool)
    kept[:, 20:, 1] = False
    share = gather.gather(planted(kept=kept), name="x", facts={})["drops"]["share"]
    assert share[0] == 0 and share[-1] == 0.5


def test_one_layer_alone_and_similarity_and_notes() -> None:
    found = checked(analysed(layers=[1], similarity={1: {"weights": [[1.0] * 4] * 4}}, notes=["limits"]))
    (layer,) = found["layers"]
    assert layer["layer"] == 1 and layer["similarity"]["weights"][0][0] == 1 and found["notes"] == ["limits"]
