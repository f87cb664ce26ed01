"""The page of studies is one safe file that tells what was found, shows every figure, and names what is missing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from alone import check_alone
from browser import browse
from libmoe.analysis.studies import run_studies
from libmoe.core.errors import DataError
from libmoe.core.files import write_json
from libmoe.report.experts import write_study_report
from study_runs import by_domain, constant, run_of, series_of, spread

EVIL = '"><script>document.title="owned"</script><img src=x onerror=document.title="owned">'
DRAWN = re.compile(r'data-figure="([^"]*)">(.*?)<figcaption', re.DOTALL)


@pytest.fixture
def studied() -> dict[str, Any]:
    """Studies of two methods from scratch and upcycled, two seeds each."""
    states = {"smoe": (constant(0, 8), by_domain(8)), "hash": (spread(), spread())}
    runs = [
        run_of(series_of({10: first, 20: last}), method, seed, [3.0, bits + seed / 10], regime=regime)
        for method, (first, last) in states.items()
        for regime, bits in (("from scratch", 2.0), ("upcycled", 1.5))
        for seed in (0, 1)
    ]
    studies, missing = run_studies(runs)
    rows = [
        {"run": f"runs/{run.method}-{run.seed}", "method": run.method, "seed": run.seed, "steps": [10, 20]}
        | {"facts": run.facts}
        for run in runs
    ]
    return {"studies": studies, "missing": missing, "notes": ["A note on dense runs."], "runs": rows}


@pytest.fixture
def _unpainted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take seconds, and one test looks at them."""
    monkeypatch.setattr("libmoe.report.experts.studies.painted", lambda figures: {})


def page(studied: dict[str, Any], folder: Path) -> str:
    write_json(folder / "studies.json", studied)
    return write_study_report(folder).html.read_text(encoding="utf-8")


@pytest.mark.usefixtures("_unpainted")
def test_the_page_asks_nobody_for_anything_and_runs_only_its_own_script(
    studied: dict[str, Any], tmp_path: Path
) -> None:
    source = page(studied, tmp_path)
    check_alone(source)


@pytest.mark.usefixtures("_unpainted")
def test_what_was_found_leads_the_page_and_its_section(studied: dict[str, Any], tmp_path: Path) -> None:
    source = page(studied, tmp_path).replace("&#x27;", "'")
    header, body = source[: source.index("</header>")], source[source.index("</header>") :]
    for study in studied["studies"]:
        anchor = f"study-{study['name']}-study"
        assert f'<a href="#{anchor}">{study["name"].capitalize()}</a>' in header  # in the navigation
        section = body[body.index(f'id="{anchor}"') :].partition("</section>")[0]
        assert study["found"][0] in header
        for sentence in study["found"]:
            assert section.index(sentence) < section.index(study["text"])


@pytest.mark.usefixtures("_unpainted")
def test_short_tables_are_on_the_page_and_of_long_ones_it_says_where_they_are(
    studied: dict[str, Any], tmp_path: Path
) -> None:
    studied["studies"][0]["tables"]["curves"] = {"step": list(range(61)), "value": [0.5] * 61}
    source = page(studied, tmp_path)
    section = source[source.index('id="study-quality-study"') :].partition("</section>")[0]
    assert 'aria-label="Table: best"' in section and 'aria-label="Table: curves"' not in section
    assert "Table curves: 61 rows, in <code>figures/study-quality-table-curves.csv</code>" in section
    assert len((tmp_path / "figures" / "study-quality-table-curves.csv").read_text().splitlines()) == 62
    best = section[section.index('aria-label="Table: best"') :].partition("</table>")[0]
    assert best.count("<tr>") == 1 + 8 and 'data-v="20"' in best


@pytest.mark.usefixtures("_unpainted")
def test_what_was_left_out_and_what_was_compared_is_named(studied: dict[str, Any], tmp_path: Path) -> None:
    source = page(studied, tmp_path)
    end = source[source.index('id="compared"') :].partition("</section>")[0].replace("&#x27;", "'")
    assert {"encoders", "optimality", "initialisation"} == set(studied["missing"])
    for name, why in studied["missing"].items():
        assert f"<dt>{name}</dt><dd>{why}</dd>" in end
    assert "A note on dense runs." in end
    assert end.count("<tr>") == 1 + 8 and "runs/smoe-0" in end and ">upcycled</td>" in end
    bare = page({"studies": studied["studies"][:1]}, tmp_path)  # as an older version left it
    assert "Which runs were compared was not written down" in bare and "left out" not in bare


def test_figures_go_into_files_and_are_alike_twice(studied: dict[str, Any], tmp_path: Path) -> None:
    studied["studies"] = [study for study in studied["studies"] if study["name"] in ("quality", "saturation")]
    page(studied, tmp_path)
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    for study in studied["studies"]:
        stems = [f"study-{study['name']}-{i}" for i in range(len(study["figures"]))]
        assert {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg", "csv")} <= names
        assert {f"study-{study['name']}-table-{table}.csv" for table in study["tables"]} <= names
    assert (
        (tmp_path / "figures" / "study-quality-0.csv")
        .read_text()
        .splitlines()[1]
        .startswith('"smoe, from scratch",10,3.0')
    )
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    page(studied, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("studies"), "studies.json: studies is missing"),
        (lambda s: s["studies"][0].pop("text"), "study quality: text is missing"),
        (
            lambda s: s["studies"][0]["figures"][0].update(kind="pie"),
            "figure 0 is of kind 'pie'; there are lines, bars, heat",
        ),
        (lambda s: s["studies"][0]["figures"][0].pop("series"), "figure 0: series is missing"),
        (
            lambda s: s["studies"][0]["tables"]["best"]["seed"].pop(),
            "table best has columns of different length",
        ),
        (lambda s: s["runs"][1].pop("seed"), "run 1: seed is missing"),
    ],
)
def test_malformed_studies_are_refused_in_one_line(
    studied: dict[str, Any], tmp_path: Path, change: Any, message: str
) -> None:
    change(studied)
    with pytest.raises(DataError) as caught:
        page(studied, tmp_path)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "studies.html").exists() and not (tmp_path / "figures").exists()


def test_a_folder_without_studies_says_what_writes_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"studies\.json is missing; `libmoe study` writes it"):
        write_study_report(tmp_path)


@pytest.mark.browser
@pytest.mark.usefixtures("_unpainted")
def test_a_browser_draws_every_figure_and_sorts_tables_without_complaint(
    studied: dict[str, Any], tmp_path: Path
) -> None:
    script = """
    const [table] = document.querySelectorAll('[aria-label="Table: best"] table');
    table.tHead.rows[0].cells[1].querySelector("button").click();
    document.title = JSON.stringify([...table.tBodies[0].rows].map((row) => Number(row.cells[1].dataset.v)));
    """
    seen, complaints = browse(page(studied, tmp_path), tmp_path, script)
    assert not complaints
    drawn = dict(DRAWN.findall(seen))
    assert set(drawn) == {
        f"study-{s['name']}-{i}" for s in studied["studies"] for i in range(len(s["figures"]))
    }
    assert all("data-drawn=" in place for place in drawn.values())
    assert "<summary>four more maps</summary>" in seen  # of eight, of the layers of two domains
    assert "<title>[0,0,0,0,1,1,1,1]</title>" in seen


@pytest.mark.browser
@pytest.mark.usefixtures("_unpainted")
def test_hostile_names_stay_text(studied: dict[str, Any], tmp_path: Path) -> None:
    study = studied["studies"][0]
    study.update(title=EVIL, text=EVIL, found=[EVIL], name=f"../{EVIL}")
    study["figures"][0].update(title=EVIL, x=EVIL, y=EVIL)
    study["figures"][0]["series"][0]["label"] = EVIL
    study["tables"][EVIL] = {EVIL: [EVIL, "\ud800"]}
    studied["missing"] = {EVIL: EVIL}
    studied["notes"] = [f"</script>{EVIL}\u2028"]
    studied["runs"][0].update(run=EVIL, method=EVIL, facts={EVIL: EVIL})
    (tmp_path / "studies.json").write_text(json.dumps(studied))
    source = write_study_report(tmp_path).html.read_text(encoding="utf-8")
    assert source.count("<script") == 2
    assert {path.parent for path in tmp_path.rglob("*.csv")} == {tmp_path / "figures"}
    seen, complaints = browse(source, tmp_path)
    assert not complaints
    assert "<title>owned</title>" not in seen and "<img" not in seen
