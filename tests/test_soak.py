"""What benchmarks.soak calls growth, on series that can be checked by hand."""

from __future__ import annotations

import pytest

from benchmarks.soak import Look, growth, slope


def looks(*resident: float) -> list[Look]:
    """One a minute."""
    return [Look(float(minute), value, 16, 20) for minute, value in enumerate(resident)]


def test_slope() -> None:
    assert slope(looks(100, 102, 104, 106)) == pytest.approx(2)
    assert slope(looks(100, 100, 100)) == 0
    assert slope(looks(100)) == 0


def test_the_warm_up_does_not_count() -> None:
    found = growth(looks(10, 50, 100, 100, 100, 100), warm_up=2)
    assert (found.first, found.last, found.highest, found.per_minute) == (100, 100, 100, 0)
    assert found.per_cent == 0


def test_growth_is_the_last_quarter_against_the_first() -> None:
    found = growth(looks(100, 100, 102, 103, 104, 105, 106, 108), warm_up=0)
    assert (found.first, found.last) == (100, 107)
    assert found.per_cent == pytest.approx(8)  # the highest of all


def test_a_peak_in_the_middle_counts_as_well() -> None:
    assert growth(looks(100, 100, 100, 130, 100, 100, 100, 100), warm_up=0).per_cent == pytest.approx(30)
    assert growth(looks(100, 100, 99, 98, 97, 96, 95, 94), warm_up=0).per_cent == 0


def test_too_little_is_an_error() -> None:
    with pytest.raises(ValueError, match="only 3 looks after 2 minutes of warm-up: at least 4 are needed"):
        growth(looks(1, 2, 3, 4, 5), warm_up=2)
