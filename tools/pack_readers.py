"""Readers for the source formats of the embedded pack, each reduced to what the pack needs.

They are only used by ``build_pack.py``; nothing in the installed package depends on them.
"""

from __future__ import annotations

import gzip
import html.parser
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path


def unwrap(text: str) -> str:
    """Join the lines of each paragraph; paragraphs stay separated by one blank line."""
    paragraphs = (" ".join(p.split()) for p in re.split(r"\n\s*\n", text))
    return "\n\n".join(p for p in paragraphs if p)


# --- R: lazy-load databases of character vectors -------------------------------------------------------------


class _RReader:
    """Reads the part of R's XDR serialisation that a list of string and integer vectors uses."""

    def __init__(self, data: bytes) -> None:
        # "X\n", then three version words; version 3 adds the name of the native encoding.
        self.data, self.at, self.references = data, 14, []
        if data[:2] != b"X\n":
            raise ValueError("not an XDR-serialised R object")
        if struct.unpack(">i", data[2:6])[0] == 3:
            self.at += 4 + struct.unpack(">i", data[14:18])[0]

    def integer(self) -> int:
        self.at += 4
        return struct.unpack(">i", self.data[self.at - 4 : self.at])[0]

    def item(self) -> object:
        flags = self.integer()
        kind = flags & 0xFF
        if kind in (254, 242, 241):  # NULL and the standard environments
            return None
        if kind == 255:
            return self.references[(flags >> 8) - 1]
        if kind == 1:
            self.references.append(self.item())
            return self.references[-1]
        if kind == 2:  # a cell of a pairlist
            if flags & 0x200:
                self.item()  # attributes of the cell
            tag = self.item() if flags & 0x400 else None
            return [(tag, self.item()), *(self.item() or [])]
        if kind == 9:
            size = self.integer()
            self.at += max(size, 0)
            return self.data[self.at - size : self.at].decode("utf-8") if size >= 0 else None
        size = self.integer()
        if kind in (10, 13):
            value: object = [self.integer() for _ in range(size)]
        elif kind in (16, 19):
            value = [self.item() for _ in range(size)]
        else:
            raise ValueError(f"R object of kind {kind} is not handled")
        attributes = dict(self.item() or []) if flags & 0x200 else {}
        if kind == 19 and "names" in attributes:
            return dict(zip(attributes["names"], value, strict=True))  # type: ignore[call-overload]
        return value


def r_character_vectors(base: Path) -> dict[str, list[str]]:
    """Read every character vector of the lazy-load database ``base.rdx`` / ``base.rdb``."""
    index = _RReader(gzip.decompress(base.with_suffix(".rdx").read_bytes())).item()
    data = base.with_suffix(".rdb").read_bytes()
    vectors = {}
    for name, (start, length) in index["variables"].items():  # type: ignore[index]
        chunk = data[start : start + length]  # 4 bytes of uncompressed size, then one byte of codec
        if chunk[4:5] == b"2":
            raise ValueError(f"{name} is bzip2-compressed, which this reader does not handle")
        vectors[name] = _RReader(zlib.decompress(chunk[4:])).item()
    return vectors  # type: ignore[return-value]


# --- SWORD: zText modules with OSIS markup --------------------------------------------------------------------


def sword_chapters(folder: Path) -> Iterator[tuple[str, int, str]]:
    """Yield (book, chapter, text) of a zText module; notes and headings are left out.

    Chapters and paragraphs are found from the OSIS markers in the text, so no versification table is needed.
    """
    for testament in ("ot", "nt"):
        blocks = (folder / f"{testament}.bzs").read_bytes()
        verses = (folder / f"{testament}.bzv").read_bytes()
        data = (folder / f"{testament}.bzz").read_bytes()
        books: dict[int, list[str]] = {}
        texts: dict[int, bytes] = {}
        for block, start, size in struct.iter_unpack("<IIH", verses):
            if not size:
                continue
            if block not in texts:
                offset, length, _ = struct.unpack_from("<III", blocks, 12 * block)
                texts[block] = zlib.decompress(data[offset : offset + length])
            books.setdefault(block, []).append(texts[block][start : start + size].decode("utf-8", "replace"))
        osis = "\n".join(v for block in sorted(books) for v in books[block])
        parts = re.split(r'<chapter [^>]*osisID="([^".]+)\.(\d+)"[^>]*sID=[^>]*>', osis)
        for book, chapter, body in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
            yield book, int(chapter), _osis_text(body)


def _osis_text(osis: str) -> str:
    osis = re.sub(r"<(note|title)\b.*?</\1>", " ", osis, flags=re.S)  # a note stands where a space should be
    osis = re.sub(r'<div (sID="[^"]*" )?type="(?!x-p\b|x-milestone)[^>]*>.*', "", osis, flags=re.S)
    osis = re.sub(r'<(div|lg)\b[^>]*sID="[^"]*"[^>]*(type="x-p")?[^>]*>', _paragraph, osis)
    return re.sub(r" +([,.;:!?)’”])", r"\1", unwrap(re.sub(r"<[^>]+>", "", osis)))


def _paragraph(tag: re.Match[str]) -> str:
    return "\n\n" if 'type="x-p"' in tag[0] or tag[1] == "lg" else ""


# --- HTML -------------------------------------------------------------------------------------------------------


class _Page(html.parser.HTMLParser):
    """Text of a DocBook page: paragraphs unwrapped, listings verbatim, navigation left out."""

    BREAKS = frozenset("p div h1 h2 h3 h4 h5 li dt dd tr table ul ol dl br".split())

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.words: list[str] = []
        self.skip_depth = self.verbatim = 0
        self.stack: list[bool] = []

    def flush(self) -> None:
        text = "".join(self.words)
        self.words = []
        text = text.strip("\n").rstrip() if self.verbatim else " ".join(text.split())
        if text:
            self.parts.append(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        kind = dict(attrs).get("class") or ""
        if tag == "div":
            self.stack.append(kind in ("navheader", "navfooter", "toc"))
            self.skip_depth += self.stack[-1]
        if tag in ("td", "th"):
            self.words.append(" ")
        if tag in self.BREAKS or tag == "pre":
            self.flush()
        self.verbatim += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if tag in self.BREAKS or tag == "pre":
            self.flush()
        self.verbatim -= tag == "pre"
        if tag == "div" and self.stack:
            self.skip_depth -= self.stack.pop()

    def handle_data(self, data: str) -> None:
        if not self.skip_depth:
            self.words.append(data)


def html_text(page: str) -> str:
    """Return the readable text of a DocBook HTML page, paragraphs separated by blank lines."""
    reader = _Page()
    reader.feed(re.sub(r"^.*?<body[^>]*>", "", page, flags=re.S))
    reader.flush()
    return "\n\n".join(reader.parts)


# --- Metamath ---------------------------------------------------------------------------------------------------


def metamath_sections(text: str, max_entry: int = 4000) -> list[tuple[str, str]]:
    """Return (section title, entries) in order; an entry is a comment and its statement, without the proof."""
    header = re.compile(r"\$\(\s*\n\s*(?:#\*|=-|-\.|##)\S*\n(.*?)\n\s*(?:#\*|=-|-\.|##)\S*\n.*?\$\)", re.S)
    entry = re.compile(r"\$\(\s((?:(?!\$\)).)*?)\s\$\)\s+(\S+)\s+\$[ap]\s(.*?)\s\$[=.]", re.S)
    credit = re.compile(r"\((?:Contributed|Revised|Proof shortened|Proof modification|New usage)[^)]*\)")
    pieces = header.split(text)
    sections = []
    for title, body in zip(pieces[1::2], pieces[2::2], strict=True):
        entries = []
        for comment, label, statement in entry.findall(body):
            comment = " ".join(credit.sub("", comment).replace("`", "").split())
            comment = re.sub(r"~\s(\S+)", r"\1", comment)
            found = f"{comment}\n  {label}: {' '.join(statement.split())}"
            if len(found) <= max_entry:
                entries.append(found)
        if entries:
            sections.append((" ".join(title.split()), "\n\n".join(dict.fromkeys(entries))))
    return sections


# --- WordNet ----------------------------------------------------------------------------------------------------


def wordnet_glosses(file: Path) -> list[str]:
    """Return one line ``word, synonym: definition; "example"`` for each synset of a WordNet data file."""
    lines = []
    for line in file.read_text(encoding="utf-8", errors="strict").splitlines():
        if not line[:1].isdigit():  # the licence heads the file, indented
            continue
        fields, gloss = line.split(" | ", 1)
        words = fields.split(" ")
        names = [words[4 + 2 * i].replace("_", " ") for i in range(int(words[3], 16))]
        names = [re.sub(r"\((?:a|p|ip)\)$", "", n) for n in names]  # syntactic markers of adjectives
        lines.append(f"{', '.join(dict.fromkeys(names))}: {gloss.strip()}")
    return lines
