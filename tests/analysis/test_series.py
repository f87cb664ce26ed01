"""Traces of one model over its training."""

from __future__ import annotations

import pytest

from libmoe.analysis.series import Series
from libmoe.core.errors import DataError
from study_runs import constant, series_of, spread


def test_the_last_checkpoint_equals_itself_and_others_are_compared_with_it() -> None:
    series = series_of({10: constant(0, 8), 20: spread(), 40: spread()})
    saturation = [changes[0].saturation for changes in series.against_last()]
    assert saturation == [0.25, 1.0, 1.0]
    assert [changes[1].first_changed for changes in series.successive()] == [0.75, 0.0]
    assert [series.share(place) for place in range(3)] == [0.25, 0.5, 1.0]


def test_a_trace_is_read_once_for_each_question() -> None:
    series = series_of({1: spread(), 2: spread()})
    assert series.counts(-1, ["domain"]) is series.counts(1, ["domain"])
    assert series.counts(0) is not series.counts(1)
    assert series.change(0, 1) is series.against_last()[0]


def test_what_is_no_series_is_refused() -> None:
    trace = series_of({1: spread()}).traces[0]
    with pytest.raises(DataError, match="0 traces do not fit 0 steps"):
        Series([], [])
    with pytest.raises(DataError, match=r"steps \[2, 1\] do not increase"):
        Series([2, 1], [trace, trace])
    other = series_of({1: spread(4)}).traces[0]
    with pytest.raises(DataError, match="trace the same text"):
        Series([1, 2], [trace, other]).against_last()
