"""What was measured, as rows of a markdown table: a median, its spread, and what it is against."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

HEAD = ("what", "median (min-max), n", "against, in the same run", "CPU s", "peak MiB", "budget")


class Sample(NamedTuple):
    """Repetitions of one measurement, in `unit`."""

    values: tuple[float, ...]
    unit: str

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __str__(self) -> str:
        if not self.values:
            return "not measured"
        low, high = figure(min(self.values)), figure(max(self.values))
        return f"{figure(self.median)} {self.unit} ({low}-{high}), {len(self.values)}"


class Row(NamedTuple):
    """One line of the table; what does not make sense for it stays empty."""

    what: str
    sample: Sample
    against: str = ""
    cpu: str = ""
    peak: str = ""
    budget: str = ""


def sample(values: Sequence[float], unit: str, scale: float = 1.0) -> Sample:
    """The values, each times `scale`."""
    return Sample(tuple(value * scale for value in values), unit)


def at_most(bound: float, measured: float, unit: str) -> str:
    """The verdict on something that should be small."""
    return f"{'ok' if measured <= bound else 'OVER'}, <= {figure(bound)} {unit}".rstrip()


def at_least(bound: float, measured: float, unit: str) -> str:
    """The verdict on something that should be large."""
    return f"{'ok' if measured >= bound else 'UNDER'}, >= {figure(bound)} {unit}".rstrip()


def figure(number: float) -> str:
    """A number with as many digits as a measurement deserves."""
    if number >= 100:
        return f"{number:,.0f}"
    return f"{number:.3g}" if number >= 1 or number == 0 else f"{number:.2f}".rstrip("0")


def median_text(values: Sequence[float]) -> str:
    """The median of something that accompanies a measurement."""
    return figure(statistics.median(values)) if values else ""


def markdown(rows: Sequence[Row]) -> Iterator[str]:
    """The lines of the table, padded so that it can be read without rendering it."""
    cells = [[row.what, str(row.sample), *row[2:]] for row in rows]
    widths = [max(map(len, column)) for column in zip(HEAD, *cells, strict=True)]
    yield _line(HEAD, widths)
    yield "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    for row in cells:
        yield _line(row, widths)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (f" {cell:{width}} " for cell, width in zip(cells, widths, strict=True))
    return "|" + "|".join(padded) + "|"
