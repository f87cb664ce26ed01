"""Published data sets by name: what is missing is said, what is there is opened as one source."""

from __future__ import annotations

import pytest

from libmoe.core.errors import ConfigError, DataError
from libmoe.data.vision.named import NAMED, open_named


def test_an_empty_folder_says_what_to_download_and_where_it_belongs(tmp_path):
    for name, wanted in NAMED.items():
        with pytest.raises(DataError) as caught:
            open_named(name, tmp_path)
        line = str(caught.value)
        assert "\n" not in line and wanted.page in line and str(tmp_path) in line
        assert all(part in line for part in (*wanted.files, *wanted.folders))


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="'llava-665'; did you mean 'llava-665k'"):
        open_named("llava-665", tmp_path)


def test_two_files_are_one_source_and_their_size_is_compared(tmp_path, make_rows, write_rows):
    rows = make_rows(tmp_path / "allava_laion", 13)
    (tmp_path / "allava_vflan" / "images").mkdir(parents=True)
    for row in rows:
        if "image" in row:
            row["image"] = f"allava_laion/images/{row['image']}"
    for file, part in zip(NAMED["allava"].files, (rows[:5], rows[5:])):
        write_rows(tmp_path / file, part)
    with pytest.warns(UserWarning, match="allava has 13 rows here; 708140 were published"):
        joined = open_named("allava", tmp_path, cache_dir=tmp_path, progress=False)
    assert len(joined) == 13
    for number, row in enumerate(rows):
        found = joined.row(number)
        assert found.turns[0].answer == row["conversations"][1]["value"]
        assert (found.image is None) == ("image" not in row) and (found.image is None or found.image().size)
    with pytest.raises(IndexError):
        joined.row(13)
    write_rows(tmp_path / NAMED["allava"].files[1], rows[5:12])
    with pytest.warns(UserWarning, match="12 rows"):
        other = open_named("allava", tmp_path, cache_dir=tmp_path, progress=False)
    assert other.fingerprint != joined.fingerprint
