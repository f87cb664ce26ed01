"""Questions about images: every choice is scored as a pass over it alone would score it."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch

import libmoe
from libmoe.core.errors import DataError
from libmoe.data import load_tokenizer
from libmoe.data.vision.images import make_image_processor, to_pixels
from libmoe.data.vision.rows import Conversation, Turn
from libmoe.data.vision.scenes.conversations import SceneConversations
from libmoe.data.vision.scenes.questions import questions
from libmoe.data.vision.template import ChatEncoder
from libmoe.eval import answers as answers_module
from libmoe.eval.answers import HeldAnswers
from libmoe.eval.heldout_rows import HeldRows
from libmoe.models.backbones import BackboneConfig, build_backbone
from libmoe.models.encoders import VisionConfig

TASKS = ["existence", "count", "fine"]


@pytest.fixture(scope="module")
def encoder() -> ChatEncoder:
    return ChatEncoder(load_tokenizer("embedded"), image_tokens=16, max_length=160)


@pytest.fixture(scope="module")
def processor() -> Any:
    return make_image_processor(56)


@pytest.fixture(scope="module")
def model(encoder: ChatEncoder) -> Any:
    vision = VisionConfig(hidden_size=32, num_hidden_layers=2, image_size=56, image_token=encoder.image_id)
    made = build_backbone(
        BackboneConfig(hidden_size=32, num_hidden_layers=2, vocab_size=len(encoder.tokenizer), vision=vision)
    )
    with torch.no_grad():  # otherwise all answers are nearly as likely
        made.lm_head.weight.mul_(30)
        made.model.multi_modal_projector.linear_2.weight.mul_(30)
    options = {"num_experts": 4, "top_k": 2}
    return libmoe.moeify(made, "smoe", options=options, where="vision+connector", init="copy", seed=0).eval()


def alone(model: Any, encoder: ChatEncoder, processor: Any, question: Any, choice: str) -> float:
    """Bits of one choice, by a forward pass without padding and transformers' own loss."""
    row = Conversation("", [Turn(question.question, choice)], question.image)
    ids, labels = (torch.from_numpy(x)[None] for x in encoder(row))
    pixels = to_pixels(processor, question.image())[None]
    loss = model(input_ids=ids, labels=labels, pixel_values=pixels).loss
    return float(loss) * int((labels[:, 1:] != -100).sum()) / math.log(2)


def test_bits_and_choices_are_those_of_passes_over_each_choice_alone(
    model: Any, encoder: ChatEncoder, processor: Any
) -> None:
    asked = questions("seen", TASKS, 8)
    found = HeldAnswers(asked, encoder, processor, batch_size=3).score(model)
    for task in TASKS:
        mine = [question for question in asked if question.task == task]
        bits = [[alone(model, encoder, processor, q, choice) for choice in q.choices] for q in mine]
        gold = [row[q.gold] for row, q in zip(bits, mine, strict=True)]
        assert [b for b, _ in found["windows"][task]] == pytest.approx(gold, rel=1e-4)
        right = [min(row) == row[q.gold] for row, q in zip(bits, mine, strict=True)]
        assert found["answers"][task]["acc"] == pytest.approx(sum(right) / len(right))
    assert 0 < sum(found["answers"][task]["acc"] for task in TASKS) < len(TASKS)
    everything = [pair for task in TASKS for pair in found["windows"][task]]
    overall = sum(b for b, _ in everything) / sum(n for _, n in everything)
    assert found["bits_per_byte"] == pytest.approx(overall)


def test_images_are_encoded_once_for_all_choices_and_a_model_that_takes_none_gives_the_same(
    model: Any, encoder: ChatEncoder, processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = HeldAnswers(questions("seen", TASKS, 8), encoder, processor, batch_size=3)
    assert "mm_encoder_outputs" in inspect.signature(model.model.forward).parameters
    seen: list[int] = []
    hook = model.model.vision_tower.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    found = held.score(model)
    hook.remove()
    assert sum(seen) == 2 * sum(
        map(len, held.questions.values())
    )  # once to be recorded, once for the other choices
    monkeypatch.setattr(answers_module, "_features", lambda model, batch: None)
    again = held.score(model)
    assert again["answers"] == found["answers"]


def test_questions_on_one_image_count_together_and_are_one_document(
    model: Any, encoder: ChatEncoder, processor: Any
) -> None:
    asked = questions("seen", ["existence"], 8)
    found = HeldAnswers(asked, encoder, processor).score(model)
    assert found["answers"]["existence"]["chance"] == 0.5
    assert found["answers"]["existence"]["acc_group"] <= found["answers"]["existence"]["acc"]
    numbers = found["window_documents"]["existence"]
    assert len(set(numbers)) == len({question.group for question in asked}) == len(asked) / 2
    single = HeldAnswers(questions("seen", ["fine"], 4), encoder, processor).score(model)
    assert "acc_group" not in single["answers"]["fine"]


def test_recorders_see_each_question_once_with_its_right_answer(
    model: Any, encoder: ChatEncoder, processor: Any
) -> None:
    held, rows = HeldAnswers(questions("seen", ["count"], 6), encoder, processor, batch_size=4), {0: 0, 2: 0}
    size = len(held.questions["count"])

    def record(ctx: Any, routing: Any) -> None:
        if ctx.index in rows:
            rows[ctx.index] += ctx.batch_shape[0]
            assert ctx.side_T("domain").unique().tolist() == [0]

    held.score(model, [record])
    assert rows == {0: size, 2: size}


def test_held_out_rows_count_all_their_answers(model: Any, encoder: ChatEncoder, processor: Any) -> None:
    source = SceneConversations("validation", number=6)
    rows = [source.row(number) for number in range(6)]
    held = HeldRows(rows, encoder, processor, batch_size=4)
    found = held.score(model)
    assert sum(map(len, found["windows"].values())) == 6
    first = next(row for row in rows if row.task == held.names[0])
    ids, labels = (torch.from_numpy(x)[None] for x in encoder(first))
    loss = float(
        model(input_ids=ids, labels=labels, pixel_values=to_pixels(processor, first.image())[None]).loss
    )
    bits, size = found["windows"][held.names[0]][0]
    assert bits == pytest.approx(loss * int((labels[:, 1:] != -100).sum()) / math.log(2), rel=1e-4)
    assert size >= sum(len(turn.answer.encode()) for turn in first.turns[:1])


def test_nothing_to_ask_is_one_line(encoder: ChatEncoder, processor: Any) -> None:
    with pytest.raises(DataError, match="there are no questions"):
        HeldAnswers([], encoder, processor)
    with pytest.raises(DataError, match="there is no held-out conversation"):
        HeldRows([], encoder, processor)
