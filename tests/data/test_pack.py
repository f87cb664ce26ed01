"""The embedded pack: what the manifest says, held-out text that training text never repeats, licences."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest

from libmoe.core.errors import DataError
from libmoe.data import load_corpus, overlaps
from libmoe.data.embedded import DOMAINS, PACK_DOMAINS, _read_domain, python_library

PACK = files("libmoe.data") / "pack"


@pytest.fixture(scope="module")
def embedded():
    return load_corpus("embedded")


def test_every_domain_has_real_text_in_every_split(embedded):
    assert embedded.domains == list(DOMAINS) and len(DOMAINS) == 8
    for domain in DOMAINS:
        size = {s: sum(len(t.encode()) for t in embedded[s][domain]) for s in embedded.splits}
        assert 1_200_000 < size["train"] < 2_000_000
        assert size["validation"] > 90_000 and size["test"] > 90_000
        documents = embedded["train"][domain]
        assert len(set(documents)) == len(documents) > 250


def test_no_200_characters_of_heldout_text_occur_in_training_text(embedded):
    train, validation, test = (
        [text for documents in embedded[split].values() for text in documents]
        for split in ("train", "validation", "test")
    )
    assert not any(overlaps(train, validation + test, width=200))
    assert not any(overlaps(validation, test, width=200))


def test_manifest_matches_the_files_and_the_pack_is_small(embedded):
    manifest = json.loads((PACK / "manifest.json").read_text(encoding="utf-8"))
    assert list(manifest) == list(PACK_DOMAINS)
    for domain, entry in manifest.items():
        for split, numbers in entry["splits"].items():
            texts = embedded[split][domain]
            assert numbers == {"documents": len(texts), "bytes": sum(len(t.encode()) for t in texts)}
    assert sum(len((PACK / f"{d}.jsonl.xz").read_bytes()) for d in PACK_DOMAINS) < 4_000_000


def test_every_shipped_domain_names_its_source_and_licence(embedded):
    text = (PACK / "LICENSES.md").read_text(encoding="utf-8")
    for domain in DOMAINS:
        assert f"\n| {domain} | " in text and embedded.licences[domain]
    assert "Princeton University" in text and "Regents of the University of California" in text
    assert "://" not in text


def test_a_damaged_file_is_refused():
    data = bytearray((PACK / "legal.jsonl.xz").read_bytes())
    data[1000] ^= 1
    with pytest.raises(DataError, match="'legal' is damaged; reinstall"):
        _read_domain(bytes(data), "legal", "0" * 64)


def test_code_domain_holds_out_whole_files_and_skips_foreign_folders(tmp_path):
    for i in range(60):
        body = "\n\n\n".join(f"def f{i}_{j}(x):\n    return x * {j} + {i}" for j in range(400))
        (tmp_path / f"module{i}.py").write_text(body, encoding="utf-8")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "test_a.py").write_text("def not_me(): pass\n" * 500, encoding="utf-8")
    splits = python_library(tmp_path)
    modules = {s: {text.split("def f")[1].split("_")[0] for text in texts} for s, texts in splits.items()}
    assert all(modules.values()) and not modules["train"] & (modules["test"] | modules["validation"])
    assert not any("not_me" in text for texts in splits.values() for text in texts)


def test_python_without_library_source_names_the_fix(tmp_path):
    with pytest.raises(DataError, match="leave the domain 'code' out"):
        python_library(tmp_path)
