"""``libmoe papers``."""

from __future__ import annotations

from libmoe.cli.output import console, table

MIN_WIDTH = 72
"""Below this the titles would have no room; the terminal then breaks lines."""


def run(which: str | None, text: str | None, kind: str | None, status: str | None, as_json: bool) -> None:
    from libmoe import papers

    found = papers.search(text=text, kind=kind, status=status) if which is None else (papers.paper(which),)
    if as_json:
        print(papers.to_json(found))
        return
    if which is not None:
        entry = found[0]
        rows = [
            ["key", entry.key],
            ["arXiv or DOI", entry.arxiv],
            ["venue", f"{entry.venue} {entry.year}"],
            ["kinds", ", ".join(entry.kinds)],
            ["summary", entry.summary],
            ["parts", ", ".join(entry.parts)],
            ["methods", ", ".join(entry.methods) or "-"],
            ["checked by", ", ".join(entry.checks) or "-"],
            ["status", entry.status],
        ]
        table([f"{entry.number:03d}", entry.title], rows)
        return
    print(papers.render_table(found, max(MIN_WIDTH, console.width)))
    counts = papers.coverage()["status"]
    print(f"\n{len(found)} shown. In all: {', '.join(f'{n} {s}' for s, n in counts.items())}.")
