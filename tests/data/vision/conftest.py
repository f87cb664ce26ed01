"""Generated files of conversations about real PNG files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from libmoe.data.order import random_u64
from libmoe.data.vision.images import make_image_processor

SIZE = 28
WORDS = "red green blue round square small large old new bright dark quiet".split()


@pytest.fixture(scope="session")
def processor():
    return make_image_processor(SIZE)


@pytest.fixture(scope="session")
def make_rows():
    """``make_rows(folder, count)`` draws PNG files and returns rows about them; every fifth is text alone."""

    def make(folder: Path, count: int) -> list[dict]:
        (folder / "images").mkdir(parents=True, exist_ok=True)
        rows = []
        for number in range(count):
            draw = random_u64(64, "row", number).tolist()
            spoken = []
            for turn in range(1 + draw[0] % 3):
                words = [WORDS[d % len(WORDS)] for d in draw[4 : 5 + draw[turn] % 50]]
                spoken += [("human", f"What is it, {turn}?"), ("gpt", f"{' '.join(words)} {number}.{turn}")]
            row = {"id": str(number), "task": ("count", "color")[number % 2]}
            if number % 5:
                row["image"] = f"{number}.png"
                spoken[0] = ("human", f"<image>\n{spoken[0][1]}")
                color = tuple(d % 256 for d in draw[1:4])
                Image.new("RGB", (8 + draw[1] % 40, 8 + draw[2] % 40), color).save(
                    folder / "images" / row["image"]
                )
            rows.append(row | {"conversations": [{"from": who, "value": text} for who, text in spoken]})
        return rows

    return make


@pytest.fixture(scope="session")
def write_rows():
    """``write_rows(path, rows)`` as a list for ``.json``, else one a line."""

    def write(path: Path, rows: list) -> Path:
        lines = [json.dumps(rows)] if path.suffix == ".json" else [json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def clean_file(tmp_path_factory, make_rows, write_rows) -> Path:
    """60 rows without a fault, beside their folder ``images``."""
    folder = tmp_path_factory.mktemp("clean")
    return write_rows(folder / "chat.jsonl", make_rows(folder, 60))
