"""Read documents from local files and from Hugging Face data sets, as split -> domain -> documents."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from libmoe.core.errors import DataError, nearest
from libmoe.data.splitting import SPLITS, split_document

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py")
RECORD_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")
_READABLE = f"readable are {', '.join(TEXT_SUFFIXES + RECORD_SUFFIXES)}"
_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
Record = dict[str, Any]
Found = dict[str, dict[str, list[str]]]


def read_local(path: Path, text_field: str, domain_field: str | None) -> Found:
    """Read a file or a folder; see :func:`libmoe.data.load_corpus` for how names become domains and splits."""
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        guess = nearest(path.name, siblings)
        hint = (
            f"did you mean {str(path.parent / guess)!r}?"
            if guess
            else "'embedded' and 'hf:<dataset>' work too"
        )
        raise DataError(f"no such file or folder: {str(path)!r}; {hint}")
    found: Found = {}
    if path.is_file():
        _add_file(found, "train", _stem(path), path, text_field, domain_field)
        return found
    entries = sorted(p for p in path.iterdir() if not p.name.startswith(".") and (p.is_dir() or _suffix(p)))
    split_of = {p: _SPLIT_NAMES[_stem(p)] for p in entries if _stem(p) in _SPLIT_NAMES}
    if "train" in split_of.values() or (entries and len(split_of) == len(entries)):
        for entry, split in split_of.items():
            if entry.is_dir():
                _add_folder(found, split, entry, text_field, domain_field)
            else:
                _add_file(found, split, path.resolve().name, entry, text_field, domain_field)
    else:  # a folder that merely has a sub-folder called "test" is no corpus with splits
        _add_folder(found, "train", path, text_field, domain_field)
    if not found:
        raise DataError(f"folder {str(path)!r} holds no readable file; {_READABLE}")
    return found


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").rpartition(".")[0] if path.is_file() else path.name


def _suffix(path: Path) -> str | None:
    return next((s for s in TEXT_SUFFIXES + RECORD_SUFFIXES if path.name.lower().endswith(s)), None)


def _add_folder(found: Found, split: str, folder: Path, text_field: str, domain_field: str | None) -> None:
    for file in sorted(folder.rglob("*")):
        below = file.relative_to(folder)
        if file.is_file() and _suffix(file) and not any(part.startswith(".") for part in below.parts):
            domain = below.parts[0] if len(below.parts) > 1 else _stem(file)
            _add_file(found, split, domain, file, text_field, domain_field)


def _add_file(
    found: Found, split: str, domain: str, file: Path, text_field: str, domain_field: str | None
) -> None:
    suffix = _suffix(file)
    documents = found.setdefault(split, {})
    if suffix in TEXT_SUFFIXES:
        documents.setdefault(domain, []).extend(split_document(_read_text(file, file.read_bytes())))
    elif suffix:
        _add_records(documents, domain, _records(file, suffix), str(file), text_field, domain_field)
    else:
        raise DataError(f"cannot read {str(file)!r}; {_READABLE}")


def _add_records(
    documents: dict[str, list[str]],
    domain: str,
    records: Iterable[Record],
    where: str,
    text_field: str,
    domain_field: str | None,
) -> None:
    for number, record in enumerate(records, start=1):
        text = _field(record, text_field, "text_field", where, number)
        if not isinstance(text, str):
            raise DataError(f"field {text_field!r} of record {number} in {where} is no text but {text!r:.40}")
        if domain_field is not None:
            domain = str(_field(record, domain_field, "domain_field", where, number))
        documents.setdefault(domain, []).append(text)


def _field(record: Record, name: str, argument: str, where: str, number: int) -> Any:
    if not isinstance(record, dict):
        raise DataError(f"record {number} in {where} is no object with fields but {record!r:.40}")
    if name not in record:
        guess = nearest(name, record) or next((k for k, v in record.items() if isinstance(v, str)), None)
        hint = f"; try {argument}={guess!r}" if guess else ""
        raise DataError(f"no field {name!r} in record {number} of {where}; it has {', '.join(record)}{hint}")
    return record[name]


def _read_text(file: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{str(file)!r} is not UTF-8 text (at byte {error.start}); convert it") from None


def _records(file: Path, suffix: str) -> Iterator[Record]:
    if suffix == ".parquet":
        yield from _parquet_records(file)
        return
    try:
        data = gzip.decompress(file.read_bytes()) if suffix.endswith(".gz") else file.read_bytes()
    except (OSError, EOFError) as error:
        raise DataError(f"cannot decompress {str(file)!r}: {error}") from None
    text = _read_text(file, data)
    if suffix == ".json":
        records = _parse(text, file, 1)
        if not isinstance(records, list):
            raise DataError(f"{str(file)!r} holds no list of records; write one object per line as .jsonl")
        yield from records
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _parse(line, file, number)


def _parse(text: str, file: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {line + error.lineno - 1} of {str(file)!r}"
        raise DataError(f"{where} is not valid JSON: {error.msg}") from None


def _parquet_records(file: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches():
            yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{str(file)!r} is not a parquet file: {str(error).splitlines()[0]}") from None


def read_hub(source: str, split: str | None, text_field: str, domain_field: str | None) -> Found:
    """Read ``hf:<dataset>[:config]`` with the ``datasets`` library (downloads, or uses its local cache)."""
    import datasets

    path, _, config = source.removeprefix("hf:").partition(":")
    if not path:
        raise DataError(f"source {source!r} names no data set; write 'hf:<dataset>[:<config>]'")
    try:
        loaded = datasets.load_dataset(path, name=config or None, split=split)
    except Exception as error:  # the library raises many kinds: offline, unknown name, unknown config, ...
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"cannot load {source!r} ({reason}); check the name and the network, or use a local file or 'embedded'"
        ) from error
    parts = {split.partition("[")[0]: loaded} if split else dict(loaded)
    found: Found = {}
    for name, rows in parts.items():
        if name in _SPLIT_NAMES:
            documents = found.setdefault(_SPLIT_NAMES[name], {})
            domain, where = path.rpartition("/")[2], f"{source} ({name})"
            _add_records(documents, domain, rows, where, text_field, domain_field)
    if not found:
        raise DataError(
            f"{source!r} has the splits {', '.join(parts)}, none of {', '.join(SPLITS)}; give split="
        )
    return found
