"""PrivUnitG for vectors in the unit ball, drawn from finitely many public directions, so that its epsilon is exact."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpmesh.noise import checks, frames, largest_normals, uniform
from dpmesh.noise.coins import Coins
from dpmesh.noise.entropy import KeyStream
from dpmesh.noise.thresholds import ONE, logistic

Array = NDArray[np.float64]

MAX_DIMENSION = 100_000
_ROUNDS = 3
_ROOTS = np.exp(2j * np.pi * np.arange(256) / 256)
# Complex coordinates of the space that a vector is put into. So few directions keep the transform near to a uniform
# rotation. More than the second number are only taken where the dimension asks for it.
_FEWEST, _MOST = 1 << 8, 1 << 10
# Up to so many coordinates, and so many complex ones of the space, whole frames are drawn ahead. They are uniform
# whatever the size of the space, so it may be smaller.
_LONGEST_FRAMED = 16
_FEWEST_FRAMED, _MOST_FRAMED = 1 << 4, 1 << 6
# With at least so many directions in the upper part, the error is within 1 % of what infinitely many would give.
_ENOUGH = 12
# How much of epsilon a draw has at least, where the mean of several draws leaves.
_EPSILON_OF_A_COPY = 4


class PrivUnit:
    """Releases a vector x, |x| <= 1, as a random direction that is mostly one of those nearest to it.

    Asi, Feldman and Talwar 2022 ("Optimal Algorithms for Mean Estimation under Local Differential Privacy") release a
    Gaussian vector g under the condition <g, x> > gamma, with probability p, or else under the opposite condition. This
    is not private as floats compute it: x shows in the low digits. Here g is one of finitely many public directions, as
    in Isik et al. 2023 ("Exact Optimality of Communication-Privacy-Utility Tradeoffs in Distributed Mean Estimation"):

    1. x is put into R^D: x, then sqrt(1 - |x|^2) so that the length does not matter, then zeros.
    2. A rotation R of R^D is drawn, whatever x is. The 2 D directions are R^T e and -R^T e, e a unit vector of an axis.
    3. The `top` directions with the largest <R^T e, x> form the upper part. A code is drawn, whatever x is: with
       probability p one of 0..top-1, else one of top..2D-1, uniformly. It selects one direction of the upper part, or
       one of the others, by its place in an order that lists the upper part first.
    4. The first coordinates of that direction leave, times `scale`.

    **Privacy.** Given R, the release is a function of which direction was selected. For every x the order is a
    permutation of all directions, so a direction is selected with the probability of its place: p/top or
    (1-p)/(2D-top). The ratio of the two is at most exp(epsilon), because p is E top/(E top + 2D - top), rounded down to
    a multiple of 2^-128, E = exp(epsilon). So the release is epsilon-DP for each R, and R does not depend on x. The
    proof needs no property of R, <R^T e, x>, or the arithmetic: floats may err as they like, they only choose which
    permutation it is. It needs that R tells nothing of the code: both are bits of one AES key stream.

    **Mean and variance.** If R is uniform over the rotations, the mean of a selected direction is x, times the mean
    cosine, which `scale` takes out. With s the share of the upper part the error is that of PrivUnitG with q = s, but
    for a part of some s(1-s)/(D phi(gamma)^2) that finitely many directions lose: see `variance`.

    Up to 16 dimensions, and an epsilon of 4, R is uniform, and D is from 32 to 128. All columns of R that meet
    x are drawn ahead (see `frames`), so a release is one small product of a matrix and a vector. Beyond that R is three
    rounds of random phases (256 roots of unity) and a Fourier transform on C^(D/2), which takes D log D steps, like
    pseudo-random rotations by Hadamard matrices (Andoni et al. 2015, "Practical and Optimal LSH for Angular Distance").
    That is nearly uniform: 200,000 rotations of spiky and of flat vectors showed no bias above 5e-5 of the mean, with
    standard errors of 2e-5 to 4e-5, and tests/statistical/test_vectors.py would find one of 4e-4.

    Beyond an epsilon of about 8 the upper part would be too small for a list. There the mean of several independent
    draws leaves, each with its part of epsilon.

    Args:
        dimension: 1 to 100,000.
        epsilon: Above 0 and at most 64.

    Attributes:
        copies: Of how many draws the mean leaves.
        directions: 2 D, from which each draw selects.
        top: How many form the upper part.
        threshold: p, in units of 2^-128.
        scale: What the coordinates of a unit direction are multiplied with.
        framed: Whether the rotations are drawn ahead as matrices, for vectors of few coordinates.
    """

    __slots__ = (
        "_along",
        "_axis",
        "_coin",
        "_fourier",
        "_half",
        "_side",
        "copies",
        "dimension",
        "directions",
        "epsilon",
        "framed",
        "scale",
        "threshold",
        "top",
    )

    def __init__(self, dimension: int, epsilon: Fraction) -> None:
        checks.integer("dimension", dimension, 1, MAX_DIMENSION)
        checks.epsilon(epsilon)
        self.dimension, self.epsilon = dimension, epsilon
        self.copies, self._half, self.top = _sizes(dimension, epsilon)
        self.directions = 4 * self._half
        part = epsilon / self.copies
        self.threshold = logistic(-part, Fraction(self.directions - self.top, self.top))
        self._coin = Coins([self.threshold])
        cosine, square = _moments(self._half, self.top, self.threshold / ONE)
        real = 2 * self._half
        self.scale = math.sqrt(real) / cosine
        # E[y_i^2] of one draw, where x is the unit vector i, and where it has no part in it.
        self._along = square / cosine**2
        self._side = (real - square) / (real - 1) / cosine**2
        self.framed = dimension <= _LONGEST_FRAMED and self._half <= _MOST_FRAMED
        self._axis = np.arange(self._half)
        # A row of the Fourier matrix, times the scale and what the transforms of `_select` leave out.
        size = self.scale * self._half ** (-_ROUNDS / 2)
        self._fourier = size * np.exp(-2j * np.pi * self._axis / self._half)

    def block(self, count: int, stream: KeyStream) -> NDArray[Any]:
        """Makes what a release needs: for each copy a code, which is secret, and its rotation.

        Args:
            count: For how many releases.
            stream: The bits.

        Returns:
            An array of `count` tuples: the codes, a list of `copies` integers, and the rotations. These are columns of
            matrices times `scale`, shape (copies, D, dimension + 1), or phases, bytes of the shape (copies, 3, D/2).
        """
        draws = count * self.copies
        upper = self._coin.toss(draws, stream)[0]
        first = uniform.below(self.top, draws, stream)
        rest = uniform.below(self.directions - self.top, draws, stream)
        codes = np.where(upper, first, self.top + rest).reshape(count, self.copies).tolist()
        rotations: NDArray[Any]
        if self.framed:
            rotations = self.scale * frames.uniform(draws, 2 * self._half, self.dimension + 1, stream)
            rotations = rotations.reshape(count, self.copies, 2 * self._half, self.dimension + 1)
        else:
            rotations = np.empty((count, self.copies, _ROUNDS, self._half), np.uint8)
            stream.fill(rotations)
        rows = np.empty(count, object)
        rows[:] = list(zip(codes, rotations, strict=True))
        return rows

    def row_bytes(self) -> int:
        """How much memory one release takes ahead of time."""
        if self.framed:
            return self.copies * 2 * self._half * (self.dimension + 1) * np.dtype(np.float64).itemsize
        return self.copies * _ROUNDS * self._half

    def release(self, x: Array, drawn: tuple[list[int], NDArray[Any]]) -> Array:
        """An unbiased vector for x.

        Args:
            x: Of shape (dimension,) and a length of at most 1; finite.
            drawn: An element of a block, which is used once.

        Returns:
            Of shape (dimension,), no coordinate above `scale` in absolute value, but for rounding.
        """
        if self.framed:
            lifted = [*x.tolist(), math.sqrt(max(0.0, 1 - float(x.dot(x))))]
            return np.array(self.release_framed(lifted, drawn, 1.0))
        point = np.zeros(2 * self._half)
        point[: self.dimension] = x
        point[self.dimension] = math.sqrt(max(0.0, 1 - float(x.dot(x))))
        codes, rotations = drawn
        if self.copies == 1:
            return self._select(point, codes[0], rotations[0])
        directions = [
            self._select(point, code, rotation) for code, rotation in zip(codes, rotations, strict=True)
        ]
        return np.asarray(sum(directions) / self.copies)

    def release_framed(
        self, lifted: list[float], drawn: tuple[list[int], NDArray[Any]], factor: float
    ) -> list[float]:
        """What `release` gives, where `framed` is true. Lists of few numbers take less time than arrays.

        Args:
            lifted: x and sqrt(1 - |x|^2), both times any number above 0.
            drawn: As for `release`.
            factor: What the coordinates are multiplied with.
        """
        codes, rotations = drawn
        if self.copies == 1:
            return self._select_framed(lifted, codes[0], rotations[0], factor)
        factor /= self.copies
        directions = [
            self._select_framed(lifted, code, frame, factor)
            for code, frame in zip(codes, rotations, strict=True)
        ]
        return list(map(sum, zip(*directions, strict=True)))

    def _select_framed(self, lifted: list[float], code: int, frame: Array, factor: float) -> list[float]:
        """The coordinates of the direction at the place `code`, times the scale and the factor."""
        cosines = frame.dot(lifted).tolist()
        sizes = list(map(abs, cosines))
        axis, minus = self._at(cosines, sorted(range(len(sizes)), key=sizes.__getitem__), code)
        if minus:
            factor = -factor
        coordinates: list[float] = frame[axis].tolist()
        coordinates.pop()
        return [each * factor for each in coordinates]

    def _select(self, lifted: Array, code: int, rows: NDArray[np.uint8]) -> Array:
        """The coordinates of the direction at the place `code`, times the scale."""
        point, phases = lifted.view(np.complex128), _ROOTS.take(rows)
        for phase in phases:
            point = np.fft.fft(phase * point)
        cosines = point.view(np.float64)
        axis, minus = self._at(cosines, np.abs(cosines).argpartition(-self.top), code)
        at, imaginary = divmod(axis, 2)
        # The inverse of the rounds, on conjugates: there the inverse of a transform is a transform. That of one axis is
        # a row of the Fourier matrix.
        row = self._fourier.take((at * self._axis) & (self._half - 1))
        if imaginary:
            row = row * -1j
        for phase in phases[:0:-1]:
            row = np.fft.fft(phase * row)
        coordinates: Array = np.conj(phases[0] * row).view(np.float64)[: self.dimension]
        return -coordinates if minus else coordinates

    def _at(
        self, cosines: Array | list[float], order: NDArray[np.intp] | list[int], code: int
    ) -> tuple[int, bool]:
        """The direction at the place `code`: its axis, and whether it is the negative one.

        Args:
            cosines: Those of all axes with x, times any number above 0.
            order: A permutation of the axes in which those of the `top` largest absolute cosines come last. Of a
                direction and its opposite, only the one on x's side can be in the upper part: fewer than half are.
            code: The place.
        """
        if code < 2 * self.top:
            opposite, place = divmod(code, self.top)
            axis = order[place - self.top]
        else:
            place, opposite = divmod(code - 2 * self.top, 2)
            axis = order[place]
        return int(axis), bool(cosines[axis] < 0) != (opposite == 1)

    def variance(self, x: Array | float) -> Array:
        """The variance of each coordinate of a release, by the coordinates of x."""
        square = np.square(x)
        return np.asarray((self._along * square + self._side * (1 - square) - square) / self.copies)

    @property
    def worst_error(self) -> float:
        """The largest expected squared distance of a release from x."""
        return max(self.squared_error(0.0), self.squared_error(1.0))

    def squared_error(self, norm: float) -> float:
        """The expected squared distance of a release from an x of this length."""
        square = norm * norm
        return (self._along * square + self._side * (self.dimension - square) - square) / self.copies


@lru_cache(1024)
def make(dimension: int, epsilon: Fraction) -> PrivUnit:
    """The mechanism, one for all fields with these parameters."""
    return PrivUnit(dimension, epsilon)


def _sizes(dimension: int, epsilon: Fraction) -> tuple[int, int, int]:
    """How many copies, how many complex coordinates, and how many directions in the upper part give the least error."""

    def of_copies(copies: int) -> tuple[float, int, int, int]:
        part = float(epsilon / copies)
        fewest = _FEWEST_FRAMED if dimension <= _LONGEST_FRAMED else _FEWEST
        half = max(fewest, 1 << (dimension // 2).bit_length())
        while (top := _best_top(half, part)) < _ENOUGH and half < _MOST:
            half *= 2
        if _MOST_FRAMED < half < _FEWEST:
            half = _FEWEST
            top = _best_top(half, part)
        grown = math.exp(part) * top
        cosine, _ = _moments(half, top, grown / (grown + 4 * half - top))
        return 1 / (cosine**2 * copies), copies, half, top

    most = math.ceil(epsilon / _EPSILON_OF_A_COPY)
    _, copies, half, top = min(map(of_copies, range(1, most + 1)))
    return copies, half, top


def _best_top(half: int, epsilon: float) -> int:
    """The size of the upper part with the largest mean cosine, as if there were infinitely many directions.

    The mean cosine is m = phi(gamma) (p/q - (1-p)/(1-q)), q = 1 - Phi(gamma), p = E q/(E q + 1 - q), which is largest
    at gamma = m. It rises before and falls after, and q is at most 1/2.
    """
    odds = math.expm1(epsilon)

    def excess(gamma: float) -> float:
        q = 0.5 * math.erfc(gamma / math.sqrt(2))
        return math.exp(-gamma * gamma / 2) / math.sqrt(2 * math.pi) * odds / (1 + q * odds) - gamma

    low, high = 0.0, 12.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    q = 0.5 * math.erfc(low / math.sqrt(2))
    return min(max(1, round(4 * half * q)), 2 * half)


def _moments(half: int, top: int, p: float) -> tuple[float, float]:
    """The mean of sqrt(D) <r, x> and its mean square, r a selected direction and x a unit vector.

    A uniform unit vector is a Gaussian one over its length, which is independent of it. So the mean absolute
    coordinate of the `top` largest is that of Gaussian variables over the mean length. All directions together have
    the mean 0 and the mean square 1.
    """
    real, rest = 2 * half, 4 * half - top
    mean, square = largest_normals.moments(real, top)
    length = math.sqrt(2 / real) * math.exp(math.lgamma(half + 0.5) - math.lgamma(half))
    cosine = mean / length * (p - (1 - p) * top / rest)
    return cosine, p * square + (1 - p) * (4 * half - top * square) / rest
