"""The embedded multiple-choice tasks: balanced, short, from the test split only, and run by the harness."""

from __future__ import annotations

import json
from collections import Counter
from importlib.resources import files

import pytest

from libmoe.data import TASKS, load_corpus, task_dir
from libmoe.data.tasks import GROUP

SHIPPED = files("libmoe.data.tasks")


def _items(task):
    return [json.loads(line) for line in (SHIPPED / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("task", TASKS)
def test_items_are_balanced_short_and_distinct(task, tokenizer):
    items = _items(task)
    assert len(items) == 200
    assert Counter(item["gold"] for item in items) == {0: 50, 1: 50, 2: 50, 3: 50}
    assert len({(item["context"], item["choices"][item["gold"]]) for item in items}) == 200
    for item in items:
        assert len(set(item["choices"])) == 4
        assert len(tokenizer.encode(item["context"])) <= 60
        assert all(len(tokenizer.encode(" " + choice)) <= 24 for choice in item["choices"])


def _squeeze(text):
    return " ".join(text.split())


@pytest.mark.parametrize("task", TASKS)
def test_right_answers_are_test_text_and_never_training_text(task):
    domains = sorted({item["domain"] for item in _items(task)})
    corpus = load_corpus("embedded", domains=domains)
    test, train = ({d: _squeeze(" ".join(corpus[s][d])) for d in domains} for s in ("test", "train"))
    for item in _items(task):
        right = item["choices"][item["gold"]]
        text = f"{item['context']} {right.rstrip('.')}"
        assert text in test[item["domain"]]
        assert text not in train[item["domain"]]


def test_no_text_is_cut_at_two_places():
    # lm-evaluation-harness pools the requests of all tasks and gives such pairs each other's score.
    contexts = {}
    for task in TASKS:
        for item in _items(task):
            for choice in item["choices"]:
                contexts.setdefault(f"{item['context']} {choice}", set()).add(item["context"])
    assert all(len(found) == 1 for found in contexts.values())


def test_position_and_length_give_no_answer_away():
    for task in TASKS:
        items = _items(task)
        for pick in (max, min):
            picked = [pick(range(4), key=[len(c) for c in item["choices"]].__getitem__) for item in items]
            hits = sum(p == item["gold"] for p, item in zip(picked, items, strict=True))
            assert 0.15 < hits / len(items) < 0.36, task


def test_task_folder_has_absolute_paths_and_is_written_once(tmp_path, monkeypatch):
    folder = task_dir(tmp_path)
    stamp = {f: f.stat().st_mtime_ns for f in folder.iterdir()}
    monkeypatch.chdir(tmp_path)
    assert task_dir(".") == folder
    assert {f: f.stat().st_mtime_ns for f in folder.iterdir()} == stamp
    for task in TASKS:
        assert str(folder / f"{task}.jsonl") in (folder / f"{task}.yaml").read_text()
    (folder / f"{TASKS[0]}.jsonl").write_text("damaged")
    task_dir(tmp_path)
    assert (folder / f"{TASKS[0]}.jsonl").read_bytes() == (SHIPPED / f"{TASKS[0]}.jsonl").read_bytes()


def test_the_harness_runs_the_tasks_offline(tmp_path, monkeypatch):
    import datasets
    import lm_eval

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    answers = {item["context"]: item for item in _items("moe_definition")}

    class Knows(LM):
        """Knows the definitions, and for everything else prefers the shortest choice."""

        def loglikelihood(self, requests):
            return [(self._score(*request.args), False) for request in requests]

        def _score(self, context, choice):
            item = answers.get(context)
            return float(item["choices"][item["gold"]] == choice[1:]) if item else -float(len(choice))

        loglikelihood_rolling = generate_until = None  # no task here asks for them

    manager = TaskManager(include_path=str(task_dir(tmp_path)), include_defaults=False)
    report = lm_eval.simple_evaluate(Knows(), tasks=[GROUP], task_manager=manager, bootstrap_iters=0)
    results = report["results"]
    assert results["moe_definition"]["acc,none"] == 1.0
    assert all(0.1 < results[task]["acc,none"] < 0.4 for task in TASKS if task != "moe_definition")
    assert GROUP in results
