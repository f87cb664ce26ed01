"""The page of the experts is one safe, small file of which a browser draws every figure without complaint."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from alone import check_alone
from browser import browse
from libmoe.core.errors import DataError
from libmoe.core.files import to_json
from libmoe.report.experts import write_expert_report
from libmoe.report.experts.figures import figures
from libmoe.report.experts.page import page as page_of
from libmoe.report.experts.schema import checked
from libmoe.report.experts.tables import tables
from planted_analysis import planted

Analysis = dict[str, Any]
EVIL = '"><script>document.title="owned"</script><img src=x onerror=document.title="owned">'


def page(analysis: Analysis) -> str:
    content = checked(analysis)
    return page_of(content, figures(content))


def data_of(source: str) -> Any:
    return json.loads(re.search(r'id="data">(.*?)</script>', source, re.DOTALL).group(1))


def test_the_page_asks_nobody_for_anything_and_runs_only_its_own_script(analysis: Analysis) -> None:
    source = page(analysis)
    check_alone(source)


@pytest.mark.browser
def test_hostile_names_tokens_and_texts_stay_text(analysis: Analysis, tmp_path: Path) -> None:
    analysis["name"] = analysis["facts"]["model"] = EVIL
    analysis["facts"][EVIL] = EVIL
    analysis["notes"] = [EVIL]
    analysis["studies"][0].update(title=EVIL, text=EVIL, name=f"../{EVIL}")
    analysis["studies"][0]["figures"][0].update(title=EVIL, x=EVIL, y=EVIL)
    analysis["checkpoints"][-1]["label"] = EVIL
    for sample in analysis["samples"]:
        sample["domain"], sample["tokens"][0] = EVIL, f"</script>{EVIL}\u2028\ud800"
    for layer in analysis["layers"]:
        layer["by"]["domain"]["names"][0] = EVIL
        layer["top_tokens"][0][0]["text"] = EVIL
    source = page(analysis)
    assert source.count("<script") == 2
    seen, complaints = browse(source, tmp_path)
    assert not complaints
    assert "<title>owned</title>" not in seen and "<img" not in seen


@pytest.mark.browser
def test_a_browser_draws_every_figure_without_complaint(analysis: Analysis, tmp_path: Path) -> None:
    seen, complaints = browse(page(analysis), tmp_path)
    assert not complaints
    assert "Drawn by the page's script" not in seen
    for name in data_of(seen)["figures"]:
        place = re.search(rf'data-figure="{name}">(.*?)<figcaption', seen, re.DOTALL).group(1)
        assert "data-drawn=" in place, name
    for view in ("map", "domains", "graph", "card", "text", "training"):
        start = seen.index(f'id="{view}-view"')
        assert "data-drawn=" in seen[start : start + 9000], view
    assert seen.count('class="token on') == 4 * 60
    assert len(re.findall(r'class="node [^"]*"', seen)) == 8
    assert seen.count('class="edge"') == 4  # the planted pairs of the last layer


@pytest.mark.browser
def test_keys_move_in_maps_open_experts_and_drive_the_slider(analysis: Analysis, tmp_path: Path) -> None:
    script = """
    const key = (node, name) => node.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
    const told = [];
    const map = document.querySelector("#map-view canvas");
    key(map, "ArrowDown"); key(map, "Home"); key(map, "PageUp"); key(map, "ArrowRight");
    told.push(tip.textContent);
    key(map, "Enter");
    told.push(document.getElementById("card-view").dataset.drawn, document.activeElement.id);
    const [relation] = document.querySelectorAll("#graph-view select");
    relation.value = "onwards"; relation.dispatchEvent(new Event("change"));
    told.push(document.querySelectorAll("#graph-view .node").length);
    const slider = document.querySelector("#training-view input");
    slider.value = 0; slider.dispatchEvent(new Event("input"));
    told.push(document.querySelector("#training-view output").textContent);
    const cut = document.querySelector("#domains-view select");
    cut.value = "group 1"; cut.dispatchEvent(new Event("change"));
    told.push(document.querySelector("#domains-view canvas").dataset.drawn);
    const chart = document.querySelector('[data-figure="entropy"] svg.plot');
    key(chart, "ArrowRight");
    told.push(tip.textContent);
    const tokens = document.querySelectorAll("#text-view .token");
    tokens[0].focus(); key(tokens[0], "ArrowRight");
    told.push(document.activeElement === tokens[1]);
    document.title = JSON.stringify(told);
    """
    seen, complaints = browse(page(analysis), tmp_path, script)
    assert not complaints
    told = json.loads(re.search(r"<title>(.*?)</title>", seen).group(1).replace("&amp;", "&"))
    hover, card, focus, nodes, checkpoint, cut, chart, moved = told
    assert hover.startswith("layer 0, expert 1") and "a fair share" not in hover.split("load")[0]
    assert (card, focus, nodes, cut, moved) == ("0.1", "card", 16, "4x8", True)
    assert checkpoint.startswith("step 100 (1 of 3")
    assert chart.startswith("layer 0") and "0.6  router entropy" in chart


@pytest.mark.browser
def test_a_bare_analysis_makes_a_page_that_says_what_is_missing(analysis: Analysis, tmp_path: Path) -> None:
    optional = {
        "weight",
        "first",
        "dropped",
        "uncertainty",
        "by",
        "explained",
        "coactive",
        "next",
        "top_tokens",
    }
    bare = {key: analysis[key] for key in ("format", "name", "facts")} | {
        "layers": [
            {key: value for key, value in layer.items() if key not in optional | {"similarity"}}
            for layer in analysis["layers"]
        ]
    }
    seen, complaints = browse(page(bare), tmp_path)
    assert not complaints
    for words in (
        "no domains",
        "No relation between experts",
        "No sample text",
        "One checkpoint was analysed",
    ):
        assert words in seen


@pytest.mark.browser
def test_layers_of_different_sizes_and_unused_experts_are_drawn(analysis: Analysis, tmp_path: Path) -> None:
    small = planted(layers=2, experts=4, k=1, checkpoints=0)["layers"][0] | {"layer": 9}
    del small["next"]
    analysis["layers"][-1].pop("next", None)
    analysis["layers"].append(small)
    analysis["layers"][0]["load"] = [8000, 0, 0, 0, 0, 0, 0, 0]
    seen, complaints = browse(page(analysis), tmp_path)
    assert not complaints
    assert 'data-drawn="5x8"' in seen


@pytest.mark.browser
def test_figures_without_a_single_number_are_drawn_empty(analysis: Analysis, tmp_path: Path) -> None:
    for kind in ("bars", "lines"):
        empty = {"label": "smoe", "x": [0, 1], "y": [None, None]}
        study = {**analysis["studies"][0], "name": kind}
        study["figures"] = [{"kind": kind, "title": "none", "x": "step", "y": "score", "series": [empty]}]
        analysis["studies"].append(study)
    seen, complaints = browse(page(analysis), tmp_path)
    assert not complaints
    drawn = re.sub(r"<script.*?</script>", "", seen, flags=re.DOTALL)  # the script itself may speak of both
    assert "Infinity" not in drawn and "NaN" not in drawn
    assert seen.count("none; left and right arrows read the values") == 2


@pytest.mark.browser
def test_columns_of_the_layers_sort_by_number_both_ways(analysis: Analysis, tmp_path: Path) -> None:
    script = """
    const table = document.querySelector(".by-layer table");
    const button = table.tHead.rows[0].cells[3].querySelector("button");
    const order = () => [...table.tBodies[0].rows].map((row) => Number(row.cells[3].dataset.v));
    button.click();
    const told = [order()];
    button.click();
    document.title = JSON.stringify([...told, order()]);
    """
    for layer, entropy in zip(analysis["layers"], (0.9, 0.1, 0.95, 0.5), strict=True):
        layer["balance"]["normalised_entropy"] = entropy
    seen, complaints = browse(page(analysis), tmp_path, script)
    assert not complaints
    assert json.loads(re.search(r"<title>(.*?)</title>", seen).group(1)) == [
        [0.1, 0.5, 0.9, 0.95],
        [0.95, 0.9, 0.5, 0.1],
    ]


def test_a_page_of_many_experts_stays_light() -> None:
    # The size grows with layers times experts: a tenth of 60 x 128 must stay below a tenth of 5 MB.
    empty = len(page(planted(1, 4, 2, 500, 0)))
    grown = len(page(planted(6, 128, 8, 1500, 20)))
    assert grown - empty < 450_000


def test_numbers_that_are_not_finite_become_gaps(analysis: Analysis) -> None:
    analysis["layers"][0]["uncertainty"]["margin"] = float("nan")
    analysis["layers"][1]["by"]["domain"]["explained"] = float("nan")
    found = figures(checked(analysis))
    assert found["entropy"]["series"][2]["y"][0] is None
    assert found["specialisation"]["series"][0]["y"][1] is None
    assert data_of(page(analysis))["by"]["domain"]["explained"][1] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.update(format=7), "analysis: format is 7; this version reads format 1"),
        (lambda a: a.pop("facts"), "analysis: facts is missing"),
        (lambda a: a.update(layers=[]), "trace at least one MoE layer"),
        (lambda a: a["layers"][1].pop("load"), "layer 1: load is missing"),
        (lambda a: a["layers"][2]["load"].pop(), "layer 2: load has 7 entries; there are 8 experts"),
        (
            lambda a: a["layers"][0]["coactive"][3].pop(),
            "layer 0: row 3 of coactive has 7 entries; 8 are needed",
        ),
        (lambda a: a["layers"][0]["next"][0].append(1), "layer 0: row 0 of next has 9 entries; 8 are needed"),
        (lambda a: a["layers"][0]["by"]["domain"]["names"].pop(), "by domain has 4 rows, 3 names"),
    ],
)
def test_a_malformed_analysis_is_refused_in_one_line(analysis: Analysis, change: Any, message: str) -> None:
    change(analysis)
    with pytest.raises(DataError) as caught:
        checked(analysis)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_report_is_read_from_its_file_and_written_alike_twice(analysis: Analysis, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"analysis\.json is missing"):
        write_expert_report(tmp_path)
    for name in (
        "checkpoints",
        "similarity",
        "coactive",
        "next",
        "by",
        "explained",
    ):  # fewer pictures to draw
        for place in (analysis, *analysis["layers"]):
            place.pop(name, None)
    (tmp_path / "analysis.json").write_text(to_json(analysis), encoding="utf-8")
    paths = write_expert_report(tmp_path)
    before = {path: path.read_bytes() for path in (paths.html, *paths.figures)}
    names = {path.name for path in paths.figures}
    for figure in figures(checked(copy.deepcopy(analysis))):
        assert {f"{figure}.png", f"{figure}.svg", f"{figure}.csv"} <= names
    assert {
        "experts.csv",
        "study-seeds-table-scores.csv",
        "text.csv",
        "text.png",
        "text.svg",
    } <= names
    again = write_expert_report(tmp_path)
    assert {path: path.read_bytes() for path in (again.html, *again.figures)} == before


def test_tables_hold_the_numbers_of_the_figures(analysis: Analysis) -> None:
    written = {
        name: text.decode() for name, text in tables(checked(analysis), figures(checked(analysis))).items()
    }
    rows = written["load.csv"].splitlines()
    assert rows[0] == "layer,expert,value" and len(rows) == 1 + 4 * 8
    load = analysis["layers"][0]["load"]
    assert float(rows[1].split(",")[2]) == pytest.approx(load[0] * 8 / sum(load))
    meet = [row for row in written["relations.csv"].splitlines() if row.startswith("together,3,")]
    assert [row.split(",")[2:4] for row in sorted(meet)] == [["0", "4"], ["1", "5"], ["2", "6"], ["3", "7"]]
    assert written["study-seeds-0.csv"].splitlines()[1] == "smoe,scratch,2.1,2.0,2.2"
