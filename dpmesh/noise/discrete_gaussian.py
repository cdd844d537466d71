"""The discrete Gaussian distribution, drawn exactly."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from dpmesh.noise.discrete_laplace import DiscreteLaplace
from dpmesh.noise.entropy import KeyStream
from dpmesh.noise.thresholds import exponential

MAX_VARIANCE = 1 << 88
_CHUNK = 1 << 13
# The float64 computation of an acceptance probability p = exp(-g) is off by less than 2^-50: g's relative
# error is below 4 * 2^-53 and its absolute one from the centre below sqrt(2g) 2^-52, both times p, and exp's
# is below 4 * 2^-53 p. The band has four times that.
_BAND = 2.0**-48
_WORD = 2.0**-32


class DiscreteGaussian:
    """P(z) proportional to exp(-z^2 / (2 sigma2)) for all integers z.

    Rejection from discrete Laplace noise of scale t = floor(sigma) + 1: a proposal y is accepted with
    probability exp(-(|y| - sigma2/t)^2 / (2 sigma2)) (Canonne, Kamath, Steinke 2020, "The Discrete Gaussian
    for Differential Privacy", algorithm 3). A 32-bit uniform decides in float64 where it is clear; where it
    is not, once in some 2^31 times, the same uniform is extended and compared with certified digits of the
    exponential.

    Args:
        sigma2: sigma^2, above 0 and at most 2^88.

    Raises:
        ValueError: sigma2 is out of range.
    """

    __slots__ = ("_centre", "_proposals", "_t", "sigma2")

    def __init__(self, sigma2: Fraction) -> None:
        if not 0 < sigma2 <= MAX_VARIANCE:
            raise ValueError("the scale of discrete Gaussian noise must be above 0, at most 2^44 grid steps")
        self.sigma2 = sigma2
        self._t = math.isqrt(int(sigma2)) + 1
        self._centre = float(sigma2 / self._t)
        self._proposals = DiscreteLaplace(Fraction(self._t))

    def block(self, count: int, stream: KeyStream | None = None) -> NDArray[np.int64]:
        """Makes independent draws.

        Args:
            count: How many.
            stream: The bits; a fresh key stream by default.
        """
        stream = stream or KeyStream()
        draws = np.empty(count, dtype=np.int64)
        done = 0
        while done < count:
            # About 3 of 4 proposals are accepted where sigma is large.
            proposals = min(_CHUNK, (count - done) * 4 // 3 + 64)
            accepted = self._accepted(proposals, stream)[: count - done]
            draws[done : done + len(accepted)] = accepted
            done += len(accepted)
        return draws

    def _accepted(self, count: int, stream: KeyStream) -> NDArray[np.int64]:
        proposals = self._proposals.block(count, stream)
        words = np.empty(count, dtype=np.uint32)
        stream.fill(words)
        distance = np.abs(proposals) - self._centre
        probability = np.exp(distance * distance * (-0.5 / float(self.sigma2)))
        # The uniform lies in [word, word + 1) * 2^-32.
        margin = probability - words * _WORD
        accept = margin >= _WORD + _BAND
        unclear = np.flatnonzero((margin > -_BAND) & ~accept)
        for index in unclear.tolist():
            accept[index] = self._decide(int(proposals[index]), int(words[index]), 32, stream)
        accepted: NDArray[np.int64] = proposals[accept]
        return accepted

    def _decide(self, proposal: int, uniform: int, bits: int, stream: KeyStream) -> bool:
        """Whether a uniform that begins with these bits is below the proposal's acceptance probability."""
        exponent = (abs(proposal) - self.sigma2 / self._t) ** 2 / (2 * self.sigma2)
        while (threshold := exponential(exponent, bits)) == uniform:
            uniform = uniform << 32 | stream.integer(32)
            bits += 32
        return uniform < threshold


def variance(sigma2: Fraction | float) -> float:
    """The variance, which is sigma2 unless sigma is so small that the grid shows."""
    sigma2 = float(sigma2)
    if sigma2 > 100:
        return sigma2  # the difference is below exp(-2 pi^2 sigma2) relative
    reach = range(1, 20 + int(20 * math.sqrt(sigma2)))
    weights = [math.exp(-z * z / (2 * sigma2)) for z in reach]
    return 2 * sum(z * z * weight for z, weight in zip(reach, weights, strict=True)) / (1 + 2 * sum(weights))
