"""Images in local files become PIL images."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from libmoe.eval.mirror import serving


def png(shade: int) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (4, 3), (shade, 0, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True)
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def load(folder: Path) -> Any:
    with serving(folder):
        return datasets.load_dataset("org/set")["test"]


def shade(image: Any) -> int:
    assert image.size == (4, 3)
    return image.convert("RGB").getpixel((0, 0))[0]


@pytest.mark.parametrize("head", ["", "data:image/png;base64,"])
def test_base64(head: str, tmp_path: Path) -> None:
    rows = [{"image": head + base64.b64encode(png(s)).decode(), "question": "?"} for s in (10, 20)]
    write(tmp_path / "org/set", rows)
    found = load(tmp_path)
    assert [shade(row["image"]) for row in found] == [10, 20]
    assert found[0]["question"] == "?"


def test_files_beside_the_table(tmp_path: Path) -> None:
    write(tmp_path / "org/set", [{"image": f"images/{s}.png"} for s in (10, 20)])
    (tmp_path / "org/set/images").mkdir()
    for s in (10, 20):
        (tmp_path / f"org/set/images/{s}.png").write_bytes(png(s))
    assert [shade(row["image"]) for row in load(tmp_path)] == [10, 20]


def test_several_images_in_a_row(tmp_path: Path) -> None:
    texts = [base64.b64encode(png(s)).decode() for s in (10, 20)]
    write(tmp_path / "org/set", [{"images": texts}, {"images": texts[:1]}, {"images": []}])
    assert [[shade(i) for i in row["images"]] for row in load(tmp_path)] == [[10, 20], [10], []]


def test_parquet_as_the_hub_has_it(tmp_path: Path) -> None:
    (tmp_path / "org/set").mkdir(parents=True)
    data = datasets.Dataset.from_list([{"image": {"bytes": png(10), "path": None}, "n": 1}])
    data.cast_column("image", datasets.Image()).to_parquet(
        str(tmp_path / "org/set/test-00000-of-00001.parquet")
    )
    assert shade(load(tmp_path)[0]["image"]) == 10


def test_parquet_that_lost_the_type(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "org/set").mkdir(parents=True)
    table = pyarrow.table({"image": [{"bytes": png(10), "path": None}], "n": [1]})
    pyarrow.parquet.write_table(table, tmp_path / "org/set/test.parquet")
    assert shade(load(tmp_path)[0]["image"]) == 10


def test_texts_that_only_name_pictures_stay_texts(tmp_path: Path) -> None:
    write(tmp_path / "org/set", [{"image": "images/7.jpg", "answer": "a.png"}])
    assert load(tmp_path)[0] == {"image": "images/7.jpg", "answer": "a.png"}


def test_base64_in_parquet_is_the_text_that_the_task_wants(tmp_path: Path) -> None:
    text = base64.b64encode(png(10)).decode()
    (tmp_path / "org/set").mkdir(parents=True)
    datasets.Dataset.from_list([{"image": text}]).to_parquet(str(tmp_path / "org/set/test.parquet"))
    assert load(tmp_path)[0] == {"image": text}


def test_a_broken_picture_breaks_its_row_alone(tmp_path: Path) -> None:
    good = base64.b64encode(png(10)).decode()
    write(tmp_path / "org/set", [{"image": good}, {"image": "%%%"}, {"image": None}])
    found = load(tmp_path)
    assert shade(found[0]["image"]) == 10
    with pytest.raises(FileNotFoundError):
        found[1]
    assert found[2]["image"] is None
