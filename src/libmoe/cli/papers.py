"""``libmoe papers``."""

from __future__ import annotations

from libmoe.cli.output import console, table


def run(which: str | None, text: str | None, kind: str | None, status: str | None, as_json: bool) -> None:
    from libmoe import papers

    if which is not None:
        found = (papers.paper(which),)
    else:
        found = papers.search(text=text, kind=kind, status=status)
    if as_json:
        console.out(papers.to_json(found), highlight=False)
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
    console.out(papers.render_table(found, max(60, console.width)), highlight=False)
    counts = papers.coverage()["status"]
    console.print(
        "\n" + ", ".join(f"{n} {s}" for s, n in counts.items()) + f"; {len(found)} shown", markup=False
    )
