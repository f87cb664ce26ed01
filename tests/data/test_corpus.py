"""Corpora from local files: domains, splits, fingerprints, and errors that name the fix."""

from __future__ import annotations

import gzip
import json
import re

import pytest

from libmoe.core.errors import DataError
from libmoe.data import Corpus, load_corpus

TEXTS = [f"This is document number {i}, and it says something." for i in range(40)]


def _write_jsonl(path, texts=TEXTS, **more):
    path.write_text("".join(json.dumps({"text": t, **more}) + "\n" for t in texts), encoding="utf-8")


def _all(corpus, domain):
    return sorted(t for split in corpus.splits for t in corpus[split][domain])


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".json", ".parquet"])
def test_every_record_format_gives_the_same_documents(tmp_path, suffix):
    file = tmp_path / f"mine{suffix}"
    records = [{"text": t, "n": i} for i, t in enumerate(TEXTS)]
    lines = "".join(json.dumps(r) + "\n" for r in records).encode()
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), file)
    else:
        contents = {".jsonl": lines, ".jsonl.gz": gzip.compress(lines), ".json": json.dumps(records).encode()}
        file.write_bytes(contents[suffix])
    corpus = load_corpus(file)
    assert corpus.domains == ["mine"] and _all(corpus, "mine") == sorted(TEXTS)
    assert {s: len(corpus[s]["mine"]) for s in corpus.splits} == {"train": 36, "validation": 2, "test": 2}


def test_text_file_is_cut_into_documents_and_split(tmp_path):
    text = "\n\n".join(" ".join([f"w{i}"] * 200) for i in range(200))
    (tmp_path / "book.txt").write_text(text, encoding="utf-8")
    corpus = load_corpus(tmp_path / "book.txt")
    assert len(corpus["test"]["book"]) >= 1 and len(corpus["train"]["book"]) > 10
    assert sorted(" ".join(_all(corpus, "book")).split()) == sorted(text.split())


def test_folder_files_and_subfolders_are_domains(tmp_path):
    _write_jsonl(tmp_path / "news.jsonl")
    (tmp_path / "notes").mkdir()
    for i in range(5):
        (tmp_path / "notes" / f"{i}.md").write_text(f"note {i}", encoding="utf-8")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.txt").write_text("secret", encoding="utf-8")
    corpus = load_corpus(tmp_path)
    assert corpus.domains == ["news", "notes"] and len(_all(corpus, "notes")) == 5


def test_named_splits_are_kept_and_a_missing_one_comes_from_train(tmp_path):
    _write_jsonl(tmp_path / "train.jsonl", TEXTS[:30])
    _write_jsonl(tmp_path / "test.jsonl", TEXTS[30:])
    corpus = load_corpus(tmp_path)
    domain = tmp_path.name
    assert corpus["test"][domain] == TEXTS[30:]
    assert sorted(corpus["train"][domain] + corpus["validation"][domain]) == sorted(TEXTS[:30])
    assert len(corpus["validation"][domain]) == 2


def test_a_subfolder_called_test_alone_does_not_hide_the_rest(tmp_path):
    (tmp_path / "test").mkdir()
    _write_jsonl(tmp_path / "test" / "a.jsonl")
    _write_jsonl(tmp_path / "main.jsonl")
    assert load_corpus(tmp_path).domains == ["main", "test"]
    (tmp_path / "main.jsonl").unlink()
    assert list(load_corpus(tmp_path).splits) == ["test"]


def test_domain_field_decides_the_domain(tmp_path):
    rows = [{"text": t, "topic": "even" if i % 2 == 0 else "odd"} for i, t in enumerate(TEXTS)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    corpus = load_corpus(tmp_path / "a.jsonl", domain_field="topic", domains=["odd", "even"])
    assert corpus.domains == ["odd", "even"] and len(_all(corpus, "odd")) == 20


def test_only_the_asked_split_and_domains_are_given(tmp_path):
    corpus = load_corpus("embedded", domains=["legal", "novel"], split="test")
    assert list(corpus.splits) == ["test"] and corpus.domains == ["legal", "novel"]
    assert set(corpus.licences) == {"legal", "novel"}


def test_fingerprint_changes_with_content_order_and_borders_only():
    one = Corpus.from_documents({"a": TEXTS})
    assert one.fingerprint() == Corpus.from_documents({"a": list(TEXTS)}).fingerprint()
    moved = [TEXTS[0] + TEXTS[1][:1], TEXTS[1][1:], *TEXTS[2:]]
    others = [{"b": TEXTS}, {"a": TEXTS[::-1]}, {"a": moved}, {"a": TEXTS[:-1]}, {"a": TEXTS, "c": TEXTS}]
    prints = {one.fingerprint(), *(Corpus.from_documents(o).fingerprint() for o in others)}
    assert len(prints) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "corpus.jsonll"}, "no such file or folder: 'corpus.jsonll'; did you mean 'corpus.jsonl'"),
        ({"source": "nowhere/at/all"}, "no such file.*'embedded' and 'hf:<dataset>' work too"),
        (
            {"source": "corpus.jsonl", "text_field": "txt"},
            "no field 'txt' in record 1.*try text_field='text'",
        ),
        ({"source": "corpus.jsonl", "domain_field": "topic"}, "no field 'topic'.*domain_field="),
        ({"source": "corpus.jsonl", "text_field": "n"}, "field 'n' of record 1 .* is no text but 3"),
        ({"source": "corpus.jsonl", "heldout": 0.7}, "heldout=0.7"),
        ({"source": "broken.jsonl"}, "line 2 of 'broken.jsonl' is not valid JSON"),
        ({"source": "latin.txt"}, "'latin.txt' is not UTF-8 text"),
        ({"source": "empty.txt"}, "'empty.txt' holds no text"),
        ({"source": "tiny.txt"}, "domain 'tiny' .* has too few documents"),
        ({"source": "object.json"}, "holds no list of records"),
        ({"source": "bad.jsonl.gz"}, "cannot decompress 'bad.jsonl.gz'"),
        ({"source": "bad.parquet"}, "'bad.parquet' is not a parquet file"),
        ({"source": "surrogate.jsonl"}, "not valid Unicode"),
        ({"source": "picture.png"}, "cannot read 'picture.png'; readable are .txt"),
        ({"source": "nothing"}, "holds no readable file"),
        ({"source": "embedded", "domains": ["novels"]}, "unknown domain 'novels'.*did you mean 'novel'"),
        (
            {"source": "embedded", "domains": ["legal"], "split": "dev"},
            "has no split 'dev'; it has train, valid",
        ),
        ({"source": "hf:"}, "names no data set"),
    ],
)
def test_bad_input_gives_one_line_that_names_the_fix(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    _write_jsonl(tmp_path / "corpus.jsonl", n=3)
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n', encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "empty.txt").write_text(" \n", encoding="utf-8")
    (tmp_path / "tiny.txt").write_text("one document only", encoding="utf-8")
    (tmp_path / "object.json").write_text('{"text": "a"}', encoding="utf-8")
    (tmp_path / "bad.jsonl.gz").write_bytes(b"\x1f\x8b broken")
    (tmp_path / "bad.parquet").write_bytes(b"PAR?")
    (tmp_path / "surrogate.jsonl").write_text('{"text": "a \\ud800 b"}\n', encoding="utf-8")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError) as caught:
        load_corpus(**arguments)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def test_hub_data_set_without_network_is_a_clear_error(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"cannot load 'hf:nobody/nothing'.*check the name and the network"):
        load_corpus("hf:nobody/nothing")


def test_hub_splits_become_ours(monkeypatch):
    import datasets

    rows = datasets.Dataset.from_list([{"text": t} for t in TEXTS])
    loaded = datasets.DatasetDict({"train": rows, "dev": rows.select(range(3))})
    asked = []

    def load(path, name=None, split=None):
        asked.append((path, name, split))
        return loaded if split is None else rows

    monkeypatch.setattr(datasets, "load_dataset", load)
    corpus = load_corpus("hf:someone/thing:en")
    assert corpus["validation"]["thing"] == TEXTS[:3] and len(corpus["test"]["thing"]) == 2
    sliced = load_corpus("hf:someone/thing", split="train[:40]")
    assert list(sliced.splits) == ["train"] and asked[1] == ("someone/thing", None, "train[:40]")
