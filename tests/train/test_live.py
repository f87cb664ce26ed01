"""Live metrics are those of the scores, on logged steps alone; a run's page says how it stands."""

from __future__ import annotations

import itertools
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from libmoe.core.context import ForwardContext, options
from libmoe.core.errors import ConfigError, DataError
from libmoe.core.files import hold, write_json
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing
from libmoe.core.statistics import StepStatistics
from libmoe.train import live_view, train
from libmoe.train.live import Confidence
from libmoe.train.live_page import page, serve
from libmoe.train.live_view import RunView
from libmoe.train.recipe import Recipe, save_recipe


def routing_of(scores: list[list[float]]) -> Routing:
    scores_TN = torch.tensor(scores)
    weight_TK, expert_TK = scores_TN.topk(1)
    return Routing(SparsePlan.from_topk(expert_TK, weight_TK, scores_TN.shape[1]), scores_TN=scores_TN)


def test_margin_and_entropy_are_means_over_real_tokens_of_all_micro_batches() -> None:
    confidence = Confidence()
    with confidence.watching(True):
        for scores in ([[0.7, 0.3], [1.0, 0.0]], [[0.5, 0.5], [0.9, 0.1]]):
            context = ForwardContext({"attention_mask": torch.tensor([[1, 1 if scores[0][0] > 0.6 else 0]])})
            confidence(context.layer(3, (1, 2), True), routing_of(scores))
    found = confidence.by_layer()["3"]
    assert found["margin"] == pytest.approx((0.4 + 1.0 + 0.0) / 3)  # 0.9 and 0.1 are padding
    assert found["score_entropy"] == pytest.approx((0.8812909 + 0 + 1) / 3)


def test_a_counting_pass_and_unlogged_steps_are_not_seen() -> None:
    confidence, statistics = Confidence(), StepStatistics()
    statistics.begin_counting()
    with options(statistics=statistics):
        context = ForwardContext({})
    confidence(context.layer(0, (1, 1), True), routing_of([[0.7, 0.3]]))
    assert confidence.by_layer() == {}
    with confidence.watching(False), options() as now:
        assert now.recorders == ()
    with confidence.watching(True), options() as now:
        assert now.recorders == (confidence,)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run") / "run"


def test_a_run_logs_them_and_trains_the_same(
    recipe: Callable[..., Recipe], folder: Path, tmp_path: Path
) -> None:
    train(recipe(), folder, quiet=True)
    train(recipe("train.log_every=3"), tmp_path / "rarely", quiet=True)
    often, rarely = (
        {r["step"]: r for r in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())}
        for run in (folder, tmp_path / "rarely")
    )
    assert all(0 <= row["margin"] <= 1 for record in often.values() for row in record["balance"].values())
    assert list(rarely) == [3, 6] and all(rarely[step] == often[step] for step in rarely)


def test_a_finished_run_is_told_from_one_at_work_and_a_dead_one(folder: Path) -> None:
    view = RunView(folder)
    found = view.look()
    assert found["state"] == "finished" and found["step"] == found["steps"] == 6
    assert found["curves"]["step"] == [1, 2, 3, 4, 5, 6] and len(found["curves"]["loss"]) == 6
    assert set(found["curves"]["layers"]) == set(found["load"]) == {"0", "1"}
    assert all(0 <= e <= 1 for e in found["curves"]["layers"]["0"]["entropy"])
    with hold(folder):
        assert view.look()["state"] == "evaluating"
    (folder / "result.json").rename(folder / "away.json")
    found = view.look()
    assert found["state"] == "stopped" and "the same command resumes" in found["words"]
    (folder / "away.json").rename(folder / "result.json")


def lines(first: int, last: int) -> str:
    layer = {"load": [0.5, 0.5], "entropy": 0.6931, "max_violation": 0.0, "dead": 0}
    return "".join(
        json.dumps({"step": s, "tokens": s, "loss": 1.0, "balance": {"0": layer}}) + "\n"
        for s in range(first, last)
    )


@pytest.fixture
def young(recipe: Callable[..., Recipe], tmp_path: Path) -> Path:
    save_recipe(recipe("train.steps=5000"), tmp_path / "recipe.yaml")
    return tmp_path


def test_new_lines_are_read_once_and_a_log_that_was_cut_back_anew(young: Path) -> None:
    log, view = young / "metrics.jsonl", RunView(young)
    assert view.look()["curves"]["step"] == []
    log.write_text(lines(1, 4) + '{"step": 4, "lo')
    with hold(young):
        found = view.look()
    assert found["state"] == "training" and found["curves"]["step"] == [1, 2, 3]
    log.write_text(lines(1, 6))
    assert view.look()["curves"]["step"] == [1, 2, 3, 4, 5]
    log.write_text(lines(1, 3))
    assert view.look()["curves"]["step"] == [1, 2]


def test_curves_of_long_runs_are_thinned_evenly(young: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_view, "POINTS", 10)
    (young / "metrics.jsonl").write_text(lines(1, 1000))
    steps = RunView(young).look()["curves"]["step"]
    assert 10 <= len(steps) < 20 and len({b - a for a, b in itertools.pairwise(steps)}) == 1


def test_a_run_whose_loss_was_not_finite_has_failed(young: Path) -> None:
    alarm = {"kind": "not_finite", "layer": None, "message": "loss nan </script>"}
    (young / "metrics.jsonl").write_text(
        lines(1, 3) + json.dumps({"step": 3, "tokens": 3, "alarms": [alarm]}) + "\n"
    )
    write_json(young / "failed-step-00000003" / "failure.json", {})
    found = RunView(young).look()
    assert found["state"] == "failed" and found["alarms"][0]["step"] == 3
    assert page(found).count("</script>") == 2  # what a run says cannot end the script


def test_the_page_stands_alone(folder: Path) -> None:
    text = page(RunView(folder).look())
    assert '"state":"finished"' in text and "https://" not in text
    assert [part for part in text.split("http://")[1:] if not part.startswith("www.w3.org/2000/svg")] == []


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no run folder: recipe\.yaml is missing"):
        RunView(tmp_path)


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    with serve(RunView(folder), 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_the_server_answers_this_machine_alone(address: str, folder: Path) -> None:
    def get(path: str, **headers: str) -> Any:
        return urllib.request.urlopen(
            urllib.request.Request(address + path, headers=headers), timeout=10
        ).read()

    assert b"<!doctype html>" in get("/")
    assert json.loads(get("/data.json")) == json.loads(json.dumps(RunView(folder).look()))
    for path, headers, code in (("/recipe.yaml", {}, 404), ("/", {"Host": "elsewhere.example"}, 403)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            get(path, **headers)
        assert refused.value.code == code
    port = int(address.rpartition(":")[2])
    with pytest.raises(ConfigError, match=rf"--port {port}: .*choose another"):
        serve(RunView(folder), port)
