"""The page is one safe, complete, small file, whatever the data hold."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from browser import browse
from libmoe.report import summarise, write_report
from libmoe.report.html import page as page_of
from libmoe.report.markup import VOID, Markup, el, escape

Spoil = Callable[..., Path]
EVIL = '"><script>document.title="owned"</script><img src=x onerror=document.title="owned">'
EVIL_NAME = "<img src=x onerror=alert(1)>"  # a method's name is a folder's name as well


class Page(HTMLParser):
    """Collects elements, attributes and visible text; fails on tags that do not match."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(self.text)


@pytest.fixture(scope="module")
def written(grid_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page") / "grid"
    shutil.copytree(grid_dir, folder)
    return write_report(folder).html


@pytest.fixture
def hostile(spoiled: Spoil) -> Path:
    """A grid whose names, texts, errors and settings try to become markup."""

    def change(results: dict[str, Any]) -> None:
        for row in results["rows"]:
            if row["method"] == "topk":
                row["method"], row["label"] = EVIL_NAME, EVIL
                row["notes"] = [EVIL]
                row["tasks"][EVIL] = {"acc": 0.5, "acc_stderr": 0.01}
            row["domains"][EVIL] = row["domains"].pop("code")
        results["rows"].append(
            {"method": "broken", "seed": 0, "status": "failed", "error": EVIL, "label": EVIL}
        )
        results["protocol"].update({"name": EVIL, "hardware": {EVIL: EVIL}, "budget": EVIL})

    folder = spoiled(change)
    for seed in (0, 1):
        run = folder / f"topk-s{seed}"
        evaluation = json.loads((run / "eval.json").read_text(encoding="utf-8"))
        for text in evaluation["sample"]:
            text["domain"] = EVIL
            text["tokens"][0]["text"] = "</script>" + EVIL + "\u2028\ud800"
        for layer in evaluation["routing"]["layers"]:
            layer["domain_load"][EVIL] = layer["domain_load"].pop("code")
        (run / "eval.json").write_text(json.dumps(evaluation), encoding="utf-8")
        run.rename(folder / f"{EVIL_NAME}-s{seed}")
    return folder


def test_every_section_and_method_is_there(written: Path) -> None:
    page = Page(written.read_text(encoding="utf-8"))
    for title in (
        "3 of 4 mixtures of experts beat the dense baseline", "Comparison", "Learning curves",
        "Load and entropy by layer", "Which expert serves which domain", "Text, coloured by expert",
        "Bits per byte by domain", "Cost ledger", "Threats to validity", "Can you believe it?",
        "Quality against cost", "sha256:3f7c19d2a0b4e65188c0",
    ):  # fmt: skip
        assert title in page.words
    for label in ("DeepSeekMoE (shared + fine-grained)", "ReMoE", "Hash layer", "Dense, equal total"):
        assert page.words.count(label) >= 5
    assert "sees future tokens: not comparable as a language model" in page.words


def test_the_page_asks_nobody_for_anything(written: Path) -> None:
    source = written.read_text(encoding="utf-8")
    page = Page(source)
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert not [
        name for name, _ in page.attributes if name in ("src", "srcset", "data", "action", "xlink:href")
    ]
    assert all(
        value is not None and value.startswith("#") for name, value in page.attributes if name == "href"
    )
    assert not re.search(r"https?://|@import|url\((?!#)|fetch\(|XMLHttpRequest|import\(", source)
    assert len(source.encode()) < 2_000_000


def test_only_the_script_of_the_page_may_run(written: Path) -> None:
    page = Page(written.read_text(encoding="utf-8"))
    assert [attributes.get("type") for attributes, _ in page.scripts] == ["application/json", None]
    digest = base64.b64encode(hashlib.sha256(page.scripts[1][1].encode()).digest()).decode()
    policy = next(
        value for name, value in page.attributes if name == "content" and "default-src" in (value or "")
    )
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_a_keyboard_can_skip_to_the_first_section(written: Path) -> None:
    source = written.read_text(encoding="utf-8")
    assert '<a class="skip" href="#comparison">Skip to the comparison</a>' in source
    assert source.index('class="skip"') < source.index("<nav")


def test_hostile_names_and_texts_stay_text(hostile: Path) -> None:
    source = page_of(summarise(hostile))
    page = Page(source)
    assert len(page.scripts) == 2 and "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert EVIL in page.words  # shown, not swallowed
    data = json.loads(page.scripts[0][1])
    shown = [token for sample in data["samples"] for text in sample["texts"] for token in text["tokens"]]
    assert any(token.startswith("</script>" + EVIL) for token in shown)
    assert "<" not in page.scripts[0][1] and "\u2028" not in page.scripts[0][1]


def test_failed_runs_are_shown_with_their_error(spoiled: Spoil) -> None:
    def change(results: dict[str, Any]) -> None:
        row = next(row for row in results["rows"] if row["method"] == "remoe" and row["seed"] == 1)
        row.update(status="failed", error="loss is not finite at step 31", bits_per_byte=None)

    words = Page(page_of(summarise(spoiled(change)))).words
    assert "loss is not finite at step 31" in words
    assert "1 of 2 seeds" in words


@pytest.mark.parametrize("keep", ["rows only", "numbers only", "nothing finished"])
def test_a_bare_grid_makes_a_page_that_says_what_is_missing(tmp_path: Path, keep: str) -> None:
    rows: list[dict[str, Any]] = [
        {"method": "dense", "kind": "dense", "seed": 0, "bits_per_byte": 2.0},
        {"method": "moe", "seed": 0, "bits_per_byte": 1.9},
    ]
    if keep == "numbers only":
        rows = [{**row, "active_params": 5, "flops_per_token": 10, "domains": {"a": 2.0}} for row in rows]
    if keep == "nothing finished":
        rows = [{**row, "status": "failed", "error": "no"} for row in rows]
    (tmp_path / "results.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")
    paths = write_report(tmp_path)
    words = Page(paths.html.read_text(encoding="utf-8")).words
    assert "No run left routing statistics." in words
    assert "no run logged a curve" in words
    assert ("No run finished" in words) == (keep == "nothing finished")
    json.loads(paths.json.read_text(encoding="utf-8"))


def test_every_number_of_the_tables_is_in_the_json(written: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    summary = json.loads(written.with_name("report.json").read_text(encoding="utf-8"), parse_constant=refuse)
    page = Page(written.read_text(encoding="utf-8"))
    for method in summary["methods"]:
        assert f"{method['bits_per_byte']:.3f}" in page.words
        for value in method["domains"].values():
            assert f"{value:.3f}" in page.words
        if method["difference"]:
            assert f"−{abs(method['difference']['mean']):.3f}" in page.words


def test_writing_twice_gives_the_same_bytes(written: Path) -> None:
    names = ("report.html", "report.json", "figures/pareto_flops.png", "figures/domains.svg")
    before = [(written.parent / name).read_bytes() for name in names]
    write_report(written.parent)
    assert [(written.parent / name).read_bytes() for name in names] == before
    assert not list(written.parent.glob("**/.*"))


def test_text_is_escaped_unless_it_was_built_as_markup() -> None:
    assert el("p", "<b>", Markup("<i>x</i>"), title='"') == '<p title="&quot;">&lt;b&gt;<i>x</i></p>'
    assert (
        el("g", class_="a", data_x=1.5, y=2.0, hidden=True, id=None)
        == '<g class="a" data-x="1.5" y="2" hidden></g>'
    )
    assert escape(escape("&")) == "&amp;"


@pytest.mark.browser
def test_controls_keep_the_focus_and_an_expert_can_be_shown_alone(grid_dir: Path, tmp_path: Path) -> None:
    script = """
    const told = [];
    const layer = document.querySelectorAll("#heat select")[1];
    layer.focus();
    layer.value = layer.options[0].value; layer.dispatchEvent(new Event("change"));
    told.push(document.activeElement === document.querySelectorAll("#heat select")[1]);
    const choice = document.querySelector("#sample .choice");
    choice.focus(); choice.click();
    told.push(document.activeElement.dataset.expert === choice.dataset.expert);
    told.push(document.querySelector("#sample .choice").getAttribute("aria-pressed"));
    const kept = [...document.querySelectorAll("#sample .token.on:not(.away)")];
    told.push(kept.length > 0 && kept.every((token) => token.className === kept[0].className));
    const token = document.querySelector("#sample .token.on");
    token.focus();
    told.push(/loss .* nats/.test(tip.textContent), /expert \\d+   weight 0\\.\\d\\d/.test(tip.textContent));
    document.title = JSON.stringify(told);
    """
    seen, complaints = browse(page_of(summarise(grid_dir)), tmp_path, script)
    assert not complaints
    assert json.loads(re.search(r"<title>(.*?)</title>", seen).group(1)) == [
        True, True, "true", True, True, True,
    ]  # fmt: skip


@pytest.mark.browser
def test_a_browser_draws_heat_map_and_text_and_runs_nothing_foreign(hostile: Path, tmp_path: Path) -> None:
    seen, complaints = browse(page_of(summarise(hostile)), tmp_path)
    assert not complaints
    assert "<title>owned</title>" not in seen and "<img" not in seen
    assert seen.count('class="token') > 100
    assert len(re.findall(r"<td[^>]*expert \d+: ", seen)) == 64
