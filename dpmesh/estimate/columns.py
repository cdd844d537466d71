"""Columns: values that come as arrays of numpy or Arrow, which are read without a Python object for each."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpmesh.estimate.result import EstimateError

# So many numbers are in work at a time: a block and what is computed from it fit into a processor's cache.
BLOCK = 1 << 13
# The units of numpy's times, in seconds; it converts years and months to days itself.
_SECONDS = {
    "W": 604_800.0,
    "D": 86_400.0,
    "h": 3600.0,
    "m": 60.0,
    "s": 1.0,
    "ms": 1e-3,
    "us": 1e-6,
    "ns": 1e-9,
    "ps": 1e-12,
    "fs": 1e-15,
    "as": 1e-18,
}


@dataclass(frozen=True, slots=True)
class Clock:
    """How times become numbers.

    Attributes:
        dated: Times are points in time, counted from 1970 (UTC); otherwise lengths of time.
        unit: How many seconds one is.
    """

    dated: bool
    unit: float

    @property
    def words(self) -> str:
        """What Python's times are that count as numbers, for an error."""
        return "datetimes with a time zone" if self.dated else "timedeltas"

    def of_column(self, column: NDArray[Any]) -> NDArray[np.float64] | None:
        """The numbers of an array of times: NaN for "not a time". None if it has no such times."""
        if column.dtype.kind != ("M" if self.dated else "m"):
            return None
        unit, count = np.datetime_data(column.dtype)
        if unit in ("Y", "M") and self.dated:
            column, unit, count = column.astype("datetime64[D]"), "D", 1
        if unit not in _SECONDS:
            return None
        seconds = column.astype(np.int64) * (count * _SECONDS[unit])
        return np.where(np.isnat(column), np.nan, seconds / self.unit)

    def of_value(self, value: Any) -> float:
        """The number of a datetime with a time zone, a timedelta, or a number."""
        if isinstance(value, timedelta) and not self.dated:
            return value.total_seconds() / self.unit
        if isinstance(value, datetime) and self.dated and value.tzinfo is not None:
            return value.timestamp() / self.unit
        return float(value)


def is_column(values: Any) -> bool:
    """Whether `chunks` gives arrays of it."""
    return hasattr(values, "__array__") or _is_arrow(values)


def _is_arrow(values: Any) -> bool:
    return hasattr(values, "drop_null") and hasattr(values, "to_numpy")


def chunks(values: Any) -> list[Any] | None:
    """The numpy arrays of a column; None for values that are no column.

    Columns are numpy arrays, Arrow's arrays and chunked arrays (a column of a table), and whatever else tells numpy its
    contents by `__array__`, such as a series of pandas or polars. Nulls of Arrow and masked elements of numpy are no
    values, and left out.
    """
    if isinstance(values, np.ma.MaskedArray):
        return [values.compressed()]
    if isinstance(values, np.ndarray):
        return [values]
    if _is_arrow(values):
        parts = values.chunks if hasattr(values, "chunks") else [values]
        return [
            (part.drop_null() if part.null_count else part).to_numpy(zero_copy_only=False) for part in parts
        ]
    return [np.asarray(values)] if hasattr(values, "__array__") else None


def numbers(path: str, values: Any, clock: Clock | None = None) -> Iterator[NDArray[np.float64]]:
    """Blocks of numbers, none of them empty, from a column or from any iterable.

    Args:
        path: The field, for errors.
        values: A column of one dimension, or numbers.
        clock: How times become numbers, for a field of times.

    Raises:
        EstimateError: One of them is not a number, or the column is not one of numbers.
    """
    found = chunks(values)
    if found is None:
        yield from _of_iterable(path, values, clock)
        return
    for column in found:
        if column.ndim != 1:
            raise EstimateError(path, "the values are an array of more or less than one dimension")
        if column.dtype.kind == "O":
            yield from _of_iterable(path, column.tolist(), clock)
            continue
        if clock is not None and column.dtype.kind in "mM":
            times = clock.of_column(column)
            if times is None:
                wanted = "points in time" if clock.dated else "lengths of time"
                raise EstimateError(path, f"the values are an array of something else than {wanted}")
            column = times
        if column.dtype.kind not in "biuf":
            raise EstimateError(path, "the values are an array of something else than numbers")
        for start in range(0, column.size, BLOCK):
            yield column[start : start + BLOCK].astype(np.float64, copy=False)


def _of_iterable(path: str, values: Iterable[Any], clock: Clock | None) -> Iterator[NDArray[np.float64]]:
    each, number = iter(values), float if clock is None else clock.of_value
    while True:
        try:
            block = np.fromiter(map(number, itertools.islice(each, BLOCK)), np.float64)
        except (TypeError, ValueError, OverflowError):
            times = "" if clock is None else f"{clock.words}, "
            told = (
                f"one of the values is not a number; pass numbers, {times}or the messages that were received"
            )
            raise EstimateError(path, told) from None
        if not block.size:
            return
        yield block
