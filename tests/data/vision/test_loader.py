"""Batches of conversations: pure in (seed, step), cut into shards, accepted by a transformers model."""

from __future__ import annotations

import json
import sys
import warnings

import pytest
import torch

from libmoe.core.errors import ConfigError, DataError
from libmoe.data.loader import IGNORE
from libmoe.data.vision.llava import LlavaFile
from libmoe.data.vision.loader import ConversationLoader
from libmoe.data.vision.rows import IMAGE

PATCHES = 4


@pytest.fixture
def source(clean_file):
    return LlavaFile(clean_file, clean_file.parent / "images")


@pytest.fixture
def loader(source, tokenizer, processor):
    def make(rows=source, **changes):
        options = {"batch_size": 8, "seed": 3, "max_length": 400, "image_tokens": PATCHES} | changes
        return ConversationLoader(
            rows, tokenizer, **({"image_processor": processor} | options), progress=False
        )

    return make


def _equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def _names(loader, batch):
    """Which rows a batch holds: the last word of each first answer is the row's number."""
    texts = [loader.tokenizer.decode(ids[ids != loader.tokenizer.pad_token_id]) for ids in batch["input_ids"]]
    return [int(text.partition("<|endoftext|>")[0].rpartition(" ")[2].partition(".")[0]) for text in texts]


def test_a_batch_depends_on_the_step_and_the_seed_alone(loader):
    seen = {}
    one = loader()
    for step in [0, 5, 40, 1, 40, 0]:
        batch = one.batch(step)
        assert _equal(seen.setdefault(step, batch), batch) and _equal(loader().batch(step), batch)
    assert not _equal(seen[0], seen[1])
    assert _names(one, loader(seed=4).batch(0)) != _names(one, seen[0])


@pytest.mark.parametrize(("world", "num_micro"), [(1, 8), (2, 4), (4, 2), (8, 1)])
def test_shards_put_together_are_the_global_batch(loader, world, num_micro):
    one = loader()
    for step in (0, 7, 8):  # 60 rows: the eighth batch holds rows of two epochs
        shards = [one.shard(step, r, world, m, num_micro) for m in range(num_micro) for r in range(world)]
        assert len({shard["input_ids"].shape for shard in shards}) == 1
        for shard in shards:
            has_image = (shard["modality_ids"] == 1).any(dim=1)
            assert len(shard.get("pixel_values", ())) == has_image.sum()
        whole = one.batch(step)
        together = {k: torch.cat([s[k] for s in shards if k in s]) for k in whole}
        assert _equal(together, whole)


def test_every_row_comes_once_an_epoch_with_its_own_image_and_task(loader, source, processor):
    one = loader(batch_size=12, modality_pure=True)
    for epoch in range(2):
        names = []
        for step in range(epoch * 5, epoch * 5 + 5):
            batch = one.batch(step)
            images = iter(batch.get("pixel_values", ()))
            for name, modality, task in zip(_names(one, batch), batch["modality_ids"], batch["domain_ids"]):
                row = source.row(name)
                assert one.tasks[task[0]] == row.task and (task == task[0]).all()
                assert (modality == 1).sum() == (PATCHES if row.image else 0)
                if row.image:
                    expected = processor(images=row.image(), return_tensors="pt")["pixel_values"][0]
                    assert torch.equal(next(images), expected)
            assert next(images, None) is None
            names += _names(one, batch)
        assert sorted(names) == list(range(60))
    assert one.epochs(10) == 2.0 and one.rows == 60 and one.tasks == ["color", "count"]


def test_grouping_by_length_saves_padding(loader):
    def share(one):
        masks = [one.batch(step)["attention_mask"] for step in range(15)]
        return sum((mask == 0).sum() for mask in masks) / sum(mask.numel() for mask in masks)

    grouped, random = (share(loader(batch_size=4, group_by_length=group)) for group in (True, False))
    assert grouped < 0.5 * random and random > 0.2


def test_modality_pure_batches_hold_images_or_none(loader):
    one = loader(batch_size=4, modality_pure=True)  # 48 rows with an image and 12 without
    kinds = [(one.batch(step)["modality_ids"] == 1).any(dim=1) for step in range(15)]
    assert all(kind.all() or not kind.any() for kind in kinds) and sum(not kind.any() for kind in kinds) == 3


def test_an_image_that_went_bad_is_replaced_counted_and_warned_about_once(
    tmp_path, make_rows, write_rows, loader
):
    rows = make_rows(tmp_path, 20)
    file = LlavaFile(write_rows(tmp_path / "chat.jsonl", rows), tmp_path / "images", cache_dir=tmp_path)
    whole = loader(file, batch_size=4)
    before = [whole.batch(step) for step in range(5)]
    assert whole.replaced == 0
    bad = tmp_path / "images" / "7.png"
    bad.write_bytes(bad.read_bytes()[:50])
    one = loader(file, batch_size=4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        after = [one.batch(step) for step in [*range(5), *range(5)]][:5]
    assert one.replaced == 1
    (warned,) = [str(w.message) for w in caught if "cannot be read" in str(w.message)]
    assert warned.startswith("the image of chat.jsonl:8 cannot be read") and "\n" not in warned
    for step, (old, new) in enumerate(zip(before, after, strict=True)):
        names, others = _names(one, old), _names(one, new)
        changed = [(a, b) for a, b in zip(names, others, strict=True) if a != b]
        assert [a for a, _ in changed] == [7] * (7 in names) and all(b % 5 for _, b in changed)
        assert new["input_ids"].shape == old["input_ids"].shape
        assert new["pixel_values"].shape == old["pixel_values"].shape
        assert changed or _equal(old, new)
        shards = [one.shard(step, r, 4, 0, 1)["input_ids"] for r in range(4)]
        assert torch.equal(torch.cat(shards), new["input_ids"])


def test_a_folder_that_vanished_ends_the_run_with_one_line(tmp_path, make_rows, write_rows, loader):
    rows = make_rows(tmp_path, 10)
    file = LlavaFile(write_rows(tmp_path / "chat.json", rows), tmp_path / "images", cache_dir=tmp_path)
    one = loader(file)
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    with pytest.warns(UserWarning, match="No such file"):
        with pytest.raises(DataError, match="images one after another cannot be read"):
            one.batch(0)


def test_rows_that_do_not_fit_are_named_and_left_out(loader, source):
    lengths = [int(loader(batch_size=1).batch(step)["attention_mask"].sum()) for step in range(60)]
    limit = 40
    one = loader(max_length=limit, batch_size=1)
    assert 0 < len(one.problems["too long"]) < 60 and one.rows == 60 - len(one.problems["too long"])
    kept = [one.batch(step) for step in range(one.rows)]
    assert max(int(batch["attention_mask"].sum()) for batch in kept) <= limit < max(lengths)
    left = {f"{source.path.name}:{name + 1}" for batch in kept for name in _names(one, batch)}
    assert left.isdisjoint(one.problems["too long"]) and len(left) == one.rows
    with pytest.raises(DataError, match="no row fits into max_length=5; the source has 60"):
        loader(max_length=5)


def test_a_second_start_encodes_no_row(loader, monkeypatch):
    first = loader(seed=11)
    monkeypatch.setattr(ConversationLoader, "_survey", lambda self, progress: pytest.fail("encodes again"))
    assert _equal(loader(seed=11).batch(3), first.batch(3))
    with pytest.raises(pytest.fail.Exception, match="encodes again"):
        loader(template="phi3")


def test_a_llava_model_takes_the_batch_and_padding_changes_nothing(loader):
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    one = loader(batch_size=6)
    vision = CLIPVisionConfig(image_size=28, patch_size=14, **sizes)
    text = LlamaConfig(vocab_size=len(one.tokenizer), max_position_embeddings=512, **sizes)
    image_id = one.tokenizer.convert_tokens_to_ids(IMAGE)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=image_id)
    model = LlavaForConditionalGeneration(config).eval()
    batch = one.batch(0)
    inputs = {k: v for k, v in batch.items() if k not in ("modality_ids", "domain_ids")}
    with torch.no_grad():
        found = model(**inputs, use_cache=False)
        images = iter(batch["pixel_values"])
        log_p, count = 0.0, 0
        for row in range(6):
            real = batch["attention_mask"][row] == 1
            ids, labels = batch["input_ids"][row][real], batch["labels"][row][real]
            pixels = {"pixel_values": next(images)[None]} if image_id in ids else {}
            alone = model(input_ids=ids[None], **pixels, use_cache=False).logits[0]
            torch.testing.assert_close(found.logits[row][real], alone, atol=1e-5, rtol=1e-4)
            learned = labels[1:] != IGNORE
            log_p += alone.log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0][learned].sum()
            count += int(learned.sum())
    torch.testing.assert_close(found.loss, -log_p / count)


def test_impossible_options_are_refused(loader, source, clean_file, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="batch_size=0"):
        loader(batch_size=0)
    with pytest.raises(ConfigError, match="give an image_processor"):
        loader(image_processor=None)
    with pytest.raises(ConfigError, match=r"batch_size=8 is not a multiple of world \* num_micro = 3 \* 1"):
        loader().shard(0, 0, 3, 0, 1)
    with pytest.raises(ConfigError, match="rank=2 of 2"):
        loader().shard(0, 2, 2, 0, 1)
    loader()  # lengths are known: nothing but the images needs Pillow now
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ConfigError, match=r"pip install libmoe\[vision\]"):
        loader(source)
    rows = [json.loads(line) for line in clean_file.read_text().splitlines()]
    (tmp_path / "text.json").write_text(json.dumps([row for row in rows if "image" not in row]))
    batch = loader(LlavaFile(tmp_path / "text.json"), image_processor=None).batch(0)
    assert "pixel_values" not in batch and set(batch["modality_ids"].unique().tolist()) == {0, 2}
