"""Colours that stay apart for colour-blind eyes, one set for light paper and one for dark.

Lines take ``SERIES`` in turn and change their dash with every round, so that no two share both.  Experts take
``EXPERTS``, pale tints made to be printed under black text; the dark page mixes them with its paper.
Sources: Okabe & Ito 2008 (darkened to 3:1 contrast on white); Tol's light qualitative scheme, 2021.
"""

from __future__ import annotations

SERIES = ("#0072b2", "#d55e00", "#00805f", "#b2478a", "#8a6d00", "#5b4fb3", "#1f9bcf", "#7a4b2a")
SERIES_DARK = ("#5cb3ee", "#ff8f52", "#35c79b", "#e58fc3", "#d9b23c", "#a99df0", "#8fd6f7", "#c99a78")
DASHES = (None, "7 3", "2 3", "9 3 2 3")
EXPERTS = ("#77aadd", "#ee8866", "#eedd88", "#ffaabb", "#99ddff", "#44bb99", "#bbcc33", "#aaaa00", "#cccccc")


def slot(series: int) -> int:
    """Return which of ``SERIES`` a method's place in the grid takes."""
    return series % len(SERIES)


def dash(series: int) -> str | None:
    """Return the SVG dash pattern of a method's place in the grid."""
    return DASHES[series // len(SERIES) % len(DASHES)]


def style_sheet() -> str:
    """Return the colours as CSS custom properties for both schemes."""

    def block(colours: tuple[str, ...], name: str) -> str:
        return "".join(f"--{name}{i}:{colour};" for i, colour in enumerate(colours))

    return (
        f":root{{{block(SERIES, 'c')}{block(EXPERTS, 'e')}}}"
        f"@media (prefers-color-scheme:dark){{:root{{{block(SERIES_DARK, 'c')}}}}}"
        + "".join(f".c{i}{{--c:var(--c{i})}}" for i in range(len(SERIES)))
        + "".join(f".e{i}{{--e:var(--e{i})}}" for i in range(len(EXPERTS)))
    )
