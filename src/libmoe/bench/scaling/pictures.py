"""Scaling laws as pictures; matplotlib is imported when one is drawn."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from libmoe.bench.scaling.budget import Allocation
from libmoe.bench.scaling.holdout import Holdout
from libmoe.bench.scaling.minima import Profile, Trend
from libmoe.report.numbers import tick_si
from libmoe.report.palette import SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1c2126", "#59636e", "#dcdfe3"
SEEN, HELD = SERIES[0], SERIES[1]


def draw(paint: Callable[[Figure], None], width: float, height: float) -> bytes | None:
    """PNG of what ``paint`` puts on a figure; ``None`` without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    paint(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def isoflop_picture(profiles: Sequence[Profile], trends: Sequence[Trend], unit: str) -> bytes | None:
    """Loss against size, a curve for each budget; stars are minima, bars their intervals.

    Colours tell budgets apart, or numbers of experts where there are several.
    """
    counts = sorted({profile.experts or 0 for profile in profiles})

    def colour_of(place: int, experts: int | None) -> str:
        return SERIES[(place if len(counts) == 1 else counts.index(experts or 0)) % len(SERIES)]

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        for place, profile in enumerate(profiles):
            found, colour = profile.minimum, colour_of(place, profile.experts)
            x = np.geomspace(found.sizes[0], found.sizes[-1], 80)
            label = f"{_power(profile.flops)} FLOPs" if len(counts) == 1 else _experts(profile.experts)
            left.plot(x, np.polyval(found.parabola, np.log(x)), color=colour, linewidth=1.5, label=label)
            left.plot(found.sizes, found.losses, "o", color=colour, markersize=4)
            if found.size is None:
                continue
            low, high = found.low or found.sizes[0], found.high or found.sizes[-1]
            left.plot([low, high], [found.loss] * 2, color=colour, linewidth=5, alpha=0.3)
            left.plot(found.size, found.loss, "*", color=colour, markersize=14, markeredgecolor="white")
            aside = profile.flops * 1.05 ** (counts.index(profile.experts or 0) - (len(counts) - 1) / 2)
            right.plot([aside] * 2, [low, high], color=colour, linewidth=5, alpha=0.3)
            right.plot(aside, found.size, "*", color=colour, markersize=14, markeredgecolor="white")
        for trend in trends:
            flops = np.array([profile.flops for profile in profiles if profile.experts == trend.experts])
            colour = MUTED if len(counts) == 1 else colour_of(0, trend.experts)
            right.plot(flops, trend.at(flops), color=colour, linestyle=":", label=_growth(trend))
        # Intervals may be endless; the runs say how far to look.
        smallest = min(profile.minimum.sizes[0] for profile in profiles) / 1.2
        largest = max(profile.minimum.sizes[-1] for profile in profiles) * 1.2
        left.set_xlim(smallest, largest)
        _dress(left, "one curve per budget; stars: minima, bars: intervals", "active parameters", unit, "x")
        if any(profile.minimum.size for profile in profiles):
            right.set_ylim(smallest, largest)
            _dress(right, "best size", "training FLOPs", "active parameters", "xy")
        else:
            right.set_axis_off()
            right.text(0.5, 0.5, "no minimum inside the runs", ha="center", color=MUTED)
        if trends:
            right.legend(frameon=False, fontsize=8, loc="upper left")
        handles = dict(zip(*reversed(left.get_legend_handles_labels())))
        figure.legend(
            handles.values(), handles, loc="outside lower center", ncols=min(6, len(handles)), frameon=False,
            fontsize=8,
        )  # fmt: skip

    return draw(paint, 10, 4.4)


def _growth(trend: Trend) -> str:
    words = f"grows as FLOPs^{trend.power:.2f}"
    if trend.low is not None and trend.high is not None:
        words += f" ({trend.low:.2f} to {trend.high:.2f})"
    return words


def _experts(count: int | None) -> str:
    return "unknown experts" if count is None else "dense" if count == 1 else f"{count} experts"


def extrapolation_picture(holdout: Holdout, unit: str) -> bytes | None:
    """Predictions and their errors, of the runs that were fitted and of the larger ones that were not."""

    def paint(figure: Figure) -> None:
        fitted, held = holdout.fit.runs, holdout.held
        inside_R = holdout.fit.predict(
            fitted.params_R, fitted.tokens_R, np.nan_to_num(fitted.experts_R, nan=1.0)
        )
        left, right = figure.subplots(1, 2)
        ends = [min(fitted.loss_R.min(), held.loss_R.min()), max(fitted.loss_R.max(), held.loss_R.max())]
        left.plot(ends, ends, color=MUTED, linewidth=1, linestyle=":")
        right.axhline(0, color=MUTED, linewidth=1, linestyle=":")
        for runs, predicted_R, colour, label in (
            (fitted, inside_R, SEEN, f"fitted ({len(fitted)} runs)"),
            (held, holdout.predicted_R, HELD, f"held out ({len(held)} runs)"),
        ):
            left.plot(predicted_R, runs.loss_R, "o", color=colour, markersize=4.5, label=label)
            errors = 100 * (predicted_R / runs.loss_R - 1)
            right.plot(runs.flops_R, errors, "o", color=colour, markersize=4.5)
        left.legend(frameon=False, fontsize=8)
        _dress(left, "seen against predicted", f"predicted {unit}", f"{unit} of the runs", "")
        title = f"held out: off by {holdout.error:.2%} on average, {holdout.worst:.2%} at worst"
        _dress(right, title, "training FLOPs", "predicted minus seen, %", "x")

    return draw(paint, 9, 4)


def frontier_picture(allocations: Sequence[Allocation], unit: str) -> bytes | None:
    """Loss against the cost of serving for one training budget; dots where no other choice is better in both."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        shown = [a for a in allocations if math.isfinite(a.serve_cost)]
        for place, count in enumerate(sorted({a.experts for a in shown})):
            line = sorted((a for a in shown if a.experts == count), key=lambda a: a.params)
            colour = SERIES[place % len(SERIES)]
            axes.plot(
                [1e6 * a.serve_cost for a in line],
                [a.loss for a in line],
                color=colour,
                label=_experts(count),
            )
            best = [a for a in line if a.efficient]
            axes.plot(
                [1e6 * a.serve_cost for a in best], [a.loss for a in best], "o", color=colour, markersize=4
            )
            lowest = min(line, key=lambda a: a.loss)
            at = (1e6 * lowest.serve_cost, lowest.loss)
            axes.plot(*at, "*", color=colour, markersize=14, markeredgecolor="white")
        axes.legend(frameon=False, fontsize=8)
        low = min(a.loss for a in shown)
        span = max(a.loss for a in shown if a.efficient) - low or 1.0
        axes.set_ylim(low - 0.05 * min(span, 0.3 * low), low + min(span, 0.3 * low))
        flops = _power(shown[0].train_flops)
        title = f"{flops} training FLOPs; stars: lowest loss; dots: nothing is better in both"
        _dress(axes, title, "device-seconds per million generated tokens", f"predicted {unit}", "x")

    return draw(paint, 6.8, 4.4) if any(math.isfinite(a.serve_cost) for a in allocations) else None


def _power(value: float) -> str:
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits}e{int(exponent)}"


def _steps(decades: float) -> tuple[float, ...]:
    """Which multiples of powers of ten to label."""
    if decades > 3:
        return (1.0,)
    return (1.0, 2.0, 5.0) if decades > 0.8 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)


def _dress(axes: Axes, title: str, x: str, y: str, log: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        if name not in log:
            continue
        low, high = axes.get_xlim() if name == "x" else axes.get_ylim()
        automatic = axes.get_autoscalex_on() if name == "x" else axes.get_autoscaley_on()
        axes.set(**{f"{name}scale": "log"})
        if automatic:
            low, high = axes.get_xlim() if name == "x" else axes.get_ylim()
        axis.set_major_locator(LogLocator(subs=_steps(math.log10(high / low))))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda v, _: tick_si(v) if 1 <= v < 1e13 else f"{v:.3g}"))
    axes.set_title(title.replace("$", r"\$"), loc="left", fontsize=10, color=INK)
    axes.set_xlabel(x.replace("$", r"\$"), color=MUTED, fontsize=9)
    axes.set_ylabel(y.replace("$", r"\$"), color=MUTED, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=8)
