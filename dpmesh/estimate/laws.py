"""The law of an aggregate's noise, read off its mechanism.

All laws are symmetric, and all lengths are in grid steps. Of the noise Z, `scale` is the standard deviation,
`margin` the least w with P(|Z| <= w) >= confidence, `beyond` P(|Z| > t) of the continuous law for each t >= 0, and
`quantiles` are the law's (i + 1/2)/count quantiles, so that their mean stands for an expectation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from dpmesh.noise.numeric import NumericKind, NumericMechanism

Array = NDArray[np.float64]

_NORMAL = NormalDist()
# Up to so many steps of a sum's standard deviation its law is computed.
_FEW = 1000
# Abramowitz and Stegun 7.1.26: the complementary error function within 1.5e-7, without scipy.
_ERFC = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


@dataclass(frozen=True, slots=True)
class Laplace:
    """Discrete Laplace, P(z) = (1-a)/(1+a) a^|z| with a = exp(-1/b).

    Attributes:
        b: Its parameter.
    """

    b: float

    @property
    def scale(self) -> float:
        """sqrt(2 a)/(1 - a)."""
        return math.sqrt(2) * math.exp(-0.5 / self.b) / -math.expm1(-1 / self.b)

    def margin(self, confidence: float) -> int:
        """The least w with P(|Z| > w) = 2 a^(w+1)/(1+a) <= 1 - confidence."""
        tail = (1 - confidence) * (1 + math.exp(-1 / self.b)) / 2
        return max(0, math.ceil(-self.b * math.log(tail) - 1e-9) - 1)

    def margin_of_sum(self, n: int, confidence: float) -> int:
        """The least w with P(|Z1 + ... + Zn| <= w) >= confidence, for independent draws.

        The sum's law is the Fourier transform of the n-th power of the characteristic function of one draw,
        (1-a)^2/(1 - 2a cos t + a^2). Where that would take too many points, the sum is nearly normal or nearly
        continuous: then Cornish and Fisher's expansion adds (z^3 - 3 z)/24 of the excess kurtosis to the normal
        quantile z.
        """
        if n == 1:
            return self.margin(confidence)
        a, deviation = math.exp(-1 / self.b), self.scale * math.sqrt(n)
        if deviation > _FEW:
            z, excess = _NORMAL.inv_cdf((1 + confidence) / 2), (1 + 10 * a + a * a) / (2 * a) - 3
            return math.ceil((z + max(0.0, z**3 - 3 * z) / 24 * excess / n) * deviation)
        points = 1 << math.ceil(math.log2(64 * deviation + 64))
        turns = np.cos(2 * math.pi * np.arange(points // 2 + 1) / points)
        law = np.fft.irfft(((1 - a) ** 2 / (1 - 2 * a * turns + a * a)) ** n, points)[: points // 2]
        within = law[0] + 2 * np.concatenate([[0.0], np.cumsum(law[1:])])
        return int(np.searchsorted(within, confidence - 1e-12))

    def beyond(self, distance: Array) -> Array:
        """exp(-t/b)."""
        return np.exp(-distance / self.b)

    def quantiles(self, count: int) -> Array:
        """-b sign(u) ln(1 - 2|u|) for u in (-1/2, 1/2)."""
        u = (np.arange(count) + 0.5) / count - 0.5
        return np.asarray(-self.b * np.sign(u) * np.log1p(-2 * np.abs(u)), np.float64)


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Discrete Gaussian, P(z) proportional to exp(-z^2/(2 sigma^2)).

    Attributes:
        sigma: Its parameter.
    """

    sigma: float

    @property
    def scale(self) -> float:
        """At most sigma (Canonne, Kamath, Steinke 2020)."""
        return self.sigma

    def margin(self, confidence: float) -> int:
        """Rounded up: the discrete tails are lighter than the continuous ones from there on."""
        return math.ceil(_NORMAL.inv_cdf((1 + confidence) / 2) * self.sigma)

    def beyond(self, distance: Array) -> Array:
        """erfc(t/(sigma sqrt 2))."""
        x = distance / (self.sigma * math.sqrt(2))
        t = 1 / (1 + 0.3275911 * x)
        series = np.zeros_like(t)
        for factor in reversed(_ERFC):
            series = (series + factor) * t
        return np.asarray(series * np.exp(-x * x), np.float64)

    def quantiles(self, count: int) -> Array:
        """From the standard library's inverse normal."""
        return np.array([self.sigma * _NORMAL.inv_cdf((i + 0.5) / count) for i in range(count)])


Law = Laplace | Gaussian


def law_of(mechanism: NumericMechanism) -> Law | None:
    """The law of a mechanism that adds noise; None for one whose outputs depend on the value otherwise."""
    if mechanism.kind is NumericKind.DISCRETE_GAUSSIAN:
        return Gaussian(math.sqrt(mechanism.worst_variance))
    if mechanism.kind is not NumericKind.DISCRETE_LAPLACE:
        return None
    if mechanism.unbiased_low is not None:
        # -a/(1-a) stands for the output 0, so 1/b = -ln a = ln(1 + 1/u).
        return Laplace(1 / math.log1p(-1 / mechanism.unbiased_low))
    # Var = 2a/(1-a)^2 = 1/(2 sinh^2(1/2b)).
    return Laplace(0.5 / math.asinh(math.sqrt(0.5 / mechanism.worst_variance)))
