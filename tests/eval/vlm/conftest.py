"""lmms-eval's environment, and a LLaVA small enough to ask in a moment."""

from __future__ import annotations

import base64
import io
import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from libmoe.eval.harness.scores import Evaluation
from libmoe.eval.harness.settings import Settings
from libmoe.eval.opening import open_model
from libmoe.eval.suites import Source, SuiteTask
from libmoe.eval.vlm import ensure, evaluate_vision
from libmoe.eval.vlm.environment import clean_environ, main_packages
from tiny_llava import WIDTH, save_llava

ANSWERS = ["A", "B", "C", "D", "yes", "no", "Yes", "No", "red", "square", "3", "7"]
CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: "question"
doc_to_target: "answer"
process_results: !function utils.{process}
generation_kwargs:
  max_new_tokens: 4
  do_sample: false
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: length
    aggregation: mean
    higher_is_better: false
metadata:
  version: 1.0
"""
UTILS = """
import base64, io, os
from PIL import Image

def visual(doc):
    if os.environ.get("DIE_AT") == str(doc["number"]):
        os._exit(9)
    return [Image.open(io.BytesIO(base64.b64decode(doc["image_b64"]))).convert("RGB")]

def process(doc, results):
    return {"acc": float(results[0] == doc["answer"]), "length": len(results[0]) / 7}

def fail(doc, results):
    raise ValueError("no scoring today")

def judged(doc, results):
    import requests
    for attempt in range(3):
        try:
            requests.post("http://127.0.0.1:9/judge", json={"answer": results[0]})
        except Exception:
            pass
    return {"acc": 0.0, "length": 0.0}
"""


@pytest.fixture(scope="session")
def vision_python() -> Path:
    """The Python of lmms-eval's environment, which is made where it is missing."""
    before = main_packages()
    python = ensure()
    assert main_packages() == before
    return python


def picture(number: int) -> Image.Image:
    """A shape whose kind, colour and place depend on ``number``."""
    colours = ["red", "green", "blue", "gold", "black"]
    image = Image.new("RGB", (40, 32), ["white", "gray"][number % 2])
    draw = ImageDraw.Draw(image)
    box = (2 + number % 9, 3 + number % 7, 18 + number % 11, 20 + number % 5)
    (draw.ellipse if number % 3 else draw.rectangle)(box, fill=colours[number % 5])
    return image


def encoded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture(scope="session")
def image() -> Callable[[int], str]:
    """A picture in base64 text."""
    return lambda number: encoded(picture(number))


@pytest.fixture(scope="session")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA of random weights that answers with one of ANSWERS, chosen by what it sees, and stops.

    One coordinate of its stream is kept for "an answer was just given": the answers' embeddings have it, nothing else
    writes to it, and the end-of-text logit reads it.
    """

    def answering(model: Any, tokenizer: Any) -> None:
        answers, end = tokenizer.convert_tokens_to_ids(ANSWERS), tokenizer.eos_token_id
        language = model.model.language_model
        for layer in language.layers:
            layer.self_attn.o_proj.weight[0] = 0
            layer.mlp.down_proj.weight[0] = 0
        model.model.multi_modal_projector.linear_2.weight[0] = 0
        model.model.multi_modal_projector.linear_2.bias[0] = 0
        language.embed_tokens.weight[:, 0] = 0
        language.embed_tokens.weight[answers, 0] = 100
        chosen = torch.randn(len(answers), WIDTH, generator=torch.Generator().manual_seed(0))
        chosen[:, 0] = 0
        model.lm_head.weight.zero_()
        model.lm_head.weight[answers] = chosen
        model.lm_head.weight[end, 0] = 50

    folder = tmp_path_factory.mktemp("models") / "llava"
    return save_llava(folder, 28, words=ANSWERS, positions=2048, chat=CHAT, edit=answering)


@pytest.fixture(scope="session")
def vipllava(llava: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model with the same processor, for which lmms-eval has no class of its own."""
    from transformers import AutoConfig, AutoProcessor, VipLlavaConfig, VipLlavaForConditionalGeneration

    parts = AutoConfig.from_pretrained(llava)
    torch.manual_seed(0)
    model = VipLlavaForConditionalGeneration(
        VipLlavaConfig(
            vision_config=parts.vision_config, text_config=parts.text_config, image_token_index=parts.image_token_index,
            vision_feature_layers=[-2, -1],
        )
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    folder = tmp_path_factory.mktemp("models") / "vipllava"
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(llava).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def local_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task files of lmms-eval over pictures we draw: ``shapes``, and three that go wrong."""
    folder = tmp_path_factory.mktemp("vision tasks")
    with open(folder / "shapes.jsonl", "w", encoding="utf-8") as file:
        for number in range(24):
            row = {
                "number": number,
                "question": f"What is shown in picture {number}?\nA. a circle\nB. a square",
                "answer": ANSWERS[number % len(ANSWERS)],
                "picture": number // 2,
                "image_b64": encoded(picture(number)),
            }
            file.write(json.dumps(row) + "\n")
    rows = [json.loads(line) for line in (folder / "shapes.jsonl").read_text().splitlines()]
    rows[3]["image_b64"] = rows[3]["image_b64"][:40]
    rows[5]["question"] = None
    (folder / "torn.jsonl").write_text("\n".join(json.dumps(row) for row in rows[:8]), encoding="utf-8")
    (folder / "utils.py").write_text(UTILS, encoding="utf-8")
    for name, data, process in [
        ("shapes", "shapes", "process"), ("torn", "torn", "process"),
        ("unscored", "shapes", "fail"), ("judged", "shapes", "judged"),
    ]:  # fmt: skip
        text = TASK.format(name=name, data=folder / f"{data}.jsonl", process=process)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    text = TASK.format(name="absent", data=folder / "absent.jsonl", process="process")
    (folder / "absent.yaml").write_text(text, encoding="utf-8")
    for name, members in [("pair", "shapes, torn"), ("gap", "shapes, absent")]:
        text = f"group: {name}\ntask: [{members}]\naggregate_metric_list:\n  - metric: acc\n    weight_by_size: false\n"
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def suite_task() -> Callable[..., SuiteTask]:
    """An entry as the catalogue has them, for a task of the test's own."""

    def make(name: str, cluster: str | None = None) -> SuiteTask:
        return SuiteTask(
            name=name, harness="lmms", task=name, skill="other", type="generate", metric="acc,none",
            cluster=cluster, data=(Source("json", "test"),),
        )  # fmt: skip

    return make


@pytest.fixture
def evaluate(vision_python: Path) -> Callable[..., Evaluation]:
    """``evaluate(model folder, tasks, results folder, limit=..., ...)``."""

    def run(model: Path, tasks: Sequence[SuiteTask], out: Path, **options: Any) -> Evaluation:
        names = ("limit", "batch_size", "slice_size")
        settings = Settings(bootstrap=0, **{k: options.pop(k) for k in names if k in options})
        return evaluate_vision(open_model(model), tasks, out, settings, **options)

    return run


@pytest.fixture
def in_environment(vision_python: Path) -> Callable[..., str]:
    """Run Python of lmms-eval's environment; what it prints."""

    def run(*arguments: str, **options: Any) -> str:
        done = subprocess.run(
            [str(vision_python), "-P", *arguments],
            env=clean_environ(), capture_output=True, text=True, check=False, **options,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    return run
