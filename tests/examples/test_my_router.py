"""The promise of the example: one small file, and it trains, is checked and is compared like any other method."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from libmoe.core.context import ForwardContext, LayerContext
from libmoe.core.plugins import load_plugin
from libmoe.methods import METHODS
from libmoe.testing import ContractError, audit, check_method, check_router

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_router.py"
SHORT = ("--set", "train.steps=4", "--set", "train.warmup_steps=1", "-q")
Libmoe = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    module = load_plugin(EXAMPLE)
    yield module
    for registered in (METHODS._entries, METHODS._aliases):
        registered.pop("logit-norm", None)
    sys.modules.pop(module.__name__)


@pytest.fixture
def libmoe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], example: ModuleType
) -> Libmoe:
    def run(*arguments: object) -> tuple[int, str, str]:
        from libmoe.cli import main

        monkeypatch.setattr(sys, "argv", ["libmoe", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return run


def test_it_is_one_small_file_outside_the_package() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 40
    import libmoe as package

    assert Path(package.__file__).parent not in EXAMPLE.parents


def test_it_keeps_the_contract(example: ModuleType) -> None:
    passed = check_router(
        lambda dim=16, num_experts=4, top_k=2: example.LogitNormRouter(dim, num_experts, top_k)
    )
    assert "is causal as declared" in passed
    check_method("logit-norm")


def test_its_weights_depend_on_no_scale_and_no_offset_of_the_logits(example: ModuleType) -> None:
    router = example.LogitNormRouter(8, 4, 2)
    logits_TN = torch.randn(5, 4)
    scores_TN = router.score(logits_TN)
    torch.testing.assert_close(router.score(7 * logits_TN + 3), scores_TN, rtol=1e-4, atol=1e-5)
    assert torch.equal(scores_TN.argsort(1), logits_TN.argsort(1))


def test_it_trains(libmoe: Libmoe, tmp_path: Path) -> None:
    code, out, err = libmoe(
        "train", "tiny", *SHORT, "--plugin", EXAMPLE, "--set", "method.name=logit-norm", "--out", tmp_path / "run",
        "--json",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out)
    assert found["steps"] == 4 and 0 < found["bits_per_byte"] < 20


def test_it_is_compared_with_smoe_under_one_budget(libmoe: Libmoe, tmp_path: Path) -> None:
    recipe = yaml.safe_load((EXAMPLE.parents[1] / "src/libmoe/recipes/tiny.yaml").read_text())
    del recipe["method"]
    recipe["train"] |= {"steps": 4, "warmup_steps": 1}
    entries = [{"method": "dense"}, {"method": "smoe", "options": {"num_experts": 4, "top_k": 2}}]
    grid = tmp_path / "grid.yaml"
    grid.write_text(yaml.safe_dump({"name": "mine", "seeds": [0], "entries": entries, "recipe": recipe}))
    code, out, err = libmoe(
        "bench", grid, "--plugin", EXAMPLE, "--add", "logit-norm", "--out", tmp_path / "out", "--json"
    )
    assert code == 0, err
    rows = {row["method"]: row for row in json.loads(out)["rows"]}
    assert [row["status"] for row in rows.values()] == ["ok"] * 3
    assert rows["logit-norm"]["active_params"] == pytest.approx(rows["dense"]["active_params"], rel=0.01)
    assert rows["logit-norm"]["total_params"] == rows["smoe"]["total_params"]
    assert rows["logit-norm"]["bits_per_byte"] != rows["smoe"]["bits_per_byte"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "logit-norm" in page


def test_a_version_that_looks_ahead_is_caught(example: ModuleType) -> None:
    class LooksAhead(example.LogitNormRouter):
        def logits(self, x_TD: Tensor, ctx: LayerContext) -> Tensor:
            batch, length = ctx.batch_shape
            ahead_BLD = x_TD.view(batch, length, -1).roll(-1, dims=1)
            return super().logits(x_TD + ahead_BLD.reshape(x_TD.shape), ctx)

    def make() -> Any:
        return LooksAhead(16, 4, 2)

    router = make()
    router(
        torch.randn(6, 16), ForwardContext().layer(0, (2, 3), False)
    )  # it runs: nothing else is wrong with it
    assert router.causal
    report = audit(make)
    assert not report.causal and "when tokens" in report.evidence
    with pytest.raises(ContractError) as broken:
        check_router(make)
    lines = [line for line in str(broken.value).splitlines() if "is causal as declared" in line]
    assert len(lines) == 1 and "does not declare causal=False" in lines[0]
