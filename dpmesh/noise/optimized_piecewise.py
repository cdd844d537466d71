"""The optimized Piecewise mechanism on a grid: few cells, with the output points that make the variance least."""

from __future__ import annotations

import math
from bisect import bisect_right
from fractions import Fraction
from functools import cached_property
from itertools import accumulate
from operator import add, sub

import numpy as np
from numpy.typing import NDArray

from dpmesh.noise import uniform
from dpmesh.noise.coins import Coins
from dpmesh.noise.draws import Draws
from dpmesh.noise.entropy import KeyStream
from dpmesh.noise.optimized_shapes import shape_for
from dpmesh.noise.thresholds import ONE, logistic

# A code has room for a cell, for how a point is rounded to the grid, and for how a value is rounded to a row.
_CELL_BITS, _CODE_BITS = 8, 60
# On a grid below this size, points lie between grid indexes, in steps of 2^-12. On larger ones they are grid indexes.
_FINE_SIZE = 1 << 12
_FRACTION_BITS = 12
# Up to this size, a place among the rows is told by a slope without bits of its own.
_SHORT_SIZE = 1 << 15
# Where rows are evenly spaced, a slope has as many bits, or a few more. So on usual grids all numbers fit one digit of
# Python's integers, which is fast.
_SLOPE_BITS = 12
# Up to this size, a table has the row of each index.
_LONGEST_TABLE = 255


class OptimizedPiecewise:
    """A Piecewise mechanism with few cells, of which each stands for an output point of its own.

    There are rows 0..rows and cells 0..rows + width - 1; row j has the window of `width` cells that begins at cell
    j. With probability `inside` the drawn cell is uniform over the window of the value's row, else uniform over the
    `rows` cells out of it. As inside <= width E / (width E + rows), E = exp(epsilon), the ratio of a cell's
    probabilities is at most E whatever the two rows. All else is post-processing, or knows nothing of the cell:

    - A cell stands for an output point. The points increase, and lie symmetrically about the middle of the range.
    - The points give each row a mean, and the means of the first and last row enclose the range. A value is rounded
      at random to one of the two rows beside it, so that the mean is the value. Where rows are evenly spaced, below an
      epsilon of 1.2, this is exact. Elsewhere the probability of the upper row is rounded down by less than 2^-36,
      which moves the mean by less than 2^-36 of the distance between the two.
    - On grids below 4096 steps a point may lie between two indexes, and is rounded to one of them at random, up with
      the probability of its fractional part.

    Why this class: an unbiased law with probabilities between q(y) and E q(y), for some base measure q, has the least
    second moment if it boosts the outputs y whose y^2 is at most a line in y (Neyman and Pearson's lemma, with
    multipliers for the mean and the sum), and these are an interval. Cut into cells of equal base probability, that is
    a law of this class with more cells. Piecewise (Wang et al. 2019) is the one with evenly spaced points and many
    cells, Duchi's the one with two cells. `optimized_shapes` has the points for each epsilon.

    Args:
        size: The last index of the grid.
        epsilon: Above 0.
        in_range: Release points from 0 to size. They are the others, moved towards the middle; an estimator moves
            them back by `stretch`.

    Attributes:
        stretch: How many times further from the middle of the range an output has to be for its mean to be the value:
            1 unless the outputs are in range.
        points: Each cell's output, in units of 2^-fraction_bits grid steps.
        fraction_bits: See points.
        inside: The probability of the window.
        means: The mean of each row, in grid steps, after `stretch`.
        low: The smallest output, an index.
        high: The largest output.
    """

    def __init__(self, size: int, epsilon: Fraction, *, in_range: bool = False) -> None:
        self.size = size
        self.width, half = shape_for(epsilon)
        self.cells = 2 * len(half)
        self.rows = self.cells - self.width
        self.fraction_bits = 0 if size >= _FINE_SIZE else _FRACTION_BITS
        self._threshold = logistic(-epsilon, Fraction(self.rows, self.width))
        if len(half) == self.width:
            self._space_evenly(half, in_range)
        else:
            self._row_bits = _CODE_BITS - _CELL_BITS - self.fraction_bits
            self._scale_bits = 0 if _FINE_SIZE <= size <= _SHORT_SIZE else size.bit_length()
            self.points = self._points(half, in_range, self.size, 1)
            self._measure_windows()
            pull, whole = self._pull()
            self._factor, self._divisor = pull, whole << self.fraction_bits
            if in_range:
                self._factor, self._divisor = self.size, self._offsets[-1]
        pull, whole = self._pull()
        self.stretch = 1.0
        if in_range:
            self.stretch = float(Fraction(self._factor * whole << self.fraction_bits, self._divisor * pull))
        self.inside = Fraction(self._threshold, ONE)
        self._coin = Coins([self._threshold])
        self.low, self.high = self.points[0] >> self.fraction_bits, -(-self.points[-1] >> self.fraction_bits)
        key = OptimizedPiecewise, self._threshold, self.width, self.rows, self._row_bits, self.fraction_bits
        self.draws = Draws(key, self.block, self._decode())

    def _pull(self) -> tuple[int, int]:
        """What a row's mean moves when the sum over its window moves by 1: a fraction."""
        return self._threshold * self.cells - self.width * ONE, self.width * self.rows * ONE

    def _space_evenly(self, half: tuple[int, ...], in_range: bool) -> None:
        """Places evenly spaced rows, 2^row_bits/slope grid steps apart, where the slope is an even integer.

        So the place of an index among the rows is an integer, and the mean is exact (but for the rounding of `inside`
        to a multiple of 2^-128). `inside` is lowered, or `stretch` raised, as much as this takes: by less than 1/2000.
        """
        self._row_bits, self._scale_bits = self.size.bit_length() + _SLOPE_BITS, 0
        slope = (self.rows << self._row_bits) // self.size & ~1
        self.points = self._points(half, in_range, self.rows << self._row_bits, slope)
        self._measure_windows()
        step = self._offsets[1] - self._offsets[0]
        self._factor, self._divisor = 2 << self._row_bits, slope * step
        if not in_range:
            pull, whole = self._factor << self.fraction_bits, self._divisor
            threshold = ONE * self.width * (pull * self.rows + whole) // (whole * self.cells)
            self._threshold = min(threshold, self._threshold)

    def _points(self, half: tuple[int, ...], in_range: bool, reach: int, part: int) -> tuple[int, ...]:
        """All points, from the shape of those above the middle: rounded outwards.

        Args:
            half: The shape.
            in_range: The outermost points are the ends of the range.
            reach: Otherwise the means of the first and last row are at least reach/part grid steps apart.
            part: See reach.
        """
        unit = self.size << self.fraction_bits
        up, down = half[-1], unit
        if not in_range:
            pull, whole = self._pull()
            up, down = pull * sum(half[-self.width :]) * part, whole * reach << self.fraction_bits
        above = [-(-(unit * up + point * down) // (2 * up)) for point in half]
        if len(half) == self.width:
            # All rows are evenly spaced if these pairs have equal sums.
            pair = above[0] + above[-1] if in_range else max(map(add, above, reversed(above)))
            middle = self.width // 2
            above[-middle:] = [pair - point for point in above[middle - 1 :: -1]]
        return (*(unit - point for point in reversed(above)), *above)

    def _measure_windows(self) -> None:
        """Twice what the points of each row's window add up to, above as many middles of the range.

        With them, a row's mean is (size divisor + offset factor) / (2 divisor) in grid steps, after `stretch`.
        """
        unit = self.size << self.fraction_bits
        sums = [0, *accumulate(self.points)]
        self._offsets = [
            2 * (sums[row + self.width] - sums[row]) - self.width * unit for row in range(self.rows + 1)
        ]

    @property
    def means(self) -> list[Fraction]:
        """The mean of each row, in grid steps, after `stretch`."""
        return [
            Fraction(self.size * self._divisor + offset * self._factor, 2 * self._divisor)
            for offset in self._offsets
        ]

    @property
    def outputs(self) -> tuple[int, ...]:
        """The indexes that can leave, in increasing order."""
        up = (1 << self.fraction_bits) - 1
        found = {(point + rounding) >> self.fraction_bits for point in self.points for rounding in (0, up)}
        return tuple(sorted(found))

    def block(self, count: int, stream: KeyStream) -> NDArray[np.int64]:
        """Makes codes (u 2^8 + i) 2^row_bits + v.

        i is a place in the window, or from `width` on one of those after it, as on a ring of all cells. v and u are
        uniform; they round the value to a row and the point to the grid.
        """
        inside = self._coin.toss(count, stream)[0]
        # Only one of the two remainders is used, so both may come from one integer.
        place = uniform.below(self.width * self.rows, count, stream)
        codes = np.where(inside, place % self.width, place % self.rows + self.width)
        rounding = (stream.words(count) >> np.uint64(64 - self._row_bits - self.fraction_bits)).view(np.int64)
        if self.fraction_bits:
            codes |= rounding >> self._row_bits << _CELL_BITS
            rounding &= (1 << self._row_bits) - 1
        codes <<= self._row_bits
        codes |= rounding
        return codes

    def _decode(self) -> str:
        """From the index to where it stands among the rows, to the cell, to the point."""
        finding, place = self._finding()
        ring = self.points + self.points[: self.rows]
        if not self.fraction_bits:
            return f"{finding}y = {ring}[{place} + code >> {self._row_bits}]"
        mask = (1 << _CELL_BITS) - 1
        return f"""\
{finding}y = {place} + code >> {self._row_bits}
y = {ring}[y & {mask}] + (y >> {_CELL_BITS}) >> {self.fraction_bits}"""

    def _finding(self) -> tuple[str, str]:
        """Statements, and an expression with which they give the place of an index among the rows.

        The place of index x is j 2^row_bits for the mean of row j, and in proportion between two rows. It is x slope +
        start, with a slope and start of its own for each pair of rows: a table has the row below the first index of
        each bucket of 2^shift indexes. A bucket holds at most one row's first index, unless it has one index only.
        """
        firsts = self._firsts
        lines = self._lines()
        scale = f" >> {self._scale_bits}" if self._scale_bits else ""
        if len(lines) == 1:
            slope, start = lines[0]
            place = f"x * {slope} + {start}"
            return "", f"({place}{scale})" if scale else place
        slopes, starts = zip(*lines, strict=True)
        place = f"x * {slopes}[y] + {starts}[y]"
        shift = 0
        if self.size > _LONGEST_TABLE:
            shift = max(1, min(map(sub, firsts[1:], firsts), default=self.size)).bit_length() - 1
        table = bytes(bisect_right(firsts, start) for start in range(0, self.size + 1, 1 << shift))
        finding = f"y = {table!r}[x >> {shift}]\nif x >= {(*firsts, self.size + 1)}[y]:\n    y += 1\n"
        if not shift:
            finding = f"y = {table!r}[x]\n"
        if scale:
            return f"{finding}y = {place}{scale}\n", "y"
        return finding, place

    @property
    def _firsts(self) -> list[int]:
        """The first index that is at least the mean of row 1, 2, ..., rows - 1."""
        whole, half = 2 * self._divisor, self.size * self._divisor
        return [-(-(half + offset * self._factor) // whole) for offset in self._offsets[1:-1]]

    def _lines(self) -> list[tuple[int, int]]:
        """For each pair of rows, slope and start in parts 2^-scale_bits; one for all if the rows are evenly spaced.

        A slope is rounded down, and the place of the pair's first index, too. So no place leaves its pair, and none is
        further below the exact one than a part for each index.
        """
        scale = 1 << (self._row_bits + self._scale_bits)
        half, steps = self.size * self._divisor, list(map(sub, self._offsets[1:], self._offsets))
        if min(steps) == max(steps):
            steps = steps[:1]
        lines = []
        for row, (first, step) in enumerate(zip([0, *self._firsts], steps, strict=False)):
            distance = first * 2 * self._divisor - half - self._offsets[row] * self._factor
            whole = step * self._factor
            slope = scale * 2 * self._divisor // whole
            lines.append((slope, row * scale + scale * distance // whole - first * slope))
        return lines

    @cached_property
    def _moments(self) -> tuple[list[float], list[float]]:
        """The mean and the second moment of an estimate from each row, in grid steps from the middle of the range."""
        unit, parts = self.size << self.fraction_bits, 1 << self.fraction_bits
        scale = self.stretch / (2 * parts)
        squares = [0.0]
        for point in self.points:
            fraction = point % parts / parts
            square = ((2 * point - unit) * scale) ** 2 + fraction * (1 - fraction) * self.stretch**2
            squares.append(squares[-1] + square)
        near, far = float(self.inside) / self.width, float(1 - self.inside) / self.rows
        windows = [squares[row + self.width] - squares[row] for row in range(self.rows + 1)]
        factor = self._factor / (2 * self._divisor)
        return (
            [offset * factor for offset in self._offsets],
            [far * squares[-1] + (near - far) * window for window in windows],
        )

    def variance(self, x: int) -> float:
        """Of the unbiased estimate, in squared grid steps."""
        means, seconds = self._moments
        distance = x - self.size / 2
        row = min(max(bisect_right(means, distance) - 1, 0), self.rows - 1)
        part = (distance - means[row]) / (means[row + 1] - means[row])
        return seconds[row] + part * (seconds[row + 1] - seconds[row]) - distance**2

    def worst_at(self) -> tuple[int, ...]:
        """Indexes of which one has the largest variance: between two rows, the variance is a parabola."""
        means, seconds = self._moments
        found = {0, self.size}
        for row in range(self.rows // 2, self.rows):
            low, high = means[row], means[row + 1]
            top = min(max((seconds[row + 1] - seconds[row]) / (high - low) / 2, low), high)
            at = math.floor(top + self.size / 2)
            found |= {min(max(x, 0), self.size) for x in (at, at + 1)}
        return tuple(found)
