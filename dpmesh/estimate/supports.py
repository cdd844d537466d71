"""How many reports support each category: by naming it, by a subset that holds it, or by its hash."""

from __future__ import annotations

import itertools
from array import array
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from dpmesh.estimate import columns
from dpmesh.estimate.result import EstimateError
from dpmesh.estimate.tally import Figures, Tally
from dpmesh.noise.categorical import CategoricalKind, CategoricalMechanism
from dpmesh.noise.local_hashing import FINGERPRINTS, LONGEST, fingerprint, support
from dpmesh.policy.descriptors import REPORT

# So many reports are in memory at a time; the arrays that count them fit into a processor's cache.
_REPORTS = 8192
# The numbers whose reports are counted in arrays, by a table of them.
_LARGEST = 1 << 16


def tally(
    path: str, domain: Sequence[Any], mechanism: CategoricalMechanism, labels: Mapping[Any, str]
) -> Tally:
    """Counts the reports of a mechanism: how many support each category, and how many there are.

    Args:
        path: The field, for errors.
        domain: All categories, or the candidates.
        mechanism: What drew the reports.
        labels: The names of an enum's values.
    """

    def figures(values: Any) -> Figures:
        seen, n = count(path, values, domain, mechanism, labels)
        return {"n": [n], "seen": seen}

    candidates = list(domain) if mechanism.kind is CategoricalKind.OPTIMIZED_LOCAL_HASHING else None
    return Tally({"n": 1, "seen": len(domain)}, figures, candidates)


def count(
    path: str,
    values: Any,
    domain: Sequence[Any],
    mechanism: CategoricalMechanism,
    labels: Mapping[Any, str] | None = None,
) -> tuple[list[int], int]:
    """Counts the reports of a mechanism.

    Args:
        path: The field, for errors.
        values: What was received: members of the domain, subsets of it, or reports with a seed and a hash. Arrays of
            whole numbers are counted many times faster: one of members, shape (n,); one of subsets, shape (n, size); or
            one of seeds and hashes, shape (n, 2) and type uint64. Arrow's columns are read as such arrays.
        domain: All categories, or the candidates.
        mechanism: What drew the reports.
        labels: The names of an enum's values, which may be received in place of their numbers.

    Returns:
        How many support each category, in the domain's order, and how many there are.

    Raises:
        EstimateError: One of them is not a report of this mechanism.
    """
    found = columns.chunks(values)
    seen, n = np.zeros(len(domain), np.int64), 0
    for chunk in [values] if found is None else map(_members, found):
        for of_chunk, length in _counts(path, chunk, domain, mechanism, labels or {}):
            seen += np.array(of_chunk, np.int64)
            n += length
    return seen.tolist(), n


def _members(column: NDArray[Any]) -> Any:
    """An array of whole numbers; of another one a list, with lists for the arrays in it."""
    if is_array(column):
        return column
    return [each.tolist() if isinstance(each, np.ndarray) else each for each in column.tolist()]


def _counts(
    path: str, reports: Any, domain: Sequence[Any], mechanism: CategoricalMechanism, labels: Mapping[Any, str]
) -> Iterator[tuple[list[int], int]]:
    """The counts of parts of the reports, and how many these are."""
    if mechanism.kind is CategoricalKind.OPTIMIZED_LOCAL_HASHING:
        yield _of_hashes(path, reports, domain, mechanism.size)
        return
    size = mechanism.size if mechanism.kind is CategoricalKind.SUBSET_SELECTION else None
    if is_array(reports):
        yield _of_array(path, cast(NDArray[Any], reports), domain, size)
        return
    each = iter(reports)
    while block := list(itertools.islice(each, _REPORTS)):
        found = _numbers(block, domain, size)
        if found is not None:
            yield _of_array(path, found, domain, size, ordered=False)
            continue
        members = by_number(block, labels) if labels else block
        yield _of_values(path, members, domain) if size is None else _of_subsets(path, members, domain, size)


def _numbers(block: list[Any], domain: Sequence[Any], size: int | None) -> NDArray[Any] | None:
    """Reports as an array of whole numbers; None if they are something else, or not all of one length and different.

    Args:
        block: Values, or subsets with `size` different values.
        domain: All values.
        size: The length of each subset, or None for single values.
    """
    if not _is_small(domain):
        return None
    try:
        if size is not None and set(map(len, block)) != {size}:
            return None
        # Bytes are made several times faster than other arrays.
        small = min(domain) >= 0 and max(domain) < 256
        made, form = (bytes, np.uint8) if small else (partial(array, "q"), np.int64)
        packed = made(block) if size is None else b"".join(map(made, block))
        found: NDArray[Any] = np.frombuffer(packed, form)
        # Subsets that are arrays give their memory.
        if found.size != len(block) * (size or 1):
            return None
    except (TypeError, ValueError, OverflowError):
        return None
    if size is None:
        return found
    rows = found.reshape(-1, size)
    if not np.all(rows[:, 1:] > rows[:, :-1]):
        ordered = np.sort(rows, axis=1)
        if not np.all(ordered[:, 1:] > ordered[:, :-1]):
            return None
    return rows


def by_number(values: Iterable[Any], labels: Mapping[Any, str]) -> Iterable[Any]:
    """Numbers for the names of an enum's values, in values and in subsets of them; all else as it is."""
    if is_array(values):
        return values
    numbers = {name: number for number, name in labels.items()}

    def numbered(value: Any) -> Any:
        if isinstance(value, str):
            return numbers.get(value, value)
        return tuple(map(numbered, value)) if isinstance(value, (list, tuple)) else value

    return map(numbered, values)


def is_report(message: Message) -> bool:
    """Whether a message is a CategoryReport itself, and not one that holds a report."""
    return message.DESCRIPTOR.full_name == REPORT


def _of_values(path: str, values: Iterable[Hashable], domain: Sequence[Hashable]) -> tuple[list[int], int]:
    try:
        counts = Counter(values)
    except TypeError:
        raise _foreign(path) from None
    if not counts.keys() <= set(domain):
        raise _foreign(path)
    return [counts[category] for category in domain], counts.total()


def _of_subsets(
    path: str, subsets: Iterable[Collection[Hashable]], domain: Sequence[Hashable], size: int
) -> tuple[list[int], int]:
    counts, n = Counter[Hashable](), 0
    try:
        for n, subset in enumerate(subsets, 1):  # noqa: B007 - The last number is how many there are.
            different = set(subset)
            if not len(subset) == len(different) == size:
                text = (
                    f"one of the values is not a list of {size} different categories, as this policy releases"
                )
                raise EstimateError(path, text)
            counts.update(different)
    except TypeError:
        raise _foreign(path) from None
    if not counts.keys() <= set(domain):
        raise _foreign(path)
    return [counts[category] for category in domain], n


def _is_small(domain: Sequence[Any]) -> bool:
    """Whether a table of the domain's values, all of them whole numbers, is small."""
    return all(isinstance(value, int) and abs(value) <= _LARGEST for value in domain)


def is_array(values: Any) -> bool:
    """Whether received values are an array of whole numbers."""
    return isinstance(values, np.ndarray) and values.dtype.kind in "iub"


def _of_array(
    path: str, values: NDArray[Any], domain: Sequence[Any], length: int | None, *, ordered: bool = True
) -> tuple[list[int], int]:
    """Counts values, or subsets of a length in their rows.

    Rows have the domain's order, as they were released. With `ordered` this is checked; otherwise the caller has
    checked that the values of each row are different.
    """
    if not values.ndim or values.shape[1:] != (() if length is None else (length,)):
        raise EstimateError(path, "the values are an array of another shape than this policy releases")
    if not _is_small(domain):
        raise EstimateError(path, "has a domain that arrays are not counted for; pass a list")
    first, last = int(min(domain)), int(max(domain))
    if values.dtype == np.uint8 and not ordered:
        counts = np.bincount(values.ravel(), minlength=256)
        seen = counts[np.array(domain, np.int64)]
        if seen.sum() != values.size:
            raise _foreign(path)
        return seen.tolist(), len(values)
    if len(values) and not first <= int(values.min()) <= int(values.max()) <= last:
        raise _foreign(path)
    index_of = np.full(last - first + 1, -1)
    index_of[np.array(domain, np.int64) - first] = np.arange(len(domain))
    seen = np.zeros(len(domain), np.int64)
    rows = -(-_REPORTS // (length or 1))
    for start in range(0, len(values), rows):
        indexes = index_of[values[start : start + rows].astype(np.int64) - first]
        seen += _in_block(path, indexes, len(domain), ordered=ordered)
    return seen.tolist(), len(values)


def _in_block(path: str, indexes: NDArray[np.int64], k: int, *, ordered: bool) -> NDArray[np.int64]:
    """How often each index of 0..k-1 occurs; in two dimensions each row must increase if `ordered`."""
    if np.any(indexes < 0):
        raise _foreign(path)
    if ordered and indexes.ndim == 2 and not np.all(indexes[:, 1:] > indexes[:, :-1]):
        raise EstimateError(path, "one of the rows is not a subset in the order of the domain")
    return np.bincount(indexes.ravel(), minlength=k)


def _of_hashes(path: str, reports: Any, candidates: Sequence[str], hashes: int) -> tuple[list[int], int]:
    fingerprints = np.array([fingerprint(text) for text in candidates], np.uint64)
    seen, n = np.zeros(len(candidates), np.int64), 0
    for block in (
        _array_blocks(path, reports, hashes) if is_array(reports) else _blocks(path, reports, hashes)
    ):
        seen += support(block[:, 0].copy(), block[:, 1].copy(), fingerprints, hashes)
        n += len(block)
    return seen.tolist(), n


def _array_blocks(path: str, reports: NDArray[Any], hashes: int) -> Iterator[NDArray[np.uint64]]:
    """Rows of an array that are a report's seed and hash each, some at a time."""
    if reports.dtype != np.uint64 or reports.shape[1:] != (2,) or np.any(reports[:, 1] >= hashes):
        raise _no_report(path, hashes)
    for start in range(0, len(reports), _REPORTS):
        yield reports[start : start + _REPORTS]


def _blocks(path: str, reports: Iterable[Any], hashes: int) -> Iterator[NDArray[np.uint64]]:
    each = iter(reports)
    while block := [_pair(path, report, hashes) for report in itertools.islice(each, _REPORTS)]:
        yield np.array(block, np.uint64)


def _pair(path: str, report: Any, hashes: int) -> tuple[int, int]:
    """The seed and the hash of a CategoryReport, or of a pair of both."""
    try:
        seed, noisy = report if isinstance(report, tuple) else (report.seed, report.hash)
        if 0 <= seed < FINGERPRINTS and 0 <= noisy < hashes:
            return seed, noisy
    except (AttributeError, TypeError, ValueError):
        pass
    raise _no_report(path, hashes)


def _no_report(path: str, hashes: int) -> EstimateError:
    text = f"one of the values is not a report with a seed and a hash below {hashes}, as this policy releases"
    return EstimateError(path, text)


def checked_candidates(path: str, candidates: Iterable[str] | None) -> tuple[str, ...]:
    """The texts whose shares are asked for.

    Raises:
        EstimateError: There are none, one that is too long to be told from the empty text, or one that is no text or
            occurs twice.
    """
    texts = () if candidates is None or isinstance(candidates, str) else tuple(candidates)
    if not texts:
        raise EstimateError(path, "holds any text: list those whose shares you want as candidates")
    if not all(isinstance(text, str) for text in texts) or len(set(texts)) != len(texts):
        raise EstimateError(path, "candidates must be different texts")
    if any(len(text.encode()) > LONGEST for text in texts):
        text = f"one of the candidates has more than {LONGEST:,} bytes, and such texts leave as the empty one"
        raise EstimateError(path, text)
    return texts


def _foreign(path: str) -> EstimateError:
    return EstimateError(path, "one of the values is not one of its categories")
