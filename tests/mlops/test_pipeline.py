"""A pipeline runs what changed and what needs it, keeps the rest, and goes on where it was interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from libmoe.core.errors import ConfigError, DataError, TrainingError
from libmoe.mlops import load_pipeline, run_pipeline
from libmoe.mlops.running import status

STEPS = '''
def write(out, text, after=None):
    """Notes that it ran, and in which order."""
    (out / "result.txt").write_text(text + (open(after + "/result.txt").read() if after else ""))
    with open(out / "runs.txt", "a") as file:
        file.write("ran\\n")
    return {"length": len(text)}


def fail(out):
    (out / "half.txt").write_text("half")
    raise ValueError("no luck")
'''


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.txt").write_text("one")
    return tmp_path


def chain(**changes: dict[str, Any]) -> dict[str, Any]:
    """Three steps in a row, and a fourth beside the last."""
    steps: dict[str, Any] = {
        "first": {
            "call": "STEPS.write",
            "with": {"text": "a"},
            "inputs": ["data.txt"],
            "outputs": ["result.txt"],
        },
        "second": {
            "call": "STEPS.write",
            "with": {"text": "b", "after": "{first}"},
            "outputs": ["result.txt"],
        },
        "third": {
            "call": "STEPS.write",
            "with": {"text": "c", "after": "{second}"},
            "outputs": ["result.txt"],
        },
        "beside": {
            "call": "STEPS.write",
            "with": {"text": "d", "after": "{second}"},
            "outputs": ["result.txt"],
        },
    }
    return {name: {**step, **changes.get(name, {})} for name, step in steps.items()}


def pipeline(place: Path, steps: dict[str, Any]) -> Any:
    """The functions are in a module of their own for each test: Python keeps what it has imported."""
    module = f"steps_{place.name}_{len(str(place))}".replace("-", "_")
    (place / f"{module}.py").write_text(STEPS)
    text = yaml.safe_dump({"name": "test", "steps": steps}, sort_keys=False).replace("STEPS.", f"{module}.")
    (place / "pipeline.yaml").write_text(text)
    return load_pipeline(place / "pipeline.yaml")


def run(place: Path, steps: dict[str, Any]) -> list[str]:
    return run_pipeline(pipeline(place, steps), say=lambda line: None)


def test_steps_run_in_the_order_of_their_needs_and_only_once(place: Path) -> None:
    backwards = dict(reversed(chain().items()))
    ran = run(place, backwards)
    assert ran.index("first") < ran.index("second") < min(ran.index("third"), ran.index("beside"))
    assert run(place, chain()) == []
    (result,) = place.glob("runs/pipelines/test/third-*/result.txt")
    assert result.read_text() == "cba"


def test_editing_the_last_step_runs_it_alone(place: Path) -> None:
    run(place, chain())
    assert run(place, chain(third={"with": {"text": "x", "after": "{second}"}})) == ["third"]


def test_editing_the_first_step_runs_all(place: Path) -> None:
    run(place, chain())
    assert set(run(place, chain(first={"with": {"text": "x"}}))) == {"first", "second", "third", "beside"}


def test_editing_the_middle_spares_what_comes_before(place: Path) -> None:
    run(place, chain())
    edited = chain(second={"with": {"text": "x", "after": "{first}"}})
    assert set(run(place, edited)) == {"second", "third", "beside"}


def test_changed_inputs_and_changed_code_run_again_and_what_is_restored_is_found(place: Path) -> None:
    run(place, chain())
    (place / "data.txt").write_text("two")
    assert len(run(place, chain())) == 4
    (place / "data.txt").write_text("one")
    assert run(place, chain()) == []
    made = pipeline(place, chain())
    (module,) = place.glob("steps_*.py")
    module.write_text(STEPS + "\n# changed\n")
    assert {each.state for each in status(made)} == {"to run"}


def test_a_new_event_in_a_file_among_the_inputs_triggers_training_again(place: Path) -> None:
    from libmoe.mlops.monitor import note_events

    note_events(place / "events.jsonl", [])
    steps = chain(second={"inputs": ["events.jsonl"]})
    run(place, steps)
    assert run(place, steps) == []
    note_events(place / "events.jsonl", [{"kind": "routing-drift"}])
    assert set(run(place, steps)) == {"second", "third", "beside"}


def test_a_damaged_output_is_made_anew_and_nothing_else(place: Path) -> None:
    run(place, chain())
    (result,) = place.glob("runs/pipelines/test/second-*/result.txt")
    result.write_text("tampered")
    assert [each.name for each in status(pipeline(place, chain())) if each.state == "damaged"] == ["second"]
    assert run(place, chain()) == ["second"] and result.read_text() == "ba"
    assert (result.parent / "runs.txt").read_text() == "ran\n"  # nothing of the damaged folder is left


def test_a_step_that_was_interrupted_goes_on_in_its_folder(place: Path) -> None:
    made = pipeline(place, chain())
    folder = {each.name: each.folder for each in status(made)}["first"]
    folder.mkdir(parents=True)
    (folder / "runs.txt").write_text("before the kill\n")
    assert {each.name: each.state for each in status(made)}["first"] == "interrupted"
    run(place, chain())
    assert (folder / "runs.txt").read_text() == "before the kill\nran\n"


def test_a_failure_stops_what_needs_it_and_keeps_what_is_done(place: Path) -> None:
    steps = chain()
    steps["second"] = {"call": "STEPS.fail", "needs": ["first"]}
    steps = {name: steps[name] for name in ("first", "second")} | {
        "third": {"call": "STEPS.write", "with": {"text": "c", "after": "{second}"}}
    }
    with pytest.raises(TrainingError, match=r"step 'second' failed: .*fail: ValueError: no luck"):
        run(place, steps)
    states = {each.name: each.state for each in status(pipeline(place, steps))}
    assert states == {"first": "done", "second": "interrupted", "third": "to run"}


def test_an_output_that_was_promised_must_be_there(place: Path) -> None:
    with pytest.raises(TrainingError, match=r"did not write .*other\.txt"):
        run(place, chain(first={"outputs": ["other.txt"]}))


def test_commands_of_libmoe_run_with_their_placeholders_and_their_failure_names_the_log(place: Path) -> None:
    steps = {
        "papers": {"libmoe": "papers --kind operations --json"},
        "wrong": {"libmoe": ["trian", "{papers}"]},
    }
    with pytest.raises(
        TrainingError, match=r"step 'wrong' ended with code 2: libmoe trian .*log\.txt"
    ) as error:
        run_pipeline(pipeline(place, steps), quiet=True, say=lambda line: None)
    folders = {each.name: each.folder for each in status(pipeline(place, steps))}
    assert str(folders["papers"]) in str(error.value)
    assert json.loads((folders["papers"] / "log.txt").read_text())[0]["key"] == "mlops"
    assert "No such command 'trian'" in (folders["wrong"] / "log.txt").read_text()


def test_what_a_function_returns_is_kept(place: Path) -> None:
    run(place, chain())
    (done,) = place.glob("runs/pipelines/test/first-*/done.json")
    assert json.loads(done.read_text())["result"] == {"length": 1}


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({"a": {"libmoe": "papers", "needs": ["b"]}, "b": {"libmoe": "eval {a}"}}, "in a circle: "),
        ({"train": {"libmoe": "papers"}, "b": {"libmoe": "eval {trian}"}}, "did you mean 'train'"),
        ({"a": {"libmoe": "papers", "input": ["x"]}}, "unknown key 'steps.a.input'; did you mean 'inputs'"),
        ({"a": {}}, "either 'libmoe' .* or 'call'"),
        ({"a": {"libmoe": "papers", "with": {"x": 1}}}, "'with' belongs to 'call'"),
        ({"out": {"libmoe": "papers"}}, "use small letters"),
    ],
)
def test_a_pipeline_that_cannot_be_is_refused_in_one_line(
    place: Path, steps: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        pipeline(place, steps)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"libmoe": "papers", "inputs": ["nowhere.txt"]}, "nowhere.txt is not there"),
        ({"call": "no_such_module.f"}, "there is no module 'no_such_module'"),
        ({"call": "STEPS.nothing"}, "has no function 'nothing'"),
    ],
)
def test_what_is_not_there_is_told_before_anything_runs(
    place: Path, step: dict[str, Any], message: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        run(place, {"a": step})


def test_a_missing_file_is_told(place: Path) -> None:
    with pytest.raises(ConfigError, match=r"pipeline 'no\.yaml' is not a file"):
        load_pipeline("no.yaml")
