"""Build the embedded emoji art: ``python tools/build_emoji.py --work DIR``.

The same concepts drawn by three artists go to ``src/libmoe/data/vision/emoji/``: ``concepts.jsonl`` (what each one
shows, in four languages), one archive of 32 px pictures with a transparent ground per style, ``manifest.json`` and
``LICENSES.md``.  Then the things that scenes are made of are chosen (``libmoe.data.vision.scenes.choosing``) and
listed in ``src/libmoe/data/vision/scenes/things.jsonl``, and the fingerprint of the test items made of them is noted
in ``src/libmoe/data/vision/tasks/fingerprint.json``.

Packages come from ``npm pack``; what is already in ``--work`` is not fetched again.  Besides what LibMoE needs, the
script needs Pillow and ``resvg-py``, which draws SVG.  It is deterministic: the same versions of packages, Pillow and
resvg-py (all in the manifest) give the same files.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import resvg_py
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from libmoe.core.files import to_json, write_atomically, write_json  # noqa: E402
from libmoe.data.vision.emoji import SIDE  # noqa: E402
from libmoe.data.vision.scenes.choosing import choose_things  # noqa: E402
from libmoe.data.vision.tasks import fingerprint  # noqa: E402

VISION = ROOT / "src" / "libmoe" / "data" / "vision"
PACK = VISION / "emoji"
LANGUAGES = ("de", "fr", "es")
COLOURS = 48  # of a picture's palette; more are hardly seen at 32 px
OVERSAMPLING = 4  # SVG is drawn this much larger and reduced, as the pictures that come as PNG are


class Source(NamedTuple):
    package: str
    version: str
    licence: str
    attribution: str


SOURCES = {
    "concepts": Source(
        "emojibase-data", "17.0.0", "MIT; Unicode-3.0",
        "Names and keywords: emojibase-data by Miles Johnson, compiled from the Unicode Common Locale Data Repository.",
    ),
    "noto": Source(
        "emoji-datasource-google", "16.0.0", "Apache-2.0; MIT",
        "Noto Emoji, copyright Google LLC, as collected by Cal Henderson.",
    ),
    "twemoji": Source(
        "@twemoji/svg", "15.0.0", "CC-BY-4.0; MIT",
        "Twemoji graphics, copyright 2020 Twitter, Inc and other contributors, licensed under CC-BY 4.0 "
        "(https://creativecommons.org/licenses/by/4.0/), from https://github.com/jdecked/twemoji; packed by "
        "Samuel Kopp.",
    ),
    "fluent": Source(
        "fluentui-emoji", "1.3.0", "MIT",
        "Fluent Emoji (flat), copyright Microsoft Corporation, packed by Mohammad Abu Mattar.",
    ),
    "texts": Source("spdx-license-list", "6.12.0", "CC0-1.0", "Wording of licences; nothing of it is in the pack."),
}  # fmt: skip


def fetch(source: Source, work: Path) -> Path:
    """The unpacked files of a package, downloaded unless they are there."""
    name = f"{source.package.strip('@').replace('/', '-')}-{source.version}"
    if (work / name).exists():
        return work / name / "package"
    partial = work / f"{name}.partial"
    partial.mkdir(parents=True, exist_ok=True)
    spec = f"{source.package}@{source.version}"
    subprocess.run(["npm", "pack", "--silent", spec], cwd=partial, check=True, stdout=subprocess.DEVNULL)
    with tarfile.open(next(partial.glob("*.tgz"))) as tar:
        tar.extractall(partial, filter="data")
    partial.rename(work / name)
    return work / name / "package"


def plain_code(code: str) -> str:
    """Code points in lower case, without zeros in front and without the selector of colour (FE0F)."""
    return "-".join(part.lstrip("0") for part in code.lower().split("-") if part != "fe0f")


def slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.lower().replace("’", "").replace("ñ", "n")).strip("-")


# --- Pictures -----------------------------------------------------------------------------------------------------


def by_code(folder: Path, suffix: str) -> Callable[[Mapping[str, Any]], Path | None]:
    files = {plain_code(file.stem): file for file in sorted(folder.glob(f"*{suffix}"))}
    return lambda entry: files.get(plain_code(entry["hexcode"]))


def by_name(folder: Path) -> Callable[[Mapping[str, Any]], Path | None]:
    files = {file.stem: file for file in sorted(folder.glob("*.svg"))}
    return lambda entry: files.get(slug(entry["label"]))


def picture(file: Path) -> bytes:
    """A drawing as a PNG of ``SIDE`` px with a palette whose colours have opacities of their own."""
    data = file.read_bytes()
    if file.suffix == ".svg":
        side = SIDE * OVERSAMPLING
        data = bytes(resvg_py.svg_to_bytes(svg_string=data.decode(), width=side, height=side))
    image = Image.open(io.BytesIO(data)).convert("RGBA").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.quantize(COLOURS, method=Image.Quantize.FASTOCTREE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def archive(pictures: Mapping[str, bytes]) -> bytes:
    """Stored, not packed (PNG is packed already), and without the time of day."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for code, data in sorted(pictures.items()):
            file.writestr(zipfile.ZipInfo(f"{code}.png", (1980, 1, 1, 0, 0, 0)), data)
    return buffer.getvalue()


# --- Words --------------------------------------------------------------------------------------------------------


def concepts(folder: Path) -> list[dict[str, Any]]:
    """All emoji but letters of flags, in the order of Unicode."""

    def read(language: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads((folder / language / "data.json").read_text(encoding="utf-8"))
        return [entry for entry in found if "group" in entry]

    names = {
        language: {entry["hexcode"]: entry["label"] for entry in read(language)} for language in LANGUAGES
    }
    meta = json.loads((folder / "meta" / "groups.json").read_text(encoding="utf-8"))
    return [
        {
            "hexcode": entry["hexcode"],
            "label": entry["label"],
            "tags": entry.get("tags", []),
            "group": meta["groups"][str(entry["group"])],
            "subgroup": meta["subgroups"][str(entry["subgroup"])],
            "names": {language: names[language][entry["hexcode"]] for language in LANGUAGES},
        }
        for entry in sorted(read("en"), key=lambda entry: entry["order"])
    ]


def licences_text(folders: Mapping[str, Path]) -> str:
    """Attributions, and the notices that must go with copies; Apache-2.0 is the project's own LICENSE."""
    texts = json.loads((folders["texts"] / "spdx-full.json").read_text(encoding="utf-8"))
    rows = [
        f"| {name} | npm package {s.package} {s.version} | {s.licence} | {s.attribution} |"
        for name, s in SOURCES.items()
        if name != "texts"
    ]
    mit = (folders["fluent"] / "LICENSE").read_text(encoding="utf-8").partition("\n\n")[2].partition("\n\n")[2]
    holders = [
        "Copyright (c) 2017-2019 Miles Johnson (emojibase-data)",
        "Copyright (c) 2013 Cal Henderson (emoji-datasource-google)",
        "Copyright (c) 2023 Samuel Kopp (@twemoji/svg)",
        "Copyright (c) Microsoft Corporation (Fluent Emoji)",
        "Copyright (c) 2022 Mohammad Abu Mattar (fluentui-emoji)",
    ]
    unicode_terms = texts["Unicode-3.0"]["licenseText"].strip()
    return "\n".join(
        [
            "# Licences of the embedded emoji art", "",
            "Changes: every drawing was reduced to 32 x 32 pixels and to a palette of 48 colours.  Of names and",
            "keywords those in English, and names in German, French and Spanish, were kept.", "",
            "| part | source | licence | attribution |", "|---|---|---|---|", *rows, "",
            "The Apache License 2.0 is the file LICENSE of this project.  CC-BY 4.0 stands at",
            "https://creativecommons.org/licenses/by/4.0/legalcode and comes without any warranty.", "",
            "## MIT", "", "```", *holders, "", mit.strip(), "```", "",
            "## Unicode-3.0", "", "```", unicode_terms, "```", "",
        ]
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="scratch folder for the downloads")
    work = parser.parse_args().work.resolve()
    folders = {name: fetch(source, work) for name, source in SOURCES.items()}
    find = {
        "noto": by_code(folders["noto"] / "img" / "google" / "64", ".png"),
        "twemoji": by_code(folders["twemoji"], ".svg"),
        "fluent": by_name(folders["fluent"] / "icons" / "flat"),
    }
    entries = concepts(folders["concepts"])
    files: dict[str, bytes] = {}
    counts = {"concepts": len(entries)}
    for style, drawing in find.items():
        drawn = {e["hexcode"]: picture(file) for e in entries if (file := drawing(e)) is not None}
        for entry in entries:
            entry.setdefault("styles", []).extend([style] if entry["hexcode"] in drawn else [])
        files[f"{style}.zip"] = archive(drawn)
        counts[style] = len(drawn)
    files["concepts.jsonl"] = "".join(to_json(entry) + "\n" for entry in entries).encode()
    for name, data in files.items():
        write_atomically(PACK / name, data)
        print(f"{name}: {len(data) / 1e6:.2f} MB")
    manifest = {
        "packages": {
            s.package: {"version": s.version, "licence": s.licence}
            for name, s in SOURCES.items()
            if name != "texts"
        },
        "drawn_with": {name: version(name) for name in ("pillow", "resvg-py")},
        "counts": counts,
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())},
    }
    write_json(PACK / "manifest.json", manifest)
    write_atomically(PACK / "LICENSES.md", licences_text(folders).encode())
    things = choose_things()
    write_atomically(VISION / "scenes" / "things.jsonl", "".join(to_json(t) + "\n" for t in things).encode())
    write_json(VISION / "tasks" / "fingerprint.json", fingerprint())
    print(f"{counts}, {len(things)} things")


if __name__ == "__main__":
    main()
