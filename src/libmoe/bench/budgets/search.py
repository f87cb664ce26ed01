"""The whole number whose value comes nearest to a target."""

from __future__ import annotations

from collections.abc import Callable

LARGEST = 2**22
"""No width and no number of experts beyond this is tried."""


def nearest_integer(
    value: Callable[[int], float], target: float, low: int, start: int, high: int = LARGEST
) -> int:
    """``x`` in ``low..high`` that minimises ``|value(x) - target|`` for a ``value`` that does not fall.

    Doubling finds a bracket and straight lines close it: a linear ``value`` takes about five evaluations.  Every
    third guess halves the bracket, so that any function ends after at most ``4 log2(high)`` evaluations.  Of equal
    values the smallest ``x`` is not promised.
    """
    seen: dict[int, float] = {}

    def at(x: int) -> float:
        if x not in seen:
            seen[x] = value(x)
        return seen[x]

    if at(low) >= target:
        return low
    below, above = low, min(max(start, low + 1), high)
    while at(above) < target:
        if above >= high:
            return high
        guess = _crossing(below, above, at(below), at(above), target)
        below, above = above, min(max(guess, 2 * above), high)
    rounds = 0
    while above - below > 1:
        rounds += 1
        guess = (below + above) // 2
        if rounds % 3:
            guess = _crossing(below, above, at(below), at(above), target)
        guess = min(max(guess, below + 1), above - 1)
        below, above = (guess, above) if at(guess) < target else (below, guess)
    return min((below, above), key=lambda x: abs(at(x) - target))


def _crossing(x0: int, x1: int, y0: float, y1: float, target: float) -> int:
    """Where the line through two points reaches ``target``; ``x1`` if it never does."""
    return x1 if y1 <= y0 else x0 + round((target - y0) * (x1 - x0) / (y1 - y0))
