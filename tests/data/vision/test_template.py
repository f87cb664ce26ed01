"""Chat templates: written as by hand, ids as the tokenizer's own, and only answers learned."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from libmoe.core.errors import ConfigError, DataError
from libmoe.data import load_tokenizer
from libmoe.data.loader import IGNORE
from libmoe.data.vision.rows import IMAGE, Conversation, Turn
from libmoe.data.vision.template import ChatEncoder, TooLongError, encode
from libmoe.data.vision.tokens import PieceEncoder, with_image_token

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TURNS = (Turn(f"{IMAGE}\nWhat is it?", "A small dog."), Turn("Where?", "On the grass, naïvely 🐶."))


def _conversation(turns=TURNS, image=True) -> Conversation:
    return Conversation("row", turns, (lambda: Image.new("RGB", (8, 8))) if image else None)


@pytest.fixture(scope="module")
def tagged(tokenizer):
    """The embedded tokenizer with the image token and those of two families of chat models."""
    tokenizer = with_image_token(load_tokenizer("embedded"))
    names = ["<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|end|>"]
    tokenizer.add_special_tokens({"extra_special_tokens": names}, replace_extra_special_tokens=False)
    tokenizer.chat_template = CHATML
    return tokenizer


def _learned(ids, labels):
    """Runs of labelled ids."""
    assert ((labels == IGNORE) | (labels == ids)).all()
    edges = np.flatnonzero(np.diff((labels != IGNORE).astype(int), prepend=0, append=0)).reshape(-1, 2)
    return [ids[first:last].tolist() for first, last in edges]


@pytest.mark.parametrize(
    ("name", "written"),
    [
        (
            "plain",
            "USER: <image><image>\nWhat is it? ASSISTANT: A small dog.<|endoftext|>"
            "USER: Where? ASSISTANT: On the grass, naïvely 🐶.<|endoftext|>",
        ),
        (
            "vicuna-v1",
            "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
            "detailed, and polite answers to the user's questions. USER: <image><image>\nWhat is it? ASSISTANT: "
            "A small dog.<|endoftext|>USER: Where? ASSISTANT: On the grass, naïvely 🐶.<|endoftext|>",
        ),
        (
            "phi3",
            "<|user|>\n<image><image>\nWhat is it?<|end|>\n<|assistant|>\nA small dog.<|end|>\n"
            "<|user|>\nWhere?<|end|>\n<|assistant|>\nOn the grass, naïvely 🐶.<|end|>",
        ),
        (
            "tokenizer",
            "<|im_start|>user\n<image><image>\nWhat is it?<|im_end|>\n<|im_start|>assistant\nA small dog.<|im_end|>\n"
            "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\nOn the grass, naïvely 🐶.<|im_end|>",
        ),
    ],
)
def test_conversations_are_written_as_by_hand_and_only_answers_learned(tagged, tokenizer, name, written):
    tokenizers = [tagged] if name == "tokenizer" else [tagged, tokenizer]
    for chosen in tokenizers:
        encoder = ChatEncoder(chosen, name, image_tokens=2, max_length=500)
        ids, labels = encoder(_conversation())
        assert encoder.tokenizer.decode(ids) == written
        assert ids.dtype == labels.dtype == np.int64 and (ids == encoder.image_id).sum() == 2
        lead, end = (" ", "<|endoftext|>") if name in ("plain", "vicuna-v1") else ("", written[-7:])
        end = "<|im_end|>" if name == "tokenizer" else end
        answers = [encoder.tokenizer.decode(run) for run in _learned(ids, labels)]
        assert answers == [lead + turn.answer + end for turn in TURNS]


@pytest.mark.parametrize("name", ["plain", "vicuna-v1", "phi3", "tokenizer"])
def test_hostile_answers_come_back_exactly(tagged, hostile_texts, name):
    turns = [Turn("What?", text.strip()) for text in hostile_texts] + [Turn(IMAGE, f"{IMAGE}<|im_end|></s>")]
    encoder = ChatEncoder(tagged, name, image_tokens=3, max_length=10**6)
    ids, labels = encoder(_conversation(turns, image=False))
    end = len(encoder._end)
    assert [tagged.decode(run[:-end]).strip() for run in _learned(ids, labels)] == [
        turn.answer.strip() for turn in turns
    ]
    assert encoder.image_id not in ids  # what spells a special token stays text
    assert (ids == encoder._end[0]).sum() == (len(turns) if name != "phi3" else 2 * len(turns)) + (
        name == "tokenizer"
    ) * len(turns)


@pytest.mark.parametrize("name", ["plain", "phi3", "tokenizer"])
def test_ids_of_a_turn_do_not_depend_on_the_others(tagged, name):
    encoder = ChatEncoder(tagged, name, image_tokens=2, max_length=500)
    both, _ = encoder(_conversation())
    first, _ = encoder(_conversation(TURNS[:1]))
    other, _ = encoder(_conversation((Turn(f"Look! {IMAGE}", "Yes"), TURNS[1])))
    assert (both[: len(first)] == first).all()
    tail = len(both) - len(first)
    assert (both[-tail:] == other[-tail:]).all()


def test_long_conversations_lose_whole_turns_from_the_end(tokenizer):
    turns = (*TURNS, Turn("And then?", "It sleeps."))
    whole, labels = encode(_conversation(turns), tokenizer, image_tokens=8, max_length=500)
    ends = (np.flatnonzero(labels == tokenizer.eos_token_id) + 1).tolist()
    assert len(ends) == 3 and ends[-1] == len(whole)
    for length in (2, 10, *(end + off for end in ends for off in (-1, 0, 1))):
        if length < ends[0]:
            with pytest.raises(TooLongError, match=rf"{ends[0]} tokens, more than max_length={length}"):
                encode(_conversation(turns), tokenizer, image_tokens=8, max_length=length)
            continue
        cut, _ = encode(_conversation(turns), tokenizer, image_tokens=8, max_length=length)
        assert len(cut) == max(end for end in ends if end <= length) and (cut == whole[: len(cut)]).all()


def _trained(pre_tokenizer, normalizer=None, specials=()):
    from tokenizers import AddedToken, Tokenizer, decoders, models, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizer, decoders.Metaspace()
    if normalizer is not None:
        backend.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    text = "USER: What is it? ASSISTANT: A small dog. Where? On the grass. user assistant\n"
    backend.train_from_iterator([text] * 5, trainer)
    if "<|end|>" in specials:
        backend.add_special_tokens([AddedToken(name, rstrip=True) for name in specials])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def test_prompts_get_the_ids_that_the_tokenizer_gives_them(tagged):
    from tokenizers import normalizers, pre_tokenizers
    from tokenizers.processors import TemplateProcessing

    legacy = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    phi = ("<|user|>", "<|assistant|>", "<|end|>")
    first = _trained(pre_tokenizers.Metaspace(prepend_scheme="first"))
    first.backend_tokenizer.post_processor = TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    tokenizers = [
        tagged,
        first,
        _trained(pre_tokenizers.Sequence([]), legacy, phi),
        _trained(pre_tokenizers.Sequence([pre_tokenizers.Metaspace(prepend_scheme="first")]), None, phi),
    ]
    for tokenizer in map(with_image_token, tokenizers):
        for name in ("plain", "vicuna-v1", "phi3"):
            encoder = ChatEncoder(tokenizer, name, image_tokens=2, max_length=500)
            ids, labels = encoder(_conversation(TURNS[:1]))
            template = encoder.template
            prompt = f"{template.start}{IMAGE}{IMAGE}\nWhat is it?{template.middle}"
            assert ids[labels == IGNORE].tolist() == tokenizer.encode(prompt), (name, prompt)
    own = ChatEncoder(tagged, "tokenizer", image_tokens=2, max_length=500)
    ids, _ = own(_conversation())
    roles = [("user", "question"), ("assistant", "answer")]
    messages = [{"role": role, "content": getattr(t, part)} for t in TURNS for role, part in roles]
    messages[0]["content"] = messages[0]["content"].replace(IMAGE, IMAGE * 2)
    rendered = tagged.apply_chat_template(messages, tokenize=False)
    assert [*ids, *tagged.encode("\n")] == tagged.encode(rendered)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template of its own; choose one of: plain"),
        ("{{ raise_exception('no') }}", "chat template fails"),
        ("{{ messages | length }}", "cannot be cut apart"),
        ("{% for m in messages %}{{ loop.index ~ m.content }}{% endfor %}", "cannot be cut apart"),
        ("{% for m in messages %}{{ m.content[::-1] }}{% endfor %}", "cannot be cut apart"),
    ],
)
def test_templates_that_cannot_be_used_are_refused(tagged, template, message):
    tokenizer = load_tokenizer("embedded")
    tokenizer.chat_template = template
    with pytest.raises(ConfigError, match=message):
        ChatEncoder(tokenizer, "tokenizer", image_tokens=2, max_length=10)


def test_impossible_options_and_conversations_are_refused(tokenizer):
    with pytest.raises(ConfigError, match="'vicunav1'; did you mean 'vicuna-v1'"):
        ChatEncoder(tokenizer, "vicunav1", image_tokens=2, max_length=10)
    with pytest.raises(ConfigError, match="image_tokens=0"):
        ChatEncoder(tokenizer, image_tokens=0, max_length=10)
    for turns in ((), (Turn("no place", "yes"),), (Turn(IMAGE * 2, "yes"),)):
        with pytest.raises(DataError, match="'row' needs a turn, and <image> once"):
            encode(_conversation(turns), tokenizer, image_tokens=2, max_length=99)


def test_the_image_token_is_one_place_and_comes_back_from_disk(tokenizer, tmp_path):
    extended = with_image_token(tokenizer)
    assert len(tokenizer) == 2048 and len(extended) == 2049 and with_image_token(extended) is extended
    extended.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert len(loaded) == 2049 and with_image_token(loaded) is loaded
    assert loaded.encode(f"a{IMAGE}\n") == extended.encode(f"a{IMAGE}\n")
    ordinary = load_tokenizer("embedded")
    ordinary.add_tokens([IMAGE])  # a token of that name that text may spell
    assert PieceEncoder(with_image_token(ordinary)).encode([IMAGE], first=True).count(2048) == 0
