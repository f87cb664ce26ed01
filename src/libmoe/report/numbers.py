"""Numbers as a reader wants them: three significant digits, a unit, a true minus sign."""

from __future__ import annotations

MISSING = "–"
WORDS = "no one two three four five six seven eight nine ten eleven twelve".split()
_STEPS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def si(value: float | None, unit: str = "") -> str:
    """Format with a decimal prefix: ``si(12_340_000) == "12.3M"``, ``si(2.5e9, "FLOP") == "2.50 GFLOP"``."""
    if value is None:
        return MISSING
    for size, prefix in _STEPS:
        if abs(value) >= size * 0.9995:
            digits = _significant(value / size)
            return f"{digits} {prefix}{unit}" if unit else digits + prefix
    digits = f"{value:.0f}" if float(value).is_integer() else _significant(value)
    return f"{digits} {unit}" if unit else digits


def tick_si(value: float) -> str:
    """Format a round number for an axis: ``"1.5M"``, ``"20k"``."""
    for size, prefix in _STEPS:
        if abs(value) >= size * 0.9995:
            return f"{value / size:.4g}{prefix}"
    return f"{value:.4g}"


def binary_bytes(value: float | None) -> str:
    """Format a size in KiB, MiB or GiB."""
    if value is None:
        return MISSING
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= size:
            return f"{_significant(value / size)} {unit}"
    return f"{value:.0f} B"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    if seconds < 120:
        return f"{_significant(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def fixed(value: float | None, digits: int = 3) -> str:
    return MISSING if value is None else minus(f"{value:.{digits}f}")


def signed(value: float | None, digits: int = 3) -> str:
    return MISSING if value is None else minus(f"{value:+.{digits}f}")


def percent(value: float | None, digits: int = 1) -> str:
    return MISSING if value is None else minus(f"{100 * value:.{digits}f} %")


def interval(low: float | None, high: float | None, digits: int = 3) -> str:
    """Format ``[low, high]``, or nothing when there is no interval."""
    return "" if low is None or high is None else f"[{signed(low, digits)}, {signed(high, digits)}]"


def minus(text: str) -> str:
    """Use the minus sign, and none before a zero."""
    if text.startswith(("-", "+")) and not text.strip("-+0. %"):
        text = text[1:]
    return text.replace("-", "−")


def count(number: int, noun: str, plural: str = "") -> str:
    """Format ``"one seed"``, ``"seven methods"``, ``"31 methods"``."""
    amount = WORDS[number] if 0 <= number < len(WORDS) else str(number)
    return f"{amount} {noun if number == 1 else plural or noun + 's'}"


def capitalised(sentence: str) -> str:
    """Begin with a capital and leave all else as it was."""
    return sentence[:1].upper() + sentence[1:]


def listing(names: list[str], most: int = 12) -> str:
    """Join names the way a sentence does; a very long list is cut."""
    if len(names) > most:
        return ", ".join(names[:most]) + f" and {len(names) - most} more"
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1] if names else "none"


def _significant(value: float) -> str:
    size = abs(value)
    return f"{value:.0f}" if size >= 99.95 else f"{value:.1f}" if size >= 9.995 else f"{value:.2f}"
