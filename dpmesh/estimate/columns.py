"""Columns: values that come as arrays of numpy or Arrow, which are read without a Python object for each."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpmesh.estimate.result import EstimateError

# So many numbers are in work at a time: a block and what is computed from it fit into a processor's cache.
BLOCK = 1 << 13


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


def numbers(path: str, values: Any) -> Iterator[NDArray[np.float64]]:
    """Blocks of numbers, none of them empty, from a column or from any iterable.

    Args:
        path: The field, for errors.
        values: A column of one dimension, or numbers.

    Raises:
        EstimateError: One of them is not a number, or the column is not one of numbers.
    """
    found = chunks(values)
    if found is None:
        yield from _of_iterable(path, values)
        return
    for column in found:
        if column.ndim != 1:
            raise EstimateError(path, "the values are an array of more or less than one dimension")
        if column.dtype.kind == "O":
            yield from _of_iterable(path, column.tolist())
            continue
        if column.dtype.kind not in "biuf":
            raise EstimateError(path, "the values are an array of something else than numbers")
        for start in range(0, column.size, BLOCK):
            yield column[start : start + BLOCK].astype(np.float64, copy=False)


def _of_iterable(path: str, values: Iterable[Any]) -> Iterator[NDArray[np.float64]]:
    each = iter(values)
    while True:
        try:
            block = np.fromiter(map(float, itertools.islice(each, BLOCK)), np.float64)
        except (TypeError, ValueError, OverflowError):
            told = "one of the values is not a number; pass numbers, or the messages that were received"
            raise EstimateError(path, told) from None
        if not block.size:
            return
        yield block
