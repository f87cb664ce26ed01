"""The embedded data pack: eight domains of real English text that need no network.

Seven domains are shipped as compressed JSONL files in ``pack/`` (sources and licences: ``pack/LICENSES.md``).
The eighth, ``code``, is never shipped: it is the source of the Python that runs this, so its text depends on
the Python version, and so does the fingerprint of a corpus that contains it.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import sysconfig
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from libmoe.core.errors import DataError
from libmoe.data.overlap import overlaps
from libmoe.data.splitting import SPLITS, content_hash, split_document

PACK_DOMAINS = ("speech", "novel", "bible", "math", "dictionary", "legal", "techdoc")
DOMAINS = (*PACK_DOMAINS, "code")

_CODE_BYTES = {"test": 100_000, "validation": 100_000, "train": 1_700_000}
# Tests, bundled third-party packages, tables of data and build configuration say little about how code reads.
_SKIPPED_FOLDERS = frozenset(
    "test tests idle_test site-packages dist-packages ensurepip lib2to3 encodings pydoc_data __pycache__".split()
)


def load_embedded(
    domains: Sequence[str] | None = None,
) -> tuple[dict[str, dict[str, list[str]]], dict[str, str]]:
    """Documents by split and domain, and licences by domain; unneeded domains are not read.

    Raises:
        DataError: a file of the pack is damaged, or ``code`` is wanted and this Python has no library source.
    """
    wanted = [d for d in DOMAINS if domains is None or d in domains]
    pack = files("libmoe.data") / "pack"
    manifest = json.loads((pack / "manifest.json").read_text(encoding="utf-8"))
    splits: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS}
    licences = {}
    for domain in DOMAINS:
        documents: dict[str, list[str]] = {split: [] for split in SPLITS}
        if domain in wanted and domain == "code":
            documents = python_library()
        elif domain in wanted:
            data = (pack / f"{domain}.jsonl.xz").read_bytes()
            documents = _read_domain(data, domain, manifest[domain]["sha256"])
        for split in SPLITS:
            splits[split][domain] = documents[split]
        licences[domain] = manifest[domain]["licence"] if domain in manifest else "PSF-2.0 (your own Python)"
    return splits, licences


def _read_domain(data: bytes, domain: str, sha256: str) -> dict[str, list[str]]:
    try:
        lines = lzma.decompress(data)
    except lzma.LZMAError:
        lines = b""
    if hashlib.sha256(lines).hexdigest() != sha256:
        raise DataError(f"the embedded file of domain {domain!r} is damaged; reinstall libmoe")
    documents: dict[str, list[str]] = {split: [] for split in SPLITS}
    for line in lines.splitlines():
        record = json.loads(line)
        documents[record["split"]].append(record["text"])
    return documents


def python_library(folder: Path | None = None) -> dict[str, list[str]]:
    """Read Python source from the standard library (or ``folder``), as split -> documents of a few kB.

    Files are taken in the order of their hashed names, which is the same on every machine, until each split
    has its size; whole files are held out, and training documents that share 200 characters with held-out
    ones (licence headers, copied helpers) are dropped.
    """
    folder = folder or Path(sysconfig.get_path("stdlib"))
    names = {}
    for parent, folders, file_names in os.walk(folder):
        folders[:] = [f for f in folders if f not in _SKIPPED_FOLDERS]
        for file in (Path(parent, name) for name in file_names if name.endswith(".py")):
            names[file.relative_to(folder).as_posix()] = file
    ranked = sorted(names, key=content_hash)
    documents: dict[str, list[str]] = {split: [] for split in SPLITS}
    for split, limit in _CODE_BYTES.items():
        taken = 0
        while ranked and taken < limit:
            try:
                text = names[ranked.pop(0)].read_text(encoding="utf-8")
            except (UnicodeDecodeError, OSError):  # a few library files are in other encodings
                continue
            pieces = split_document(text)
            documents[split] += pieces
            taken += sum(len(p.encode()) for p in pieces)
    if not documents["train"]:
        raise DataError(
            f"this Python has no library source in {str(folder)!r}; leave the domain 'code' out: "
            f"domains={list(PACK_DOMAINS)}"
        )
    for split, above in (("validation", ("test",)), ("train", ("test", "validation"))):
        bad = overlaps(documents[split], [text for s in above for text in documents[s]])
        documents[split] = [text for text, b in zip(documents[split], bad, strict=True) if not b]
    return documents
