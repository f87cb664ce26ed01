"""The published tasks: their items do not move, and lmms-eval asks them about the right images."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml

from libmoe.core.errors import DataError
from libmoe.data.vision import tasks
from libmoe.data.vision.scenes import SIZE, questions
from libmoe.data.vision.tasks import GROUP, TASKS, items_of, scene_task_dir
from libmoe.data.vision.tasks.utils import acc_plus, score, visual
from tiny_llava import save_llava


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return scene_task_dir(tmp_path_factory.mktemp("scene tasks"))


def documents(folder, task):
    return [json.loads(line) for line in (folder / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_folder_holds_every_task_with_its_published_items(folder):
    assert len(TASKS) == 13
    for task in TASKS:
        config = (folder / f"{task}.yaml").read_text(encoding="utf-8")
        assert f"task: {task}\n" in config and str(folder / f"{task}.jsonl") in config
        counts = Counter(document["split"] for document in documents(folder, task))
        assert counts.keys() >= {"seen", "style"} and min(counts.values()) >= 200
    group = yaml.safe_load((folder / f"{GROUP}.yaml").read_text(encoding="utf-8"))
    assert sorted(group["task"]) == sorted(TASKS)


def test_the_folder_is_made_once(folder, monkeypatch):
    stamps = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    monkeypatch.setattr(tasks, "items_of", lambda subtask: pytest.fail("made again"))
    assert scene_task_dir(folder.parent) == folder
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == stamps


def test_items_other_than_the_published_ones_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "items_of", lambda subtask: items_of("color")[1:])
    with pytest.raises(DataError, match="scenes_existence are not the published ones"):
        scene_task_dir(tmp_path)
    assert not list(tmp_path.rglob("fingerprint.json"))


def test_documents_are_the_items_and_their_images(folder):
    for split in ("style", "concept"):
        found = [d for d in documents(folder, "scenes_existence") if d["split"] == split]
        for document, item in zip(found[::9], questions(split, ["existence"])[::9], strict=True):
            assert item.question == f"<image>\n{document['question']}"
            assert (document["choices"], document["gold"]) == (list(item.choices), item.gold)
            (image,) = visual(document)
            assert image.size == (SIZE, SIZE) and image.tobytes() == item.image().tobytes()
            assert item.facts == json.loads(document["scene"]) | json.loads(document["facts"])


def test_the_least_loss_wins_and_images_count_only_whole():
    document = {"gold": 1, "split": "style", "group": "a"}
    right, wrong = score(document, [(2.0, False), (1.5, False)]), score(document, [(1.0, True), (1.5, False)])
    assert right == {"acc": 1.0, "acc_style": 1.0, "acc_plus": {"score": 1.0, "group": "a"}}
    assert wrong["acc"] == 0.0
    other = {"score": 1.0, "group": "b"}
    assert acc_plus([right["acc_plus"], wrong["acc_plus"], other, other]) == 0.5
    assert "acc_plus" not in score(document | {"group": ""}, [(1.0, True), (1.5, False)])


@pytest.fixture
def llava(tmp_path: Path) -> Path:
    return save_llava(tmp_path / "llava", SIZE)


@pytest.mark.vision
def test_lmms_eval_asks_them_and_scores_by_likelihood(folder, llava, tmp_path):
    from libmoe.eval.harness.samples import SampleFile
    from libmoe.eval.harness.settings import Settings
    from libmoe.eval.opening import open_model
    from libmoe.eval.suites import Source, SuiteTask
    from libmoe.eval.vlm import evaluate_vision

    names = ("scenes_existence", "scenes_OCR")
    wanted = [
        SuiteTask(
            name=n, harness="lmms", task=n, skill="other", type="multiple_choice", metric="acc,none",
            cluster="block", data=(Source("json", "test"),),
        )
        for n in names
    ]  # fmt: skip
    settings = Settings(limit=24, bootstrap=0)
    found = evaluate_vision(open_model(llava), wanted, tmp_path / "out", settings, include=folder)
    assert not found.failed
    for name in names:
        rows = list(SampleFile(tmp_path / "out" / "samples" / name).read())
        assert [row["document"]["name"] for row in rows] == [d["name"] for d in documents(folder, name)[:24]]
        losses = [[response[0][0] for response in row["responses"]] for row in rows]
        right = [x.index(min(x)) == row["document"]["gold"] for x, row in zip(losses, rows, strict=True)]
        assert found.tasks[name].metric("acc").value == sum(right) / 24
        assert found.tasks[name].metric("acc_seen").value == sum(right) / 24
        assert found.tasks[name].metric("acc").clusters == 6
        # Questions come back about other images: it is the image that makes the difference.
        assert len({tuple(x) for x in losses}) == 24 > len({row["document"]["question"] for row in rows})
    images = {}
    for row in SampleFile(tmp_path / "out" / "samples" / "scenes_existence").read():
        images.setdefault(row["document"]["group"], []).append(row["metrics"]["acc,none"])
    whole = sum(all(pair) for pair in images.values()) / 12
    assert found.tasks["scenes_existence"].metric("acc_plus").value == whole
    assert found.tasks["scenes_OCR"].metric("acc_plus") is None
